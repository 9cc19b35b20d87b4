"""Which rows of which quantized matrix a container's matrix is made of.

Converters rename, fuse, reorder and transpose matrices. Instead of a table of names, which can be wrong, the rows tell:
every row of the model's matrices has a mark, and the container's float matrix is looked up row by row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CheckFailed
from compiler.formats.codes import QuantizedInfo, QuantizedTensor, list_quantized, read_quantized
from compiler.formats.safetensors import find_tensors

# Of safetensors and GGUF alike; BF16 is read as its bits.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_ROWS_AT_ONCE = 1024
_ZERO_MARK = np.uint64(0)  # of a row of zeros, whatever its width


@dataclass(frozen=True)
class Rows:
    """Marks of all rows that have codes, sorted, and where each row is.

    Attributes:
        entries: the quantized matrices.
        marks: uint64 (all rows,), sorted.
        entry: int64 (all rows,), index into `entries`.
        row: int64 (all rows,), the row in that matrix.
    """

    entries: tuple[QuantizedInfo, ...]
    marks: NDArray[np.uint64]
    entry: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """Where the rows of a container's matrix come from, in its order.

    Attributes:
        parts: (index into `Rows.entries`, rows of it) whose concatenation is the matrix.
        bits, group_size, symmetric: which all of them share.
    """

    parts: tuple[tuple[int, NDArray[np.int64]], ...]
    bits: int
    group_size: int
    symmetric: bool


def index_rows(model: Path, codes: Path) -> Rows:
    """Mark every row of the model's matrices that have codes."""
    stored = {info.name: info for info in find_tensors(model)}
    entries = tuple(list_quantized(codes).values())
    marks, owners, rows = [], [], []
    for number, entry in enumerate(entries):
        info = stored[entry.name]
        values: NDArray[Any] = np.memmap(info.file, DTYPES[info.dtype], "r", info.offset, info.shape)
        found = mark_rows(values.T if entry.transposed else values, info.dtype)
        marks.append(found)
        owners.append(np.full(len(found), number))
        rows.append(np.arange(len(found)))
    all_marks = np.concatenate(marks)
    order = np.argsort(all_marks, kind="stable")
    return Rows(entries, all_marks[order], np.concatenate(owners)[order], np.concatenate(rows)[order])


def mark_rows(values: NDArray[Any], dtype: str) -> NDArray[np.uint64]:
    """A 64-bit mark of each row's float32 values; `dtype` as safetensors names it, BF16 given as uint16."""
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**63, values.shape[1], dtype=np.uint64) | np.uint64(1)
    marks = np.empty(len(values), np.uint64)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        part = np.ascontiguousarray(values[start : start + _ROWS_AT_ONCE])
        bits = part.astype(np.uint32) << 16 if dtype == "BF16" else part.astype(np.float32).view(np.uint32)
        with np.errstate(over="ignore"):
            mixed = bits.astype(np.uint64) * factors
            marks[start : start + _ROWS_AT_ONCE] = (mixed ^ (mixed >> np.uint64(29))).sum(1, dtype=np.uint64)
    return marks


def find_origin(rows: Rows, marks: NDArray[np.uint64], name: str, placed: Collection[Origin] = ()) -> Origin | None:
    """Where a container's matrix with these row marks comes from; None when it has no codes.

    Rows of zeros do not decide: those of padding tokens are in tables without codes as well. Of two equal matrices the one
    that is not `placed` yet is taken.

    Raises:
        CheckFailed: only some of its rows have codes, or its parts differ in their grid.
    """
    at = np.searchsorted(rows.marks, marks).clip(max=len(rows.marks) - 1)
    known = rows.marks[at] == marks
    if not (known & (marks != _ZERO_MARK)).any():
        return None
    at = _resolve_twins(rows, marks, at, known, {number for origin in placed for number, _ in origin.parts})
    if not known.all():
        raise CheckFailed(
            "carry",
            f"Of the rows of {name}, {int((~known).sum())} are not rows of any quantized matrix: the converter changed them, "
            "so the codes cannot be carried. Use a scheme that the target's own tools quantize to.",
        )
    owners, own_rows = rows.entry[at], rows.row[at]
    cuts = np.flatnonzero(np.diff(owners)) + 1
    starts = np.concatenate([[0], cuts, [len(owners)]])
    parts = tuple((int(owners[a]), own_rows[a:b]) for a, b in pairwise(starts))
    grids = {(e.bits, e.group_size, e.symmetric) for e in (rows.entries[number] for number, _ in parts)}
    if len(grids) > 1:
        raise CheckFailed("carry", f"The parts of {name} are quantized to different grids, and it can hold only one.")
    bits, group_size, symmetric = grids.pop()
    return Origin(parts, bits, group_size, symmetric)


def _resolve_twins(
    rows: Rows, marks: NDArray[np.uint64], at: NDArray[np.int64], known: NDArray[np.bool_], placed: set[int]
) -> NDArray[np.int64]:
    """Rows that several matrices have (those of tokens that were never trained, for one) go to one that the rest is from."""
    last = (np.searchsorted(rows.marks, marks, "right") - 1).clip(min=0)
    twins = known & (rows.entry[at] != rows.entry[last])
    owners = set(rows.entry[at[known & ~twins]].tolist())
    resolved = at.copy()
    for place in np.flatnonzero(twins):
        choices = range(at[place], last[place] + 1)
        wanted = [choice for choice in choices if int(rows.entry[choice]) in owners]
        wanted += [choice for choice in choices if not owners and int(rows.entry[choice]) not in placed]
        resolved[place] = wanted[0] if wanted else at[place]
    return resolved


def gather_rows(rows: Rows, origin: Origin, name: str) -> QuantizedTensor:
    """The codes of a container's matrix, in its order of rows."""
    tensors: dict[int, QuantizedTensor] = {}
    for number, _ in origin.parts:
        if number not in tensors:
            tensors[number] = read_quantized(rows.entries[number])

    def joined(part: str) -> NDArray[Any]:
        return np.concatenate([getattr(tensors[number], part)[chosen] for number, chosen in origin.parts])

    return QuantizedTensor(
        name, joined("codes"), joined("scales"), joined("zero_points"), origin.bits, origin.group_size, origin.symmetric
    )


def require_all_carried(rows: Rows, used: Sequence[Origin]) -> None:
    """Raise CheckFailed when a quantized matrix has no place in the container."""
    placed = {number for origin in used for number, _ in origin.parts}
    needed = set(rows.entry[rows.marks != _ZERO_MARK].tolist())
    missing = [entry.name for number, entry in enumerate(rows.entries) if number in needed - placed]
    if missing:
        raise CheckFailed(
            "carry",
            f"The converter changed the values of {missing[0]} (and {len(missing) - 1} others), so their codes cannot be "
            "carried. Use a scheme that the target's own tools quantize to.",
        )
