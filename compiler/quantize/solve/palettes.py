"""Palettes: rows of a matrix share a table of 2**bits values, and a code says which of them a weight is.

`fit_palettes` places the values by k-means in one dimension, weighed by how much each column matters; `solve_palettes`
then rounds column by column and lets the columns not yet rounded take up the error, as GPTQ does with evenly spaced values
(compiler/quantize/solve/gptq.py), and fits the values once more to the codes by least squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.quantize.solve.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.quantize.solve.gptq import DampedHessian, GptqSettings

_ROUNDS = 24
_SAMPLED = 1 << 22  # values of one table that k-means looks at
_AT_ONCE = 1 << 22  # values that are sorted at a time
_SPACINGS = 1024
_ROWS_AT_ONCE = 4096
_BLOCK = 64
# Above so many values a table is fine enough, and fitting it again would cost more than it gives.
_LARGEST_REFITTED = 64


@dataclass(frozen=True)
class Palettes:
    """Tables of values.

    Attributes:
        table: float32 (groups, 2**bits), each row ascending, of numbers that float16 holds.
        rows: how many neighbouring rows of the matrix share a table.
    """

    table: Tensor
    rows: int

    def by_row(self, first: int, last: int) -> Tensor:
        """The table of each row from `first` to `last` - 1: (rows, 2**bits)."""
        import torch

        return self.table[torch.arange(first, last) // self.rows]


def fit_palettes(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Palettes:
    """The tables with the least squared error, columns weighed by `importance` (columns,) or alike.

    Args:
        weight: float32 (rows, columns).
        grid: bits, and how many rows at most share a table.
        importance: float32 (columns,).
    """
    import torch

    rows, columns = weight.shape
    shared = grid.palette_rows(rows)
    weighs = torch.ones(columns) if importance is None else importance / importance.mean()
    stride = max(1, shared * columns // _SAMPLED)
    step = max(1, _AT_ONCE // (shared * columns))
    tables = []
    for first in range(0, rows // shared, step):
        part = weight[first * shared : (first + step) * shared]
        values = part.reshape(-1, shared * columns)[:, ::stride]
        spread = weighs.repeat(shared)[::stride].expand_as(values)
        tables.append(_k_means(values, spread, 2**grid.bits))
    return Palettes(_held(torch.cat(tables)), shared)


def _k_means(values: Tensor, weighs: Tensor, count: int) -> Tensor:
    """Centres of each row of `values`, ascending: Lloyd's rounds on sorted values, by cumulative sums."""
    import torch

    ordered, places = values.sort(1)
    mass = weighs.gather(1, places).double()
    zero = mass.new_zeros(len(values), 1)
    masses = torch.cat([zero, mass.cumsum(1)], 1)
    moments = torch.cat([zero, (mass * ordered).cumsum(1)], 1)
    centres = _first_centres(ordered, count)
    for _ in range(_ROUNDS):
        middles = (centres[:, 1:] + centres[:, :-1]) / 2
        cuts = torch.searchsorted(ordered, middles.contiguous())
        ends = torch.cat([torch.zeros_like(cuts[:, :1]), cuts, torch.full_like(cuts[:, :1], ordered.shape[1])], 1)
        weight = masses.gather(1, ends).diff(dim=1)
        total = moments.gather(1, ends).diff(dim=1)
        centres = torch.where(weight > 0, (total / weight.clamp(min=1e-30)).float(), centres)
    return centres


def _first_centres(ordered: Tensor, count: int) -> Tensor:
    """Centres whose density is the cube root of the values' own, which is best for many of them (Panter and Dite 1951)."""
    import torch

    size = ordered.shape[1]
    picked = ordered[:, torch.linspace(0, size - 1, min(size, _SPACINGS)).long()]
    spread = picked.diff(dim=1).double().clamp(min=1e-12).pow(2 / 3).cumsum(1)
    wanted = spread[:, -1:] * ((torch.arange(count) + 0.5) / count)
    places = torch.searchsorted(spread, wanted.contiguous()).clamp(max=picked.shape[1] - 1)
    return picked.gather(1, places).sort(1).values


def _held(table: Tensor) -> Tensor:
    import torch

    return table.clamp(-65504.0, 65504.0).to(torch.float16).float().sort(1).values


def nearest_codes(weight: Tensor, palettes: Palettes) -> Tensor:
    """The code of the nearest value of each weight, uint8 (rows, columns)."""
    import torch

    parts = []
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        part = weight[start : start + _ROWS_AT_ONCE]
        table = palettes.by_row(start, start + len(part))
        middles = (table[:, 1:] + table[:, :-1]) / 2
        parts.append(torch.searchsorted(middles, part.contiguous()).to(torch.uint8))
    return torch.cat(parts)


def look_up(codes: Tensor, palettes: Palettes) -> Tensor:
    """The weights that the codes stand for, float32 (rows, columns)."""
    return palettes.by_row(0, len(codes)).gather(1, codes.long())


def solve_palettes(
    weight: Tensor, damped: DampedHessian, grid: Grid, settings: GptqSettings
) -> tuple[Tensor, Palettes]:
    """Codes, uint8 (rows, columns), and tables that keep the outputs for inputs with these second moments."""
    import torch

    back = torch.argsort(damped.order)
    palettes = fit_palettes(weight, grid, damped.upper.diagonal().square().reciprocal()[back])
    codes = _descend(weight, damped, palettes, back)
    for _ in range(settings.refinements):
        if grid.palette_rows(len(weight)) > _ROWS_AT_ONCE or 2**grid.bits > _LARGEST_REFITTED:
            break
        refitted = _refit(weight, codes, palettes, damped.matrix)
        again = _descend(weight, damped, refitted, back)
        better = _errors(weight, again, refitted, damped.matrix) < _errors(weight, codes, palettes, damped.matrix)
        table = torch.where(better[:, None], refitted.table, palettes.table)
        codes = torch.where(better.repeat_interleave(palettes.rows)[:, None], again, codes)
        palettes = Palettes(table, palettes.rows)
    return codes, palettes


def _descend(weight: Tensor, damped: DampedHessian, palettes: Palettes, back: Tensor) -> Tensor:
    import torch

    parts = []
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        part = weight[start : start + _ROWS_AT_ONCE, damped.order]
        parts.append(_descend_columns(part, damped.upper, palettes.by_row(start, start + len(part)))[:, back])
    return torch.cat(parts)


def _descend_columns(weight: Tensor, upper: Tensor, table: Tensor) -> Tensor:
    """Round columns one after the other (`weight` and `upper` are in their order already)."""
    import torch

    rest = weight.clone()
    middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    columns = weight.shape[1]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        part = rest[:, start:end].t().contiguous()
        local = upper[start:end, start:end]
        errors = torch.empty_like(part)
        for column in range(end - start):
            value = part[column]
            code = torch.searchsorted(middles, value[:, None])
            codes[:, start + column] = code[:, 0]
            error = value.sub(table.gather(1, code)[:, 0]).div_(local[column, column])
            errors[column] = error
            if column + 1 < end - start:
                part[column + 1 :].addr_(local[column, column + 1 :], error, alpha=-1)
        if end < columns:
            rest[:, end:].addmm_(errors.t(), upper[start:end, end:], alpha=-1)
    return codes


def _refit(weight: Tensor, codes: Tensor, palettes: Palettes, hessian: Tensor) -> Palettes:
    """The values that are best for these codes, table by table, by least squares."""
    import torch

    count = palettes.table.shape[1]
    tables = []
    for number, old in enumerate(palettes.table):
        rows = slice(number * palettes.rows, (number + 1) * palettes.rows)
        chosen = torch.nn.functional.one_hot(codes[rows].long(), count).float()
        carried = hessian @ chosen
        products = torch.einsum("rck,rcl->kl", chosen, carried).double()
        wanted = torch.einsum("rc,rck->k", weight[rows], carried).double()
        ridge = 1e-3 * products.diagonal().mean() + 1e-30
        products.diagonal().add_(ridge)
        tables.append(torch.linalg.solve(products, wanted + ridge * old.double()).float())
    found = torch.stack(tables)
    return Palettes(_held(torch.where(torch.isfinite(found), found, palettes.table)), palettes.rows)


def _errors(weight: Tensor, codes: Tensor, palettes: Palettes, hessian: Tensor) -> Tensor:
    """The objective of each table's rows."""
    error = weight - look_up(codes, palettes)
    return ((error @ hessian) * error).sum(1).reshape(-1, palettes.rows).sum(1)
