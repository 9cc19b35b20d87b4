"""From a re-authored network to a function of a TFLite model, operator by operator, all in float32.

The network (layout `plain`) is traced symbolically; its parts (compiler/networks/parts.py) are leaves, each of which becomes
a small group of operators that XNNPACK takes, and so are the few functions of torch that networks call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import fx, nn
from torch.nn import functional

from compiler.networks import kv_cache, parts
from targets.tflite import ops
from targets.tflite.graph import FREE, Function, Value
from targets.tflite.weights import Matrix, Weights

_OPERATOR = schema.BuiltinOperator
Emit = Callable[..., Any]


class _Tracer(fx.Tracer):
    """Stops at the parts."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*parts.LEAVES, *kv_cache.LEAVES))


@dataclass
class Caches:
    """The caches of keys or of values of all layers, (1, heads, context, head_dim) each, and what became of them."""

    layers: list[Value]


@dataclass(frozen=True)
class Places:
    """Where the tokens of a call stand.

    Attributes:
        positions: int32 (length,).
        start: int32 (4,), where a cache takes what is new.
        hidden: float32 (1, 1, length, context), what is added to scores.
    """

    positions: Value
    start: Value
    hidden: Value


@dataclass
class Lowering:
    """A function that grows, the parameters, and the part that is lowered."""

    function: Function
    weights: Weights
    prefix: str = ""

    def vector(self, name: str, size: int) -> Value:
        """A parameter of the part."""
        return self.weights.vector(self.function, f"{self.prefix}.{name}", size)

    def matrix(self, name: str, shape: Sequence[int]) -> Matrix:
        """A matrix of the part."""
        return self.weights.matrix(self.function, f"{self.prefix}.{name}", (shape[0], shape[1]))


def lower_network(network: nn.Module, function: Function, weights: Weights, inputs: Mapping[str, Any]) -> Any:
    """Add a network's operators to a function; what `forward` returns.

    Args:
        network: its parameters may be on the meta device; its buffers are real.
        function: what grows.
        weights: where the parameters come from.
        inputs: a value, `Places` or `Caches` for each argument of `forward`.
    """
    lowering = Lowering(function, weights)
    values: dict[fx.Node, Any] = {}
    for node in _Tracer().trace(network).nodes:
        arguments = fx.map_arg(node.args, values.get)
        named = fx.map_arg(node.kwargs, values.get)
        if node.op == "placeholder":
            values[node] = inputs[node.target]
        elif node.op == "get_attr":
            raise TypeError(f"the network uses the tensor {node.target} outside its parts")
        elif node.op == "call_module":
            module = network.get_submodule(node.target)
            lowering.prefix = node.target
            values[node] = _PARTS[type(module)](lowering, module, *arguments, **named)
        elif node.op in ("call_function", "call_method"):
            values[node] = _FUNCTIONS[node.target](lowering, *arguments, **named)
        else:
            return arguments[0]
    raise TypeError("the network returns nothing")


def _projection(lowering: Lowering, module: parts.Projection, x: Value) -> Value:
    function, matrix = lowering.function, lowering.matrix("weight", module.weight.shape)
    bias = lowering.vector("bias", module.weight.shape[0]) if module.bias is not None else None
    inputs = function.once(f"{x.index} in {matrix.widths}", lambda: _pieces(function, x, matrix.widths))
    total = None
    for given, piece in zip(inputs, matrix.pieces, strict=True):
        part = ops.project(function, given, piece, bias if total is None else None, coded=matrix.coded)
        total = part if total is None else ops.add(function, total, part)
    assert total is not None
    return total


def _pieces(function: Function, x: Value, widths: Sequence[int]) -> tuple[Value, ...]:
    return (x,) if len(widths) == 1 else ops.split(function, x, -1, widths)


def _rms(lowering: Lowering, x: Value, weight: Value, eps: float) -> Value:
    function = lowering.function
    squares = ops.mean(function, ops.multiply(function, x, x))
    inverse = ops.unary(function, _OPERATOR.RSQRT, ops.add(function, squares, function.scalar(eps)))
    return ops.multiply(function, ops.multiply(function, x, inverse), weight)


def _rms_norm(lowering: Lowering, module: parts.RmsNorm, x: Value) -> Value:
    return _rms(lowering, x, lowering.vector("weight", module.weight.shape[0]), module.eps)


def _head_norm(lowering: Lowering, module: parts.HeadNorm, x: Value) -> Value:
    size = int(module.weight.shape[0])
    by_head = ops.reshape(lowering.function, x, (x.shape[0], x.shape[1], module.heads, size))
    normed = _rms(lowering, by_head, lowering.vector("weight", size), module.eps)
    return ops.reshape(lowering.function, normed, x.shape)


def _embedding(lowering: Lowering, module: parts.Embedding, ids: Value) -> Value:
    function = lowering.function
    table, flat = lowering.matrix("weight", module.weight.shape), ops.reshape(function, ids, (ids.shape[1],))
    pieces = [ops.look_up(function, flat, piece) for piece in table.pieces]
    rows = ops.concatenate(function, pieces, 1) if len(pieces) > 1 else pieces[0]
    return ops.reshape(function, rows, (*ids.shape, module.weight.shape[1]))


def _tokens_out(lowering: Lowering, module: parts.TokensOut, x: Value) -> Value:
    return x


def _rotary(lowering: Lowering, module: kv_cache.Rotary, places: Places) -> tuple[Value, Value]:
    """Cosines and signed sines (1, 1, length, head_dim) of angles that are computed: a table is as long as the context."""
    function, rotation = lowering.function, module.rotation
    width, half = int(module.cos.shape[1]), len(rotation.frequencies)
    frequencies, cosines, sines = (np.zeros(width, np.float32) for _ in range(3))
    frequencies[: 2 * half] = np.tile(rotation.frequencies.numpy(), 2)
    cosines[: 2 * half], cosines[2 * half :] = rotation.factor, 1.0
    sines[:half], sines[half : 2 * half] = -rotation.factor, rotation.factor
    length = places.positions.shape[0]
    positions = ops.reshape(function, ops.as_floats(function, places.positions), (1, 1, length, 1))
    name = lowering.prefix
    angles = ops.multiply(function, positions, function.constant(f"{name}.frequencies", lambda: frequencies))
    turned = []
    for operation, values, what in ((_OPERATOR.COS, cosines, "cosines"), (_OPERATOR.SIN, sines, "sines")):
        found = ops.unary(function, operation, angles)
        factors = function.constant(f"{name}.{what}", partial(np.asarray, values))
        turned.append(ops.multiply(function, found, factors))
    return turned[0], turned[1]


# Added for each position that a key is too far back.
_BEYOND_WINDOW = -1e9


def _causal(lowering: Lowering, module: kv_cache.Causal, places: Places) -> Value:
    """The mask that comes in, and for a window what hides keys that it has left behind."""
    if module.window is None:
        return places.hidden
    function, length = lowering.function, places.positions.shape[0]
    keys = function.once("places of keys", lambda: ops.places_along(function, places.hidden))
    queries = ops.reshape(function, ops.as_floats(function, places.positions), (1, 1, length, 1))
    back = ops.subtract(function, queries, keys)
    beyond = ops.unary(function, _OPERATOR.RELU, ops.subtract(function, back, function.scalar(module.window - 1.0)))
    return ops.add(function, places.hidden, ops.multiply(function, beyond, function.scalar(_BEYOND_WINDOW)))


_PARTS: Mapping[type, Emit] = {
    parts.Projection: _projection,
    parts.RmsNorm: _rms_norm,
    parts.HeadNorm: _head_norm,
    parts.Embedding: _embedding,
    parts.TokensOut: _tokens_out,
    kv_cache.Rotary: _rotary,
    kv_cache.Causal: _causal,
}


def _store(
    lowering: Lowering, caches: Caches, layer: int, axis: int, places: Places, new: Value
) -> tuple[Caches, Value]:
    caches.layers[layer] = ops.update(lowering.function, caches.layers[layer], new, places.start)
    return caches, caches.layers[layer]


def _attend(lowering: Lowering, query: Value, keys: Value, values: Value, hidden: Value, cap: float | None) -> Value:
    """The queries that share keys lie below one another, so that each layer has two products."""
    function = lowering.function
    _, heads, length, width = query.shape
    count = keys.shape[1]
    group = heads // count
    below = ops.reshape(function, query, (1, count, FREE if length == FREE else group * length, width))
    if group > 1:
        hidden = function.once(f"{hidden.index} below", lambda: ops.concatenate(function, [hidden] * group, 2))
    scores = ops.matrix_product(function, below, keys, transposed=True)
    if cap is not None:
        capped = ops.unary(function, _OPERATOR.TANH, ops.multiply(function, scores, function.scalar(1 / cap)))
        scores = ops.multiply(function, capped, function.scalar(cap))
    shares = ops.softmax(function, ops.add(function, scores, hidden))
    mixed = ops.matrix_product(function, shares, values, transposed=False)
    return ops.reshape(function, mixed, (1, heads, length, width))


def _either(operation: Callable[[Function, Value, Value], Value]) -> Emit:
    """An operator of two tensors, or of a tensor and a number."""

    def emit(lowering: Lowering, x: Any, y: Any) -> Value:
        given = [each if isinstance(each, Value) else lowering.function.scalar(float(each)) for each in (x, y)]
        return operation(lowering.function, given[0], given[1])

    return emit


def _concatenate(lowering: Lowering, values: Sequence[Value], dim: int) -> Value:
    return ops.concatenate(lowering.function, values, dim) if len(values) > 1 else values[0]


def _transpose(lowering: Lowering, x: Value, first: int, second: int) -> Value:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    shape = tuple(x.shape[axis] for axis in order)
    # Nothing moves where one of two neighbours is 1.
    if abs(first - second) == 1 and 1 in (x.shape[first], x.shape[second]):
        return ops.reshape(lowering.function, x, shape)
    return ops.transpose(lowering.function, x, order)


def _unflatten(lowering: Lowering, x: Value, axis: int, sizes: Sequence[int]) -> Value:
    axis %= len(x.shape)
    return ops.reshape(lowering.function, x, (*x.shape[:axis], *sizes, *x.shape[axis + 1 :]))


def _flatten(lowering: Lowering, x: Value, first: int) -> Value:
    return ops.reshape(lowering.function, x, (*x.shape[:first], int(np.prod(x.shape[first:]))))


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
    torch.split: lambda lowering, x, sizes, dim: ops.split(lowering.function, x, dim, sizes),
    torch.cat: _concatenate,
    torch.tanh: _unary(_OPERATOR.TANH),
    functional.gelu: _gelu,
    functional.silu: _silu,
    functional.relu: _unary(_OPERATOR.RELU),
    kv_cache.store: _store,
    kv_cache.attend: _attend,
    "transpose": _transpose,
    "unflatten": _unflatten,
    "flatten": _flatten,
}
