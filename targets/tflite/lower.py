"""From a re-authored network to a function of a TFLite model, operator by operator, all in float32.

The network (layout `plain`) is traced symbolically; its parts (compiler/networks/parts.py) are leaves, each of which becomes
a small group of operators that XNNPACK takes, and so are the few functions of torch that networks call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn
from torch.nn import functional

from compiler.networks.interpret import interpret
from targets.tflite import kv_cache, ops, parts, sentence
from targets.tflite.graph import Function, Value
from targets.tflite.lowering import Emit, Lowering
from targets.tflite.ranges import ProductRange
from targets.tflite.weights import Weights

_OPERATOR = schema.BuiltinOperator


def lower_network(
    network: nn.Module,
    function: Function,
    weights: Weights,
    inputs: Mapping[str, Any],
    longest: int = 0,
    ranges: Mapping[str, ProductRange] | None = None,
) -> tuple[Any, ...]:
    """Add a network's operators to a function; what `forward` returns.

    Args:
        network: its parameters may be on the meta device; its buffers are real.
        function: what grows.
        weights: where the parameters come from.
        inputs: a value, `Places` or `Caches` for each argument of `forward`.
        longest: tokens of the longest function of the file, for an encoder.
        ranges: of products that are made in whole numbers.
    """
    lowering = Lowering(function, weights, longest, ranges=ranges or {})

    def part(name: str, module: nn.Module, *arguments: Any, **named: Any) -> Any:
        lowering.prefix = name
        return _PARTS[type(module)](lowering, module, *arguments, **named)

    def call(target: Any, *arguments: Any, **named: Any) -> Any:
        return _FUNCTIONS[target](lowering, *arguments, **named)

    return interpret(network, _PARTS, inputs.get, part, call)


def _either(operation: Callable[[Function, Value, Value], Value]) -> Emit:
    """An operator of two tensors, or of a tensor and a number."""

    def emit(lowering: Lowering, x: Any, y: Any) -> Value:
        given = [each if isinstance(each, Value) else lowering.function.scalar(float(each)) for each in (x, y)]
        return operation(lowering.function, given[0], given[1])

    return emit


def _concatenate(lowering: Lowering, values: Sequence[Value], dim: int) -> Value:
    return ops.concatenate(lowering.function, values, dim)


def _transpose(lowering: Lowering, x: Value, first: int, second: int) -> Value:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    shape = tuple(x.shape[axis] for axis in order)
    # Nothing moves where one of two neighbours is 1.
    if abs(first - second) == 1 and 1 in (x.shape[first], x.shape[second]):
        made = ops.reshape(lowering.function, x, shape)
    else:
        made = ops.transpose(lowering.function, x, order)
    if {first % len(order), second % len(order)} == {len(order) - 2, len(order) - 1}:
        lowering.swapped[made.index] = x
    return made


def _matrix_product(lowering: Lowering, x: Value, y: Value) -> Value:
    """A product with what was swapped for it takes the original; the operator that swaps is left out at the end."""
    original = lowering.swapped.get(y.index)
    return ops.matrix_product(lowering.function, x, original or y, transposed=original is not None)


def _unflatten(lowering: Lowering, x: Value, axis: int, sizes: Sequence[int]) -> Value:
    axis %= len(x.shape)
    return ops.reshape(lowering.function, x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))


def _flatten(lowering: Lowering, x: Value, first: int) -> Value:
    return ops.reshape(lowering.function, x, (*x.shape[:first], int(np.prod(x.shape[first:]))))


def _split(lowering: Lowering, x: Value, sizes: int | Sequence[int], dim: int) -> tuple[Value, ...]:
    every = [sizes] * (x.shape[dim] // sizes) if isinstance(sizes, int) else sizes
    return ops.split(lowering.function, x, dim, every)


def _squeeze(lowering: Lowering, x: Value, axis: int) -> Value:
    return ops.reshape(lowering.function, x, (*x.shape[:axis], *x.shape[axis + 1 :]))


def _silu(lowering: Lowering, x: Value, inplace: bool = False) -> Value:
    return ops.multiply(lowering.function, x, ops.unary(lowering.function, _OPERATOR.LOGISTIC, x))


def _gelu(lowering: Lowering, x: Value, approximate: str = "none") -> Value:
    return ops.gelu(lowering.function, x, approximate=approximate == "tanh")


def _unary(operation: int) -> Emit:
    return lambda lowering, x, inplace=False: ops.unary(lowering.function, operation, x)


_FUNCTIONS: Mapping[Any, Emit] = {
    operator.getitem: lambda lowering, x, index: x[index],
    operator.add: _either(ops.add),
    operator.mul: _either(ops.multiply),
    torch.split: _split,
    torch.cat: _concatenate,
    torch.tanh: _unary(_OPERATOR.TANH),
    functional.gelu: _gelu,
    functional.silu: _silu,
    functional.relu: _unary(_OPERATOR.RELU),
    torch.matmul: _matrix_product,
    torch.softmax: lambda lowering, x, dim: ops.softmax(lowering.function, x),
    torch.sigmoid: _unary(_OPERATOR.LOGISTIC),
    "transpose": _transpose,
    "squeeze": _squeeze,
    "unflatten": _unflatten,
    "flatten": _flatten,
    **kv_cache.FUNCTIONS,
}
_PARTS: Mapping[type, Emit] = {**parts.PARTS, **kv_cache.PARTS, **sentence.PARTS}
