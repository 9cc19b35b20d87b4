"""`edgec verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from compiler.cli.display import format_number, print_json, print_table, progress_bars
from compiler.errors import UnusableInput
from compiler.inputs.open import check_identity, find_identified, open_model
from compiler.model import Model
from compiler.package import check_files, read_package
from compiler.recipe import recipe_from_full
from runtimes.verify.verify import MAX_TEXT_TOKENS, Verdict, expect, require_passed, verify

_SHOWN_FAILURES = 6


@click.command("verify")
@click.argument("packages", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", "model_text", help="The model, when this machine does not know it any more.")
@click.option("--adapter", type=click.Path(path_type=Path), help="The LoRA adapter that was merged into it.")
@click.option("--text", type=click.Path(path_type=Path), help="A text to measure KL divergence and perplexity on.")
@click.option("--max-tokens", type=click.IntRange(1), default=MAX_TEXT_TOKENS, show_default=True, help="Of --text.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--allow", multiple=True, metavar="CHECK", help="Accept the failure of a check by its name.")
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
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """Hold each PACKAGE to its hashes and to the fp32 model; exit 1 when one fails."""
    if adapter is not None and model_text is None:
        raise UnusableInput("--adapter is merged into the model that --model names, and there is none. Add --model.")
    model = open_model(model_text, adapter=adapter) if model_text else None
    verify_packages(
        packages,
        model=model,
        text=text,
        max_tokens=max_tokens,
        threads=threads,
        allow=allow,
        debug=debug,
        as_json=as_json,
    )


def verify_packages(
    folders: Sequence[Path],
    *,
    model: Model | None = None,
    text: Path | None = None,
    max_tokens: int = MAX_TEXT_TOKENS,
    threads: int = 2,
    allow: Sequence[str] = (),
    debug: bool = False,
    as_json: bool = False,
    built: dict[str, object] | None = None,
) -> list[Verdict]:
    """Verify packages one after the other, print what was found, and raise when one failed.

    `built` is the account of the build that was just done, which JSON then holds too.
    """
    read = [read_package(folder) for folder in folders]
    for package in read:
        check_files(package)
    verdicts = []
    with progress_bars(quiet=as_json) as progress:
        for package in read:
            if model is not None:
                check_identity(model, package.model)
            task = progress.add_task(f"Reference of {package.model.name}", total=None)

            def update(done: int, total: int, task: int = task) -> None:
                progress.update(task, completed=done, total=total)

            source = replace(model, task=package.model.task) if model else find_identified(package.model)
            shapes = recipe_from_full(package.recipe_full).shapes
            expect(source, shapes, text, max_tokens, update, debug)
            progress.update(task, description=f"verify [dim]{package.name}[/dim]", completed=0)
            verdicts.append(
                verify(
                    package,
                    source,
                    text=text,
                    max_tokens=max_tokens,
                    threads=threads,
                    allow=allow,
                    on_progress=update,
                    debug=debug,
                )
            )
    if as_json:
        told = [asdict(verdict) for verdict in verdicts]
        print_json({**built, "verdicts": told} if built is not None else told)
    else:
        print_verdicts(verdicts)
    require_passed(verdicts, allow)
    return verdicts


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """The tables of what verify found, decoders and encoders apart, and a line for each failure."""
    decoders = [verdict for verdict in verdicts if "mean_kl" in verdict.quality]
    encoders = [verdict for verdict in verdicts if "min_cosine" in verdict.quality]
    if decoders:
        names = ["mean_kl", "p90_kl", "p99_kl", "same_top1", "greedy_agreement", "perplexity", "reference_perplexity"]
        _print_kind("Language models against the fp32 model", names, decoders)
    if encoders:
        names = ["min_cosine", "mean_cosine", "relative_error", "max_abs_difference"]
        _print_kind("Encoders against the fp32 model", names, encoders)
    for verdict in verdicts:
        for check, failure in verdict.failures[:_SHOWN_FAILURES]:
            print(f"  {verdict.package}: {check}: {failure}")
        if (hidden := len(verdict.failures) - _SHOWN_FAILURES) > 0:
            print(f"  {verdict.package}: and {hidden} more; --json lists all")


def _print_kind(title: str, names: Sequence[str], verdicts: Sequence[Verdict]) -> None:
    shown = [name for name in names if any(name in verdict.quality for verdict in verdicts)]
    rows = [
        [
            verdict.package,
            f"{verdict.effective_bits_per_weight:.2f}",
            *(_figure(name, verdict.quality.get(name)) for name in shown),
            "passed" if not verdict.failures else "FAILED",
        ]
        for verdict in verdicts
    ]
    print_table(title, ["package", "bits", *(name.replace("_", " ") for name in shown), "verdict"], rows)


def _figure(name: str, value: float | None) -> str:
    return f"{value:.6f}" if value is not None and name.endswith("cosine") else format_number(value, 4)
