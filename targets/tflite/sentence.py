"""The parts of a sentence vector (compiler/networks/sentence.py) as operators of a TFLite model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.networks.parts import MASKED_SCORE
from compiler.networks.sentence import LEAST_COUNT, LEAST_SQUARES, LargestValues, LengthOne, TokenWeights
from targets.tflite import ops
from targets.tflite.graph import Value
from targets.tflite.lowering import Emit, Lowering

_OPERATOR = schema.BuiltinOperator


def _seen(lowering: Lowering, mask: Value) -> Value:
    seen: Value = lowering.function.once(f"{mask.index} as floats", lambda: ops.as_floats(lowering.function, mask))
    return seen


def _token_weights(lowering: Lowering, module: TokenWeights, mask: Value) -> Value:
    function, seen = lowering.function, _seen(lowering, mask)
    batch, length = mask.shape
    if module.pooling in ("cls", "lasttoken"):
        weights = _alone(lowering, seen, first=module.pooling == "cls")
    elif module.pooling == "weightedmean":
        places = function.constant(
            f"places of {length}", lambda: np.arange(1, length + 1, dtype=np.float32)[None] / np.float32(length)
        )
        weights = _over_sum(lowering, ops.multiply(function, seen, places), LEAST_COUNT)
    elif module.pooling == "mean_sqrt_len_tokens":
        count = ops.at_least(function, ops.reduce(function, _OPERATOR.SUM, seen, 1), 1.0)
        weights = ops.multiply(function, seen, ops.unary(function, _OPERATOR.RSQRT, count))
    else:
        weights = _over_sum(lowering, seen, 1.0)
    return ops.reshape(function, weights, (batch, 1, length))


def _alone(lowering: Lowering, seen: Value, *, first: bool) -> Value:
    """1 for the first, or the last, token that is seen: none is seen before, or after, it."""
    function, (batch, length) = lowering.function, seen.shape
    none = function.constant(f"none of {batch}", lambda: np.zeros((batch, 1), np.float32))
    kept = ops.part(function, seen, (0, 0 if first else 1), (batch, length - 1))
    beside = ops.concatenate(function, [none, kept] if first else [kept, none], 1)
    return ops.multiply(function, seen, ops.subtract(function, function.scalar(1.0), beside))


def _over_sum(lowering: Lowering, x: Value, least: float) -> Value:
    function = lowering.function
    return ops.divide(function, x, ops.at_least(function, ops.reduce(function, _OPERATOR.SUM, x, 1), least))


def _largest_values(lowering: Lowering, module: LargestValues, x: Value, mask: Value) -> Value:
    function, (batch, length, channels) = lowering.function, x.shape
    hidden = ops.subtract(function, function.scalar(1.0), _seen(lowering, mask))
    added = ops.reshape(function, ops.multiply(function, hidden, function.scalar(MASKED_SCORE)), (batch, length, 1))
    largest = ops.reduce(function, _OPERATOR.REDUCE_MAX, ops.add(function, x, added), 1)
    return ops.reshape(function, largest, (batch, channels))


def _length_one(lowering: Lowering, module: LengthOne, x: Value) -> Value:
    """Over the largest value first, so that no square overflows."""
    function = lowering.function
    largest = ops.reduce(function, _OPERATOR.REDUCE_MAX, ops.unary(function, _OPERATOR.ABS, x), 1)
    scaled = ops.divide(function, x, ops.at_least(function, largest, LEAST_SQUARES))
    total = ops.reduce(function, _OPERATOR.SUM, ops.multiply(function, scaled, scaled), 1)
    inverse = ops.unary(function, _OPERATOR.RSQRT, ops.at_least(function, total, LEAST_SQUARES))
    return ops.multiply(function, scaled, inverse)


PARTS: Mapping[type, Emit] = {
    TokenWeights: _token_weights,
    LargestValues: _largest_values,
    LengthOne: _length_one,
}
