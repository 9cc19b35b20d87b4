"""The matrices of a TFLite file, dequantized by the rules of its schema (tensorflow/compiler/mlir/lite/schema/schema.fbs)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.litertlm import MODEL, find_section, open_litertlm
from compiler.formats.tflite import name_of, operator_of, parse_tflite, read_tflite
from compiler.package import Package
from runtimes.stored.matrix import EXACT, Rounding, StoredMatrix

_MULTIPLIES, _LOOKS_UP = schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.EMBEDDING_LOOKUP
# Neighbouring columns of a matrix: its name, the first and the one after the last.
_PIECE = re.compile(r"(.+)\[(\d+):\d+\]")
_FLOATS = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """Each constant matrix that is multiplied or looked up, once.

    Raises:
        UnusableInput: the file is damaged.
    """
    file = package.artifact
    if file.suffix == ".litertlm":
        with open_litertlm(file) as sections:
            model = parse_tflite(bytes(find_section(sections, MODEL, file)), file.name)
    else:
        model = read_tflite(file)
    try:
        yield from _matrices(model)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise UnusableInput(
            f"{package.artifact.name} of {package.title} is damaged. Build the package again."
        ) from error


def _matrices(model: Any) -> Iterator[StoredMatrix]:
    """Each matrix once; pieces of one, `name[first:last]`, put together again."""
    pieces: dict[tuple[str, bool], dict[int, StoredMatrix]] = {}
    for matrix in _pieces(model):
        piece = _PIECE.fullmatch(matrix.name)
        if piece is None:
            yield matrix
        else:
            pieces.setdefault((piece[1], matrix.looked_up), {})[int(piece[2])] = matrix
    for (name, _), found in pieces.items():
        in_order = [found[first] for first in sorted(found)]
        yield replace(in_order[0], name=name, values=np.concatenate([each.values for each in in_order], 1))


def _pieces(model: Any) -> Iterator[StoredMatrix]:
    seen: set[tuple[int, int]] = set()
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            kind = operator_of(model, operator)
            if kind not in (_MULTIPLIES, _LOOKS_UP):
                continue
            tensor = _constant(model, subgraph, operator.inputs[1])
            if model.buffers[tensor.buffer].data is None or (tensor.buffer, kind) in seen or len(tensor.shape) != 2:
                continue
            seen.add((tensor.buffer, kind))
            matrix = _matrix(model, subgraph, tensor, looked_up=kind == _LOOKS_UP)
            result = subgraph.tensors[operator.outputs[0]]
            yield _in_steps(model, subgraph, operator, matrix) if result.type == schema.TensorType.INT8 else matrix


def _constant(model: Any, subgraph: Any, index: int) -> Any:
    """The tensor, or the one that a DEQUANTIZE makes it of."""
    tensor = subgraph.tensors[index]
    if model.buffers[tensor.buffer].data is not None:
        return tensor
    made = next((each for each in subgraph.operators if index in each.outputs), None)
    if made is None or operator_of(model, made) != schema.BuiltinOperator.DEQUANTIZE:
        return tensor
    return subgraph.tensors[made.inputs[0]]


def _matrix(model: Any, subgraph: Any, tensor: Any, *, looked_up: bool) -> StoredMatrix:
    quantized = tensor.type not in _FLOATS
    values = _dequantized(model, subgraph, tensor) if quantized else _floats(model, tensor)
    # The kernels of the runtime round each row of the other factor to a range of its own.
    rounding = Rounding("uint8", values.shape[1]) if quantized and not looked_up else EXACT
    return StoredMatrix(name_of(tensor), values, looked_up, not looked_up, quantized, rounding)


def _in_steps(model: Any, subgraph: Any, operator: Any, matrix: StoredMatrix) -> StoredMatrix:
    """A matrix between whole numbers of fixed ranges, with what its results are multiplied by once they are floats again."""
    times = np.ones(len(matrix.values), np.float32)
    floats = _only_user(model, subgraph, operator.outputs[0], schema.BuiltinOperator.DEQUANTIZE)
    product = floats and _only_user(model, subgraph, floats.outputs[0], schema.BuiltinOperator.MUL)
    if product:
        factor = subgraph.tensors[product.inputs[1]]
        if model.buffers[factor.buffer].data is not None and list(factor.shape) == [len(times)]:
            times = _floats(model, factor)
    low, high = _span(subgraph.tensors[operator.outputs[0]])
    spans = tuple((float(low * each), float(high * each)) for each in times)
    rounding = Rounding("uint8", span=_span(subgraph.tensors[operator.inputs[0]]), result_spans=spans)
    return replace(matrix, values=matrix.values * times[:, None], rounding=rounding)


def _only_user(model: Any, subgraph: Any, index: int, kind: int) -> Any:
    users = [each for each in subgraph.operators if index in each.inputs]
    return users[0] if len(users) == 1 and operator_of(model, users[0]) == kind else None


def _span(tensor: Any) -> tuple[float, float]:
    """The floats that -128 and 127 stand for."""
    step, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    return step * (-128 - zero), step * (127 - zero)


def _bytes(model: Any, tensor: Any) -> NDArray[np.uint8]:
    return np.asarray(model.buffers[tensor.buffer].data, np.uint8)


def _floats(model: Any, tensor: Any) -> NDArray[np.float32]:
    return _bytes(model, tensor).view(_FLOATS[tensor.type]).reshape(tensor.shape).astype(np.float32)


def _dequantized(model: Any, subgraph: Any, tensor: Any) -> NDArray[np.float32]:
    """Signed codes times the scale of their row or block."""
    packed = _bytes(model, tensor)
    if tensor.type == schema.TensorType.INT4:
        halves = np.stack([packed & 15, packed >> 4], -1).ravel()
        codes = (halves.astype(np.int8) ^ 8) - 8
    else:
        codes = packed.view(np.int8)
    rows, columns = (int(size) for size in tensor.shape)
    values = codes[: rows * columns].astype(np.float32).reshape(rows, columns)
    quantization = tensor.quantization
    if quantization.detailsType == schema.QuantizationDetails.BlockwiseQuantization:
        scales = _floats(model, subgraph.tensors[quantization.details.scales]).reshape(rows, -1)
        size = int(quantization.details.blockSize)
        if scales.shape[1] * size != columns:
            raise ValueError("the blocks do not fill a row")
        return np.asarray(values * np.repeat(scales, size, 1), np.float32)
    scale = np.asarray(quantization.scale, np.float32)
    return np.asarray(values * (scale if scale.size == 1 else scale[:, None]), np.float32)
