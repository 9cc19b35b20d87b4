"""`edgec tune`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import edgec
from benchmarks.plan import Wishes
from compiler.cli.bench_views import parse_seconds
from compiler.cli.display import format_bytes, print_json, print_table
from compiler.cli.fleet.folder import require_own
from compiler.cli.quantize_options import ByteCount
from compiler.cli.steps import shown_steps
from compiler.errors import CheckFailed, UnusableInput
from compiler.quality import QUALITIES
from compiler.recipe import LARGEST, MOST_THREADS
from runtimes.devices.registry import is_emulated, require_transport
from runtimes.workload import Workload

_OWN = ("results", "packages", "builds")


@click.command("tune")
@click.argument("model")
@click.option(
    "--device", default="local", show_default=True, help="local, ssh://user@host or adb:SERIAL: it is measured there."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of packages; a broken run goes on."
)
@click.option("--budget", default="30min", show_default=True, metavar="TIME", help="After it nothing new is begun.")
@click.option("--context", type=click.IntRange(1, LARGEST), help="Tokens to hold [2048, or what the model takes].")
@click.option("--max-memory", type=ByteCount(), help="At most, such as 3GB [four fifths of the device's].")
@click.option("--min-tok-per-s", type=click.FloatRange(0), help="Tokens a second at least.")
@click.option("--max-kl", type=click.FloatRange(0), help="Mean KL to the fp32 model at most.")
@click.option("--min-quality", type=click.Choice(QUALITIES), default="good", show_default=True)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1, LARGEST), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str,
    device: str,
    out: Path,
    budget: str,
    context: int | None,
    max_memory: int | None,
    min_tok_per_s: float | None,
    max_kl: float | None,
    min_quality: str,
    threads: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Build and measure recipes of MODEL on a device until the fastest that holds every wish is found; exit 1 without one."""
    from compiler.cli.fleet.tune import tune

    require_own(out, _OWN)
    require_transport(device)
    if is_emulated(device):
        raise UnusableInput(
            f"{device} is emulated: how fast something is there tells nothing of a board. Name a real one."
        )
    seconds, opened = parse_seconds(budget), edgec.open_model(model)
    out.mkdir(parents=True, exist_ok=True)
    wishes = Wishes(context, max_memory, min_tok_per_s, max_kl, min_quality)
    with shown_steps(quiet=as_json) as steps:

        def tell(title: str, done: int, total: int) -> None:
            steps.begin(f"recipe {min(done + 1, total)} of at most {total}", title).update(done, total)

        found = tune(
            opened, model, device, wishes, Workload(rounds=rounds, threads=threads), out.resolve(), seconds, tell
        )
    if as_json:
        print_json({**asdict(found), "best": asdict(found.best) if found.best else None})
    else:
        _print(found, opened.name, device)
    if found.best is None:
        raise CheckFailed(
            "tune", f"No recipe that was measured holds every wish ({found.ended}). The table says what each misses."
        )
    if not as_json:
        words = [
            "edgec",
            "build",
            model,
            "-r",
            found.best.option.recipe,
            *found.best.option.flags,
            "--min-quality",
            min_quality,
        ]
        words += ["--context-length", str(found.context)] if found.context else []
        print(
            f"Fastest that holds it all: {found.best.option.recipe} ({found.ended}). Its package is in {out}; make it again:"
        )
        print(f"  {shlex.join([*words, '-o', 'packages', '--verify'])}")


def _print(found: Any, model: str, device: str) -> None:
    rows = []
    for trial in found.trials:
        measured, planned = trial.result.measurement, trial.option.tok_per_s
        rows.append(
            [
                " ".join((trial.option.recipe, *trial.option.flags)),
                "-" if measured is None else f"{trial.worth:,.1f}",
                "-" if planned is None else f"{planned.low:,.0f} to {planned.high:,.0f}",
                "-" if measured is None else format_bytes(measured.figure("peak_rss_bytes")),
                "-" if measured is None or measured.quality is None else measured.quality.quality,
                "-" if measured is None else measured.verdict.word,
                "best" if trial == found.best else "; ".join(trial.misses)[:120] or "held",
            ]
        )
    print_table(
        f"{model} on {device}",
        ["recipe", "tok/s or inputs/s", "planned", "peak memory", "quality", "verdict", ""],
        rows,
    )
    best = found.best.result.measurement if found.best else None
    if best is not None and best.verdict.word == "invalid":
        print(
            f"  The best one's measurement cannot be believed: {'; '.join(best.verdict.reasons)}. Tune on a quiet machine."
        )
    if found.left:
        print(f"  not measured: {', '.join(found.left)}")
