"""What people see: tables and byte counts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from compiler.stages.executor import StageReport

_MIB = 1024 * 1024


def print_json(value: object) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def format_bytes(count: float | None) -> str:
    """Bytes for people, in MB as file managers and download pages count them."""
    if count is None:
        return "-"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = bool(cells) and all(cell[:1].isdigit() or cell[:1] in "-+" for cell in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 140
    # A name in brackets, such as edgec[gguf], is no markup.
    Console(width=width, highlight=False, markup=False).print(table)


def print_stages(stages: Sequence[StageReport]) -> None:
    """The table of what each stage of a build cost."""
    rows = [
        [
            stage.label,
            stage.recipe,
            "cached" if stage.cached else f"{stage.seconds:.1f}",
            "-" if stage.peak_rss_bytes is None else f"{stage.peak_rss_bytes / _MIB:,.0f}",
        ]
        for stage in stages
    ]
    print_table("Stages", ["stage", "first for", "seconds", "peak MiB"], rows)
