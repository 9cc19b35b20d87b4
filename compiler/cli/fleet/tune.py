"""Tune: builds and measures recipes on a device until none that is left could be better than the best that was found.

A plan gives every recipe an interval of speed. The one with the highest end is measured first; what was measured bounds the
others (branch and bound, Land and Doig 1960). So few are built where the plan is sure, and more where it is not. What was
measured stays in the folder, and a run that was broken off goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.history import read_history
from benchmarks.matrix.cell import Cell, Result
from benchmarks.plan import Option, Wishes
from benchmarks.plan import plan as make_plan
from benchmarks.prediction import Range
from compiler.cli.fleet.work import BuildOrder, MeasureOrder, build_one, device_profile, measure_one, read_result
from compiler.inputs.identity import digest_model
from compiler.model import Model
from compiler.quality import is_at_least
from compiler.quantize.options import QuantizationOptions
from compiler.recipe import Shapes
from runtimes.workload import Workload
from targets.registry import load_target

_OF_MEMORY = 0.8
Ended = Literal["none that is left can be better", "the budget is used up"]


@dataclass(frozen=True)
class Trial:
    """A recipe that was measured, or why it was not, and which wishes it fails."""

    option: Option
    result: Result
    misses: tuple[str, ...]

    @property
    def worth(self) -> float:
        """Tokens a second; of encoders inputs a second."""
        found = self.result.measurement
        if found is None:
            return 0.0
        speed, latency = found.figure("decode_tok_per_s"), found.figure("latency_ms_p50")
        return speed if speed is not None else 1e3 / latency if latency else 0.0


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        best: the fastest that holds every wish; None where none does.
        trials: in the order in which they were measured.
        left: recipes that were not measured, and could not have been better or had no time.
        ended: why it ended.
        context: tokens of the cache; None for encoders.
    """

    best: Trial | None
    trials: tuple[Trial, ...]
    left: tuple[str, ...]
    ended: Ended
    context: int | None


def tune(
    model: Model,
    name: str,
    device: str,
    wishes: Wishes,
    workload: Workload,
    out: Path,
    budget_s: float,
    tell: Callable[[str, int, int], None],
) -> Tuned:
    """Find the fastest recipe that holds the wishes on a device.

    Args:
        model: the model.
        name: what it was opened by.
        device: as `--device` of bench takes it.
        wishes: what a package must hold.
        workload: what is measured.
        out: folder of packages and results.
        budget_s: seconds after which nothing new is begun.
        tell: is told what is done.
    """
    profile, digest = device_profile(device), digest_model(model)
    planned = make_plan(model, digest, profile, wishes, load_target, read_history())
    room = wishes.max_memory_bytes
    if room is None and profile.memory is not None:
        room = int(profile.memory.amount * _OF_MEMORY)
    open_ones = [each for each in planned.options if _could(each, wishes, room)]
    candidates = sorted(open_ones, key=lambda each: (-_reach(each), each.package_bytes))
    began, trials, best = time.monotonic(), list[Trial](), None
    ended: Ended = "none that is left can be better"
    shapes = Shapes(context_length=planned.context) if planned.context else Shapes()
    for number, option in enumerate(candidates):
        if best is not None and _reach(option) <= best.worth:
            break
        if trials and time.monotonic() - began > budget_s:
            ended = "the budget is used up"
            break
        tell(f"{option.recipe} {' '.join(option.flags)}".strip(), number, len(candidates))
        order = BuildOrder(name, digest, option.recipe, shapes, _quantization(option), True, ())
        result = _measure(MeasureOrder(Cell(name, option.recipe, device), order, workload), out)
        trial = Trial(option, result, _misses(result, wishes, room))
        trials.append(trial)
        if not trial.misses and (best is None or trial.worth > best.worth):
            best = trial
    tell("done", len(candidates), len(candidates))
    tried = {(each.option.recipe, each.option.flags) for each in trials}
    left = [" ".join((each.recipe, *each.flags)) for each in candidates if (each.recipe, each.flags) not in tried]
    return Tuned(best, tuple(trials), tuple(left), ended, planned.context)


def _measure(order: MeasureOrder, out: Path) -> Result:
    address = str(out)
    return read_result(measure_one(order, build_one(order.build, address), address), address)


def _quantization(option: Option) -> QuantizationOptions:
    budget = dict(zip(option.flags[::2], option.flags[1::2], strict=True)).get("--target-bpw")
    return QuantizationOptions(target_bpw=float(budget) if budget else None)


def _could(option: Option, wishes: Wishes, room: int | None) -> bool:
    """Whether the plan leaves open that it holds the wishes."""
    if any("another type" in miss for miss in option.misses):
        return False
    least = option.memory.low if option.memory is not None else float(option.package_bytes)
    if room is not None and least > room:
        return False
    if (
        wishes.min_tok_per_s is not None
        and option.tok_per_s is not None
        and option.tok_per_s.high < wishes.min_tok_per_s
    ):
        return False
    # What was measured of this very model is known; what others had is a guess that one step may be off.
    return option.quality is None or option.known != "measured" or is_at_least(option.quality, wishes.min_quality)


def _reach(option: Option) -> float:
    """The best that it could be: tokens a second, of an encoder inputs a second; without an interval nothing bounds it."""
    if not option.decodes and option.first_s is not None:
        return 1 / option.first_s.low
    reach: Range | None = option.tok_per_s
    return reach.high if reach is not None else math.inf


def _misses(result: Result, wishes: Wishes, room: int | None) -> tuple[str, ...]:
    found = result.measurement
    if found is None:
        return (result.reason,)
    missed: list[str] = []
    peak, speed, distance = found.figure("peak_rss_bytes"), found.figure("decode_tok_per_s"), found.distance("mean_kl")
    if room is not None and peak is not None and peak > room:
        missed.append(f"took {peak / 1e6:,.0f} MB of memory")
    if wishes.min_tok_per_s is not None and (speed is None or speed < wishes.min_tok_per_s):
        missed.append("is too slow" if speed is not None else "has no tokens a second")
    if found.quality is not None and not is_at_least(found.quality.quality, wishes.min_quality):
        missed.append(f"is {found.quality.quality}")
    if wishes.max_kl is not None and (distance is None or distance > wishes.max_kl):
        missed.append("has no KL" if distance is None else f"has a KL of {distance:.2g}")
    if result.agreement is not None and not result.agreement.passed:
        missed.append("computes something else there")
    return tuple(missed)
