"""The texts that packages are held to when the user gives none, all written for this project.

`PASSAGES` measure numbers (KL divergence, cosine). `NASTY` are strings on which tokenizers are known to part ways; a NUL
byte is not among them because GenAI's C interface ends a string there. `CONVERSATIONS` exercise the chat template.
"""

from __future__ import annotations

from collections.abc import Iterable

PASSAGES: tuple[str, ...] = (
    "The lighthouse keeper wrote down the weather every morning for forty years. When the lamp became automatic he kept "
    "writing, because the fishermen had grown used to asking him what the sky would do. His notebooks later helped a "
    "group of students to show that the storms had moved further north, a little every decade.",
    "To make a simple bread, mix five hundred grams of flour with ten grams of salt, seven grams of dry yeast and three "
    "hundred and thirty millilitres of warm water. Knead for ten minutes, let it rise for an hour, shape it, let it rise "
    "again, and bake it for thirty-five minutes in a hot oven.",
    "def moving_average(values, width):\n    total = sum(values[:width])\n    result = [total / width]\n    for old, new in "
    "zip(values, values[width:]):\n        total += new - old\n        result.append(total / width)\n    return result\n",
    "Der Zug nach Leipzig fährt heute von Gleis sieben. Wegen einer Baustelle verspätet sich die Abfahrt um etwa zwanzig "
    "Minuten; Fahrgäste mit Anschluss in Halle werden gebeten, sich beim Personal zu melden.",
    "La biblioteca del barrio abre los sábados por la mañana. Los niños eligen un libro, lo leen en voz alta y después "
    "dibujan la escena que más les ha gustado. Nadie pregunta quién lo ha hecho mejor.",
    "Le vieux pont relie deux villages qui se disputent depuis trois siècles la propriété d'un moulin. Le moulin n'existe "
    "plus, mais la dispute continue, et chaque été on la rejoue sur la place avec des costumes.",
    "Вечером на станции стало тихо. Последний поезд ушёл, и дежурный поставил чайник. За окном шёл мокрый снег, а в "
    "журнале осталось всего две пустые строки до конца года.",
    "駅前の小さな本屋は、毎週金曜日の夜だけ遅くまで開いている。店主は客に本を売るより、何を読んだかを聞くほうが好きらしい。",
    "下雨的时候，老人把收音机搬到门口，一边听新闻一边修伞。孩子们放学路过，总要停下来问他今天修好了几把。",
    "كان السوق القديم يفتح أبوابه قبل الفجر. يجلس بائع التوابل قرب المدخل ويعرف كل زبون من خطواته قبل أن يراه.",
    "गाँव की पाठशाला में एक ही घड़ी थी, और वह हमेशा दस मिनट आगे चलती थी। मास्टर जी कहते थे कि इससे कोई देर से नहीं आता।",
    "Q: A shop sells pens in boxes of 12. If a school needs 150 pens, how many boxes must it buy, and how many pens are "
    "left over?\nA: 150 / 12 = 12.5, so it must buy 13 boxes. That gives 13 x 12 = 156 pens, and 6 are left over.",
)

PROMPTS: tuple[str, ...] = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at 100 degrees Celsius because",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "Dear customer, thank you for",
)

NASTY: tuple[str, ...] = (
    "Hello world",
    " leading space",
    "trailing space ",
    "two  spaces,   three, \t tab",
    "    four spaces of indent\n\tand a tab",
    "\n\nempty lines\n\n\n",
    "\r\nWindows line\r\nends\r\n",
    " ",
    "\n",
    "word\u00a0no-break\u3000wide\u2009thin",
    "zero\u200bwidth\u200djoin\u2060er",
    "naïve café — “quotes” ‘single’ … «guillemets»",
    "combining: e\u0301 a\u0308 n\u0303 o\u0302\u0301",
    "ﬁ ligature ﬂ, ½ ⅓ ² ₂ ① Ⅷ",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-5 0x1F",
    "x  5   12\n   7\t8 a  ½ (2²)",
    "٠١٢٣ ०१२३ ๐๑๒ ０１２",
    "I'm you're he'll we've IT'S DON'T l'été O'Neill's",
    "CamelCaseWords snake_case_words kebab-case-words SCREAMING_SNAKE",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n",
    '<html><body class="a b">&amp;&lt;</body></html>',
    "SELECT * FROM t WHERE a >= 1 AND b != 'x';--",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "日本語のテキストと漢字かな交じり文",
    "简体中文和繁體中文，标点。",
    "한국어 텍스트와 띄어쓰기",
    "Привет, мир! Ёжик и йод",
    "مرحبا بالعالم، كيف الحال؟",
    "שלום עולם עם ניקוד שָׁלוֹם",
    "नमस्ते दुनिया, क्षत्रिय ज्ञान",
    "สวัสดีชาวโลก ภาษาไทย",
    "Ελληνικά με τόνους: άέήίόύώ",
    "mixed: abcабв漢字عربي123",
    "😀😃 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ☺️ ☺",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝓈𝒸𝓇𝒾𝓅𝓉 𐍈 𒀀",
    "\ufeffbyte order mark",
    "İstanbul ıssız ß ẞ ǅ",
    "∑∫≠≤∞ ← → ↔ ⇒ ∀x∈ℝ",
    "!!!??? ... ---- ==== #### ~~~~ ****",
    "$100 €5 £3 ¥1000 50% 20°C",
    "a" * 200,
    "ab " * 60,
)

# How special tokens look when they stand in a user's text; filled with the model's own.
SPECIAL_IN_TEXT: tuple[str, ...] = ("{token}", "before{token}after", "{token}{token}", " {token} ")

CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello!"},),
    (
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ),
    (
        {"role": "user", "content": "  spaces around  \nand a second line"},
        {"role": "assistant", "content": "Understood: “ja”, 好的 👍"},
        {"role": "user", "content": "{{ not a template }} {% nor this %}"},
    ),
)


def nasty_strings(special_tokens: Iterable[str]) -> list[str]:
    """The strings on which tokenizers part, with a model's own special tokens as they look in a user's text."""
    tokens = [token for token in special_tokens if token.strip()]
    return [*NASTY, *(form.format(token=token) for token in tokens for form in SPECIAL_IN_TEXT)]
