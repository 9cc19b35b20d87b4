"""A sustained workload: one package runs for minutes without a rest, and what heat does to it is seen.

Phones and boards without a fan begin fast and end slow. What counts is what they hold, and when they gave way.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from benchmarks.agent.observe import Observed
from benchmarks.harness import Progress, require_ready, start_runner, warm_up
from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.devices.registry import is_emulated, open_device
from runtimes.kinds import kind_of_task
from runtimes.workload import Workload

# A fall of so much against the first minute counts as throttling where no sensor tells of it.
_FALL = 0.15
_FIRST_S = 60.0
_SLOW_IN_A_ROW = 3


@dataclass(frozen=True)
class Moment:
    """One run of many.

    Attributes:
        at_s: when it ended, since the first began.
        speed: tokens a second of decode, or inputs a second of an encoder.
        mhz: the lowest clock meanwhile; None where it is not told.
        hottest_c: the highest temperature.
        flags: what the board's firmware reported.
    """

    at_s: float
    speed: float
    mhz: float | None
    hottest_c: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Sustained:
    """What a package held.

    Attributes:
        package: its title.
        device: where it ran.
        unit: of the speeds.
        moments: every run.
        first_speed: the median of the first minute, or of the first tenth of a shorter run.
        last_speed: the median of the last tenth.
        throttled_at_s: when the board's firmware first reported it, or speed first fell by 15 % and stayed so; None if never.
        reason: which of both; empty where it never did.
    """

    package: str
    device: str
    unit: str
    moments: tuple[Moment, ...]
    first_speed: float
    last_speed: float
    throttled_at_s: float | None
    reason: str

    @property
    def held(self) -> float:
        """What is left of the speed at the end."""
        return self.last_speed / self.first_speed


def sustain(
    packages: Sequence[Package],
    workload: Workload,
    seconds: float,
    *,
    device: str = "local",
    on_progress: Progress = lambda done, total: None,
) -> list[Sustained]:
    """Run each package for so many seconds, one after the other.

    Raises:
        UnusableInput: a package cannot be run there, or the device is emulated.
    """
    if is_emulated(device):
        raise UnusableInput(f"{device} is emulated: what it holds tells nothing of a board. Name a real one.")
    require_ready(packages, device)
    opened, found = open_device(device), []
    for number, package in enumerate(packages):
        with ExitStack() as stack:
            runner = start_runner(opened, package, workload, stack)
            warm_up(runner)
            timed, moments, at_s = kind_of_task(package.model.task).timed[0][1], list[Moment](), 0.0
            while at_s < seconds:
                answer = runner.round()
                at_s += answer.observed.wall_s
                moments.append(_moment(at_s, answer.round[timed], answer.observed))
                done = number + min(at_s / seconds, 1.0)
                on_progress(int(100 * done), 100 * len(packages))
            runner.ask("end")
        unit = "tok/s" if timed == "tpot_s" else "inputs/s"
        found.append(judge_sustained(package.title, device, unit, moments))
    return found


def _moment(at_s: float, samples: Sequence[float], observed: Observed) -> Moment:
    seen = observed.conditions
    return Moment(
        at_s,
        len(samples) / sum(samples),
        seen.lowest_mhz if seen else None,
        seen.hottest_c if seen else None,
        tuple(seen.flags or ()) if seen else (),
    )


def judge_sustained(package: str, device: str, unit: str, moments: Sequence[Moment]) -> Sustained:
    """What the moments say."""
    tenth = max(1, len(moments) // 10)
    opening = [each.speed for each in moments if each.at_s <= min(_FIRST_S, moments[-1].at_s / 10)] or [
        moments[0].speed
    ]
    first = float(np.median(opening))
    last = float(np.median([each.speed for each in moments[-tenth:]]))
    flagged = next((each.at_s for each in moments if "throttled" in each.flags), None)
    if flagged is not None:
        return Sustained(
            package, device, unit, tuple(moments), first, last, flagged, "the board's firmware reported it"
        )
    slow = [each.speed < first * (1 - _FALL) for each in moments]
    for place in range(len(slow) - _SLOW_IN_A_ROW + 1):
        # One slow run is a neighbour's; heat stays.
        if all(slow[place : place + _SLOW_IN_A_ROW]) and sum(slow[place:]) > 0.8 * len(slow[place:]):
            at_s, why = moments[place].at_s, f"speed fell by more than {_FALL:.0%} and stayed so"
            return Sustained(package, device, unit, tuple(moments), first, last, at_s, why)
    return Sustained(package, device, unit, tuple(moments), first, last, None, "")
