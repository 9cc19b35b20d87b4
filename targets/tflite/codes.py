"""Our codes in a TFLite graph: int8 with a scale for each row, or int4 in blocks along a row.

A matrix of a product is the second input of FULLY_CONNECTED, (outputs, inputs), a table that of EMBEDDING_LOOKUP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.formats.codes import QuantizedTensor
from compiler.formats.tflite import constant_floats, name_of, operator_of, read_tflite, write_tflite
from compiler.quantize.carrying import Origin, find_origin, gather_rows, index_rows, mark_rows, require_all_carried
from targets.tflite.storage import CODE_TYPES, by_row, in_blocks, packed

_USERS = (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.EMBEDDING_LOOKUP)


@dataclass(frozen=True)
class _Matrix:
    """A constant with codes: the tensors that share its buffer, and where its rows come from."""

    name: str
    tensors: tuple[tuple[Any, Any], ...]
    buffer: int
    origin: Origin


def carry(source: Path, model: Path, codes: Path, target: Path) -> None:
    """Write `target`, the graph of `source` with every matrix that has codes stored in them.

    Args:
        source: a float32 .tflite file.
        model: the model's folder.
        codes: the folder with `codes-*.safetensors`.
        target: the file to write.

    Raises:
        CheckFailed: a matrix has codes and no place in the graph.
    """
    document, rows = read_tflite(source), index_rows(model, codes)
    found: list[_Matrix] = []
    for name, buffer, tensors in _constants(document):
        values = constant_floats(document, tensors[0][1])
        assert values is not None
        origin = find_origin(rows, mark_rows(values, "F32"), name, [each.origin for each in found])
        if origin is not None:
            found.append(_Matrix(name, tensors, buffer, origin))
    require_all_carried(rows, [each.origin for each in found])
    for each in found:
        _store(document, each, gather_rows(rows, each.origin, each.name))
    _round_inputs(document)
    write_tflite(document, target)


def _constants(document: Any) -> Iterator[tuple[str, int, tuple[tuple[Any, Any], ...]]]:
    """(name, buffer, (subgraph, tensor) of each that shares it) of every float matrix that is multiplied or looked up."""
    by_buffer: dict[int, list[tuple[Any, Any]]] = {}
    for subgraph in document.subgraphs:
        for operator in subgraph.operators:
            if operator_of(document, operator) not in _USERS:
                continue
            tensor = subgraph.tensors[operator.inputs[1]]
            known = by_buffer.setdefault(tensor.buffer, [])
            values = constant_floats(document, tensor)
            if values is not None and values.ndim == 2 and all(tensor is not other for _, other in known):
                known.append((subgraph, tensor))
    for buffer, tensors in by_buffer.items():
        if tensors:
            yield name_of(tensors[0][1]), buffer, tuple(tensors)


def _store(document: Any, matrix: _Matrix, codes: QuantizedTensor) -> None:
    document.buffers[matrix.buffer].data = packed(codes.codes, codes.bits)
    for subgraph, tensor in matrix.tensors:
        tensor.type = CODE_TYPES[codes.bits]
        if codes.group_size == codes.columns:
            tensor.quantization = by_row(codes.scales)
        else:
            tensor.quantization = in_blocks(_add_scales(document, subgraph, tensor, codes.scales), codes.group_size)


def _add_scales(document: Any, subgraph: Any, tensor: Any, scales: NDArray[np.float16]) -> int:
    """The index of a new constant beside `tensor`."""
    made = schema.TensorT()
    made.name = f"{name_of(tensor)}_scales"
    made.type, made.shape = schema.TensorType.FLOAT16, np.asarray(scales.shape, np.int32)
    buffer = schema.BufferT()
    buffer.data = np.ascontiguousarray(scales).view(np.uint8).ravel()
    document.buffers.append(buffer)
    made.buffer = len(document.buffers) - 1
    subgraph.tensors.append(made)
    return len(subgraph.tensors) - 1


def _round_inputs(document: Any) -> None:
    """Products with codes take inputs rounded to a range of their own, as XNNPACK does; else the range is symmetric."""
    for subgraph in document.subgraphs:
        for operator in subgraph.operators:
            if operator_of(document, operator) != schema.BuiltinOperator.FULLY_CONNECTED:
                continue
            if subgraph.tensors[operator.inputs[1]].type in CODE_TYPES.values():
                operator.builtinOptions.asymmetricQuantizeInputs = True
