"""`edgec verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import edgec
from compiler.cli.display import StageBars, print_json, print_table, progress_bars
from compiler.cli.trust_option import trust_option
from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.package import Package, read_package
from compiler.recipe import LARGEST
from compiler.stages.executor import LocalExecutor
from runtimes.kinds import find_kind, kind_of_task
from runtimes.kinds.kind import Kind
from runtimes.verify.verification import Verification
from runtimes.verify.verify import MAX_TEXT_TOKENS

_SHOWN_FAILURES = 6

Found = Sequence[tuple[Package, Verification]]


@click.command("verify")
@click.argument("packages", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "model_text", help="The model, when this machine does not know it any more.")
@click.option("--adapter", type=click.Path(path_type=Path), help="The LoRA adapter that was merged into it.")
@click.option("--text", type=click.Path(path_type=Path), help="A text to measure KL divergence and perplexity on.")
@click.option(
    "--max-tokens", type=click.IntRange(1, LARGEST), default=MAX_TEXT_TOKENS, show_default=True, help="Of --text."
)
@click.option("--threads", type=click.IntRange(1, LARGEST), default=2, show_default=True)
@click.option("--allow", multiple=True, metavar="CHECK", help="Accept the failure of a check by its name.")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    debug: bool,
    packages: tuple[Path, ...],
    model_text: str | None,
    adapter: Path | None,
    text: Path | None,
    max_tokens: int,
    threads: int,
    trust: bool,
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """Hold each PACKAGE to its hashes and to the fp32 model; exit 1 when one fails."""
    if adapter is not None and model_text is None:
        raise UnusableInput("--adapter is merged into the model that --model names, and there is none. Add --model.")
    model = edgec.open_model(model_text, adapter=adapter) if model_text else None
    opened = [read_package(folder) for folder in packages]
    with progress_bars(quiet=as_json) as progress:
        found = verify_with_bars(
            opened,
            progress,
            model=model,
            debug=debug,
            text=text,
            max_tokens=max_tokens,
            threads=threads,
            trust=trust,
            allow=allow,
        )
    if as_json:
        print_json([verification_json(*each) for each in found])
    else:
        print_verifications(found)
    edgec.require_passed(opened, [each for _, each in found])


def verify_with_bars(
    packages: Sequence[Package], progress: Any, *, model: Model | None = None, debug: bool = False, **options: Any
) -> Found:
    """Verify packages; `progress` gets their bars."""

    def bar(package: Package) -> Any:
        task = progress.add_task(f"verify [dim]{package.name}[/dim]", total=None)
        return lambda done, total: progress.update(task, completed=done, total=total)

    executor = LocalExecutor(watcher=StageBars(progress), debug=debug)
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
        for failure in each.failures[:_SHOWN_FAILURES]:
            print(f"  {package.name}: {failure.check}: {failure.sentence}")
        if (hidden := len(each.failures) - _SHOWN_FAILURES) > 0:
            print(f"  {package.name}: and {hidden} more; --json lists all")


def _print_kind(kind: Kind, found: Found) -> None:
    columns = [column for column in kind.figures if any(column.key in each.figures for _, each in found)]
    rows = []
    for package, each in found:
        figures: list[Any] = [each.figures.get(column.key) for column in columns]
        bits = f"{package.lowered.weights.effective_bits_per_weight:.2f}"
        shown = [column.show(value) for column, value in zip(columns, figures, strict=True)]
        rows.append(
            [package.name, bits, *shown, "FAILED" if not each.passed else "accepted" if each.failures else "passed"]
        )
    title = f"{kind.title} against the fp32 model"
    print_table(title, ["package", "bits", *(column.title for column in columns), "verified"], rows)
