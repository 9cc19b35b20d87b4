"""The passages on which encoders calibrate when the user gives no text, written for this project.

They are others than those that packages are scored on (compiler/corpus.py): what a package has been fitted to proves nothing.
"""

from __future__ import annotations

PASSAGES: tuple[str, ...] = (
    "The orchard behind the school was planted by people who never ate from it. They wrote the names of the trees on small "
    "metal plates, and now the pupils copy these names into their notebooks every autumn, before the apples are weighed and "
    "given to the kitchen. Some years the harvest fills forty boxes, in others a late frost leaves only leaves.",
    "Please find attached the minutes of the meeting on Thursday. Three points are still open: the cost of the new roof, the "
    "date on which the second entrance will be closed, and who keeps the keys. Answers until Monday noon, please, so that the "
    "contractor can be told in time. Kind regards, the committee.",
    "To replace the filter, switch the pump off, close both valves and wait five minutes until the pressure has fallen. Turn "
    "the housing anticlockwise, take the old cartridge out, clean the seal with a dry cloth and put the new one in. Open the "
    "valves slowly and look for drops before you switch the pump on again.",
    "for row in table.rows:\n    if row.status != 'paid' and row.due < today:\n        reminders.append((row.customer, "
    "row.amount))\n        log.info('reminder for %s', row.customer)\nsend_all(reminders)\n",
    "SELECT city, COUNT(*) AS shops FROM branches WHERE opened >= 2015 GROUP BY city HAVING COUNT(*) > 3 ORDER BY shops DESC;",
    "The match ended two to one after extra time. The visitors had hit the post twice in the first half, and their keeper "
    "saved a penalty with his left foot; the goal that decided it came from a corner that should have been a throw-in. "
    "Both coaches were shown yellow cards for what they said about that.",
    "Is the museum open on public holidays? Yes, except on the first of January and the twenty-fourth of December. Children "
    "under twelve come in without a ticket, groups of more than fifteen should call two weeks ahead.",
    "Am Rand der Stadt liegt ein stillgelegter Steinbruch, in dem sich im Laufe der Jahre ein See gebildet hat. Im Sommer "
    "baden dort viele Familien, obwohl ein Schild davor warnt, denn das Wasser ist tief und auch im August noch kalt.",
    "El tren de las nueve salió con retraso porque una vaca dormía en la vía. El maquinista bajó, habló con ella un buen "
    "rato y al final la vaca se levantó sin prisa. Los pasajeros aplaudieron desde las ventanillas.",
    "Ma grand-mère gardait les recettes dans une boîte en fer, écrites au dos de vieux calendriers. Il manquait toujours une "
    "quantité, car elle disait que celui qui ne goûte pas ne doit pas cuisiner.",
    "На чердаке нашли сундук с письмами, которые никто не открывал восемьдесят лет. Почерк был ровный, чернила почти не "
    "выцвели, и в каждом письме говорилось о саде.",
    "祖父の時計は五分遅れていたが、家族の誰もそれを直そうとはしなかった。時計に合わせて暮らす方が、少しだけ余裕があったからだ。",
    "河边的茶馆只有六张桌子，每天下午都坐满了人。老板记得每位客人喜欢的茶，也记得他们不喜欢谈论的话题。",
    "كتب الطفل رسالة إلى البحر ووضعها في زجاجة، ثم انتظر الجواب على الشاطئ حتى غابت الشمس. في اليوم التالي وجد زجاجة أخرى.",
    "बारिश के बाद खेतों में पानी भर गया, और बच्चों ने कागज़ की नावें चलाईं। शाम तक सारी नावें नदी में पहुँच चुकी थीं।",
    "The temperature fell from 21.5 to 3.2 degrees within four hours, the wind turned from south-west to north, and the gauge "
    "on the bridge showed 87 centimetres, 12 more than in the morning. No damage was reported.",
)
