"""The operators of MIL in torch, by the definitions in coremltools' mil/ops/defs.

Every function takes the operator's arguments by parameter name. Floats are computed in float32; the evaluator rounds a result
to float16 where the program says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register a function under the operators' names."""

    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


def ints(value: Any) -> list[int]:
    """A vector of indices as Python's."""
    return [int(each) for each in value.reshape(-1).tolist()]


_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "abs": torch.abs,
    "cos": torch.cos,
    "sin": torch.sin,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": functional.silu,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
}
_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}


def _register_simple() -> None:
    for name, unary in _UNARY.items():
        OPERATORS[name] = lambda x, function=unary: function(x)
    for name, binary in _BINARY.items():
        OPERATORS[name] = lambda x, y, function=binary: function(x, y)


_register_simple()


@operator("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


@operator("rsqrt")
def rsqrt(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.rsqrt(x + (1e-12 if epsilon is None else epsilon))


@operator("inverse")
def inverse(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return 1 / (x + (1e-4 if epsilon is None else epsilon))


@operator("log")
def log(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.log(x + (1e-45 if epsilon is None else epsilon))


@operator("clip")
def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x.clamp(alpha.item(), beta.item())


@operator("leaky_relu")
def leaky_relu(x: Tensor, alpha: Tensor | None = None) -> Tensor:
    return functional.leaky_relu(x, 0.01 if alpha is None else alpha.item())


@operator("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


@operator("softmax")
def softmax(x: Tensor, axis: Tensor | None = None) -> Tensor:
    return torch.softmax(x, -1 if axis is None else int(axis))


@operator("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    kinds = {"bool": torch.bool, "fp16": torch.float32, "fp32": torch.float32}
    return x.to(kinds.get(dtype, torch.int64))


@operator("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        over = tuple(range(x.dim())) if axes is None else tuple(ints(axes))
        return function(x, over, keepdim=bool(keep_dims) if keep_dims is not None else False)

    return reduce


OPERATORS |= {
    "reduce_mean": _reduction(torch.mean),
    "reduce_sum": _reduction(torch.sum),
    "reduce_max": _reduction(torch.amax),
    "reduce_min": _reduction(torch.amin),
    "reduce_sum_square": _reduction(lambda x, over, keepdim: x.square().sum(over, keepdim=keepdim)),
    "reduce_l2_norm": _reduction(lambda x, over, keepdim: x.square().sum(over, keepdim=keepdim).sqrt()),
    "reduce_l1_norm": _reduction(lambda x, over, keepdim: x.abs().sum(over, keepdim=keepdim)),
    "reduce_log_sum_exp": _reduction(torch.logsumexp),
}


@operator("reduce_argmax")
def reduce_argmax(
    x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
) -> Tensor:
    return x.argmax(-1 if axis is None else int(axis), keepdim=bool(keep_dims) if keep_dims is not None else True)


@operator("topk")
def topk(
    x: Tensor,
    k: Tensor,
    axis: Tensor | None = None,
    ascending: Tensor | None = None,
    sort: Tensor | None = None,
    return_indices: Tensor | None = None,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, Tensor]:
    smallest = bool(ascending) if ascending is not None else False
    found = torch.topk(x, int(k), -1 if axis is None else int(axis), largest=not smallest)
    return found.values, found.indices


@operator("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    over = sorted(axis % x.dim() for axis in (ints(axes) if axes is not None else range(x.dim())))
    centred = x - x.mean(over, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + (1e-5 if epsilon is None else epsilon))
    form = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        normed = normed * gamma.reshape(form)
    return normed + beta.reshape(form) if beta is not None else normed


@operator("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-5 if epsilon is None else float(epsilon))


@operator("l2_norm")
def l2_norm(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    over = tuple(range(-3, 0))
    return x * torch.rsqrt(x.square().sum(over, keepdim=True) + (1e-6 if epsilon is None else epsilon))


@operator("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None) -> Tensor:
    left = x.transpose(-1, -2) if transpose_x is not None and bool(transpose_x) else x
    return torch.matmul(left, y.transpose(-1, -2) if transpose_y is not None and bool(transpose_y) else y)


@operator("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


@operator("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    rank = x.dim() - 2
    steps = ints(strides) if strides is not None else [1] * rank
    spread = ints(dilations) if dilations is not None else [1] * rank
    many = int(groups) if groups is not None else 1
    if weight.shape[2:].numel() == 1 and many == 1 and steps == [1] * rank and pad_type in ("valid", "same"):
        out = torch.matmul(weight.flatten(1), x.flatten(2)).unflatten(2, x.shape[2:])
        return out if bias is None else out + bias.reshape(-1, *(1 for _ in range(rank)))
    if pad_type == "custom" and pad is not None:
        x = functional.pad(x, [each for pair in _pairs(ints(pad))[::-1] for each in pair])
    elif pad_type in ("same", "same_lower"):
        x = functional.pad(x, _same(x, weight, steps, spread, pad_type))
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    return convolve(x, weight, bias, steps, 0, spread, many)


def _pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _same(x: Tensor, weight: Tensor, steps: Sequence[int], spread: Sequence[int], pad_type: str) -> list[int]:
    """Padding of the last axes, last first, such that the result has ceil(size / step) places."""
    around: list[int] = []
    for axis in reversed(range(len(steps))):
        size, reach = x.shape[axis + 2], (weight.shape[axis + 2] - 1) * spread[axis] + 1
        total = max(0, (math.ceil(size / steps[axis]) - 1) * steps[axis] + reach - size)
        less, more = total // 2, total - total // 2
        around += [less, more] if pad_type == "same" else [more, less]
    return around


@operator("einsum")
def einsum(values: tuple[Tensor, Tensor], equation: str) -> Tensor:
    first, second = values
    product = torch.matmul(first.transpose(-2, -3), second.transpose(-2, -3))
    return product.transpose(-2, -3)


@operator("scaled_dot_product_attention")
def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask)


@operator("quantize")
def quantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
    output_dtype: str = "int8",
) -> Tensor:
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    shift = 0 if zero_point is None else _along(zero_point, input, axis)
    return (torch.round(input / _along(scale, input, axis)) + shift).clamp(low, high).to(torch.int64)


@operator("dequantize")
def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    shift = 0 if zero_point is None else _along(zero_point, input, axis)
    return (input - shift).to(torch.float32) * _along(scale, input, axis)


def _along(vector: Tensor, x: Tensor, axis: Tensor | None) -> Tensor:
    if vector.dim() == 0 or axis is None:
        return vector
    form = [1] * x.dim()
    form[int(axis)] = -1
    return vector.reshape(form)
