"""What the weights of an ONNX file are stored as, read from the graph alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler.package import Deviation, StoredWeights

_TYPE_BITS = {1: 32, 10: 16, 16: 16, 2: 8, 3: 8, 21: 4, 22: 4, 6: 32, 7: 64}
_TYPE_NAMES = {1: "fp32", 10: "fp16", 16: "bf16", 2: "uint8", 3: "int8"}
_MATRIX_OPERATORS = ("MatMul", "Gemm", "Gather", "Attention", "DynamicQuantizeMatMul", "MatMulInteger", "Conv")


def read_weights(path: Path, scheme: str) -> StoredWeights:
    """Types, effective bits and deviations of an ONNX file's weights; no tensor data is loaded.

    Quantized matrices count as the weights that they stand for (`MatMulNBits` and `GatherBlockQuantized` give rows and
    columns); scales and zero points count as bytes only.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {name: _elements(tensor.dims) for name, tensor in tensors.items()}
    nbytes = {name: sizes[name] * _TYPE_BITS.get(tensor.data_type, 32) // 8 for name, tensor in tensors.items()}
    types: dict[str, int] = {}
    deviations: list[Deviation] = []
    read_per_token = sum(nbytes.values())
    seen: set[str] = set()
    for stored, weight, packed_bits in _matrices(graph, tensors):
        if weight in seen:
            continue
        seen.add(weight)
        gathered = [node for node in graph.node if weight in node.input]
        only_gathered = all(node.op_type.startswith("Gather") for node in gathered)
        count = sizes[weight] * 8 // packed_bits if packed_bits else sizes[weight]
        types[stored] = types.get(stored, 0) + count
        if _differs(stored, scheme):
            reason = "an embedding table, kept so" if only_gathered else f"{gathered[0].op_type} is kept so"
            deviations.append(Deviation(weight, stored, reason, forced=False))
        if only_gathered:
            read_per_token -= nbytes[weight]
    small = sum(
        size
        for name, size in sizes.items()
        if name not in seen and tensors[name].data_type == 1 and "scale" not in name
    )
    types["fp32"] = types.get("fp32", 0) + small
    bits = 8 * sum(nbytes.values()) / max(1, sum(types.values()))
    return StoredWeights(round(bits, 4), dict(sorted(types.items())), tuple(deviations), read_per_token)


def _matrices(graph: Any, tensors: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """(storage type, name of the weight, bits when packed or 0) of every constant matrix that is multiplied or gathered."""
    for node in graph.node:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            position = 1 if node.op_type == "MatMulNBits" else 0
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            if node.input[position] in tensors:
                yield (
                    f"int{attributes['bits']}-block{attributes['block_size']}",
                    node.input[position],
                    attributes["bits"],
                )
        elif node.op_type in _MATRIX_OPERATORS:
            for name in node.input:
                if name in tensors and len(tensors[name].dims) > 1 and "scale" not in name:
                    yield _TYPE_NAMES.get(tensors[name].data_type, str(tensors[name].data_type)), name, 0


def _differs(stored: str, scheme: str) -> bool:
    if scheme.startswith("mixed"):
        return not stored.startswith("int")
    return stored.removeprefix("u").split("-")[0] != scheme.split("-")[0]


def _elements(dims: Any) -> int:
    count = 1
    for size in dims:
        count *= size
    return count
