"""One HTML page that needs nothing else: charts (plotly, its script inside), the figures, the environment."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement
from benchmarks.report.charts import key_of, latency_chart, memory_chart, numbers_of, quality_chart
from benchmarks.report.predicted import predicted_rows
from compiler.errors import missing_extra
from compiler.output_file import write_output
from runtimes.kinds import kind_of_task
from runtimes.kinds.kind import Column, Kind

_STYLE = """
:root { --ink: #1d2a35; --soft: #51606d; --line: #e3e8ec; --paper: #fff; --grid: #e9edf0;
  --good: #2f6b2a; --fair: #8a5f00; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ed; --soft: #a7b3bd; --line: #36414b; --paper: #15191d;
  --grid: #2b343c; --good: #8fcf86; --fair: #e8b64c; --bad: #ff8a80; } }
html { overflow-y: scroll; color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 1280px;
  padding: 24px; box-sizing: border-box; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 36px 0 8px; border-bottom: 2px solid var(--line); }
h3 { font-size: 16px; margin: 20px 0 4px; } h2, h3, td, li { overflow-wrap: anywhere; }
p.lead { margin: 0 0 16px; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; margin-bottom: 16px; }
.chart { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0; }
.chart h3 { margin: 12px 16px 0; }
.chart.wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
table.facts td { text-align: left; white-space: normal; }
.valid, .passed, .right { color: var(--good); } .suspect, .not { color: var(--fair); }
.invalid, .failed, .wrong { color: var(--bad); font-weight: 600; }
ul.reasons { margin: 8px 0; padding-left: 20px; color: var(--soft); }
@media (max-width: 820px) { body { padding: 12px; font-size: 14px; } .charts { grid-template-columns: minmax(0, 1fr); }
  th, td { padding: 4px 6px; } }
"""
# plotly writes colours into its drawings; here they follow the page's.
_COLOURS = """
function colours() {
  const of = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = {gridcolor: of('--grid'), zerolinecolor: of('--grid'), linecolor: of('--line')};
  for (const chart of document.querySelectorAll('.plotly-graph-div')) {
    const changes = {'font.color': of('--ink')};
    for (const [name, value] of Object.entries(axis)) { changes['xaxis.' + name] = value; changes['yaxis.' + name] = value; }
    Plotly.relayout(chart, changes);
  }
}
colours();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', colours);
"""

_SIZE = (
    Column("package_bytes", "package MB", 1, 1e-6),
    Column("effective_bits_per_weight", "bits per weight", 2),
)
_LOAD = Column("load_s", "load s", 2)
_MEMORY = (
    Column("peak_rss_bytes", "peak RSS MB", 0, 1e-6),
    Column("peak_anon_bytes", "anonymous MB", 0, 1e-6),
    Column("file_mapped_bytes", "file-mapped MB", 0, 1e-6),
)


Section = tuple[str, Sequence[Any], str]


def write_page(path: Path, measurements: Sequence[Measurement], more: Sequence[Section] = ()) -> None:
    """Write the report of a result file; `more` are titles, charts and HTML that go before the models' parts.

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
        f"<p class='lead'>{html.escape(_lead(measurements, len(groups)))}</p>",
        *(_more(each, number) for number, each in enumerate(more)),
        *sections,
        _environment(measurements),
        f"<script>{_COLOURS}</script></body></html>",
    ]
    write_output(path, "\n".join(document))


def _more(section: Section, number: int) -> str:
    title, charts, table = section
    drawn = "".join(_embed(chart, "", f"more-{number}-{index}") for index, chart in enumerate(charts))
    return f"<h2>{html.escape(title)}</h2><div class='charts'>{drawn}</div>{table}"


def _lead(measurements: Sequence[Measurement], models: int) -> str:
    """How many of what, when, on which machines, by which edgec."""
    machines = sorted({each.environment.cpu for each in measurements})
    days = sorted({each.measured[:10] for each in measurements})
    versions = sorted({each.edgec for each in measurements})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    where = machines[0] if len(machines) == 1 else f"{len(machines)} machines"
    return (
        f"{_count(len(measurements), 'package')} of {_count(models, 'model')}, measured in turns on {when} on {where} by "
        f"edgec {', '.join(versions)}. Distances are to the fp32 model. Hollow points are of disturbed measurements, crosses "
        "of those that say nothing; the front is made of the others."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _section(model: str, group: Sequence[Measurement], number: int) -> str:
    name = html.escape(model)
    return f"<h2>{name}</h2>" + "".join(
        _part(kind, [each for each in group if kind_of_task(each.task).name == kind.name], f"{number}-{kind.name}")
        for kind in {each.name: each for each in (kind_of_task(each.task) for each in group)}.values()
    )


def _part(kind: Kind, group: Sequence[Measurement], identity: str) -> str:
    """The charts and the table of the packages of one kind."""
    # How fast something is on an emulated processor says nothing.
    real = [each for each in group if not each.is_emulated]
    charts = (
        [("wide", quality_chart(kind, real)), ("", latency_chart(kind, real)), ("", memory_chart(real))] if real else []
    )
    drawn = [
        _embed(chart, form, f"chart-{identity}-{index}")
        for index, (form, chart) in enumerate(charts)
        if chart is not None
    ]
    tables = _quality_table(kind, group) + _speed_table(kind, group) + _memory_table(group) + _predicted_table(group)
    tables += _reasons(group)
    return f"<div class='charts'>{''.join(drawn)}</div>{tables}"


def _embed(figure: Any, kind: str, identity: str) -> str:
    import plotly.io

    # Plotly does not wrap titles; the page does.
    title = html.escape(figure.layout.title.text)
    figure.update_layout(title=None, margin={"t": 12})
    division = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=identity,
        config={"displayModeBar": False, "responsive": True},
    )
    return f"<div class='chart {kind}'><h3>{title}</h3>{division}</div>"


def _speed_table(kind: Kind, group: Sequence[Measurement]) -> str:
    """Speed; machine and threads where they differ."""
    columns = _told((_LOAD, *kind.speed), group)
    apart = [
        (title, told)
        for title, told in (("machine", _machine), ("threads", _threads))
        if len({told(each) for each in group}) > 1
    ]
    rows = []
    for each in group:
        cells = [f"<td>{html.escape(told(each))}</td>" for _, told in apart]
        cells.append(f"<td class='{each.verdict.word}'>{each.verdict.word}</td>")
        rows.append((_named(each, group), [*cells, *_cells(each, columns)]))
    return _table("Speed", [*(title for title, _ in apart), "measurement", *(c.title for c in columns)], rows)


def _memory_table(group: Sequence[Measurement]) -> str:
    columns = _told((*_SIZE, *_MEMORY), group)
    rows = [(_named(each, group), _cells(each, columns)) for each in group]
    return _table("Size and memory", [column.title for column in columns], rows)


def _predicted_table(group: Sequence[Measurement]) -> str:
    """Measured beside predicted, where anything was."""
    titles, rows = predicted_rows(group)
    if not titles:
        return ""
    lines = [(_named(each, group), [f"<td>{cell}</td>" for cell in row]) for each, row in zip(group, rows, strict=True)]
    return _table("Measured / predicted", titles, lines)


def _told(columns: Sequence[Column], group: Sequence[Measurement]) -> list[Column]:
    """Those of which there is a figure."""
    return [column for column in columns if any(each.figure(column.key) is not None for each in group)]


def _cells(measurement: Measurement, columns: Sequence[Column]) -> list[str]:
    """Figures, and the reason where there is none."""
    cells = []
    for column in columns:
        value, reason = measurement.figure(column.key), measurement.absent.get(column.key, "")
        cells.append(
            f"<td title='{html.escape(reason, quote=True)}'>{'-' if value is None else column.show(value)}</td>"
        )
    return cells


def _quality_table(kind: Kind, group: Sequence[Measurement]) -> str:
    """Whether packages were lowered right, their quality and its figures."""
    columns = [column for column in kind.figures if any(each.distance(column.key) is not None for each in group)]
    rows = []
    for each in group:
        found = each.quality
        if found is None:
            words = [("not", "not verified"), ("not", "-"), ("not", "-")]
        else:
            right = ("right", "right") if found.lowered_right else ("wrong", "WRONG")
            words = [("passed", "passed") if found.passed else ("failed", "failed"), right, ("", found.quality)]
        cells = [f"<td class='{mark}'>{html.escape(word)}</td>" for mark, word in words]
        cells += [f"<td>{column.show(each.distance(column.key))}</td>" for column in columns]
        rows.append((_named(each, group), cells))
    return _table("Quality", ["verified", "lowered", "quality", *(column.title for column in columns)], rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    heading = "".join(f"<th>{html.escape(name)}</th>" for name in ("recipe", *columns))
    lines = "".join(f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>" for name, cells in rows)
    return f"<h3>{title}</h3><div class='scroll'><table><tr>{heading}</tr>{lines}</table></div>"


def _named(measurement: Measurement, group: Sequence[Measurement]) -> str:
    return f"{numbers_of(group)[key_of(measurement)]} {measurement.title}"


def _machine(measurement: Measurement) -> str:
    return measurement.environment.cpu


def _threads(measurement: Measurement) -> str:
    threads = measurement.workload.threads
    return "its own" if threads is None else str(threads)


def _reasons(group: Sequence[Measurement]) -> str:
    """In words why a measurement is not valid."""
    told = [
        f"<li>{html.escape(_named(each, group))} is {each.verdict.word}: {html.escape('; '.join(each.verdict.reasons))}</li>"
        for each in group
        if each.verdict.reasons
    ]
    return f"<ul class='reasons'>{''.join(told)}</ul>" if told else ""


def _environment(measurements: Sequence[Measurement]) -> str:
    """Each machine, and what ran of each kind."""
    parts = []
    for device, machine in dict.fromkeys((each.device, each.environment.cpu) for each in measurements):
        own = [each for each in measurements if (each.device, each.environment.cpu) == (device, machine)]
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
        parts.append(
            f"<h2>Machine: {html.escape(machine)} ({html.escape(device)})</h2><table class='facts'>{''.join(cells)}</table>"
        )
    return "".join(parts)


_LARGE = 1e7


def _shown(value: object, reason: str) -> str:
    if value is None:
        return f"null ({reason})"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < _LARGE else f"{value / 1e9:.2f} billion"
    return f"{value:,}" if _number(value) else str(value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
