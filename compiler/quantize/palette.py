"""Palettes: each group of rows of a matrix has a table of 2**bits values, and each weight the index of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PaletteEntry:
    """What is known of a stored palette before its data is read."""

    name: str
    rows: int
    columns: int
    bits: int
    rows_per_group: int
    file: Path


@dataclass(frozen=True)
class Palette:
    """indices uint8 (rows, columns); table float16 (groups, 2**bits)."""

    indices: NDArray[np.uint8]
    table: NDArray[np.float16]


def read_palette(entry: PaletteEntry) -> Palette:
    """The palette of an entry."""
    with np.load(entry.file) as parts:
        return Palette(parts["indices"], parts["table"])
