"""The operators of LiteRT that networks become, with the shapes of their results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from targets.tflite.graph import FREE, Function, Shape, Value

_OPERATOR, _OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions


def reshape(function: Function, x: Value, shape: Sequence[int]) -> Value:
    """`x` in another shape, of which one size may be -1."""
    options = schema.ReshapeOptionsT()
    options.newShape = np.asarray(shape, np.int32)
    known = [size for size in x.shape if size != -1]
    result = tuple(shape)
    if -1 not in x.shape and -1 in shape:
        rest = int(np.prod(known)) // int(np.prod([size for size in shape if size != -1]))
        result = tuple(rest if size == -1 else size for size in shape)
    wanted = function.numbers(*shape)
    return function.emit(_OPERATOR.RESHAPE, (x, wanted), result, (_OPTIONS.ReshapeOptions, options), kind=x.type)


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
    options = schema.ReducerOptionsT()
    options.keepDims = True
    axis = function.numbers(len(x.shape) - 1)
    return function.emit(_OPERATOR.MEAN, (x, axis), (*x.shape[:-1], 1), (_OPTIONS.ReducerOptions, options))


def softmax(function: Function, x: Value) -> Value:
    """Softmax along the last axis."""
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return function.emit(_OPERATOR.SOFTMAX, (x,), x.shape, (_OPTIONS.SoftmaxOptions, options))


def concatenate(function: Function, values: Sequence[Value], axis: int) -> Value:
    """Tensors one after the other along an axis."""
    first = values[0]
    axis %= len(first.shape)
    sizes = [value.shape[axis] for value in values]
    whole = -1 if -1 in sizes else sum(sizes)
    shape = (*first.shape[:axis], whole, *first.shape[axis + 1 :])
    options = schema.ConcatenationOptionsT()
    options.axis = axis
    return function.emit(
        _OPERATOR.CONCATENATION, values, shape, (_OPTIONS.ConcatenationOptions, options), kind=first.type
    )


def take(function: Function, x: Value, axis: int, first: int, count: int) -> Value:
    """`count` places of `x` along an axis, from `first` on."""
    axis %= len(x.shape)
    begin, size = [0] * len(x.shape), [-1] * len(x.shape)
    begin[axis], size[axis] = first, count
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    inputs = (x, function.numbers(*begin), function.numbers(*size))
    return function.emit(_OPERATOR.SLICE, inputs, shape, (_OPTIONS.SliceOptions, schema.SliceOptionsT()), kind=x.type)


def split(function: Function, x: Value, axis: int, sizes: Sequence[int]) -> tuple[Value, ...]:
    """Pieces of `x` along an axis."""
    axis %= len(x.shape)
    if len(set(sizes)) > 1:
        starts = np.cumsum([0, *sizes[:-1]])
        return tuple(take(function, x, axis, int(start), size) for start, size in zip(starts, sizes, strict=True))
    options = schema.SplitOptionsT()
    options.numSplits = len(sizes)
    shape = (*x.shape[:axis], sizes[0], *x.shape[axis + 1 :])
    found = function.emit(
        _OPERATOR.SPLIT, (function.number(axis), x), shape, (_OPTIONS.SplitOptions, options), results=len(sizes), kind=x.type
    )
    return found if isinstance(found, tuple) else (found,)


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


def extent(function: Function, x: Value, axis: int) -> Value:
    """The size of an axis as int32 (), known when the shapes are."""
    options = schema.ShapeOptionsT()
    options.outType = schema.TensorType.INT32
    whole = function.emit(
        _OPERATOR.SHAPE, (x,), (len(x.shape),), (_OPTIONS.ShapeOptions, options), kind=schema.TensorType.INT32
    )
    one = take(function, whole, 0, axis, 1)
    return reshape(function, one, ())


def count_up(function: Function, count: Value) -> Value:
    """0, 1, 2 ... int32 (count,)."""
    options = (_OPTIONS.RangeOptions, schema.RangeOptionsT())
    inputs = (function.number(0), count, function.number(1))
    return function.emit(_OPERATOR.RANGE, inputs, (FREE,), options, kind=schema.TensorType.INT32)


def dequantize(function: Function, x: Value) -> Value:
    """float16 as float32, which XNNPACK takes as one with what uses it."""
    options = (_OPTIONS.DequantizeOptions, schema.DequantizeOptionsT())
    return function.emit(_OPERATOR.DEQUANTIZE, (x,), x.shape, options, version=3)
