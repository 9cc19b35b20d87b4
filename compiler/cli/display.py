"""What people see: tables and byte counts."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
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
    """Print a table, numbers aligned to the right; row by row as a list where a terminal has no room for its words."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if room is not None and _narrowest(columns, rows) > room:
        _print_list(title, columns, rows, room)
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = bool(cells) and all(cell[:1].isdigit() or cell[:1] in "-+" for cell in cells)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    # A name in brackets, such as edgec[gguf], is no markup.
    width = room or max(_narrowest(columns, rows), min(_widest(columns, rows, title), _LOG_COLUMNS))
    console = Console(width=width, highlight=False, markup=False)
    console.print(table)


# Of tables in files and logs.
_LOG_COLUMNS = 140
# What a table has beside its cells: a space at both ends and two between columns.
_GAP, _ENDS = 2, 2


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The width below which words would be broken; the first column is not wrapped."""
    parts = [[row[index] for row in (columns, *rows)] for index in range(len(columns))]
    words = [max(len(cell) for cell in parts[0])]
    words += [max((len(word) for cell in cells for word in cell.split()), default=0) for cells in parts[1:]]
    return sum(words) + _GAP * len(words) + _ENDS


def _widest(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> int:
    """The width that wraps nothing."""
    cells = sum(max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns)))
    return max(cells + (_GAP + 1) * len(columns) + _ENDS, len(title))


def _print_list(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> None:
    """Each row as its first cell and a line for each other one."""
    print(f"{title}\n")
    longest = max((len(column) for column in columns[1:]), default=0)
    for row in rows:
        print(f"  {row[0]}")
        for column, cell in zip(columns[1:], row[1:], strict=True):
            print(fill(cell, room, f"    {column:{longest}}  ", " " * (longest + 6)))
    print()


def fill(text: str, room: int, first: str = "", rest: str = "") -> str:
    """Text in lines of at most `room` columns, broken between words only."""
    return textwrap.fill(
        text, room, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


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
