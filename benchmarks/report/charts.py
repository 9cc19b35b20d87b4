"""The charts of the report, as plotly figures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.measurement import Measurement
from benchmarks.report.labels import place_labels
from runtimes.kinds.kind import Kind

_COLOURS = ("#2f6f9f", "#c8553d", "#588157", "#8e6c8a", "#d4a017", "#3d5a80", "#9c6644", "#6c757d")
_MARKER_PX = (20, 54)
_LOG_FROM = 20
# Beyond the slowest of all, on an axis from zero.
_ROOM = 1.12
_NEGLIGIBLE = 1e-4  # distances below are drawn here, or float packages would press all quantized ones together
_SYMBOLS = {"valid": "circle", "suspect": "circle-open", "invalid": "x-open"}
# Below the chart: names never lie over points, at any width. Sizes of markers are those of packages, not of the legend.
_LEGEND = {"orientation": "v", "y": -0.2, "yanchor": "top", "x": 0, "itemsizing": "constant"}


def base_figure(title: str, x: str, y: str) -> Any:
    """An empty figure in the report's dress."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "x": 0.015, "xanchor": "left", "font": {"size": 17}},
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        xaxis_title=x,
        yaxis_title=y,
        margin={"l": 70, "r": 20, "t": 56, "b": 56},
        height=430,
        showlegend=False,
    )
    return figure


Key = tuple[str, str, str, int | None]


def key_of(measurement: Measurement) -> Key:
    """What tells one row from another: the package, the device, its processor and the threads."""
    return measurement.package, measurement.device, measurement.environment.cpu, measurement.workload.threads


def colour_of(measurements: Sequence[Measurement]) -> dict[Key, str]:
    """One colour a package, the same in every chart."""
    return {key_of(each): _COLOURS[index % len(_COLOURS)] for index, each in enumerate(measurements)}


def numbers_of(measurements: Sequence[Measurement]) -> dict[Key, int]:
    """The number of each package, in charts and tables."""
    return {key_of(each): number for number, each in enumerate(measurements, 1)}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates (smaller is better), by the first."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def quality_chart(kind: Kind, measurements: Sequence[Measurement]) -> Any | None:
    """Distance from the model against time, area by package size, with the Pareto front; None without quality.

    What was not measured well is drawn hollow, what says nothing as a cross, and the front is made of the others.
    """
    import plotly.graph_objects as go

    (time_key, time_title), (distance_key, distance_title) = kind.chart.time, kind.chart.distance
    known = [
        each for each in measurements if each.distance(distance_key) is not None and (each.figure(time_key) or 0) > 0
    ]
    if not known:
        return None
    distance = [each.distance(distance_key) or 0.0 for each in known]
    if kind.chart.from_one:
        distance = [max(1 - value, 0.0) for value in distance]
    drawn = [max(value, _NEGLIGIBLE) for value in distance]
    times = [each.figure(time_key) or 0.0 for each in known]
    sizes = [each.figure("package_bytes") or 0.0 for each in known]
    scale = (_MARKER_PX[1] - _MARKER_PX[0]) / (max(sizes) or 1.0)
    colours, numbers = colour_of(measurements), numbers_of(measurements)
    figure = base_figure(f"Quality, speed and size of {kind.chart.models}", time_title, distance_title)
    believed = [index for index, each in enumerate(known) if each.verdict.word == "valid"]
    front = [believed[at] for at in pareto_front([(times[index], distance[index]) for index in believed])]
    if front:
        figure.add_trace(
            go.Scatter(
                x=[times[index] for index in front],
                y=[drawn[index] for index in front],
                mode="lines",
                name="Pareto front of what is valid",
                line={"dash": "dot", "color": "#888", "shape": "hv"},
                hoverinfo="skip",
            )
        )
    for each, x, y, size, exact in zip(known, times, drawn, sizes, distance, strict=True):
        word = "" if each.verdict.word == "valid" else f", {each.verdict.word}"
        figure.add_trace(
            go.Scatter(
                x=[x],
                y=[y],
                mode="markers",
                name=f"{numbers[key_of(each)]} {html.escape(each.title)}{word}",
                cliponaxis=False,
                marker={
                    "size": _MARKER_PX[0] + scale * size,
                    "color": colours[key_of(each)],
                    "symbol": _SYMBOLS[each.verdict.word],
                    "line": {"width": 2, "color": colours[key_of(each)]},
                    "opacity": 0.8,
                },
                hovertemplate=f"{html.escape(each.title)}<br>%{{x:.2f}} ms<br>distance {exact:.3g}<br>{size / 1e6:.1f} MB"
                "<extra></extra>",
            )
        )
    figure.update_layout(
        showlegend=True, legend=_LEGEND, height=470 + 22 * len(known), margin={"b": 60 + 22 * len(known)}
    )
    low, high = _log_range(drawn)
    # More than a decade has room for its powers of ten only.
    figure.update_yaxes(type="log", exponentformat="power", range=[low, high], dtick=1 if high - low > 1 else None)
    left, right = _time_axis(figure, times)
    across = [math.log10(value) if figure.layout.xaxis.type == "log" else value for value in times]
    up = [math.log10(value) for value in drawn]
    shares = [((x - left) / (right - left), (y - low) / (high - low)) for x, y in zip(across, up, strict=True)]
    for each, x, y, (right_px, down_px) in zip(known, across, up, place_labels(shares), strict=True):
        moved = (right_px, down_px) != (0, 0)
        figure.add_annotation(
            x=x, y=y, ax=right_px, ay=down_px, text=str(numbers[key_of(each)]), showarrow=moved,
            arrowhead=0, arrowwidth=1, arrowcolor="#888", standoff=2,
        )  # fmt: skip
    return figure


def latency_chart(kind: Kind, measurements: Sequence[Measurement]) -> Any:
    """The distribution of all samples, by package."""
    import plotly.graph_objects as go

    key, title = kind.chart.samples
    figure = base_figure(title + " (all samples)", "ms", "")
    colours = colour_of(measurements)
    for each in reversed(measurements):
        name = html.escape(each.title)
        values = [1e3 * value for part in each.samples[key] for value in part]
        figure.add_trace(
            go.Box(
                x=values,
                name=name,
                orientation="h",
                marker={"color": colours[key_of(each)], "size": 3},
                boxpoints="all",
                jitter=0.5,
                pointpos=0,
                line={"width": 1.5},
                hovertemplate="%{x:.2f} ms<extra>" + name + "</extra>",
            )
        )
    figure.update_yaxes(automargin=True)
    _time_axis(figure, [1e3 * value for each in measurements for part in each.samples[key] for value in part])
    return figure


def _time_axis(figure: Any, values: Sequence[float]) -> list[float]:
    """From zero, or logarithmic where one package takes many times another's time; the ends, which are powers of ten then."""
    values = [value for value in values if value > 0] or [1.0]
    if max(values) > _LOG_FROM * min(values):
        ends = _log_range(values)
        figure.update_xaxes(type="log", dtick=1, minor={"ticks": "outside"}, range=ends)
    else:
        ends = [0.0, _ROOM * max(values)]
        figure.update_xaxes(range=ends)
    return ends


def _log_range(values: Sequence[float]) -> list[float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.3, 0.2 * (high - low))
    return [low - margin, high + margin]


def memory_chart(measurements: Sequence[Measurement]) -> Any | None:
    """Peak memory, split into anonymous pages and file-mapped pages; None where the system does not split."""
    import plotly.graph_objects as go

    known = [each for each in measurements if each.figure("peak_anon_bytes") is not None]
    if not known:
        return None
    figure = base_figure("Peak memory", "MB", "")
    names = [html.escape(each.title) for each in reversed(known)]
    for key, label, colour in (
        ("peak_anon_bytes", "anonymous: must fit", "#c8553d"),
        ("file_mapped_bytes", "file-mapped: can be dropped and read again", "#9fb8cc"),
    ):
        values = [(each.figure(key) or 0.0) / 1e6 for each in reversed(known)]
        figure.add_trace(
            go.Bar(x=values, y=names, orientation="h", name=label, marker_color=colour, hovertemplate="%{x:.0f} MB")
        )
    figure.update_layout(barmode="stack", showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0})
    figure.update_yaxes(automargin=True)
    return figure
