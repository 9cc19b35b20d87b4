"""Champion and challenger: per metric the ratio with its interval, and whether it is a regression beyond a stated effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.measurement import Measurement
from benchmarks.statistics import Interval, ratio_interval
from compiler.errors import UnusableInput

# Timed metrics: name, key in samples. Smaller is better.
_TIMED = (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("latency", "latency_s"))
# Figures of which there is one each; smaller is better.
_SINGLE = ("peak_rss_bytes", "peak_anon_bytes", "package_bytes")
# Quality, smaller is better; below the floor a difference means nothing.
_QUALITY = (("mean_kl", 1e-3), ("max_abs_difference", 1e-3))


@dataclass(frozen=True)
class Comparison:
    """One metric of one package in two runs.

    Attributes:
        package: the recipe and model that both runs measured.
        metric: its name; for all of them smaller is better.
        ratio: challenger over champion, with an interval where there are samples (else low = high = value).
        regression: the challenger is worse by more than the stated effect, and the interval does not hold 1.
    """

    package: str
    metric: str
    ratio: Interval
    regression: bool


def compare(champion: Sequence[Measurement], challenger: Sequence[Measurement], effect: float) -> list[Comparison]:
    """Compare two runs, package by package.

    Args:
        effect: how much worse is a regression, e.g. 0.05 for 5 %.

    Raises:
        UnusableInput: no package and workload is in both, or a measurement has the verdict invalid.
    """
    known = {_identity(measurement): measurement for measurement in champion}
    pairs = [(known[_identity(each)], each) for each in challenger if _identity(each) in known]
    if not pairs:
        raise UnusableInput(
            "The two result files have no package, device and workload in common; nothing can be compared."
        )
    for measurement in (each for pair in pairs for each in pair):
        if measurement.verdict["word"] == "invalid":
            reasons = "; ".join(measurement.verdict["reasons"])
            raise UnusableInput(f"The measurement of {measurement.package} is invalid ({reasons}). Measure it again.")
    return [comparison for pair in pairs for comparison in _compare_pair(*pair, effect)]


def compare_recipes(measurements: Sequence[Measurement], champion: str, effect: float) -> list[Comparison]:
    """Compare the other recipes of a run with the recipe `champion`, model by model.

    Raises:
        UnusableInput: no measurement has that recipe, or a measurement has the verdict invalid.
    """
    champions = [measurement for measurement in measurements if measurement.recipe == champion]
    if not champions:
        known = ", ".join(sorted({measurement.recipe for measurement in measurements}))
        raise UnusableInput(f"The results have no measurement of {champion}; they have {known}.")
    found: list[Comparison] = []
    for each in champions:
        others = [other for other in measurements if other.model == each.model and other.recipe != champion]
        for other in others:
            found += compare([replace(each, recipe=other.recipe)], [other], effect)
    return found


def _identity(measurement: Measurement) -> tuple[str, ...]:
    workload = ",".join(f"{name}={value}" for name, value in sorted(measurement.workload.items()))
    return (measurement.model, measurement.recipe, measurement.device, workload)


def _compare_pair(champion: Measurement, challenger: Measurement, effect: float) -> list[Comparison]:
    label = f"{challenger.model} {challenger.recipe}"
    found = []
    for metric, key in _TIMED:
        if key in champion.samples and key in challenger.samples:
            ratio = ratio_interval(champion.samples[key], challenger.samples[key])
            found.append(Comparison(label, metric, ratio, ratio.value > 1 + effect and ratio.low > 1))
    for metric in _SINGLE:
        before, after = champion.summary.get(metric), challenger.summary.get(metric)
        if before and after:
            found.append(_single(label, metric, after / before, effect))
    for metric, floor in _QUALITY:
        before, after = (champion.quality or {}).get(metric), (challenger.quality or {}).get(metric)
        if before is not None and after is not None:
            found.append(_single(label, metric, max(after, floor) / max(before, floor), effect))
    return found


def _single(label: str, metric: str, ratio: float, effect: float) -> Comparison:
    return Comparison(label, metric, Interval(ratio, ratio, ratio), ratio > 1 + effect)
