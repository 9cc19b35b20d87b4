"""One HTML page that needs nothing else: charts (plotly, its script inside), the figures, the environment."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement
from benchmarks.report.charts import latency_chart, memory_chart, quality_chart
from compiler.errors import missing_extra
from compiler.output_file import write_output
from runtimes.kinds import kind_of_task
from runtimes.kinds.kind import Column, Kind

_STYLE = """
html { overflow-y: scroll; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2a35; margin: 0 auto; max-width: 1280px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 36px 0 8px; border-bottom: 2px solid #e3e8ec; }
p.lead { margin: 0 0 16px; color: #51606d; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; margin-bottom: 16px; }
.chart { border: 1px solid #e3e8ec; border-radius: 8px; overflow: hidden; min-width: 0; }
.chart.wide { grid-column: 1 / -1; }
@media (max-width: 800px) { .charts { grid-template-columns: minmax(0, 1fr); } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; border-bottom: 1px solid #e3e8ec; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: #51606d; font-weight: 600; }
table.facts td { text-align: left; white-space: normal; }
.valid { color: #3a6b35; } .suspect { color: #9a6b00; } .invalid { color: #b3261e; font-weight: 600; }
.passed { color: #3a6b35; } .failed { color: #b3261e; font-weight: 600; }
"""

_SIZE = (
    Column("package_bytes", "package MB", 1, 1e-6),
    Column("effective_bits_per_weight", "bits per weight", 2),
    Column("load_s", "load s", 2),
)
_MEMORY = (
    Column("peak_rss_bytes", "peak RSS MB", 0, 1e-6),
    Column("peak_anon_bytes", "anonymous MB", 0, 1e-6),
    Column("file_mapped_bytes", "file-mapped MB", 0, 1e-6),
)


def write_page(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write the report of a result file.

    Raises:
        UnusableInput: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise missing_extra("plotly", "report") from error
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.model, []).append(measurement)
    sections = [_section(model, group, number) for number, (model, group) in enumerate(groups.items())]
    document = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'><title>edgec report</title>",
        "<link rel='icon' href='data:,'>",
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>",
        "<h1>edgec report</h1>",
        f"<p class='lead'>{len(measurements)} packages of {len(groups)} models, measured in turns. "
        "Distances are to the fp32 model.</p>",
        *sections,
        _environment(measurements),
        "</body></html>",
    ]
    write_output(path, "\n".join(document))


def _section(model: str, group: Sequence[Measurement], number: int) -> str:
    name = html.escape(model)
    return f"<h2>{name}</h2>" + "".join(
        _part(kind, [each for each in group if kind_of_task(each.task).name == kind.name], f"{number}-{kind.name}")
        for kind in {each.name: each for each in (kind_of_task(each.task) for each in group)}.values()
    )


def _part(kind: Kind, group: Sequence[Measurement], identity: str) -> str:
    """The charts and the table of the packages of one kind."""
    charts = [("wide", quality_chart(kind, group)), ("", latency_chart(kind, group)), ("", memory_chart(group))]
    drawn = [
        _embed(chart, form, f"chart-{identity}-{index}")
        for index, (form, chart) in enumerate(charts)
        if chart is not None
    ]
    return f"<div class='charts'>{''.join(drawn)}</div>{_table(kind, group)}"


def _embed(figure: Any, kind: str, identity: str) -> str:
    import plotly.io

    division = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=identity,
        config={"displayModeBar": False, "responsive": True},
    )
    return f"<div class='chart {kind}'>{division}</div>"


def _table(kind: Kind, group: Sequence[Measurement]) -> str:
    columns = [
        column
        for column in (*_SIZE, *kind.speed, *_MEMORY)
        if any(each.figure(column.key) is not None for each in group)
    ]
    quality = [column for column in kind.figures if any(each.distance(column.key) is not None for each in group)]
    head = ["recipe", "verified", "measurement", *(column.title for column in (*columns, *quality))]
    rows = []
    for each in group:
        word = "not verified" if each.quality is None else ("passed" if each.quality.passed else "failed")
        reasons = html.escape("; ".join(each.verdict.reasons))
        cells = [
            f"<td>{html.escape(each.recipe)}</td>",
            f"<td class='{word.split()[0]}'>{word}</td>",
            f"<td class='{each.verdict.word}' title='{reasons}'>{each.verdict.word}</td>",
        ]
        for column in columns:
            value, reason = each.figure(column.key), html.escape(each.absent.get(column.key, ""))
            cells.append(f"<td title='{reason}'>{'null' if value is None else column.show(value)}</td>")
        cells += [f"<td>{column.show(each.distance(column.key))}</td>" for column in quality]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heading = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<div class='scroll'><table><tr>{heading}</tr>{''.join(rows)}</table></div>"


def _environment(measurements: Sequence[Measurement]) -> str:
    """The machine of each device, and what ran of each kind."""
    parts = []
    for device in dict.fromkeys(each.device for each in measurements):
        own = [each for each in measurements if each.device == device]
        facts = asdict(own[0].environment)
        absent, tools = facts.pop("absent"), facts.pop("tools")
        for kind in dict.fromkeys(kind_of_task(each.task).title for each in own):
            first = next(each for each in own if kind_of_task(each.task).title == kind)
            asked = asdict(first.workload)
            facts |= {f"{kind}: {name}": value for name, value in asked.items() if value is not None}
        rows = [(name, _shown(value, absent.get(name, "not told"))) for name, value in facts.items()]
        rows.append(("tools", ", ".join(f"{name} {version}" for name, version in tools.items())))
        cells = [
            f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{html.escape(text)}</td></tr>"
            for name, text in rows
        ]
        parts.append(f"<h2>Environment ({html.escape(device)})</h2><table class='facts'>{''.join(cells)}</table>")
    return "".join(parts)


def _shown(value: object, reason: str) -> str:
    if value is None:
        return f"null ({reason})"
    return f"{value:,}" if _number(value) else str(value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
