"""`edgec verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import edgec
from compiler.cli.display import print_json, print_table
from compiler.cli.steps import ShownStages, Steps, shown_steps
from compiler.cli.trust_option import trust_option
from compiler.cli.verify_options import allow_option, min_quality_option
from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.package import Package, read_package
from compiler.recipe import LARGEST, MOST_THREADS
from compiler.stages.executor import LocalExecutor
from runtimes.kinds import find_kind, kind_of_task
from runtimes.kinds.kind import Column, Kind
from runtimes.verify.card import limit_words
from runtimes.verify.verification import Lowering, Verification
from runtimes.verify.verify import MAX_TEXT_TOKENS

_SHOWN_FAILURES = 6

Found = Sequence[tuple[Package, Verification]]


@click.command("verify")
@click.argument("packages", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "model_text", help="The model, when this machine does not know it any more.")
@click.option("--adapter", type=click.Path(path_type=Path), help="The LoRA adapter that was merged into it.")
@click.option("--text", type=click.Path(path_type=Path), help="A text to measure KL divergence and perplexity on.")
@click.option(
    "--inputs", type=click.Path(path_type=Path), help="An .npz of inputs to measure a TensorFlow function on."
)
@click.option(
    "--max-tokens", type=click.IntRange(1, LARGEST), default=MAX_TEXT_TOKENS, show_default=True, help="Of --text."
)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), default=2, show_default=True)
@click.option(
    "--device",
    default="local",
    show_default=True,
    metavar="DEVICE",
    help="ssh://user@host, adb:SERIAL or qemu:aarch64: only compare what packages compute there with what they compute here.",
)
@min_quality_option
@allow_option
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    debug: bool,
    packages: tuple[Path, ...],
    model_text: str | None,
    adapter: Path | None,
    text: Path | None,
    inputs: Path | None,
    max_tokens: int,
    threads: int,
    device: str,
    trust: bool,
    min_quality: str | None,
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """Hold each PACKAGE to its hashes, to its own stored weights and to the fp32 model; exit 1 when one fails."""
    if adapter is not None and model_text is None:
        raise UnusableInput("--adapter is merged into the model that --model names, and there is none. Add --model.")
    if text is not None and inputs is not None:
        raise UnusableInput("--text is for language models and --inputs for TensorFlow functions. Give one of them.")
    if device != "local":
        if model_text or text or inputs or min_quality or allow:
            raise UnusableInput(
                f"On {device} a package is held to what it computes here, on a seeded input; --model, --text, --inputs, "
                "--min-quality and --allow are for the fp32 model. Verify here first, then there with --device alone."
            )
        _verify_there(packages, device, threads, trust, as_json)
        return
    model = edgec.open_model(model_text, adapter=adapter) if model_text else None
    opened = [read_package(folder) for folder in packages]
    with shown_steps(quiet=as_json) as steps:
        found = verify_with_bars(
            opened,
            steps,
            model=model,
            debug=debug,
            data=text or inputs,
            max_tokens=max_tokens,
            threads=threads,
            trust=trust,
            min_quality=min_quality,
            allow=allow,
        )
    if as_json:
        print_json([verification_json(*each) for each in found])
    else:
        print_verifications(found)
    edgec.require_passed(opened, [each for _, each in found])


def _verify_there(packages: tuple[Path, ...], device: str, threads: int, trust: bool, as_json: bool) -> None:
    with shown_steps(quiet=as_json) as steps:
        step = steps.begin(f"compare {device}", f"{len(packages)} packages")
        found = edgec.verify_on(packages, device, threads=threads, trust=trust, on_progress=step.update)
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        columns = ("package", "device", "held to", "distance", "at most", "max abs difference", "computes the same")
        rows = [
            [
                each.package,
                each.device,
                each.held_to,
                f"{each.figure} {each.distance:.2g}",
                f"{each.limit:.2g}",
                f"{each.max_abs_difference:.2g}",
                _YES_NO[each.passed],
            ]
            for each in found
        ]
        print_table("What devices compute", columns, rows)
    edgec.require_agreement(found)


_YES_NO = {True: "yes", False: "NO"}


def verify_with_bars(
    packages: Sequence[Package], steps: Steps, *, model: Model | None = None, debug: bool = False, **options: Any
) -> Found:
    """Verify packages; `steps` shows them."""

    def bar(package: Package) -> Any:
        return steps.begin("verify", package.title).update

    executor = LocalExecutor(watcher=ShownStages(steps), debug=debug)
    found = edgec.verify(packages, model=model, executor=executor, on_progress=bar, **options)
    return list(zip(packages, found, strict=True))


def verification_json(package: Package, found: Verification) -> dict[str, object]:
    """What was found, with the package's name."""
    return {"name": package.name, **asdict(found)}


def print_verifications(found: Found) -> None:
    """The tables of what verify found, one kind after the other, and a line for each failure."""
    for name in dict.fromkeys(kind_of_task(package.model.task).name for package, _ in found):
        _print_kind(find_kind(name), [each for each in found if kind_of_task(each[0].model.task).name == name])
    for package, each in found:
        if (left := package.lowered.unfinished) is not None:
            print(f"  {package.title}: UNFINISHED: what is there was verified; {left.step} is left for {left.where}")
        if each.evaluated_by:
            print(f"  {package.title}: computed by {each.evaluated_by}")
        for failure in each.failures[:_SHOWN_FAILURES]:
            print(f"  {package.title}: {failure.check}: {failure.sentence}")
        if (hidden := len(each.failures) - _SHOWN_FAILURES) > 0:
            print(f"  {package.title}: and {hidden} more; --json lists all")


def _print_kind(kind: Kind, found: Found) -> None:
    """Whether packages compute what their stored weights say, then how near they are to the fp32 model."""
    if kind.stored is not None:
        columns = [
            "package",
            f"{kind.stored.figure} to its own weights",
            "at most",
            "by the runtime's rounding",
            "lowered",
        ]
        rows = [
            [package.title, *_lowering_cells(each.lowering), "right" if each.lowered_right else "WRONG"]
            for package, each in found
        ]
        print_table(f"{kind.title} against their stored weights", columns, rows)
    shown = [column for column in kind.figures if any(column.key in each.figures for _, each in found)]
    rows = []
    for package, each in found:
        bits = f"{package.lowered.weights.effective_bits_per_weight:.2f}"
        cells = [_with_limit(column, each, kind) for column in shown]
        verdict = "FAILED" if not each.passed else "accepted" if each.failures else "passed"
        rows.append([package.title, bits, *cells, each.quality, verdict])
    columns = ["package", "bits", *(column.title for column in shown), "quality", "verified"]
    print_table(f"{kind.title} against the fp32 model", columns, rows)


def _lowering_cells(lowering: Lowering | None) -> list[str]:
    if lowering is None:
        return ["-", "-", "-"]
    distance = "-" if lowering.distance is None else f"{lowering.distance:.2g}"
    return [distance, f"{lowering.limit:.2g}", f"{lowering.explained:.2g}"]


def _with_limit(column: Column, found: Verification, kind: Kind) -> str:
    """A figure, and the limit that it is held to where it has one."""
    value: Any = found.figures.get(column.key)
    words = limit_words(column, found.limits, kind)
    return f"{column.show(value)} ({words})" if words else column.show(value)
