"""What a TFLite model's constants are: types, effective bits, and what a generated token reads."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from compiler.formats.tflite import operator_of
from compiler.package import StoredWeights

_TYPE_NAMES = {
    schema.TensorType.FLOAT32: "fp32",
    schema.TensorType.FLOAT16: "fp16",
    schema.TensorType.INT8: "int8",
    schema.TensorType.INT4: "int4",
}
_SCALE_BITS, _ZERO_POINT_BITS = 32, 64
_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


def stored_weights(document: Any, decode_read_bytes: int | None = None) -> StoredWeights:
    """Types and effective bits of the constants that are weights; scales and zero points count as bits only."""
    types: dict[str, int] = {}
    bits = 0
    seen: set[int] = set()
    counted: set[int] = set()
    for subgraph in document.subgraphs:
        quantizations = [each.quantization for each in subgraph.tensors if each.quantization is not None]
        scales = {
            each.details.scales for each in quantizations if isinstance(each.details, schema.BlockwiseQuantizationT)
        }
        for index, tensor in enumerate(subgraph.tensors):
            data = document.buffers[tensor.buffer].data
            if data is None or tensor.buffer in seen or tensor.type not in _TYPE_NAMES:
                continue
            seen.add(tensor.buffer)
            bits += 8 * len(data)
            if index not in scales:
                kind = _TYPE_NAMES[tensor.type]
                types[kind] = types.get(kind, 0) + 8 * len(data) // _BITS[kind]
            own = tensor.quantization
            if own is not None and own.scale is not None and id(own) not in counted:
                counted.add(id(own))
                bits += _SCALE_BITS * len(own.scale)
                bits += _ZERO_POINT_BITS * (0 if own.zeroPoint is None else len(own.zeroPoint))
    return StoredWeights(
        round(bits / max(1, sum(types.values())), 4), dict(sorted(types.items())), decode_read_bytes=decode_read_bytes
    )


def decode_read_bytes(document: Any, signature: str) -> int:
    """Bytes of the matrices that a call of a signature multiplies with."""
    number = next(each.subgraphIndex for each in document.signatureDefs if each.signatureKey == signature)
    subgraph = document.subgraphs[number]
    made = {int(each.outputs[0]): int(each.inputs[0]) for each in subgraph.operators if len(each.inputs) == 1}
    read = set()
    for operator in subgraph.operators:
        if operator_of(document, operator) == schema.BuiltinOperator.FULLY_CONNECTED:
            index = int(operator.inputs[1])
            read.add(subgraph.tensors[made.get(index, index)].buffer)
    return sum(len(document.buffers[buffer].data) for buffer in read)
