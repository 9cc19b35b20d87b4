"""`edgec compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

import edgec
from benchmarks.comparable import CHECKS
from benchmarks.compare import METRICS, Comparison
from compiler.cli.bench_command import print_measurements
from compiler.cli.display import print_json, print_table
from compiler.output_file import check_output


@click.command("compare")
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), help="The champion's result file.")
@click.option("--against", metavar="RECIPE", help="Compare the other recipes of RESULTS with this one of them.")
@click.option(
    "--max-regression", type=click.FloatRange(0, 1000), default=0.05, show_default=True, help="Effect that fails."
)
@click.option("--across-schemes", is_flag=True, help="Compare packages of different schemes or bits per weight.")
@click.option(
    "--metrics",
    metavar="NAMES",
    default=",".join(METRICS),
    show_default=True,
    help="What is compared. On a machine that others use, quality,size.",
)
@click.option("--allow", multiple=True, metavar="CHECK", help=f"Accept the failure of a check: {', '.join(CHECKS)}.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report of RESULTS to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    results: Path,
    baseline: Path | None,
    against: str | None,
    max_regression: float,
    across_schemes: bool,
    metrics: str,
    allow: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare RESULTS with a baseline or among themselves; exit 1 on a regression. Alone, show them."""
    measurements = edgec.read_measurements(results)
    if html is not None:
        check_output(html, [results, *([baseline] if baseline else [])])
    comparisons = edgec.compare(
        measurements,
        baseline,
        against=against,
        effect=max_regression,
        metrics=metrics.split(","),
        across_schemes=across_schemes,
        allow=allow,
    )
    if html is not None:
        edgec.write_report(html, measurements)
    alone = baseline is None and against is None
    if as_json:
        print_json([asdict(each) for each in (measurements if alone else comparisons)])
    elif alone:
        print_measurements(measurements)
    else:
        _print(comparisons, max_regression)
        if "quality" in metrics and all(each.quality is None for each in measurements):
            print("Quality was not compared: no package was verified before it was measured.")
    edgec.require_no_regression(comparisons, max_regression)


def _print(comparisons: Sequence[Comparison], effect: float) -> None:
    rows = [
        [
            comparison.package,
            comparison.metric,
            f"{comparison.ratio.value:.3f}",
            f"{comparison.ratio.low:.3f} to {comparison.ratio.high:.3f}",
            f"{_shown(comparison.champion_bits)} to {_shown(comparison.challenger_bits)}",
            "REGRESSION" if comparison.regression else "",
        ]
        for comparison in comparisons
    ]
    columns = ["package", "metric", "ratio", "95 % interval", "bits per weight", f"worse by more than {effect:.0%}"]
    print_table("Ratios to the baseline; below 1 is better", columns, rows)


def _shown(bits: float | None) -> str:
    return "?" if bits is None else f"{bits:.2f}"
