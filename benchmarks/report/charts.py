"""The charts of the report, as plotly figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.measurement import Measurement
from runtimes.kinds.kind import Kind

_COLOURS = ("#2f6f9f", "#c8553d", "#588157", "#8e6c8a", "#d4a017", "#3d5a80", "#9c6644", "#6c757d")
_MARKER_PX = (14, 54)
_LOG_FROM = 20
_NEGLIGIBLE = 1e-4  # distances below are drawn here, or float packages would press all quantized ones together
_LABEL_PLACES = ("middle left", "top center", "bottom center", "middle right")


def _base(title: str, x: str, y: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "x": 0.015, "xanchor": "left", "font": {"size": 17}},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13},
        xaxis_title=x,
        yaxis_title=y,
        margin={"l": 70, "r": 20, "t": 56, "b": 56},
        height=430,
        showlegend=False,
    )
    return figure


def colour_of(measurements: Sequence[Measurement]) -> dict[str, str]:
    """One colour a package, the same in every chart."""
    return {each.package: _COLOURS[index % len(_COLOURS)] for index, each in enumerate(measurements)}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates (smaller is better), by the first."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def quality_chart(kind: Kind, measurements: Sequence[Measurement]) -> Any | None:
    """Distance from the model against time, area by package size, with the Pareto front; None without quality."""
    import plotly.graph_objects as go

    (time_key, time_title), (distance_key, distance_title) = kind.chart.time, kind.chart.distance
    found = [(each, each.distance(distance_key)) for each in measurements]
    known = [each for each, value in found if value is not None]
    if not known:
        return None
    distance = [value for _, value in found if value is not None]
    if kind.chart.from_one:
        distance = [max(1 - value, 0.0) for value in distance]
    drawn = [max(value, _NEGLIGIBLE) for value in distance]
    times = [each.figure(time_key) or 0.0 for each in known]
    sizes = [each.figure("package_bytes") or 0.0 for each in known]
    scale = (_MARKER_PX[1] - _MARKER_PX[0]) / max(sizes)
    colours = colour_of(measurements)
    figure = _base(f"Quality, speed and size of {kind.chart.models}", time_title, distance_title)
    front = pareto_front(list(zip(times, distance, strict=True)))
    by_time = sorted(range(len(times)), key=lambda index: times[index])
    places = {index: _LABEL_PLACES[rank % len(_LABEL_PLACES)] for rank, index in enumerate(by_time)}
    figure.add_trace(
        go.Scatter(
            x=[times[index] for index in front],
            y=[drawn[index] for index in front],
            mode="lines",
            line={"dash": "dot", "color": "#888", "shape": "hv"},
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=times,
            y=drawn,
            mode="markers+text",
            text=[each.recipe for each in known],
            textposition=[places[index] for index in range(len(times))],
            cliponaxis=False,
            marker={
                "size": [_MARKER_PX[0] + scale * size for size in sizes],
                "color": [colours[each.package] for each in known],
                "opacity": 0.75,
            },
            customdata=[[size / 1e6, each] for size, each in zip(sizes, distance, strict=True)],
            hovertemplate="%{text}<br>%{x:.2f} ms<br>distance %{customdata[1]:.3g}<br>%{customdata[0]:.1f} MB<extra></extra>",
        )
    )
    figure.update_yaxes(type="log", exponentformat="power", range=_log_range(drawn))
    _time_axis(figure, times)
    note = f"area: package size; dotted: Pareto front; lower left is better; below {_NEGLIGIBLE:g} drawn as {_NEGLIGIBLE:g}"
    figure.add_annotation(text=note, xref="paper", yref="paper", x=1, y=1.06, showarrow=False, font={"size": 11})
    return figure


def latency_chart(kind: Kind, measurements: Sequence[Measurement]) -> Any:
    """The distribution of all samples, by package."""
    import plotly.graph_objects as go

    key, title = kind.chart.samples
    figure = _base(title + " (all samples)", "ms", "")
    colours = colour_of(measurements)
    for each in reversed(measurements):
        values = [1e3 * value for part in each.samples[key] for value in part]
        figure.add_trace(
            go.Box(
                x=values,
                name=each.recipe,
                orientation="h",
                marker={"color": colours[each.package], "size": 3},
                boxpoints="all",
                jitter=0.5,
                pointpos=0,
                line={"width": 1.5},
                hovertemplate="%{x:.2f} ms<extra>" + each.recipe + "</extra>",
            )
        )
    _time_axis(figure, [1e3 * value for each in measurements for part in each.samples[key] for value in part])
    return figure


def _time_axis(figure: Any, values: Sequence[float]) -> None:
    """From zero, or logarithmic where one package takes many times another's time."""
    if max(values) > _LOG_FROM * min(values):
        figure.update_xaxes(type="log", dtick=1, minor={"ticks": "outside"}, range=_log_range(values))
    else:
        figure.update_xaxes(rangemode="tozero")


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
    figure = _base("Peak memory", "MB", "")
    names = [each.recipe for each in reversed(known)]
    for key, label, colour in (
        ("peak_anon_bytes", "anonymous: must fit", "#c8553d"),
        ("file_mapped_bytes", "file-mapped: can be dropped and read again", "#9fb8cc"),
    ):
        values = [(each.figure(key) or 0.0) / 1e6 for each in reversed(known)]
        figure.add_trace(
            go.Bar(x=values, y=names, orientation="h", name=label, marker_color=colour, hovertemplate="%{x:.0f} MB")
        )
    figure.update_layout(barmode="stack", showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0})
    return figure
