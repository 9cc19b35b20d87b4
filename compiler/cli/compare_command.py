"""`edgec compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

import edgec
from benchmarks.compare import Comparison
from compiler.cli.display import print_json, print_table
from compiler.errors import UnusableInput
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
    "--allow", multiple=True, metavar="CHECK", help="Accept the failure of a check: missing, machine, quality."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write the report of RESULTS to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    results: Path,
    baseline: Path | None,
    against: str | None,
    max_regression: float,
    across_schemes: bool,
    allow: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> None:
    """Compare RESULTS with a baseline, or report them; exit 1 on a regression."""
    measurements = edgec.read_measurements(results)
    if baseline is None and against is None and html is None:
        raise UnusableInput(
            "There is nothing to do. Add --baseline FILE or --against RECIPE to compare, or --html FILE for the report."
        )
    if html is not None:
        check_output(html, [results, *([baseline] if baseline else [])])
    comparisons = edgec.compare(
        measurements,
        baseline,
        against=against,
        effect=max_regression,
        across_schemes=across_schemes,
        allow=allow,
    )
    if html is not None:
        edgec.write_report(html, measurements)
    if as_json:
        print_json([asdict(comparison) for comparison in comparisons])
    elif comparisons:
        _print(comparisons, max_regression)
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
