"""Holding a package to the Reference: files, numbers and text, each with limits; nothing passes as a warning."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.digest import digest_file
from compiler.errors import CheckFailed, EdgecError, UnusableInput
from compiler.formats.json_file import read_regular
from compiler.inputs.identity import digest_model
from compiler.model import Model
from compiler.package import Package, check_files, read_package, require_usable
from compiler.recipe import Recipe, Shapes, recipe_from_full
from compiler.stages.cache import Entry
from compiler.stages.executor import Executor, LocalExecutor, Source
from compiler.stages.stage import Stage
from compiler.stages.worker import Ended, Progress, report_progress, run_in_child
from compiler.task import find_task
from runtimes.kinds import kind_of_task
from runtimes.kinds.kind import Figures, Kind
from runtimes.registry import open_session
from runtimes.verify.verification import Failure, Verification, write_verification

MAX_TEXT_TOKENS = 4096
_DIGITS = 4

TEXT = "text"
NUMBERS_CHECK = "numbers"
_SHOWN_NAMES = 6
_LIMIT_BYTES = 1 << 30
# The runtime cannot open or run the package: nothing is proved, and that cannot be accepted.
OPENING_CHECK = "opening"
OWN_PASSAGES = "edgec passages"


def reference_stage(model: Model, shapes: Shapes, text: Path | None, max_tokens: int) -> Stage:
    """The stage that writes what the Reference says, cut to what the model and a package of these shapes can hold.

    Raises:
        UnusableInput: the text cannot be read, or such models take none.
    """
    content = None
    if text is not None:
        try:
            content = read_regular(text, f"The text {text}", _LIMIT_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableInput(f"The text {text} cannot be read as UTF-8. Give a text file.") from error
    told = kind_of_task(model.task).expect(model, shapes, content, max_tokens)
    return Stage("the Reference", told.function, told.arguments, told.tools, ensures=("expected.json",))


def expect(model: Model, shapes: Shapes, text: Path | None, max_tokens: int, executor: Executor) -> Entry:
    """What the Reference says of the model, computed once and kept in the cache.

    Raises:
        UnusableInput: the text cannot be read or is too short, or the model cannot be loaded.
    """
    stage = reference_stage(model, shapes, text, max_tokens)
    return executor.run_one(stage, {"model": Source(model.folder, digest_model(model))}, model.name)


def verify(
    package: Package,
    model: Model,
    *,
    text: Path | None = None,
    max_tokens: int = MAX_TEXT_TOKENS,
    threads: int = 2,
    allow: Sequence[str] = (),
    executor: Executor | None = None,
    on_progress: Progress | None = None,
) -> Verification:
    """Check the files, then the numbers and the text side against the Reference; leave what was found beside the manifest.

    A failure of a check that `allow` names is recorded as accepted.

    Raises:
        CheckFailed: a file is not the one that was built.
        UnusableInput: the package or the model cannot be opened, or the package is unfinished.
    """
    executor = executor or LocalExecutor()
    if TEXT in allow:
        raise UnusableInput(
            f"--allow {TEXT} would accept whatever text is read wrong. Name each miss that you accept, as verify calls it: "
            "tokenizer:1a2b3c4d, for one."
        )
    check_files(package)
    require_usable(package)
    if not os.access(package.folder, os.W_OK):
        raise UnusableInput(
            f"What is found of {package.name} is left beside its manifest, and its folder cannot be written. Copy the package "
            "to where it can."
        )
    recipe, kind = recipe_from_full(package.recipe_full), kind_of_task(package.model.task)
    limits = limits_of(kind, recipe)
    entry = expect(model, recipe.shapes, text, max_tokens, executor)
    figures: Figures = {}
    try:
        finished = run_in_child(
            f"{__name__}:probe",
            {"package": str(package.folder.resolve()), "expected": str(entry.files), "threads": threads},
            label=f"verify {package.name}",
            on_progress=on_progress,
            debug=executor.debug,
            # Pictures go through transformers' image processors.
            forked=find_task(package.model.task).takes == "image",
        )
    except Ended:
        raise
    except EdgecError as error:
        failures = [Failure(OPENING_CHECK, str(error))]
    else:
        left_out = kind.only_with_text if text is None else ()
        told = finished.value["figures"].items()
        figures = {name: _rounded(name, value) for name, value in told if name not in left_out}
        failures = [Failure(NUMBERS_CHECK, sentence) for sentence in check_numbers(figures, limits, kind.limited)]
        failures += [_text_failure(miss) for miss in finished.value["text_misses"]]
    accepted = tuple(sorted({failure.check for failure in failures} & set(allow) - {OPENING_CHECK}))
    passed = all(failure.check in accepted for failure in failures)
    found = Verification(
        package.digest, passed, _name_of(text) if text else OWN_PASSAGES, figures, tuple(failures), accepted
    )
    write_verification(package, found)
    return found


def probe(package: str, expected: str, threads: int) -> dict[str, Any]:
    """Ask the package what the Reference was asked: runs in a process of its own."""
    read = read_package(Path(package))
    session = open_session(read, threads)
    found = kind_of_task(read.model.task).probe(session, read, Path(expected), report_progress)
    return {"figures": found.figures, "text_misses": list(found.text_misses)}


def limits_of(kind: Kind, recipe: Recipe) -> dict[str, float]:
    """The scheme's limits with the recipe's own in their place where it has any.

    Raises:
        UnusableInput: the recipe limits a figure that packages of this kind do not have.
    """
    own = dict(recipe.thresholds)
    if unknown := sorted(set(own) - set(kind.limited)):
        raise UnusableInput(
            f"{recipe} limits {unknown[0]!r}, and there is no such figure of {kind.title.lower()}. Limits are: "
            f"{', '.join(kind.limited)}."
        )
    return {**kind.limits(recipe.scheme), **own}


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
    if name.endswith("cosine"):
        return 1 - float(f"{1 - value:.{_DIGITS}g}")
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
    kind = failure.check.partition(":")[0].replace("-", " ")
    return failure.sentence if kind == NUMBERS_CHECK else f"{kind}: {failure.sentence}"


def _acceptance(checks: Sequence[str]) -> str:
    """The options that accept failures of a package; few enough to be read."""
    names = list(dict.fromkeys(check for check in checks if check != OPENING_CHECK))
    shown = " ".join(f"--allow {name}" for name in names[:_SHOWN_NAMES])
    if len(names) > _SHOWN_NAMES:
        return f"{shown} and {len(names) - _SHOWN_NAMES} more, which --json lists, accept it as it is"
    return f"{shown} {'accepts this check' if len(names) == 1 else 'accept it as it is'}"


def require_passed(found: Sequence[tuple[Package, Verification]]) -> None:
    """Raise CheckFailed when a package failed a check that was not accepted.

    Raises:
        UnusableInput: all that failed could not be opened.
    """
    failed = [(package, failure) for package, each in found for failure in each.unaccepted]
    if failed:
        package, first = failed[0]
        if all(failure.check == OPENING_CHECK for _, failure in failed):
            raise UnusableInput(f"{package.name} cannot be verified: {first.sentence}")
        if first.check == OPENING_CHECK:
            package, first = next(each for each in failed if each[1].check != OPENING_CHECK)
        more = f" ({len(failed) - 1} more failures are listed above.)" if len(failed) > 1 else ""
        raise CheckFailed(
            first.check,
            f"{package.name} does not compute what the model computes: {_told(first)}.{more} The package is not to be "
            f"shipped; {_acceptance([failure.check for each, failure in failed if each is package])}.",
        )
