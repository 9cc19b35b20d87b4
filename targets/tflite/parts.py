"""The parts of re-authored networks (compiler/networks/parts.py, layout `plain`) as operators of a TFLite model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from compiler.networks import parts
from targets.tflite import ops
from targets.tflite.graph import FREE, Function, Value
from targets.tflite.lowering import Emit, Lowering
from targets.tflite.static import project_static

_OPERATOR = schema.BuiltinOperator


def _projection(lowering: Lowering, module: parts.Projection, x: Value) -> Value:
    ranges = lowering.ranges.get(lowering.prefix)
    weight, weights = f"{lowering.prefix}.weight", lowering.weights
    # A table that is the head too is cut for both.
    if ranges is not None and weights.codes_of(weight) is not None and not weights.is_shared(weight):
        return project_static(lowering, module, x, ranges)
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
    table = lowering.matrix("weight", module.weight.shape, looked_up=True)
    flat = ops.reshape(function, ids, (FREE if FREE in ids.shape else int(np.prod(ids.shape)),))
    pieces = [ops.look_up(function, flat, piece) for piece in table.pieces]
    return ops.reshape(function, ops.concatenate(function, pieces, 1), (*ids.shape, module.weight.shape[1]))


def _tokens_out(lowering: Lowering, module: parts.TokensOut, x: Value) -> Value:
    return x


def _layer_norm(lowering: Lowering, module: parts.LayerNorm, x: Value) -> Value:
    function, size = lowering.function, int(module.weight.shape[0])
    centred = ops.subtract(function, x, ops.mean(function, x))
    squares = ops.mean(function, ops.multiply(function, centred, centred))
    inverse = ops.unary(function, _OPERATOR.RSQRT, ops.add(function, squares, function.scalar(module.eps)))
    scaled = ops.multiply(function, ops.multiply(function, centred, inverse), lowering.vector("weight", size))
    return ops.add(function, scaled, lowering.vector("bias", size))


def _segments(lowering: Lowering, module: parts.Segments, ids: Value) -> Value:
    """The first row, and for ones the difference to the second."""
    function, table = lowering.function, lowering.values("weight", module.weight.shape)
    first = function.constant(f"{lowering.prefix}.first", lambda: table()[0])
    step = function.constant(f"{lowering.prefix}.step", lambda: table()[1] - table()[0])
    chosen = ops.reshape(function, ops.as_floats(function, ids), (*ids.shape, 1))
    return ops.add(function, ops.multiply(function, chosen, step), first)


def _positions(lowering: Lowering, module: parts.Positions, ids: Value) -> Value:
    """Rows of a constant that is as long as the longest function of the file asks for."""
    function, table = lowering.function, lowering.values("weight", module.weight.shape)
    first, length, channels = module.offset, ids.shape[1], int(module.weight.shape[1])
    longest = max(lowering.longest, length)
    rows = function.constant(f"{lowering.prefix}[{first}:{first + longest}]", lambda: table()[first : first + longest])
    rows = rows if length == longest else ops.part(function, rows, (0, 0), (length, channels))
    return ops.reshape(function, rows, (1, length, channels))


def _attention_mask(lowering: Lowering, module: parts.AttentionMask, mask: Value) -> Value:
    function = lowering.function
    hidden = ops.subtract(function, function.scalar(1.0), ops.as_floats(function, mask))
    added = ops.multiply(function, hidden, function.scalar(parts.MASKED_SCORE))
    return ops.reshape(function, added, (mask.shape[0], 1, 1, mask.shape[1]))


def _patches(lowering: Lowering, module: parts.Patches, picture: Value) -> Value:
    """A convolution, which here has channels last; the class token is written for each picture of the batch."""
    function, (batch, _, height, width) = lowering.function, picture.shape
    hidden, count = int(module.weight.shape[0]), int(module.positions.shape[0])
    bias = lowering.vector("bias", hidden)
    filters = lowering.filters("weight", module.weight.shape)
    stride = module.size
    made = ops.convolve(function, ops.transpose(function, picture, (0, 2, 3, 1)), filters, bias, stride)
    patches = ops.reshape(function, made, (batch, (height // stride) * (width // stride), hidden))
    first = lowering.values("first", (hidden,))
    name = f"{lowering.prefix}.first"
    tokens = function.constant(f"{name} x{batch}", lambda: np.broadcast_to(first(), (batch, 1, hidden)))
    positions = lowering.values("positions", (count, hidden))
    places = function.constant(f"{lowering.prefix}.positions", positions)
    return ops.add(function, ops.concatenate(function, [tokens, patches], 1), places)


def _first_token(lowering: Lowering, module: parts.FirstToken, x: Value) -> Value:
    return ops.part(lowering.function, x, (0, 0, 0), (x.shape[0], 1, x.shape[2]))


def _one_out(lowering: Lowering, module: parts.OneOut, x: Value) -> Value:
    return ops.reshape(lowering.function, x, (x.shape[0], x.shape[2]))


PARTS: Mapping[type, Emit] = {
    parts.Projection: _projection,
    parts.LayerNorm: _layer_norm,
    parts.RmsNorm: _rms_norm,
    parts.HeadNorm: _head_norm,
    parts.Embedding: _embedding,
    parts.Segments: _segments,
    parts.Positions: _positions,
    parts.AttentionMask: _attention_mask,
    parts.Patches: _patches,
    parts.TokensOut: _tokens_out,
    parts.FirstToken: _first_token,
    parts.OneOut: _one_out,
}
