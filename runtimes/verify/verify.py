"""Holding a package to the Reference: files, numbers and text, each with limits; nothing passes as a warning."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.digest import digest_file
from compiler.errors import CheckFailed, EdgecError, UnusableInput
from compiler.formats.json_file import read_object
from compiler.inputs.identity import digest_model
from compiler.model import Model
from compiler.package import Package, check_files, read_package
from compiler.package_use import require_usable
from compiler.quality import UNUSABLE, is_at_least
from compiler.quantize.calibrate.arrays import kept_arrays
from compiler.recipe import Recipe, Shapes, recipe_from_full
from compiler.stages.cache import Entry
from compiler.stages.executor import Executor, LocalExecutor, Source
from compiler.stages.stage import Stage
from compiler.stages.worker import Ended, Progress, report_progress, run_in_child
from compiler.task import find_task
from runtimes.kinds import kind_of_task
from runtimes.kinds.kind import Figures, Kind
from runtimes.registry import evaluator_of, open_session, runtime_of
from runtimes.verify.card import write_card
from runtimes.verify.verification import Failure, Lowering, Verification, write_verification

MAX_TEXT_TOKENS = 4096
_DIGITS = 4

# The names of checks, for --allow. Each miss on the side of text has one of its own.
LOWERING_CHECK, QUALITY_CHECK, THRESHOLDS_CHECK = "lowering", "quality", "thresholds"
NAMED_CHECKS = (LOWERING_CHECK, QUALITY_CHECK, THRESHOLDS_CHECK)
# The runtime cannot open or run the package: nothing is proved, and that cannot be accepted.
OPENING_CHECK = "opening"
_TEXT_CHECK = re.compile(r"[a-z]+(-[a-z]+)*:[0-9a-f]{8}")
_SHOWN_NAMES = 6
OWN_PASSAGES, DRAWN = "edgec passages", "drawn numbers"


def reference_stage(model: Model, shapes: Shapes, data: Path | None, max_tokens: int) -> Stage:
    """The stage that writes what the Reference says, cut to what the model and a package of these shapes can hold.

    Raises:
        UnusableInput: the text, or the arrays, cannot be read, or such models take none.
    """
    told = kind_of_task(model.task).expect(model, shapes, data, max_tokens)
    return Stage(
        "the Reference",
        told.function,
        told.arguments,
        told.tools,
        ensures=("expected.json",),
        environment=told.environment,
    )


def expect(model: Model, shapes: Shapes, data: Path | None, max_tokens: int, executor: Executor) -> Entry:
    """What the Reference says of the model, computed once and kept in the cache.

    Raises:
        UnusableInput: the text cannot be read or is too short, or the model cannot be loaded.
    """
    stage = reference_stage(model, shapes, data, max_tokens)
    return executor.run_one(stage, {"model": Source(model.folder, digest_model(model))}, model.name)


def verify(
    package: Package,
    model: Model,
    *,
    data: Path | None = None,
    max_tokens: int = MAX_TEXT_TOKENS,
    threads: int = 2,
    allow: Sequence[str] = (),
    min_quality: str | None = None,
    executor: Executor | None = None,
    on_progress: Progress | None = None,
) -> Verification:
    """Check the files, then the package against its stored weights and the Reference; leave what is found beside the manifest.

    `data` is what is measured on: a text of `max_tokens` at most, or a function's inputs; without it, the project's passages,
    or the inputs that the package was calibrated on. A failure of a check that `allow` names is recorded as accepted.
    `min_quality` takes the place of the recipe's.

    Raises:
        CheckFailed: a file is not the one that was built.
        UnusableInput: the package or the model cannot be opened, or the package is unfinished.
    """
    executor = executor or LocalExecutor()
    require_known_checks(allow)
    check_files(package)
    require_usable(package, proving=True)
    if not os.access(package.folder, os.W_OK):
        raise UnusableInput(
            f"What is found of {package.title} is left beside its manifest, and its folder cannot be written. Copy the "
            "package to where it can."
        )
    recipe, kind = recipe_from_full(package.recipe_full), kind_of_task(package.model.task)
    asked, own = min_quality or recipe.min_quality, own_limits(kind, recipe)
    sources = {
        "model": Source(model.folder, digest_model(model)),
        "package": Source(package.folder, package.digest),
    }
    takes_arrays = find_task(package.model.task).takes == "arrays"
    named = _name_of(data) if data else DRAWN if takes_arrays else OWN_PASSAGES
    if data is None and takes_arrays and (calibration := recipe.quantization.calibration).arrays is not None:
        kept = kept_arrays(calibration.arrays)
        if kept.is_file():
            data, named = kept, f"{calibration.source} (as calibrated)"
    reference = reference_stage(model, recipe.shapes, data, max_tokens)
    entry = executor.run_one(reference, sources, model.name)
    figures: Figures = {}
    lowering, quality, failures = None, UNUSABLE, []
    try:
        stored = _run_stored(package, kind, reference, executor, sources)
        finished = run_in_child(
            f"{__name__}:probe",
            {
                "package": str(package.folder.resolve()),
                "expected": str(entry.files),
                "stored": str(stored.files) if stored else None,
                "threads": threads,
            },
            label=f"verify {package.title}",
            on_progress=on_progress,
            debug=executor.debug,
            # Pictures go through transformers' image processors.
            forked=find_task(package.model.task).takes == "image",
        )
    except Ended:
        raise
    except EdgecError as error:
        failures.append(Failure(OPENING_CHECK, str(error)))
    else:
        left_out = kind.only_with_text if data is None else ()
        told = finished.value["figures"].items()
        figures = {name: _rounded(name, value) for name, value in told if name not in left_out}
        if stored:
            lowering, misses = judge_lowering(package, kind, stored.files, finished.value["from_stored"])
            failures += [Failure(LOWERING_CHECK, sentence) for sentence in misses]
        failures += [_text_failure(miss) for miss in finished.value["text_misses"]]
        quality = quality_of(figures, kind)
    lowered_right = not {failure.check for failure in failures} - set(allow)
    if figures and not is_at_least(quality, asked):
        failures.append(Failure(QUALITY_CHECK, _short_of(figures, kind, quality, asked)))
    if figures:
        failures += [Failure(THRESHOLDS_CHECK, sentence) for sentence in check_numbers(figures, own, kind.limited)]
    accepted = tuple(sorted({failure.check for failure in failures} & set(allow) - {OPENING_CHECK}))
    found = Verification(
        package=package.digest,
        passed=all(failure.check in accepted for failure in failures),
        lowered_right=lowered_right,
        quality=quality,
        asked=asked,
        limits={**_limits_for(kind, asked), **own},
        text=named,
        figures=figures,
        lowering=lowering,
        failures=tuple(failures),
        accepted=accepted,
        evaluated_by=evaluator_of(package),
    )
    write_verification(package, found)
    write_card(package, found, kind)
    return found


def require_known_checks(allow: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuse names that no check has; `others` are those of who asks.

    Raises:
        UnusableInput: there is such a name.
    """
    known = (*others, *NAMED_CHECKS)
    for name in allow:
        if name not in known and not _TEXT_CHECK.fullmatch(name):
            raise UnusableInput(
                f"--allow {name} accepts nothing: no check has that name. Checks are {', '.join(known)}, and each miss on the "
                "side of text has a name of its own, as verify prints it: tokenizer:1a2b3c4d, for one."
            )


def _run_stored(
    package: Package, kind: Kind, reference: Stage, executor: Executor, sources: Mapping[str, Source]
) -> Entry | None:
    """What the package's stored weights compute in torch; None for a kind that is not held to that."""
    if kind.stored is None:
        return None
    stage = Stage(
        "the stored weights",
        kind.stored.function,
        {"task": package.model.task},
        (*reference.tools, *runtime_of(package).distributions),
        {"expected": reference},
        {"expected": ("expected.json",)},
        ("stored.json",),
        ("model", "package"),
    )
    return executor.run_one(stage, sources, package.title)


def judge_lowering(
    package: Package, kind: Kind, stored: Path, distance: float | None
) -> tuple[Lowering, tuple[str, ...]]:
    """How far the package is from its stored weights, and a sentence for each reason against it."""
    assert kind.stored is not None
    told = read_object(stored / "stored.json")
    floor = kind.stored.floor_float16 if runtime_of(package).float16_inside else kind.stored.floor
    limit = floor + kind.stored.factor * told["explained"]
    found = Lowering(
        kind.stored.figure,
        None if distance is None else _shorten(distance),
        _shorten(told["explained"]),
        _shorten(limit),
        _shorten(told["weight_error"]),
    )
    misses = [f"{name} of the package is none of the model's matrices, rounded" for name in told["unknown"][:1]]
    if distance is None or not distance <= limit:
        off = "cannot be told" if distance is None else f"is {distance:.3g}"
        misses.append(
            f"its {kind.stored.figure} to what its own stored weights compute in torch {off}; the runtime's rounding explains "
            f"{told['explained']:.3g}, and {limit:.3g} is the limit"
        )
    return found, tuple(misses)


def quality_of(figures: Figures, kind: Kind) -> str:
    """The best word whose limits all hold."""
    grades = (grade.word for grade in kind.grades if not check_numbers(figures, grade.limits, kind.limited))
    return next(grades, UNUSABLE)


def _limits_for(kind: Kind, asked: str) -> dict[str, float]:
    """The limits of the last word that is good enough."""
    enough = [grade for grade in kind.grades if is_at_least(grade.word, asked)]
    return dict(enough[-1].limits) if enough and asked != UNUSABLE else {}


def _short_of(figures: Figures, kind: Kind, quality: str, asked: str) -> str:
    misses = check_numbers(figures, _limits_for(kind, asked), kind.limited)
    return f"its quality is {quality}, and at least {asked} is asked for: {'; '.join(misses)}"


def probe(package: str, expected: str, stored: str | None, threads: int) -> dict[str, Any]:
    """Ask the package what the Reference was asked: runs in a process of its own."""
    read = read_package(Path(package))
    session = open_session(read, threads, proving=True)
    beside = Path(stored) if stored else None
    found = kind_of_task(read.model.task).probe(session, read, Path(expected), beside, report_progress)
    return {"figures": found.figures, "text_misses": list(found.text_misses), "from_stored": found.from_stored}


def own_limits(kind: Kind, recipe: Recipe) -> dict[str, float]:
    """The limits that the recipe has of its own.

    Raises:
        UnusableInput: it limits a figure that packages of this kind do not have.
    """
    own = dict(recipe.thresholds)
    if unknown := sorted(set(own) - set(kind.limited)):
        raise UnusableInput(
            f"{recipe} limits {unknown[0]!r}, and there is no such figure of {kind.title.lower()}. Limits are: "
            f"{', '.join(kind.limited)}."
        )
    return own


def _name_of(text: Path) -> str:
    """A text's name with the beginning of its SHA-256: figures on another text of the same name do not compare."""
    return f"{text.name} (SHA-256 {digest_file(text)[:12]})"


def _text_failure(miss: str) -> Failure:
    """A miss on the side of text under a name of its own, so that who accepts it accepts no other."""
    kind, _, sentence = miss.partition(": ")
    return Failure(f"{kind.replace(' ', '-')}:{hashlib.sha256(miss.encode()).hexdigest()[:8]}", sentence)


def _rounded(name: str, value: Any) -> Any:
    """Four significant digits; of a cosine, of its distance to 1."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return 1 - _shorten(1 - value) if name.endswith("cosine") else _shorten(value)


def _shorten(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def check_numbers(figures: Figures, limits: Mapping[str, float], limited: Mapping[str, str]) -> list[str]:
    """A sentence for every figure beyond its limit; a figure that is missing or not a number is always beyond.

    `limited` tells which figure a limit is of.
    """
    failures = []
    for limit_name, limit in sorted(limits.items()):
        name, upper = limited[limit_name], limit_name.startswith("max_")
        value = figures.get(name)
        if not isinstance(value, int | float):
            failures.append(f"{name} is missing, and it is limited to {limit:g}")
        elif upper and not value <= limit:
            failures.append(f"{name} is {value:g}, the limit is {limit:g}")
        elif not upper and not value >= limit:
            where = f" (largest difference in {figures['worst_output']})" if "worst_output" in figures else ""
            failures.append(f"{name} is {value:g}, at least {limit:g} is needed{where}")
    return failures


def _told(failure: Failure) -> str:
    kind, _, number = failure.check.partition(":")
    return f"{kind.replace('-', ' ')}: {failure.sentence}" if number else failure.sentence


def _acceptance(checks: Sequence[str]) -> str:
    """The options that accept failures of a package; few enough to be read."""
    names = list(dict.fromkeys(check for check in checks if check != OPENING_CHECK))
    shown = " ".join(f"--allow {name}" for name in names[:_SHOWN_NAMES])
    if len(names) > _SHOWN_NAMES:
        return f"{shown} and {len(names) - _SHOWN_NAMES} more, which --json lists, accept it as it is"
    return f"{shown} {'accepts this check' if len(names) == 1 else 'accept it as it is'}"


_WRONG = "does not compute what the model computes"
_VERDICTS = {
    LOWERING_CHECK: "was not lowered right",
    QUALITY_CHECK: "is not good enough",
    THRESHOLDS_CHECK: "misses a limit of its recipe",
}


def require_passed(found: Sequence[tuple[Package, Verification]]) -> None:
    """Raise CheckFailed when a package failed a check that was not accepted.

    Raises:
        UnusableInput: all that failed could not be opened.
    """
    failed = [(package, failure) for package, each in found for failure in each.unaccepted]
    if failed:
        package, first = failed[0]
        if all(failure.check == OPENING_CHECK for _, failure in failed):
            raise UnusableInput(f"{package.title} cannot be verified: {first.sentence}")
        if first.check == OPENING_CHECK:
            package, first = next(each for each in failed if each[1].check != OPENING_CHECK)
        more = f" ({len(failed) - 1} more failures are listed above.)" if len(failed) > 1 else ""
        raise CheckFailed(
            first.check,
            f"{package.title} {_VERDICTS.get(first.check, _WRONG)}: {_told(first)}.{more} The package is not to be "
            f"shipped; {_acceptance([failure.check for each, failure in failed if each is package])}.",
        )
