"""The grid that a matrix is rounded to, and rounding to the nearest point of it.

A weight is `(code - zero_point) * scale`. A scale and a zero point belong to one row and one group of neighbouring
columns. Scales are numbers that float16 and bfloat16 both hold, so that every container stores the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compiler.errors import UnusableInput

if TYPE_CHECKING:
    from torch import Tensor

# How far the range of a group is drawn in while the range with the smallest squared error is looked for.
_SHRINK_STEPS = 16
_SMALLEST_SHRINK = 0.6
SMALLEST_GROUP = 32
_SMALLEST_SCALE = 2.0**-24
_LARGEST_SCALE = 65280.0


@dataclass(frozen=True)
class Grid:
    """What codes mean.

    Attributes:
        bits: of a code: 2, 3, 4, 5 or 8.
        group_size: neighbouring columns that share a scale; 0 for the whole row.
        symmetric: the zero point is `2 ** (bits - 1)` everywhere; a scale may then be negative, which gives the
            larger end of the range the code that the other end lacks.
        rows_per_palette: None for evenly spaced codes. Otherwise codes are places in a palette (palettes.py), which at
            most so many neighbouring rows share; 0 for all rows.
        positive_scales: no scale is negative, for runtimes that take none (XNNPACK).
    """

    bits: int
    group_size: int
    symmetric: bool
    rows_per_palette: int | None = None
    positive_scales: bool = False

    @property
    def top(self) -> int:
        """The largest code; the smallest is 0."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 2 ** (self.bits - 1)

    def groups(self, columns: int) -> int:
        """Groups in a row of that many columns, which must divide."""
        return columns // (self.group_size or columns)

    def palette_rows(self, rows: int) -> int:
        """How many rows of a matrix of so many share a palette: the most that divide."""
        most = min(self.rows_per_palette or rows, rows)
        return next(count for count in range(most, 0, -1) if rows % count == 0)


@dataclass(frozen=True)
class Grids:
    """The grid of every layer: `own` by the name of its weight, `default` for others."""

    default: Grid
    own: Mapping[str, Grid] = field(default_factory=dict)

    def of(self, name: str) -> Grid:
        """The grid of the layer whose weight has that name."""
        return self.own.get(name, self.default)


@dataclass(frozen=True)
class Scales:
    """Scales and zero points of a matrix: float32 and float32 holding integers, both (rows, groups)."""

    scale: Tensor
    zero_point: Tensor

    def by_column(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every weight, (rows, columns)."""
        repeat = columns // self.scale.shape[1]
        return self.scale.repeat_interleave(repeat, 1), self.zero_point.repeat_interleave(repeat, 1)


def held_in_half(scale: Tensor) -> Tensor:
    """The nearest values that float16 and bfloat16 both hold, none of them zero, as float32."""
    import torch

    rounded = scale.to(torch.bfloat16).to(torch.float16).float()
    smallest = torch.full_like(rounded, _SMALLEST_SCALE)
    return torch.where(rounded == 0, smallest, rounded.clamp(-_LARGEST_SCALE, _LARGEST_SCALE))


def fit_scales(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Scales:
    """Scales and zero points for rounding to the nearest code: those of the range with the smallest squared error.

    Args:
        weight: float32 (rows, columns).
        grid: what codes mean.
        importance: float32 (columns,), weighs the squared error of each column; None weighs all alike.
    """
    import torch

    rows, columns = weight.shape
    groups = grid.groups(columns)
    parts = weight.reshape(rows, groups, -1)
    weighs = torch.ones(1, groups, columns // groups) if importance is None else importance.reshape(1, groups, -1)
    best = _symmetric(parts, 1.0, grid) if grid.symmetric else _asymmetric(parts, 1.0, grid)
    least = _squared_error(parts, best, grid, weighs)
    for step in range(1, _SHRINK_STEPS + 1):
        shrink = 1.0 - (1.0 - _SMALLEST_SHRINK) * step / _SHRINK_STEPS
        tried = _symmetric(parts, shrink, grid) if grid.symmetric else _asymmetric(parts, shrink, grid)
        error = _squared_error(parts, tried, grid, weighs)
        better = error < least
        least = torch.where(better, error, least)
        best = Scales(
            torch.where(better, tried.scale, best.scale), torch.where(better, tried.zero_point, best.zero_point)
        )
    return best


def _symmetric(parts: Tensor, shrink: float, grid: Grid) -> Scales:
    """The end of the range that lies farther out gets code 0, which has no counterpart, where a scale may be negative."""
    import torch

    low, high = parts.amin(2), parts.amax(2)
    if grid.positive_scales:
        step = torch.maximum(-low / grid.middle, high / (grid.middle - 1))
    else:
        step = -torch.where(high > -low, high, low) / grid.middle
    scale = held_in_half(step * shrink)
    return Scales(scale, torch.full_like(scale, float(grid.middle)))


def _asymmetric(parts: Tensor, shrink: float, grid: Grid) -> Scales:
    low, high = parts.amin(2).clamp(max=0) * shrink, parts.amax(2).clamp(min=0) * shrink
    scale = held_in_half((high - low) / grid.top)
    return Scales(scale, (-low / scale).round().clamp(0, grid.top))


def _squared_error(parts: Tensor, scales: Scales, grid: Grid, weighs: Tensor) -> Tensor:
    scale, zero = scales.scale[:, :, None], scales.zero_point[:, :, None]
    rounded = (parts / scale).add_(zero).round_().clamp_(0, grid.top).sub_(zero).mul_(scale)
    return rounded.sub_(parts).square_().mul_(weighs).sum(2)


def round_to_codes(weight: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """The nearest codes, uint8 (rows, columns)."""
    import torch

    scale, zero = scales.by_column(weight.shape[1])
    return (weight / scale + zero).round().clamp(0, grid.top).to(torch.uint8)


def dequantize(codes: Tensor, scales: Scales) -> Tensor:
    """The weights that the codes stand for, float32 (rows, columns)."""
    scale, zero = scales.by_column(codes.shape[1])
    return (codes.float() - zero) * scale


def fitting_group(columns: int, group_size: int) -> int:
    """`group_size` halved until it divides the columns; below `SMALLEST_GROUP` nothing fits, and it stays as it is."""
    fitting = group_size
    while fitting > SMALLEST_GROUP and columns % fitting:
        fitting //= 2
    return group_size if fitting and columns % fitting else fitting


def require_rows(name: str, weight: Tensor, grid: Grid) -> None:
    """Raise UnusableInput when rows do not divide into groups."""
    if grid.group_size and weight.shape[1] % grid.group_size:
        raise UnusableInput(
            f"The rows of {name} have {weight.shape[1]} weights, which groups of {grid.group_size} do not divide. Use a "
            "scheme with smaller groups."
        )
