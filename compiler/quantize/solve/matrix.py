"""One matrix and its codes, whatever they mean: steps of a scale (grid.py) or places in a palette (palettes.py)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compiler.formats.codes import QuantizedTensor
from compiler.quantize.solve.gptq import Moments, Solver, solve_damped
from compiler.quantize.solve.grid import Grid, Scales, dequantize, fit_scales, round_to_codes
from compiler.quantize.solve.palettes import Palettes, fit_palettes, look_up, nearest_codes, solve_palettes

Meaning = Scales | Palettes

_ROWS_AT_ONCE = 4096


def round_matrix(weight: Tensor, grid: Grid) -> tuple[Tensor, Meaning]:
    """The nearest codes, uint8 (rows, columns), and what they mean."""
    if grid.rows_per_palette is not None:
        palettes = fit_palettes(weight, grid)
        return nearest_codes(weight, palettes), palettes
    parts = []
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = weight[start : start + _ROWS_AT_ONCE]
        scales = fit_scales(rows, grid)
        parts.append((round_to_codes(rows, scales, grid), scales))
    return _joined(parts)


def solve_matrix(weight: Tensor, moments: Moments, grid: Grid, solver: Solver) -> tuple[Tensor, Meaning]:
    """Codes that keep the outputs for inputs with these moments, and what they mean."""
    if grid.rows_per_palette is not None:
        return solve_palettes(weight, moments, grid, solver)
    parts = [
        solve_damped(weight[start : start + _ROWS_AT_ONCE], moments, grid, solver)
        for start in range(0, len(weight), _ROWS_AT_ONCE)
    ]
    return _joined(parts)


def _joined(parts: list[tuple[Tensor, Scales]]) -> tuple[Tensor, Scales]:
    if len(parts) == 1:
        return parts[0]
    scale = torch.cat([scales.scale for _, scales in parts])
    zero_point = torch.cat([scales.zero_point for _, scales in parts])
    return torch.cat([codes for codes, _ in parts]), Scales(scale, zero_point)


def restore(codes: Tensor, meaning: Meaning) -> Tensor:
    """The weights that the codes stand for, float32 (rows, columns)."""
    return look_up(codes, meaning) if isinstance(meaning, Palettes) else dequantize(codes, meaning)


def restore_rows(codes: Tensor, meaning: Meaning, start: int, end: int) -> Tensor:
    """`restore` of some rows."""
    if isinstance(meaning, Palettes):
        return meaning.by_row(start, end).gather(1, codes[start:end].long())
    return dequantize(codes[start:end], Scales(meaning.scale[start:end], meaning.zero_point[start:end]))


def as_quantized(name: str, codes: Tensor, meaning: Meaning, grid: Grid, transposed: bool = False) -> QuantizedTensor:
    """The codes in the form that containers carry."""
    if isinstance(meaning, Palettes):
        none = np.zeros((len(codes), 0))
        return QuantizedTensor(
            name,
            codes.numpy(),
            none.astype(np.float16),
            none.astype(np.uint8),
            grid.bits,
            codes.shape[1],
            False,
            transposed=transposed,
            palette=meaning.table.to(torch.float16).numpy(),
        )
    return QuantizedTensor(
        name,
        codes.numpy(),
        meaning.scale.to(torch.float16).numpy(),
        meaning.zero_point.to(torch.uint8).numpy(),
        grid.bits,
        grid.group_size or codes.shape[1],
        grid.symmetric,
        transposed=transposed,
    )
