"""Whether two measurements may be compared at all: the same machine and runtime, believable, and of verified packages."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measurement import Measurement
from compiler.errors import CheckFailed
from compiler.quality import is_at_least

MISSING_CHECK, MACHINE_CHECK, RUNTIME_CHECK, QUALITY_CHECK = CHECKS = ("missing", "machine", "runtime", "quality")
INVALID_CHECK = "invalid"


def require_like_runs(champion: Measurement, challenger: Measurement, allow: Sequence[str]) -> None:
    """Refuse figures of speed and memory of two machines or runtimes, or that cannot be believed.

    Raises:
        CheckFailed: with what to do.
    """
    named = f"{challenger.recipe} of {challenger.model}"
    for measurement in (champion, challenger):
        if measurement.verdict.word == "invalid":
            raise CheckFailed(
                INVALID_CHECK,
                f"The measurement of {measurement.recipe} of {measurement.model} cannot be believed: "
                f"{'; '.join(measurement.verdict.reasons)}. Measure it again on a quiet machine, or compare what "
                "noise does not touch: --metrics quality,size.",
            )
    machines = [_machine(each) for each in (champion, challenger)]
    if machines[0] != machines[1] and MACHINE_CHECK not in allow:
        raise CheckFailed(
            MACHINE_CHECK,
            f"{named} was measured on {machines[1]}, and the baseline on {machines[0]}: the ratio would be that of the "
            f"machines. Measure both on one; --allow {MACHINE_CHECK} compares them all the same.",
        )
    versions = [each.environment.tools for each in (champion, challenger)]
    changed = sorted(
        name for name in versions[0].keys() | versions[1] if versions[0].get(name) != versions[1].get(name)
    )
    if changed and RUNTIME_CHECK not in allow:
        name = changed[0]
        raise CheckFailed(
            RUNTIME_CHECK,
            f"{named} ran on {name} {versions[1].get(name, 'of no version')}, and the baseline on "
            f"{versions[0].get(name, 'none')}: a change of the runtime would pass for one of the package. Measure both with "
            f"one; --allow {RUNTIME_CHECK} compares them all the same.",
        )


def _machine(measurement: Measurement) -> str:
    found = measurement.environment
    return f"{found.cpu} with {found.logical_cores} cores ({found.machine})"


def require_no_worse_quality(champion: Measurement, challenger: Measurement) -> None:
    """Refuse a challenger that failed verify, was not verified where the champion was, or of the same recipe has a worse word.

    Raises:
        CheckFailed: with what to do.
    """
    named = f"{challenger.recipe} of {challenger.model}"
    accept = f"--allow {QUALITY_CHECK} compares them all the same."
    before, after = champion.quality, challenger.quality
    if after is not None and not after.passed:
        raise CheckFailed(
            QUALITY_CHECK, f"{named} failed `edgec verify`, so its figures are those of another function. {accept}"
        )
    if (before is None) != (after is None):
        lacking = "the baseline" if before is None else "this run"
        raise CheckFailed(
            QUALITY_CHECK,
            f"{named} was not verified in {lacking}, so its quality cannot be compared. Run `edgec verify` on the package "
            f"before `edgec bench`. {accept}",
        )
    same = champion.package == challenger.package
    if same and before is not None and after is not None and not is_at_least(after.quality, before.quality):
        raise CheckFailed(QUALITY_CHECK, f"{named} is {after.quality}, and the baseline was {before.quality}. {accept}")
