"""Champion and challenger: per metric the ratio with its interval, and whether it is a regression beyond a stated effect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.comparable import CHECKS, MISSING_CHECK, QUALITY_CHECK, require_like_runs, require_no_worse_quality
from benchmarks.measurement import Measurement
from benchmarks.statistics import Interval, ratio_interval
from compiler.errors import CheckFailed, UnusableInput
from runtimes.kinds import kind_of_task

# What can be compared. A runner that others use can tell the first two.
METRICS = ("quality", "size", "memory", "speed")
# Figures of which there is one each; smaller is better.
_SINGLE = {"size": ("package_bytes",), "memory": ("peak_rss_bytes", "peak_anon_bytes")}
_BITS_TOLERANCE = 0.02


@dataclass(frozen=True)
class Comparison:
    """One metric of one package in two runs.

    Attributes:
        package: the recipe and model that both runs measured.
        metric: its name; for all of them smaller is better.
        ratio: challenger over champion, with an interval where there are samples (else low = high = value).
        regression: the challenger is worse by more than the stated effect, and the interval does not hold 1.
        champion_bits, challenger_bits: effective bits per weight of the two packages; None in results that lack them.
    """

    package: str
    metric: str
    ratio: Interval
    regression: bool
    champion_bits: float | None = None
    challenger_bits: float | None = None


def compare(
    champion: Sequence[Measurement],
    challenger: Sequence[Measurement],
    effect: float,
    *,
    metrics: Sequence[str] = METRICS,
    across_schemes: bool = False,
    allow: Sequence[str] = (),
) -> list[Comparison]:
    """Compare two runs, package by package.

    Args:
        effect: how much worse is a regression, e.g. 0.05 for 5 %.
        metrics: what is compared, of METRICS.
        across_schemes: compare packages although their schemes or bits per weight differ.
        allow: names of checks whose failure is accepted, of CHECKS.

    Raises:
        UnusableInput: no package and workload is in both, a name is unknown, or two packages are not comparable.
        CheckFailed: a package of the champion was not measured, what was measured cannot be compared or believed, or one of
            the challenger's failed `verify` or was not verified.
    """
    _require_known(metrics, METRICS, "metrics")
    _require_known(allow, CHECKS, "checks")
    known = {_identity(measurement): measurement for measurement in champion}
    pairs = [(known[_identity(each)], each) for each in challenger if _identity(each) in known]
    if not pairs:
        raise UnusableInput(
            "The two result files have no package, device and workload in common; nothing can be compared."
        )
    missing = sorted(known.keys() - {_identity(each) for each in challenger})
    if missing and MISSING_CHECK not in allow:
        raise CheckFailed(
            MISSING_CHECK,
            f"{len(missing)} measurements of the baseline have no counterpart, the first is {missing[0][1]} of "
            f"{missing[0][0]} ({missing[0][3]}). Measure it too; --allow {MISSING_CHECK} compares what there is.",
        )
    for before, after in pairs:
        if "speed" in metrics or "memory" in metrics:
            require_like_runs(before, after, allow)
        if "quality" in metrics and QUALITY_CHECK not in allow:
            require_no_worse_quality(before, after)
        _require_comparable(before, before.recipe, after, across_schemes)
    return [comparison for pair in pairs for comparison in _compare_pair(*pair, effect, metrics, allow)]


def _require_known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    if unknown := [name for name in names if name not in known]:
        raise UnusableInput(f"{unknown[0]!r} is none of the {what} of compare; those are {', '.join(known)}.")


def compare_recipes(
    measurements: Sequence[Measurement],
    champion: str,
    effect: float,
    *,
    metrics: Sequence[str] = METRICS,
    across_schemes: bool = False,
    allow: Sequence[str] = (),
) -> list[Comparison]:
    """Compare the other recipes of a run with the recipe `champion`, model by model.

    Raises:
        UnusableInput: no or every measurement has that recipe, or two packages are not comparable.
        CheckFailed: as of `compare`.
    """
    champions = [measurement for measurement in measurements if measurement.recipe == champion]
    if not champions:
        known = ", ".join(sorted({measurement.recipe for measurement in measurements}))
        raise UnusableInput(f"The results have no measurement of {champion}; they have {known}.")
    found: list[Comparison] = []
    for each in champions:
        others = [other for other in measurements if other.model == each.model and other.recipe != champion]
        for other in others:
            _require_comparable(each, champion, other, across_schemes)
            renamed = replace(each, recipe=other.recipe)
            found += compare([renamed], [other], effect, metrics=metrics, across_schemes=True, allow=allow)
    if not found:
        raise UnusableInput(f"The results have nothing beside {champion} that could be compared with it.")
    return found


def _require_comparable(champion: Measurement, recipe: str, challenger: Measurement, across_schemes: bool) -> None:
    """Refuse two packages of different schemes or bits, and figures of quality that were taken on different texts."""
    texts = [each.quality.text if each.quality else None for each in (champion, challenger)]
    if all(texts) and texts[0] != texts[1]:
        raise UnusableInput(
            f"{challenger.recipe} was verified on {texts[1]} and {recipe} on {texts[0]}, so their quality cannot be compared. "
            "Run `edgec verify` on both with the same --text and measure again."
        )
    if across_schemes:
        return
    schemes = [re.split(r"[:@+]", text)[1] for text in (recipe, challenger.recipe)]
    before, after = _bits(champion), _bits(challenger)
    bits_differ = before is not None and after is not None and abs(after / before - 1) > _BITS_TOLERANCE
    if schemes[0] != schemes[1] or bits_differ:
        shown = [f" ({bits:.2f} bits per weight)" if bits else "" for bits in (before, after)]
        raise UnusableInput(
            f"{challenger.recipe}{shown[1]} and {recipe}{shown[0]} of {challenger.model} are not comparable: they differ in "
            f"{'scheme' if schemes[0] != schemes[1] else 'bits'}, so one may be better only because it is larger. "
            "--across-schemes compares them all the same."
        )


def _bits(measurement: Measurement) -> float | None:
    return measurement.figure("effective_bits_per_weight")


def _identity(measurement: Measurement) -> tuple[str, ...]:
    workload = ",".join(f"{name}={value}" for name, value in sorted(asdict(measurement.workload).items()))
    return (measurement.model, measurement.recipe, measurement.device, workload)


def _compare_pair(
    champion: Measurement, challenger: Measurement, effect: float, metrics: Sequence[str], allow: Sequence[str]
) -> list[Comparison]:
    label = f"{challenger.model} {challenger.recipe}"
    kind, found = kind_of_task(challenger.task), []
    for metric, key in kind.timed if "speed" in metrics else ():
        ratio = ratio_interval(champion.samples[key], challenger.samples[key])
        # Put so that what is not a number is a regression.
        found.append(Comparison(label, metric, ratio, not (ratio.value <= 1 + effect or ratio.low <= 1)))
    for metric in (name for group, names in _SINGLE.items() if group in metrics for name in names):
        before, after = champion.figure(metric), challenger.figure(metric)
        if before and not after and MISSING_CHECK not in allow:
            raise _lacking(label, metric, challenger)
        if before and after:
            found.append(_single(label, metric, after / before, effect))
    for each in kind.compared if "quality" in metrics else ():
        before, after = (each.distance(found_in.distance(each.key)) for found_in in (champion, challenger))
        # What was not verified at all is held to by another check.
        if before is not None and after is None and challenger.quality is not None and MISSING_CHECK not in allow:
            raise _lacking(label, each.key, challenger)
        if before is not None and after is not None:
            found.append(_single(label, each.key, _at_least(each.floor, after) / _at_least(each.floor, before), effect))
    return [replace(each, champion_bits=_bits(champion), challenger_bits=_bits(challenger)) for each in found]


def _lacking(label: str, metric: str, challenger: Measurement) -> CheckFailed:
    reason = challenger.absent.get(metric)
    why = f" ({reason})" if reason else ""
    return CheckFailed(
        MISSING_CHECK,
        f"The baseline of {label} has {metric}, and what is held to it has none{why}. Measure it, or leave that metric out.",
    )


def _at_least(floor: float, value: float) -> float:
    """The larger one; what is not a number stays so."""
    return floor if value <= floor else value


def _single(label: str, metric: str, ratio: float, effect: float) -> Comparison:
    return Comparison(label, metric, Interval(ratio, ratio, ratio), not ratio <= 1 + effect)


def require_no_regression(comparisons: Sequence[Comparison], effect: float) -> None:
    """Raise CheckFailed that names the worst regression, when there is one."""
    regressions = [comparison for comparison in comparisons if comparison.regression]
    if regressions:
        worst = max(regressions, key=lambda comparison: comparison.ratio.value)
        raise CheckFailed(
            "regression",
            f"{len(regressions)} metrics are worse than the baseline by more than {effect:.0%}; the worst is "
            f"{worst.metric} of {worst.package}: {worst.ratio.value:.3f} times the baseline.",
        )
