"""Caches of keys and values, and where tokens stand, as operators of a TFLite model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.networks import kv_cache
from targets.tflite import ops
from targets.tflite.graph import Function, Value
from targets.tflite.lowering import Emit, Lowering

_OPERATOR = schema.BuiltinOperator


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


def _store(
    lowering: Lowering, caches: Caches, layer: int, axis: int, places: Places, new: Value
) -> tuple[Caches, Value]:
    caches.layers[layer] = ops.update(lowering.function, caches.layers[layer], new, places.start)
    return caches, caches.layers[layer]


def _attend(lowering: Lowering, query: Value, keys: Value, values: Value, hidden: Value, cap: float | None) -> Value:
    """Of one token the queries that share keys lie below one another and all heads are taken together, which is the fewest
    operators; of many one head after the other, since the memory for scores grows with the square of their number."""
    function, (_, heads, length, width) = lowering.function, query.shape
    group = heads // keys.shape[1]
    if length == 1:
        below = ops.reshape(function, query, (1, keys.shape[1], group, width))
        mixed = _mix(lowering, below, keys, values, hidden, cap)
        return ops.reshape(function, mixed, (1, heads, 1, width))
    each_query, each_key, each_value = (_by_head(function, each) for each in (query, keys, values))
    mixes = [
        _mix(lowering, one, each_key[head // group], each_value[head // group], hidden, cap)
        for head, one in enumerate(each_query)
    ]
    return ops.concatenate(function, mixes, 1)


def _by_head(function: Function, x: Value) -> tuple[Value, ...]:
    return ops.split(function, x, 1, [1] * x.shape[1]) if x.shape[1] > 1 else (x,)


def _mix(lowering: Lowering, query: Value, keys: Value, values: Value, hidden: Value, cap: float | None) -> Value:
    """Values in the shares that softmax of the scores gives."""
    function = lowering.function
    scores = ops.matrix_product(function, query, keys, transposed=True)
    if cap is not None:
        capped = ops.unary(function, _OPERATOR.TANH, ops.multiply(function, scores, function.scalar(1 / cap)))
        scores = ops.multiply(function, capped, function.scalar(cap))
    shares = ops.softmax(function, ops.add(function, scores, hidden))
    return ops.matrix_product(function, shares, values, transposed=False)


PARTS: Mapping[type, Emit] = {kv_cache.Rotary: _rotary, kv_cache.Causal: _causal}
FUNCTIONS: Mapping[Any, Emit] = {kv_cache.store: _store, kv_cache.attend: _attend}
