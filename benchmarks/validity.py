"""Whether a measurement can be believed: valid, suspect or invalid, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.agent.conditions import Conditions

Word = Literal["valid", "suspect", "invalid"]


@dataclass(frozen=True)
class Disturbance:
    """What else happened while a package's rounds ran; None where the system does not tell.

    `other_load` and `stolen` are CPU seconds of others over the CPU seconds that the machine has in that time. `conditions` is
    what the board's sensors told.
    """

    other_load: float | None
    stolen: float | None
    swapped_pages: int | None
    throttled: int | None
    conditions: Conditions | None = None


@dataclass(frozen=True)
class Validity:
    """The word and why."""

    word: Word
    reasons: tuple[str, ...]


# name, suspect from, invalid from, sentence
_LIMITS: tuple[tuple[str, float, float, str], ...] = (
    ("other_load", 0.05, 0.25, "other programs used {:.0%} of the machine"),
    ("stolen", 0.02, 0.15, "the hypervisor took {:.0%} of the machine"),
    ("swapped_pages", 1, 2000, "{:.0f} pages were swapped"),
    ("throttled", 1, 100, "the processor was throttled {:.0f} times"),
    ("clock", 0.10, 0.40, "the processor's clock fell by {:.0%} meanwhile"),
    ("drift", 0.05, 0.25, "the last round differs from the first by {:.0%}"),
    ("spread", 0.10, 0.40, "the rounds spread over {:.0%} of their median"),
)


# With these a Raspberry Pi computes slower than it can, whatever it is given.
_INVALID_FLAGS = ("under-voltage", "throttled")


def _fall_of_clock(conditions: Conditions | None) -> float | None:
    if conditions is None or conditions.lowest_mhz is None or not conditions.highest_mhz:
        return None
    return 1 - conditions.lowest_mhz / conditions.highest_mhz


def judge(
    rounds: Sequence[Sequence[float]],
    disturbance: Disturbance,
    threads: int = 1,
    allowed_cores: float | None = None,
    *,
    emulated: bool = False,
) -> Validity:
    """Judge a measurement by its samples (seconds, by round) and by what else happened."""
    medians = np.asarray([np.median(samples) for samples in rounds])
    middle = float(np.median(medians))
    figures = {
        "other_load": disturbance.other_load,
        "stolen": disturbance.stolen,
        "swapped_pages": disturbance.swapped_pages,
        "throttled": disturbance.throttled,
        "clock": _fall_of_clock(disturbance.conditions),
        "drift": abs(float(medians[-1] / medians[0]) - 1) if len(medians) > 1 else None,
        "spread": float(np.subtract(*np.quantile(medians, [0.9, 0.1]))) / middle if len(medians) > 2 else None,
    }
    word: Word = "valid"
    reasons = []
    for name, suspect_from, invalid_from, sentence in _LIMITS:
        figure = figures[name]
        if figure is None or figure < suspect_from:
            continue
        reasons.append(sentence.format(figure))
        word = "invalid" if figure >= invalid_from or word == "invalid" else "suspect"
    flags = disturbance.conditions.flags if disturbance.conditions is not None else None
    for flag in flags or ():
        word = "invalid" if flag in _INVALID_FLAGS or word == "invalid" else "suspect"
        reasons.append(f"the board's firmware reported: {flag}")
    governors = disturbance.conditions.governors if disturbance.conditions is not None else ()
    if len(governors) > 1:
        word = "suspect" if word == "valid" else word
        reasons.append(f"the governor of the clocks was not one and the same: {', '.join(governors)}")
    if allowed_cores is not None and threads > allowed_cores:
        word = "suspect" if word == "valid" else word
        reasons.append(f"{threads} threads ran on the {allowed_cores:g} cores that the process may use")
    if len(rounds) < 3:
        word = "suspect" if word == "valid" else word
        reasons.append(f"{len(rounds)} rounds are too few to see drift and spread")
    if emulated:
        word = "invalid"
        reasons.append("the processor is emulated, and its times tell nothing of a board")
    return Validity(word, tuple(reasons))
