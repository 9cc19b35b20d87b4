"""One matrix and its codes, whatever they mean: steps of a scale (grid.py) or places in a palette (palettes.py)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compiler.formats.codes import QuantizedTensor
from compiler.quantize.solve.gptq import DampedHessian, GptqSettings, solve_damped
from compiler.quantize.solve.grid import Grid, Scales, dequantize, fit_scales, round_to_codes
from compiler.quantize.solve.palettes import Palettes, fit_palettes, look_up, nearest_codes, solve_palettes

QuantizationParameters = Scales | Palettes

_ROWS_AT_ONCE = 4096


def round_matrix(weight: Tensor, grid: Grid) -> tuple[Tensor, QuantizationParameters]:
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


def solve_matrix(
    weight: Tensor, damped: DampedHessian, grid: Grid, settings: GptqSettings
) -> tuple[Tensor, QuantizationParameters]:
    """Codes that keep the outputs for inputs with these second moments, and what they mean."""
    if grid.rows_per_palette is not None:
        return solve_palettes(weight, damped, grid, settings)
    parts = [
        solve_damped(weight[start : start + _ROWS_AT_ONCE], damped, grid, settings)
        for start in range(0, len(weight), _ROWS_AT_ONCE)
    ]
    return _joined(parts)


def _joined(parts: list[tuple[Tensor, Scales]]) -> tuple[Tensor, Scales]:
    if len(parts) == 1:
        return parts[0]
    scale = torch.cat([scales.scale for _, scales in parts])
    zero_point = torch.cat([scales.zero_point for _, scales in parts])
    return torch.cat([codes for codes, _ in parts]), Scales(scale, zero_point)


def restore(codes: Tensor, parameters: QuantizationParameters) -> Tensor:
    """The weights that the codes stand for, float32 (rows, columns)."""
    return look_up(codes, parameters) if isinstance(parameters, Palettes) else dequantize(codes, parameters)


def restore_rows(codes: Tensor, parameters: QuantizationParameters, start: int, end: int) -> Tensor:
    """`restore` of some rows."""
    if isinstance(parameters, Palettes):
        return parameters.by_row(start, end).gather(1, codes[start:end].long())
    return dequantize(codes[start:end], Scales(parameters.scale[start:end], parameters.zero_point[start:end]))


def as_quantized(
    name: str, codes: Tensor, parameters: QuantizationParameters, grid: Grid, transposed: bool = False
) -> QuantizedTensor:
    """The codes in the form that containers carry."""
    if isinstance(parameters, Palettes):
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
            palette=parameters.table.to(torch.float16).numpy(),
        )
    return QuantizedTensor(
        name,
        codes.numpy(),
        parameters.scale.to(torch.float16).numpy(),
        parameters.zero_point.to(torch.uint8).numpy(),
        grid.bits,
        grid.group_size or codes.shape[1],
        grid.symmetric,
        transposed=transposed,
    )
