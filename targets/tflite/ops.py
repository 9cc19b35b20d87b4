"""The operators of LiteRT that networks become, with the shapes of their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from targets.tflite.graph import FREE, Function, Shape, Value

# XNNPACK joins five tensors, and cuts one into four, at most at once.
_MOST_JOINED, _MOST_CUT = 5, 4
_OPERATOR, _OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions


def reshape(function: Function, x: Value, shape: Sequence[int]) -> Value:
    """`x` in another shape, of which one size may be free."""
    options = schema.ReshapeOptionsT()
    options.newShape = np.asarray(shape, np.int32)
    inputs = (x, function.numbers(*shape))
    return function.emit(_OPERATOR.RESHAPE, inputs, tuple(shape), (_OPTIONS.ReshapeOptions, options), kind=x.type)


def transpose(function: Function, x: Value, order: Sequence[int]) -> Value:
    """`x` with its axes in another order."""
    result = tuple(x.shape[axis] for axis in order)
    options = (_OPTIONS.TransposeOptions, schema.TransposeOptionsT())
    return function.emit(_OPERATOR.TRANSPOSE, (x, function.numbers(*order)), result, options, kind=x.type)


def add(function: Function, x: Value, y: Value) -> Value:
    """x + y."""
    options = (_OPTIONS.AddOptions, schema.AddOptionsT())
    return function.emit(_OPERATOR.ADD, (x, y), _broadcast(x.shape, y.shape), options, kind=x.type)


def subtract(function: Function, x: Value, y: Value) -> Value:
    """x - y."""
    options = (_OPTIONS.SubOptions, schema.SubOptionsT())
    return function.emit(_OPERATOR.SUB, (x, y), _broadcast(x.shape, y.shape), options, kind=x.type)


def multiply(function: Function, x: Value, y: Value) -> Value:
    """x * y."""
    options = (_OPTIONS.MulOptions, schema.MulOptionsT())
    return function.emit(_OPERATOR.MUL, (x, y), _broadcast(x.shape, y.shape), options, kind=x.type)


def divide(function: Function, x: Value, y: Value) -> Value:
    """x / y."""
    options = (_OPTIONS.DivOptions, schema.DivOptionsT())
    return function.emit(_OPERATOR.DIV, (x, y), _broadcast(x.shape, y.shape), options)


def at_least(function: Function, x: Value, least: float) -> Value:
    """x where it is larger than `least`, else that."""
    options = (_OPTIONS.MaximumMinimumOptions, schema.MaximumMinimumOptionsT())
    return function.emit(_OPERATOR.MAXIMUM, (x, function.scalar(least)), x.shape, options)


def unary(function: Function, operator: int, x: Value) -> Value:
    """An operator of one input whose result has its shape, without options."""
    return function.emit(operator, (x,), x.shape)


def gelu(function: Function, x: Value, *, approximate: bool) -> Value:
    """The Gaussian error linear unit."""
    options = schema.GeluOptionsT()
    options.approximate = approximate
    return function.emit(_OPERATOR.GELU, (x,), x.shape, (_OPTIONS.GeluOptions, options))


def mean(function: Function, x: Value) -> Value:
    """The mean along the last axis, which stays."""
    return reduce(function, _OPERATOR.MEAN, x, len(x.shape) - 1)


def reduce(function: Function, operator: int, x: Value, axis: int) -> Value:
    """A sum, mean or maximum along an axis, which stays."""
    options = schema.ReducerOptionsT()
    options.keepDims = True
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return function.emit(operator, (x, function.numbers(axis)), shape, (_OPTIONS.ReducerOptions, options))


def softmax(function: Function, x: Value) -> Value:
    """Softmax along the last axis."""
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return function.emit(_OPERATOR.SOFTMAX, (x,), x.shape, (_OPTIONS.SoftmaxOptions, options))


def concatenate(function: Function, values: Sequence[Value], axis: int) -> Value:
    """Tensors one after the other along an axis."""
    if len(values) == 1:
        return values[0]
    if len(values) > _MOST_JOINED:
        count = _MOST_JOINED
        joined = [concatenate(function, values[at : at + count], axis) for at in range(0, len(values), count)]
        return concatenate(function, joined, axis)
    first = values[0]
    axis %= len(first.shape)
    sizes = [value.shape[axis] for value in values]
    whole = FREE if FREE in sizes else sum(sizes)
    shape = (*first.shape[:axis], whole, *first.shape[axis + 1 :])
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    return function.emit(
        _OPERATOR.CONCATENATION, values, shape, (_OPTIONS.ConcatenationOptions, options), kind=first.type
    )


def part(function: Function, x: Value, begin: Sequence[int], sizes: Sequence[int]) -> Value:
    """The values from `begin` on, as many as `sizes` along each axis; all sizes are known."""
    inputs = (x, function.numbers(*begin), function.numbers(*sizes))
    options = (_OPTIONS.SliceOptions, schema.SliceOptionsT())
    return function.emit(_OPERATOR.SLICE, inputs, tuple(sizes), options, kind=x.type)


def first_of(function: Function, x: Value) -> Value:
    """The first value of a vector: (1,). XNNPACK keeps the sizes that a slice had first, so of other tensors none is taken."""
    inputs = (x, function.numbers(0), function.numbers(1))
    return function.emit(_OPERATOR.SLICE, inputs, (1,), (_OPTIONS.SliceOptions, schema.SliceOptionsT()), kind=x.type)


def split(function: Function, x: Value, axis: int, sizes: Sequence[int]) -> tuple[Value, ...]:
    """Pieces of `x` along an axis."""
    axis %= len(x.shape)
    cuts = range(_MOST_CUT, 1, -1)
    first = next((count for count in cuts if len(sizes) > _MOST_CUT and len(sizes) % count == 0), 0)
    if first and len(set(sizes)) == 1:
        count = len(sizes) // first
        parts = split(function, x, axis, [count * sizes[0]] * first)
        return tuple(each for piece in parts for each in split(function, piece, axis, sizes[:count]))
    if len(set(sizes)) > 1:
        return _split_unevenly(function, x, axis, sizes)
    options = schema.SplitOptionsT()
    options.numSplits = len(sizes)
    shape = (*x.shape[:axis], sizes[0], *x.shape[axis + 1 :])
    inputs, chosen = (function.number(axis), x), (_OPTIONS.SplitOptions, options)
    return tuple(function.emit_all(_OPERATOR.SPLIT, inputs, [shape] * len(sizes), chosen, kind=x.type))


def _split_unevenly(function: Function, x: Value, axis: int, sizes: Sequence[int]) -> tuple[Value, ...]:
    options = schema.SplitVOptionsT()
    options.numSplits = len(sizes)
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    inputs = (x, function.numbers(*sizes), function.number(axis))
    chosen = (_OPTIONS.SplitVOptions, options)
    return tuple(function.emit_all(_OPERATOR.SPLIT_V, inputs, shapes, chosen, kind=x.type))


def matrix_product(function: Function, x: Value, y: Value, *, transposed: bool) -> Value:
    """x y, or x yᵀ, of the last two axes for each of the axes before them."""
    options = schema.BatchMatMulOptionsT()
    options.adjY = transposed
    shape = (*x.shape[:-1], y.shape[-2] if transposed else y.shape[-1])
    return function.emit(_OPERATOR.BATCH_MATMUL, (x, y), shape, (_OPTIONS.BatchMatMulOptions, options))


def project(function: Function, x: Value, weight: Value, bias: Value | None, *, coded: bool) -> Value:
    """W x along the last axis, plus a bias; weight (outputs, inputs).

    With codes each row of `x` is rounded to 8 bits over a range of its own, as XNNPACK does.
    """
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims, options.asymmetricQuantizeInputs = True, coded
    inputs = (x, weight, *((bias,) if bias is not None else ()))
    shape = (*x.shape[:-1], weight.shape[0])
    chosen = (_OPTIONS.FullyConnectedOptions, options)
    return function.emit(_OPERATOR.FULLY_CONNECTED, inputs, shape, chosen, version=9 if coded else 5)


def project_in_steps(function: Function, x: Value, weight: Value, bias: Value | None, quantization: Any) -> Value:
    """The same of whole numbers, with results in 8 bits by `quantization`; the bias is int32."""
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    inputs, chosen = (x, weight, *((bias,) if bias is not None else ())), (_OPTIONS.FullyConnectedOptions, options)
    shape = (*x.shape[:-1], weight.shape[0])
    kind = schema.TensorType.INT8
    return _in_steps(
        function, function.emit(_OPERATOR.FULLY_CONNECTED, inputs, shape, chosen, kind=kind, version=12), quantization
    )


def quantize(function: Function, x: Value, quantization: Any) -> Value:
    """float32 as whole numbers of 8 bits."""
    options, kind = (_OPTIONS.QuantizeOptions, schema.QuantizeOptionsT()), schema.TensorType.INT8
    return _in_steps(function, function.emit(_OPERATOR.QUANTIZE, (x,), x.shape, options, kind=kind), quantization)


def _in_steps(function: Function, value: Value, quantization: Any) -> Value:
    function.subgraph.tensors[value.index].quantization = quantization
    return value


def convolve(function: Function, x: Value, filters: Value, bias: Value, stride: int) -> Value:
    """A convolution without padding: x (batch, height, width, inputs), filters (outputs, height, width, inputs)."""
    options = schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = schema.Padding.VALID, stride, stride
    batch, height, width, _ = x.shape
    outputs, tall, wide, _ = filters.shape
    shape = (batch, (height - tall) // stride + 1, (width - wide) // stride + 1, outputs)
    return function.emit(_OPERATOR.CONV_2D, (x, filters, bias), shape, (_OPTIONS.Conv2DOptions, options))


def look_up(function: Function, ids: Value, table: Value) -> Value:
    """Rows of a table by int32 ids (N,): (N, columns)."""
    coded = table.type != schema.TensorType.FLOAT32
    shape = (ids.shape[0], table.shape[1])
    return function.emit(_OPERATOR.EMBEDDING_LOOKUP, (ids, table), shape, version=3 if coded else 1)


def update(function: Function, whole: Value, new: Value, start: Value) -> Value:
    """`whole` with `new` in it from the place `start` on, int32 (axes,)."""
    options = (_OPTIONS.DynamicUpdateSliceOptions, schema.DynamicUpdateSliceOptionsT())
    return function.emit(_OPERATOR.DYNAMIC_UPDATE_SLICE, (whole, new, start), whole.shape, options)


def as_floats(function: Function, x: Value) -> Value:
    """int32 as float32."""
    options = schema.CastOptionsT()
    options.inDataType, options.outDataType = schema.TensorType.INT32, schema.TensorType.FLOAT32
    return function.emit(_OPERATOR.CAST, (x,), x.shape, (_OPTIONS.CastOptions, options))


def _broadcast(first: Shape, second: Shape) -> Shape:
    rank = max(len(first), len(second))
    padded = [(1,) * (rank - len(shape)) + shape for shape in (first, second)]
    return tuple(b if a == 1 else a for a, b in zip(*padded, strict=True))


def places_along(function: Function, x: Value) -> Value:
    """0, 1, 2 ... along the last axis of `x`, of any length, in the shape of `x`; that has four axes and finite values."""
    ones = add(function, multiply(function, x, function.scalar(0.0)), function.scalar(1.0))
    options = schema.CumsumOptionsT()
    options.exclusive = True
    return function.emit(_OPERATOR.CUMSUM, (ones, function.number(3)), ones.shape, (_OPTIONS.CumsumOptions, options))


def dequantize(function: Function, x: Value, version: int = 3) -> Value:
    """float16 as float32, which XNNPACK takes as one with what uses it; or whole numbers (version 2)."""
    options = (_OPTIONS.DequantizeOptions, schema.DequantizeOptionsT())
    return function.emit(_OPERATOR.DEQUANTIZE, (x,), x.shape, options, version=version)
