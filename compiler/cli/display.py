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

    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else _LOG_COLUMNS
    widths = _widths(columns, rows, room)
    if widths is None and sys.stdout.isatty():
        _print_list(title, columns, rows, room)
        return
    widths = widths or _longest_words(columns, rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows]
        numeric = bool(cells) and all(cell[:1].isdigit() or cell[:1] in "-+" for cell in cells)
        table.add_column(column, justify="right" if numeric else "left", width=widths[index])
    for row in rows:
        table.add_row(*row)
    # A name in brackets, such as edgec[gguf], is no markup.
    needed = sum(widths) + _GAP * len(widths) + _ENDS
    Console(width=max(needed, len(title)), highlight=False, markup=False).print(table)


# Of tables in files and logs.
_LOG_COLUMNS = 140
# What a table has beside its cells: three between columns, and both ends.
_GAP, _ENDS = 3, 1


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """The columns' widths, no word broken and the first column whole; None where there is no room for that."""
    wanted = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    widths = _longest_words(columns, rows)
    left = room - sum(widths) - _GAP * len(widths) - _ENDS
    if left < 0:
        return None
    for index in sorted(range(len(columns)), key=lambda each: wanted[each] - widths[each]):
        more = min(left, wanted[index] - widths[index])
        widths[index], left = widths[index] + more, left - more
    return widths


def _longest_words(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The least widths that break no word; the first column is not wrapped."""
    every = [[row[index] for row in (columns, *rows)] for index in range(len(columns))]
    words = [max((len(word) for cell in cells for word in cell.split()), default=0) for cells in every]
    return [max(len(cell) for cell in every[0]), *words[1:]]


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
            "-" if stage.expected_seconds is None else f"{stage.expected_seconds:.1f}",
            "-" if stage.peak_rss_bytes is None else f"{stage.peak_rss_bytes / _MIB:,.0f}",
            "-" if stage.expected_peak_bytes is None else f"{stage.expected_peak_bytes / _MIB:,.0f}",
        ]
        for stage in stages
    ]
    print_table("Stages", ["stage", "first for", "seconds", "expected", "peak MiB", "expected"], rows)
