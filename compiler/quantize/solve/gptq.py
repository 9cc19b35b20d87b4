"""GPTQ: codes for one matrix that keep its outputs, not its weights.

With inputs X (columns, tokens) and H = X X^T, the squared change of the outputs is tr(E H E^T) for E = W - Q.
`solve` rounds column by column and lets the columns not yet rounded take up the error (Frantar et al. 2022,
arXiv:2210.17323), with the scales fixed beforehand, so that activation order leaves groups contiguous. `refine` then
lowers the same objective further: scales by least squares for the codes, and codes one column at a time for the scales
(coordinate descent as in QuantEase, Behdin et al. 2023, arXiv:2309.01885).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.errors import UnusableInput
from compiler.quantize.solve.grid import Grid, Scales, dequantize, fit_scales, held_in_half

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 64
_MOST_DAMPING = 10.0


@dataclass(frozen=True)
class GptqSettings:
    """How codes are looked for.

    Attributes:
        damping: what is added to the diagonal of H, as a share of its mean; tenfold after each failure.
        activation_order: columns with large inputs first.
        refinements: rounds of `refine`; 0 gives GPTQ as published.
    """

    damping: float = 0.01
    activation_order: bool = True
    refinements: int = 4


@dataclass(frozen=True)
class DampedHessian:
    """Second moments of a layer's inputs, made fit for solving.

    Attributes:
        matrix: float32 (columns, columns), the sum of x x^T with its diagonal raised.
        order: int64 (columns,), the order in which columns are rounded.
        upper: float32 (columns, columns), the upper Cholesky factor of the inverse, in that order.
    """

    matrix: Tensor
    order: Tensor
    upper: Tensor

    def times_inverse(self, matrix: Tensor) -> Tensor:
        """`matrix` (rows, columns) times the inverse of the Hessian."""
        import torch

        return ((matrix[:, self.order] @ self.upper.t()) @ self.upper)[:, torch.argsort(self.order)]


def damp_hessian(hessian: Tensor, settings: GptqSettings, name: str) -> DampedHessian:
    """Raise the diagonal until the Hessian is positive definite, and factor it.

    Raises:
        UnusableInput: no damping helps; the layer is named.
    """
    import torch

    base = hessian.double()
    diagonal = base.diagonal()
    mean = float(diagonal.mean())
    if not torch.isfinite(base).all() or mean <= 0:
        raise UnusableInput(
            f"The inputs of {name} during calibration are {'all zero' if mean == 0 else 'not finite'}, so its weights "
            "cannot be fitted. Give another calibration text, or use a round-to-nearest scheme."
        )
    if settings.activation_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        base = base[order][:, order]
    else:
        order = torch.arange(len(base))
    share = settings.damping
    while share <= _MOST_DAMPING:
        raised = base.clone()
        raised.diagonal().add_(share * mean)
        factor, failed = torch.linalg.cholesky_ex(raised)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed and torch.isfinite(upper).all():
                own = hessian.clone()
                own.diagonal().add_(share * mean)
                return DampedHessian(own, order, upper.float())
        share *= 10
    raise UnusableInput(
        f"The inputs of {name} during calibration are degenerate: their second moments stay singular even with "
        f"{_MOST_DAMPING:g} times the mean added to the diagonal. Give a longer calibration text."
    )


def solve(weight: Tensor, hessian: Tensor, grid: Grid, settings: GptqSettings, name: str) -> tuple[Tensor, Scales]:
    """Codes and scales of one matrix.

    Args:
        weight: float32 (rows, columns).
        hessian: float32 (columns, columns), the sum of x x^T over the inputs.
        grid: what codes mean.
        settings: how they are looked for.
        name: for error messages.

    Returns:
        codes, uint8 (rows, columns), and scales, (rows, groups).
    """
    return solve_damped(weight, damp_hessian(hessian, settings, name), grid, settings)


def solve_damped(weight: Tensor, damped: DampedHessian, grid: Grid, settings: GptqSettings) -> tuple[Tensor, Scales]:
    """`solve` with what `damp_hessian` returned, which matrices with the same inputs share."""
    import torch

    back = torch.argsort(damped.order)
    importance = damped.upper.diagonal().square().reciprocal()[back]
    scales = fit_scales(weight, grid, importance)
    codes = _descend_columns(weight[:, damped.order], damped.upper, scales, grid, damped.order)[:, back]
    for _ in range(settings.refinements):
        scales = refit_scales(weight, codes, scales, damped.matrix)
        codes = improve_codes(weight, codes, scales, damped.matrix, grid)
    return codes.to(torch.uint8), scales


def _descend_columns(weight: Tensor, upper: Tensor, scales: Scales, grid: Grid, order: Tensor) -> Tensor:
    """Round columns in the order given (`weight` and `upper` are already in it); codes as float32."""
    import torch

    rest = weight.clone()
    codes = torch.empty_like(rest)
    scale, zero = (each.index_select(1, order) for each in scales.by_column(weight.shape[1]))
    columns = weight.shape[1]
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        # Rows of these are the columns of the matrix, so that each step reads one contiguous row.
        part = rest[:, start:end].t().contiguous()
        steps, zeros = scale[:, start:end].t().contiguous(), zero[:, start:end].t().contiguous()
        local = upper[start:end, start:end]
        errors = torch.empty_like(part)
        chosen = torch.empty_like(part)
        for column in range(end - start):
            value = part[column]
            code = (value / steps[column]).add_(zeros[column]).round_().clamp_(0, grid.top)
            chosen[column] = code
            error = value.sub(code.sub_(zeros[column]).mul_(steps[column])).div_(local[column, column])
            errors[column] = error
            if column + 1 < end - start:
                part[column + 1 :].addr_(local[column, column + 1 :], error, alpha=-1)
        codes[:, start:end] = chosen.t()
        if end < columns:
            rest[:, end:].addmm_(errors.t(), upper[start:end, end:], alpha=-1)
    return codes


def improve_codes(weight: Tensor, codes: Tensor, scales: Scales, hessian: Tensor, grid: Grid) -> Tensor:
    """One sweep over the columns: each takes the code that is best given all others. Never raises the objective."""
    import torch

    columns = weight.shape[1]
    scale, zero = scales.by_column(columns)
    codes = codes.float()
    quantized = (codes - zero) * scale
    gradient = (weight - quantized) @ hessian
    result = torch.empty_like(codes)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        slope = gradient[:, start:end].t().contiguous()
        steps, zeros = scale[:, start:end].t().contiguous(), zero[:, start:end].t().contiguous()
        now = quantized[:, start:end].t().contiguous()
        local = hessian[start:end, start:end]
        moved = torch.empty_like(now)
        chosen = torch.empty_like(now)
        for column in range(end - start):
            wanted = (slope[column] / local[column, column]).add_(now[column])
            code = wanted.div_(steps[column]).add_(zeros[column]).round_().clamp_(0, grid.top)
            chosen[column] = code
            move = code.sub(zeros[column]).mul_(steps[column]).sub_(now[column])
            moved[column] = move
            if column + 1 < end - start:
                slope[column + 1 :].addr_(local[column, column + 1 :], move, alpha=-1)
        result[:, start:end] = chosen.t()
        if end < columns:
            gradient[:, end:].addmm_(moved.t(), hessian[start:end, end:], alpha=-1)
    return result


def refit_scales(weight: Tensor, codes: Tensor, scales: Scales, hessian: Tensor) -> Scales:
    """The scales that are best for these codes, row by row, by least squares; zero points stay."""
    import torch

    rows, columns = weight.shape
    groups = scales.scale.shape[1]
    size = columns // groups
    units = codes.float() - scales.zero_point.repeat_interleave(size, 1)
    wanted = ((weight @ hessian) * units).reshape(rows, groups, size).sum(2)
    products = torch.empty(rows, groups, groups)
    for group in range(groups):
        inside = slice(group * size, (group + 1) * size)
        products[:, group] = ((units[:, inside] @ hessian[inside]) * units).reshape(rows, groups, size).sum(2)
    ridge = 1e-4 * products.diagonal(dim1=1, dim2=2)
    ridge = ridge + 1e-12 * ridge.amax(1, keepdim=True) + 1e-30
    products.diagonal(dim1=1, dim2=2).add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(products)
    found = torch.cholesky_solve((wanted + ridge * scales.scale)[:, :, None], factor)[:, :, 0]
    # A row whose system is singular, in which a scale would turn, or whose rounded scales are no better, keeps what it had.
    turned = (found * scales.scale <= 0).any(1)
    found = torch.where(((failed == 0) & ~turned)[:, None] & torch.isfinite(found), found, scales.scale)
    refitted = Scales(held_in_half(found), scales.zero_point)
    before = row_errors(weight, dequantize(codes, scales), hessian)
    after = row_errors(weight, dequantize(codes, refitted), hessian)
    better = (after < before)[:, None]
    return Scales(torch.where(better, refitted.scale, scales.scale), scales.zero_point)


def row_errors(weight: Tensor, quantized: Tensor, hessian: Tensor) -> Tensor:
    """The objective of each row, e H e^T."""
    error = weight - quantized
    return ((error @ hessian) * error).sum(1)
