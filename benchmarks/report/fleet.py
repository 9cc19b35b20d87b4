"""What the report says of a matrix: heat maps of devices and recipes, predicted beside measured, and every cell."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report.charts import base_figure

_SPEEDS = (("decode_tok_per_s", "tokens a second"), ("latency_ms_p50", "ms for an input (median)"))
_PREDICTED = (
    ("package_bytes", "predicted_package_bytes", "package MB", 1e-6),
    ("peak_rss_bytes", "predicted_peak_rss_bytes", "peak memory MB", 1e-6),
    ("decode_tok_per_s", "predicted_tok_per_s", "tokens a second", 1.0),
    ("ttft_s", "predicted_ttft_s", "ms to the first token", 1e3),
    ("latency_ms_p50", "predicted_latency_ms", "ms for an input", 1.0),
)
Row = Mapping[str, Any]


def fleet_sections(rows: Sequence[Row]) -> list[tuple[str, list[Any], str]]:
    """A title, charts and a table in HTML for each model, and one for all that was not measured."""
    sections = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        charts = [chart for key, title in _SPEEDS if (chart := heat_map(own, key, title)) is not None]
        charts += [chart for each in _PREDICTED if (chart := predicted_chart(own, *each)) is not None]
        sections.append((f"{name_of(own)} on the fleet", charts, _cells_table(own)))
    return sections


def name_of(rows: Sequence[Row]) -> str:
    """What a model calls itself, where a cell of it was measured; else its folder's name."""
    measured = (row["model_name"] for row in rows if row["status"] == "measured")
    return str(next(measured, rows[0]["model_name"]))


def heat_map(rows: Sequence[Row], key: str, title: str) -> Any | None:
    """A figure of every recipe on every device; emulated ones stay empty. None where nobody has the figure."""
    import plotly.graph_objects as go

    told = [row for row in rows if row[key] is not None and not row["emulated"]]
    if not told:
        return None
    devices, recipes = (list(dict.fromkeys(row[name] for row in rows)) for name in ("device", "recipe"))
    values = {(row["recipe"], row["device"]): row[key] for row in told}
    grid = [[values.get((recipe, device)) for device in devices] for recipe in recipes]
    texts = [["" if value is None else f"{value:.3g}" for value in line] for line in grid]
    figure = base_figure(f"{title[0].upper()}{title[1:]}", "", "")
    figure.add_trace(
        go.Heatmap(
            z=grid, x=devices, y=recipes, text=texts, texttemplate="%{text}", colorscale="Blues",
            reversescale=key.startswith("latency"), hovertemplate="%{y} on %{x}: %{z:.3g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(height=120 + 36 * len(recipes), margin={"l": 170})
    return figure


def predicted_chart(rows: Sequence[Row], key: str, predicted: str, title: str, factor: float) -> Any | None:
    """Predicted against measured, with the line on which both are equal; None where there is no pair."""
    import plotly.graph_objects as go

    pairs = [row for row in rows if row[key] and row[predicted] and not row["emulated"]]
    if not pairs:
        return None
    measured, told = ([row[name] * factor for row in pairs] for name in (key, predicted))
    most = 1.1 * max(*measured, *told)
    figure = base_figure(f"Predicted and measured: {title}", f"measured {title}", f"predicted {title}")
    figure.add_trace(
        go.Scatter(x=[0, most], y=[0, most], mode="lines", line={"dash": "dot", "color": "#888"}, hoverinfo="skip")
    )
    figure.add_trace(
        go.Scatter(
            x=measured, y=told, mode="markers", marker={"size": 11, "color": "#2f6f9f"},
            text=[f"{row['recipe']} on {row['device']}" for row in pairs],
            hovertemplate="%{text}<br>measured %{x:.4g}, predicted %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    return figure


def _cells_table(rows: Sequence[Row]) -> str:
    titles = (
        "recipe", "device", "what came of it", "computes the same there", "measured tok/s", "predicted", "measured peak MB",
        "predicted",
    )  # fmt: skip
    lines = []
    for row in rows:
        status = row["verdict"] or row["status"]
        same = {True: "yes", False: "NO", None: ""}[row["computes_the_same"]]
        speed = "" if row["emulated"] else _number(row["decode_tok_per_s"])
        figures = (
            speed, _number(row["predicted_tok_per_s"]), _number(row["peak_rss_bytes"], 1e-6),
            _number(row["predicted_peak_rss_bytes"], 1e-6),
        )  # fmt: skip
        words = f"{status}{': ' if row['reason'] else ''}{row['reason']}" + (", emulated" if row["emulated"] else "")
        cells = (row["recipe"], row["device"], words, same, *figures)
        lines.append("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in cells) + "</tr>")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _number(value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:,.1f}"
