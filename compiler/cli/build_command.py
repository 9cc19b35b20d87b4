"""`edgec build`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

import edgec
from compiler.build import BUILD_CHECKS, BuildReport
from compiler.cli.display import format_bytes, print_json, print_stages, print_table
from compiler.cli.placement_command import placement_line, require_option
from compiler.cli.quantize_options import quantize_options
from compiler.cli.steps import ShownStages, shown_steps, time_in_words
from compiler.cli.verify_command import print_verifications, verification_json, verify_with_bars
from compiler.cli.verify_options import allow_option, min_quality_option
from compiler.errors import EdgecError, UnusableInput
from compiler.package import Package
from compiler.package_use import is_provable
from compiler.placement import Requirement
from compiler.quantize.options import QuantizationOptions, require_mixed, with_options
from compiler.recipe import LARGEST, Recipe, parse_recipe
from compiler.stages.executor import LocalExecutor
from runtimes.verify.verification import Verification
from targets.registry import TARGET_NAMES, schemes_of


@click.command("build")
@click.argument("model", required=False)
@click.option("-r", "--recipe", "recipe_texts", multiple=True, metavar="RECIPE", help="target:scheme; may be repeated.")
@click.option("-f", "--file", "recipe_file", type=click.Path(path_type=Path), help="TOML file with [[recipe]] tables.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder that the packages go into.")
@click.option(
    "--finish",
    "unfinished",
    type=click.Path(path_type=Path),
    metavar="PACKAGE",
    help="In place of MODEL: do on this machine what this package of another machine still lacks.",
)
@click.option("--force", is_flag=True, help="Replace packages of these names that are there.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Folder of a LoRA adapter (peft) to merge first.")
@click.option("--task", help="The model's task, when its architecture does not tell.")
@click.option("--name", help="The model's name in files and cards [its folder's or repository's].")
@click.option("--context-length", type=click.IntRange(1, LARGEST), help="Tokens that a language model must hold.")
@click.option(
    "--sequence-length", type=click.IntRange(1, LARGEST), help="Tokens of an encoder input in static containers [128]."
)
@quantize_options
@click.option("--jobs", type=click.IntRange(1, LARGEST), default=min(2, os.cpu_count() or 1), show_default=True)
@require_option
@allow_option
@click.option(
    "--verify", "verify_too", is_flag=True, help="Hold the new packages to the model, as `edgec verify` does."
)
@min_quality_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    debug: bool,
    model: str | None,
    recipe_texts: tuple[str, ...],
    recipe_file: Path | None,
    out: Path,
    unfinished: Path | None,
    force: bool,
    adapter: Path | None,
    task: str | None,
    name: str | None,
    context_length: int | None,
    sequence_length: int | None,
    jobs: int,
    require: tuple[Requirement, ...],
    allow: tuple[str, ...],
    verify_too: bool,
    min_quality: str | None,
    as_json: bool,
    **quantization: Any,
) -> None:
    """Make a package of MODEL for each recipe.

    MODEL is a Hugging Face folder, a hub id (org/name or org/name@revision), a .gguf file, or of TensorFlow a SavedModel or a
    .keras file.
    """
    if unfinished is not None:
        _finish(unfinished, model, out, force, as_json)
        return
    if model is None:
        raise UnusableInput("No model is named. Name a folder or a hub id, or a package with --finish.")
    recipes = edgec.read_recipes(recipe_file) if recipe_file else []
    recipes += [parse_recipe(text, TARGET_NAMES, schemes_of) for text in recipe_texts]
    if not recipes:
        raise UnusableInput("No recipe is given. Add for instance -r gguf:Q8_0; `edgec targets` lists what there is.")
    recipes = [_with_options(recipe, context_length, sequence_length, task, min_quality) for recipe in recipes]
    verify_too = verify_too or min_quality is not None
    options = QuantizationOptions(**quantization)
    require_mixed(recipes, options)
    recipes = [with_options(recipe, options) for recipe in recipes]
    with shown_steps(quiet=as_json) as steps:
        executor = LocalExecutor(jobs, ShownStages(steps), debug)
        source = edgec.open_model(
            model, task=edgec.task_of(recipes), name=name, adapter=adapter, executor=replace(executor, jobs=1)
        )
        from compiler.quantize.calibrate.price import price_of_writing

        for price in price_of_writing(source, recipes, executor):
            steps.tell(
                f"{source.name} will write its own calibration text, {price.samples} samples of {price.tokens} tokens: about "
                f"{time_in_words(price.seconds)} on this machine. --calibration FILE takes a text of yours, which takes none."
            )
        found: list[tuple[Package, Verification]] = []

        def keep(packages: Sequence[Package]) -> list[bool]:
            accepted = [name for name in allow if name not in BUILD_CHECKS]
            here = [package for package in packages if is_provable(package)]
            for package in packages:
                if package not in here:
                    steps.tell(f"{package.title} is not verified here: {_why_elsewhere(package)}")
            found.extend(verify_with_bars(here, steps, model=source, allow=accepted, debug=debug))
            passed = {package.folder: each.passed for package, each in found}
            return [passed.get(package.folder, True) for package in packages]

        report = edgec.build(
            source,
            recipes,
            out,
            allow=allow,
            require=require,
            force=force,
            executor=executor,
            keep=keep if verify_too else None,
        )
    if as_json:
        verifications = {"verifications": [verification_json(*each) for each in found]} if verify_too else {}
        print_json({**report_json(report), **verifications})
    else:
        print_report(report, out)
        print_verifications(found)
    _require_kept(report, found)


def _why_elsewhere(package: Package) -> str:
    left, needs = package.lowered.unfinished, package.lowered.platform
    if left is not None:
        return f"{left.step} is still to be done. `edgec build --finish` does it on {left.where}."
    assert needs is not None
    return f"it is for {needs.machine} on {needs.system}. `edgec verify --device` verifies it there."


def _finish(unfinished: Path, model: str | None, out: Path, force: bool, as_json: bool) -> None:
    if model is not None:
        raise UnusableInput("--finish takes a package in place of a model. Leave one of them out.")
    with shown_steps(quiet=as_json) as steps:
        finished = edgec.finish(unfinished, out, force=force, on_progress=steps.begin("finish", unfinished.name).update)
    if as_json:
        print_json({"folder": str(finished.folder), "recipe": finished.recipe, "digest": finished.digest})
    else:
        print(f"  {finished.title}: finished, in {finished.folder}")


def _require_kept(report: BuildReport, found: Sequence[tuple[Package, Verification]]) -> None:
    """End as verify does, and say what did not get into the output folder."""
    try:
        edgec.require_passed([package for package, _ in found], [each for _, each in found])
    except EdgecError as error:
        error.args = (
            f"{error} Not kept: {', '.join(package.title for package in report.dropped)}. What was built is cached: the same "
            "command without --verify leaves it for a closer look.",
        )
        raise


def _with_options(
    recipe: Recipe,
    context_length: int | None,
    sequence_length: int | None,
    task: str | None,
    min_quality: str | None,
) -> Recipe:
    shapes = recipe.shapes
    if context_length is not None:
        shapes = replace(shapes, context_length=context_length)
    if sequence_length is not None:
        shapes = replace(shapes, sequence_length=sequence_length)
    return replace(recipe, shapes=shapes, task=task or recipe.task, min_quality=min_quality or recipe.min_quality)


def report_json(report: BuildReport) -> dict[str, object]:
    """The build for programs."""
    return {
        "packages": [
            {
                "folder": str(package.folder),
                "recipe": package.recipe,
                "digest": package.digest,
                "bytes": package.nbytes,
                "weights": asdict(package.lowered.weights),
                "placement": asdict(package.lowered.placement) if package.lowered.placement else None,
                "allowed": list(package.allowed),
            }
            for package in report.packages
        ],
        "stages": [asdict(stage) for stage in report.stages],
    }


def print_report(report: BuildReport, out: Path) -> None:
    """The build for people."""
    print_stages(report.stages)
    rows = []
    for package in (*report.packages, *report.dropped):
        weights = package.lowered.weights
        kinds = ", ".join(f"{name} {count / 1e6:.1f}M" for name, count in weights.types.items())
        bits = f"{weights.effective_bits_per_weight:.2f}"
        rows.append([package.recipe, format_bytes(package.nbytes), bits, str(len(weights.deviations)), kinds])
    columns = ["package", "size", "bits per weight", "tensors in another type", "weights stored as"]
    print_table(f"Packages in {out}", columns, rows)
    for package in report.packages:
        if package.lowered.placement is not None:
            print(f"  {package.recipe}: {placement_line(package.lowered.placement)}")
    for package in report.packages:
        if (left := package.lowered.unfinished) is not None:
            print(
                f"  {package.recipe}: UNFINISHED: {left.step} is left, which `edgec build --finish` does on {left.where}"
            )
    for package in report.packages:
        for reason in sorted({f"{d.stored}: {d.reason}" for d in package.lowered.weights.deviations}):
            names = [d.tensor for d in package.lowered.weights.deviations if f"{d.stored}: {d.reason}" == reason]
            print(f"  {package.recipe}: {len(names)} x {reason} ({names[0]}{', ...' if len(names) > 1 else ''})")
