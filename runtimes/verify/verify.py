"""Holding a package to the Reference: files, numbers and text, each with limits; nothing passes as a warning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.digest import digest_code, digest_json, tool_version
from compiler.errors import CheckFailed, UnusableInput
from compiler.inputs.open import digest_model
from compiler.model import TEXT_GENERATION, Model
from compiler.package import Package, check_files, record_quality
from compiler.recipe import Shapes, Thresholds, recipe_from_full
from compiler.stages.cache import Entry, find_entry, new_entry_folder, store_entry
from compiler.stages.worker import Progress, run_in_child
from runtimes.verify.thresholds import thresholds_for

WINDOW_TOKENS = 512
MAX_TEXT_TOKENS = 4096
NEW_TOKENS = 32
_DIGITS = 4

TEXT_CHECK = "text"
NUMBERS_CHECK = "numbers"


@dataclass(frozen=True)
class Verdict:
    """What verify found of one package.

    Attributes:
        package: the package's folder name.
        effective_bits_per_weight: of the package.
        quality: the figures, as they are recorded in package.json.
        failures: (check, sentence) of every limit that does not hold; empty when the package passes.
    """

    package: str
    effective_bits_per_weight: float
    quality: dict[str, Any]
    failures: tuple[tuple[str, str], ...]


def expect(
    model: Model,
    shapes: Shapes,
    text: Path | None,
    max_tokens: int,
    on_progress: Progress | None = None,
    debug: bool = False,
) -> Entry:
    """What the Reference says of the model, computed once in a child process and kept in the cache.

    Texts are cut to what the model and a package of these shapes can hold.

    Raises:
        UnusableInput: the text cannot be read or is too short, or the model cannot be loaded.
    """
    content = None
    if text is not None:
        try:
            content = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableInput(f"The text {text} cannot be read as UTF-8: {error}.") from error
    arguments: dict[str, Any]
    if model.task == TEXT_GENERATION:
        function = "runtimes.verify.reference:expect_language"
        limits = (WINDOW_TOKENS, model.geometry.context_length, shapes.context_length)
        arguments = {
            "window_tokens": min(length for length in limits if length),
            "max_tokens": max_tokens,
            "new_tokens": NEW_TOKENS,
            "text": content,
        }
    else:
        if content is not None:
            raise UnusableInput("--text is for language models; encoders are compared on the project's own passages.")
        function = "runtimes.verify.reference:expect_encoder"
        longest = model.geometry.context_length or shapes.sequence_length
        arguments = {"task": model.task, "max_tokens": min(shapes.sequence_length, longest)}
    tools = {name: tool_version(name) for name in ("torch", "transformers", "tokenizers")}
    key = digest_json([digest_model(model), function, arguments, tools, digest_code()])
    entry = find_entry(key)
    if entry is None:
        with new_entry_folder() as folder:
            files = {"model": str(model.folder.resolve()), "out": str(folder / "files")}
            run_in_child(function, {**files, **arguments}, label="the Reference", on_progress=on_progress, debug=debug)
            entry = store_entry(folder, key, None)
    return entry


def verify(
    package: Package,
    model: Model,
    *,
    text: Path | None = None,
    max_tokens: int = MAX_TEXT_TOKENS,
    threads: int = 2,
    allow: Sequence[str] = (),
    on_progress: Progress | None = None,
    debug: bool = False,
) -> Verdict:
    """Check the files, then the numbers and the text side against the Reference; record the figures in the manifest.

    A failure of a check that `allow` names is recorded as accepted, and the check's name in the package's `allowed`.

    Raises:
        CheckFailed: a file is not the one that was built.
        UnusableInput: the package or the model cannot be opened.
    """
    check_files(package)
    recipe = recipe_from_full(package.recipe_full)
    entry = expect(model, recipe.shapes, text, max_tokens, None, debug)
    kind = "language" if model.task == TEXT_GENERATION else "encoder"
    finished = run_in_child(
        f"runtimes.verify.probe:probe_{kind}",
        {"package": str(package.folder.resolve()), "expected": str(entry.files), "threads": threads},
        label=f"verify {package.name}",
        on_progress=on_progress,
        debug=debug,
    )
    quality = {name: _rounded(name, value) for name, value in finished.value.items()}
    misses = tuple(quality.pop("text_misses"))
    quality["text"] = text.name if text else "edgec passages"
    if kind == "language" and text is None:
        # The passages are too short and too mixed for a perplexity that anyone could compare.
        del quality["perplexity"], quality["reference_perplexity"]
    limits = thresholds_for(recipe.scheme.name, recipe.thresholds)
    failures = tuple((NUMBERS_CHECK, failure) for failure in check_numbers(quality, limits))
    failures += tuple((TEXT_CHECK, miss) for miss in misses)
    accepted = [(check, failure) for check, failure in failures if check in allow]
    quality["passed"] = len(accepted) == len(failures)
    quality["accepted"] = [failure for _, failure in accepted]
    record_quality(package, quality, [check for check, _ in accepted])
    return Verdict(package.name, package.lowered.weights.effective_bits_per_weight, quality, failures)


def _rounded(name: str, value: Any) -> Any:
    """Four significant digits; of a cosine, of its distance to 1."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    if name.endswith("cosine"):
        return 1 - float(f"{1 - value:.{_DIGITS}g}")
    return float(f"{value:.{_DIGITS}g}")


def check_numbers(quality: dict[str, Any], limits: Thresholds) -> list[str]:
    """A sentence for every figure beyond its limit; a figure that is not a number is always beyond."""
    upper = (
        ("mean_kl", limits.max_mean_kl),
        ("p99_kl", limits.max_p99_kl),
        ("relative_error", limits.max_relative_error),
    )
    lower = (
        ("same_top1", limits.min_same_top1),
        ("min_cosine", limits.min_cosine),
        ("greedy_agreement", limits.min_greedy_agreement),
    )
    failures = []
    for name, limit in upper:
        if name in quality and limit is not None and not quality[name] <= limit:
            failures.append(f"{name} is {quality[name]:g}, the limit is {limit:g}")
    for name, limit in lower:
        if name in quality and limit is not None and not quality[name] >= limit:
            where = f" (largest difference in {quality['worst_output']})" if "worst_output" in quality else ""
            failures.append(f"{name} is {quality[name]:g}, at least {limit:g} is needed{where}")
    return failures


def require_passed(verdicts: Sequence[Verdict], allow: Sequence[str]) -> None:
    """Raise CheckFailed when a package failed a check that `allow` does not name."""
    failed = [
        (verdict.package, check, failure)
        for verdict in verdicts
        for check, failure in verdict.failures
        if check not in allow
    ]
    if failed:
        package, check, failure = failed[0]
        more = f" ({len(failed) - 1} more failures are listed above.)" if len(failed) > 1 else ""
        raise CheckFailed(
            check,
            f"{package} does not compute what the model computes: {failure}.{more} The package is not to be shipped; "
            f"--allow {check} accepts this check.",
        )
