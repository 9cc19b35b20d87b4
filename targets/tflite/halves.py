"""Weights of a TFLite graph in float16, each with a DEQUANTIZE before it, which XNNPACK takes as one with its user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.formats.tflite import constant_floats, name_of, operator_of, read_tflite, write_tflite
from targets.tflite.storage import halved

_OPERATOR = schema.BuiltinOperator
_USERS = (_OPERATOR.FULLY_CONNECTED, _OPERATOR.EMBEDDING_LOOKUP, _OPERATOR.CONV_2D, _OPERATOR.DEPTHWISE_CONV_2D)
# The version of DEQUANTIZE that takes float16.
_VERSION = 3


def store_halves(source: Path, target: Path) -> None:
    """Write `target`, the float32 graph of `source` with the weights of its products and tables in float16.

    Raises:
        CheckFailed: a weight is beyond what float16 holds.
    """
    document = read_tflite(source)
    made: dict[int, int] = {}
    code = _add_code(document)
    for subgraph in document.subgraphs:
        before: list[Any] = []
        done: set[int] = set()
        for operator in subgraph.operators:
            index = int(operator.inputs[1]) if operator_of(document, operator) in _USERS else -1
            values = constant_floats(document, subgraph.tensors[index]) if index >= 0 and index not in done else None
            if values is not None and values.ndim > 1:
                done.add(index)
                before.append(_dequantizer(document, subgraph, index, code, values, made))
        subgraph.operators = before + list(subgraph.operators)
    for buffer in made:
        document.buffers[buffer].data = None
    write_tflite(document, target)


def _add_code(document: Any) -> int:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = _OPERATOR.DEQUANTIZE
    code.version = _VERSION
    document.operatorCodes.append(code)
    return len(document.operatorCodes) - 1


def _dequantizer(
    document: Any, subgraph: Any, index: int, code: int, values: NDArray[np.float32], made: dict[int, int]
) -> Any:
    """The operator that gives a weight from its float16 values; `made` is the buffer of those, by the buffer of the others."""
    tensor = subgraph.tensors[index]
    if tensor.buffer not in made:
        buffer = schema.BufferT()
        buffer.data = halved(values, name_of(tensor)).view(np.uint8).ravel()
        document.buffers.append(buffer)
        made[tensor.buffer] = len(document.buffers) - 1
    half = schema.TensorT()
    half.name, half.shape = f"{name_of(tensor)}_float16", tensor.shape
    half.type, half.buffer = schema.TensorType.FLOAT16, made[tensor.buffer]
    # The first buffer is the empty one, by the schema.
    tensor.buffer = 0
    subgraph.tensors.append(half)
    operator = schema.OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = np.asarray([len(subgraph.tensors) - 1]), np.asarray([index])
    operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = schema.DequantizeOptionsT()
    return operator
