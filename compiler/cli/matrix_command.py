"""`edgec matrix`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import edgec
from compiler.cli.display import format_bytes, print_json, print_table
from compiler.cli.fleet.folder import require_own
from compiler.cli.steps import shown_steps
from compiler.errors import CheckFailed

# Files of a matrix that a folder may have from an earlier run.
_OWN = ("results", "packages", "builds", "cells.jsonl", "cells.parquet", "results.jsonl", "report.html")


@click.command("matrix")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the results; a run that broke off goes on.",
)
@click.option("--cluster", metavar="ADDRESS", help="Run on the workers of a Dask scheduler, such as tcp://host:8786.")
@click.option(
    "--store",
    metavar="URL",
    help="Where packages and results are kept: a folder that all workers see, or what fsspec opens, such as s3://bucket "
    "[the folder of -o].",
)
@click.option("--again", is_flag=True, help="Measure again what cannot be believed, as on a machine that was busy.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: Path, out: Path, cluster: str | None, store: str | None, again: bool, as_json: bool) -> None:
    """Build and measure every model in every recipe on every device that FILE (TOML) names; exit 1 when a cell failed."""
    from benchmarks.matrix.outputs import row_of

    require_own(out, _OWN)
    with shown_steps(quiet=as_json) as steps:
        progress: dict[str, Any] = {}

        def tell(title: str, done: int, total: int) -> None:
            if progress.get("title") != title:
                progress.update(title=title, step=steps.begin(f"cell {min(done + 1, total)} of {total}", title))
            progress["step"].update(done, total)

        results = edgec.run_matrix(file, out, cluster=cluster, store=store, again=again, tell=tell)
    rows = [row_of(result) for result in results]
    if as_json:
        print_json(rows)
    else:
        _print(rows)
        written = [name for name in _OWN if (out / name).is_file()]
        print(f"  {', '.join(written)}: in {out}")
    failed = [result for result in results if result.status == "failed"]
    wrong = [result for result in results if result.agreement is not None and not result.agreement.passed]
    if failed or wrong:
        first = (failed or wrong)[0]
        told = first.agreement
        reason = first.reason or (
            f"it does not compute there what it computes here ({told.figure} {told.distance:.2g}, at most {told.limit:.2g})."
            if told
            else ""
        )
        raise CheckFailed("matrix", f"{len(failed) + len(wrong)} cells failed, the first {first.cell.title}: {reason}")


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from benchmarks.report.fleet import name_of

    for model in dict.fromkeys(row["model"] for row in rows):
        cells, own = [], [row for row in rows if row["model"] == model]
        for row in own:
            speed = next((f"{row[key]:.1f} {unit}" for key, unit in _SPEEDS if row[key] is not None), "-")
            word = "emulated" if row["emulated"] else row["verdict"] or row["status"]
            expected = row["predicted_tok_per_s"]
            cells.append(
                [
                    row["recipe"],
                    row["device"],
                    word,
                    "-" if row["emulated"] else speed,
                    "-" if expected is None else f"{expected:.1f}",
                    format_bytes(row["peak_rss_bytes"]),
                    format_bytes(row["predicted_peak_rss_bytes"]),
                    row["quality"] or "-",
                ]
            )
        titles = ["recipe", "device", "measured", "speed", "predicted", "peak memory", "predicted", "quality"]
        print_table(name_of(own), titles, cells)
    for row in rows:
        if row["computes_the_same"] is False:
            far = f"{row['distance']:.2g}, at most {row['most_distance']:.2g}"
            print(f"  {row['recipe']} on {row['device']}: does not compute there what it computes here ({far})")
        if row["reason"]:
            print(f"  {row['recipe']} on {row['device']}: {row['status']}: {row['reason']}")


_SPEEDS = (("decode_tok_per_s", "tok/s"), ("latency_ms_p50", "ms"))
