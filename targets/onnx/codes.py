"""Our codes in an ONNX graph: `MatMulNBits` for products, `GatherBlockQuantized` for embeddings.

Both operators are in ONNX Runtime's contrib set (ContribOperators.md). `MatMulNBits` holds B as uint8 (N, groups, bytes of a
group), two codes a byte with the first in the low half, scales of A's type (here float32, which holds our float16 values
exactly) and packed zero points; without them the zero point is 2**(bits-1). `GatherBlockQuantized` holds its table alike.

The graph comes from a float export; what rows a constant is made of, its values tell (compiler/quantize/carrying.py). Data is
copied from file to file one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compiler.formats.codes import in_groups
from compiler.quantization import TABLE_GROUP
from compiler.quantize.allocation import Choice
from compiler.quantize.carrying import (
    Origin,
    Rows,
    find_origin,
    gather_rows,
    index_rows,
    mark_rows,
    require_all_carried,
)

# (bits, symmetric) that the operators take.
CONTAINERS: tuple[tuple[int, bool], ...] = ((4, True), (4, False), (8, True), (8, False))
# In groups of 32, with a float32 scale.
CHOICES = (Choice(4, True, 5.0), Choice(4, False, 5.125), Choice(8, True, 9.0))
_DOMAIN = "com.microsoft"
# Activations are rounded to int8 by group while they are multiplied: what GenAI's builder chooses for CPUs.
_ACCURACY_INT8 = 4
_LARGEST_BLOCK = 256
_ALIGNMENT = 64
_DATA_FILE = "model.onnx.data"
_EXTERNAL_BYTES = 1024
_FLOAT_BYTES = 4


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes along the last axis as bytes, the first of two in the low half."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], -1)
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)


def carry(source: Path, model: Path, codes: Path, target: Path) -> None:
    """Write `target`, the graph of `source` with every matrix that has codes in a quantized operator.

    Args:
        source: a float32 `model.onnx`, its data inside or in a file beside it.
        model: the model's folder.
        codes: the folder with `codes-*.safetensors`.
        target: the file to write; its data goes beside it when that of `source` does.

    Raises:
        CheckFailed: a matrix has codes and no place in the graph.
    """
    import onnx

    document = onnx.load(str(source), load_external_data=False)
    rows = index_rows(model, codes)
    matrices = {each.name: each for each in _matrices(document.graph, source.parent, rows)}
    require_all_carried(rows, [each.origin for each in matrices.values()])
    nodes = [made for node in document.graph.node for made in _replaced(node, matrices)]
    read = {name for node in nodes for name in node.input} | {output.name for output in document.graph.output}
    nodes = [node for node in nodes if node.op_type != "Transpose" or node.output[0] in read]
    del document.graph.node[:]
    document.graph.node.extend(nodes)
    if not any(opset.domain == _DOMAIN for opset in document.opset_import):
        document.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in document.graph.initializer if tensor.name in used]
    del document.graph.initializer[:]
    stored = [each for each in matrices.values() if each.twin is None]
    if any(tensor.external_data for tensor in kept):
        with (target.parent / _DATA_FILE).open("wb") as sink:
            _write_external(document, kept, source.parent, rows, stored, sink)
    else:
        document.graph.initializer.extend(kept)
        for each in stored:
            document.graph.initializer.extend(_tensors_of(each, rows))
    onnx.save(document, str(target))


def weight_bytes(source: Path) -> tuple[int, int]:
    """Bytes of the constants of a float graph that may get codes, and of the others."""
    import onnx

    graph = onnx.load(str(source), load_external_data=False).graph
    places = {("MatMul", 1), ("Gather", 0)}
    used = {node.input[at] for node in graph.node for operator, at in places if node.op_type == operator}
    matrices = others = 0
    for tensor in graph.initializer:
        nbytes = _FLOAT_BYTES * int(np.prod(tensor.dims, dtype=np.int64))
        if tensor.name in used and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            matrices += nbytes
        else:
            others += nbytes
    return matrices, others


@dataclass(frozen=True)
class _Matrix:
    """A float constant of the graph that has codes.

    Attributes:
        name: the constant's name.
        gathered: rows of it are looked up; else it is the second factor of a product, (columns, outputs).
        outputs, columns: rows and columns of the quantized matrix.
        origin: where its rows come from.
        twin: a product's matrix with the same rows, whose codes it uses (a tied embedding); None when it has its own.
    """

    name: str
    gathered: bool
    outputs: int
    columns: int
    origin: Origin
    twin: str | None = None


def _matrices(graph: Any, folder: Path, rows: Rows) -> Iterator[_Matrix]:
    """The constants with codes; products first, so that a tied embedding finds its twin."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    # GenAI's builder looks a tied embedding up in the transposed head.
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    products: list[_Matrix] = []
    for operator, position in (("MatMul", 1), ("Gather", 0)):
        names = [node.input[position] for node in graph.node if node.op_type == operator]
        for name in dict.fromkeys(names):
            held = name if name in initializers else turned.get(name, "")
            values = _values(initializers[held], folder) if held in initializers else None
            if values is None:
                continue
            gathered = operator == "Gather"
            values = values if gathered == (held == name) else values.T
            placed = () if gathered else [each.origin for each in products]
            origin = find_origin(rows, mark_rows(values, "F32"), name, placed)
            if origin is None:
                continue
            twin = next((each.name for each in products if _same(each.origin, origin)), None) if gathered else None
            matrix = _Matrix(name, gathered, values.shape[0], values.shape[1], origin, twin)
            if not gathered:
                products.append(matrix)
            yield matrix


def _same(one: Origin, other: Origin) -> bool:
    return len(one.parts) == len(other.parts) and all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in zip(one.parts, other.parts, strict=True)
    )


def _replaced(node: Any, matrices: Mapping[str, _Matrix]) -> list[Any]:
    """The node, or those that take its place."""
    import onnx

    position = {"MatMul": 1, "Gather": 0}.get(node.op_type)
    matrix = matrices.get(node.input[position]) if position is not None else None
    if matrix is None or matrix.gathered != (position == 0):
        return [node]
    origin, holder = matrix.origin, matrix.twin or matrix.name
    names = [f"{holder}.codes", f"{holder}.scales"] + ([] if origin.symmetric else [f"{holder}.zero_points"])
    attributes: dict[str, Any] = {"bits": origin.bits, "block_size": _block(origin), "domain": _DOMAIN}
    attributes |= {"name": node.name, "outputs": list(node.output)}
    if not matrix.gathered:
        attributes |= {"K": matrix.columns, "N": matrix.outputs, "accuracy_level": _ACCURACY_INT8}
        return [onnx.helper.make_node("MatMulNBits", [node.input[0], *names], **attributes)]
    before = []
    if matrix.twin is not None:
        shape = onnx.helper.make_node(
            "Constant", [], [f"{matrix.name}.shape"], value_ints=[matrix.outputs, matrix.columns * origin.bits // 8]
        )
        before = [shape, onnx.helper.make_node("Reshape", [names[0], shape.output[0]], [f"{matrix.name}.codes"])]
        names[0] = before[1].output[0]
    attributes |= {"gather_axis": 0, "quantize_axis": 1}
    return [*before, onnx.helper.make_node("GatherBlockQuantized", [names[0], node.input[1], *names[1:]], **attributes)]


def _block(origin: Origin) -> int:
    """Columns of a block: the operators have no scale for a whole row, which is given to each of its blocks."""
    size = origin.group_size
    return size if size <= _LARGEST_BLOCK and size & (size - 1) == 0 else TABLE_GROUP


def _values(tensor: Any, folder: Path) -> NDArray[np.float32] | None:
    """A float32 matrix among the initializers, mapped where it lies outside; None for anything else."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
        return None
    if not tensor.external_data:
        return numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    return np.memmap(folder / where["location"], np.float32, "r", int(where.get("offset", 0)), tuple(tensor.dims))


def _tensors_of(matrix: _Matrix, rows: Rows) -> list[Any]:
    """The initializers of a quantized matrix."""
    from onnx import numpy_helper

    return [numpy_helper.from_array(values, name) for name, values in _arrays_of(matrix, rows)]


def _arrays_of(matrix: _Matrix, rows: Rows) -> list[tuple[str, NDArray[Any]]]:
    tensor = in_groups(gather_rows(rows, matrix.origin, matrix.name), _block(matrix.origin))
    groups = tensor.columns // tensor.group_size
    packed = pack_codes(tensor.codes, tensor.bits)
    shape = (tensor.rows, -1) if matrix.gathered else (tensor.rows, groups, -1)
    arrays: list[tuple[str, NDArray[Any]]] = [
        (f"{tensor.name}.codes", np.ascontiguousarray(packed).reshape(shape)),
        (f"{tensor.name}.scales", tensor.scales.astype(np.float32).reshape(tensor.rows, groups)),
    ]
    if not tensor.symmetric:
        arrays.append((f"{tensor.name}.zero_points", np.ascontiguousarray(pack_codes(tensor.zero_points, tensor.bits))))
    return arrays


def _write_external(
    document: Any, kept: list[Any], folder: Path, rows: Rows, stored: list[_Matrix], sink: BinaryIO
) -> None:
    """Write all data to one file and enter its places into the graph."""
    from onnx import TensorProto, numpy_helper

    for tensor in kept:
        if tensor.external_data:
            where = {entry.key: entry.value for entry in tensor.external_data}
            with (folder / where["location"]).open("rb") as file:
                file.seek(int(where.get("offset", 0)))
                _place(tensor, file.read(int(where["length"])), sink)
        document.graph.initializer.append(tensor)
    types = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float32): TensorProto.FLOAT}
    for matrix in stored:
        for part, values in _arrays_of(matrix, rows):
            if values.nbytes < _EXTERNAL_BYTES:
                document.graph.initializer.append(numpy_helper.from_array(values, part))
                continue
            made = TensorProto(name=part, data_type=types[values.dtype], dims=values.shape)
            _place(made, values.tobytes(), sink)
            document.graph.initializer.append(made)


def _place(tensor: Any, data: bytes, sink: BinaryIO) -> None:
    from onnx import TensorProto

    sink.write(bytes(-sink.tell() % _ALIGNMENT))
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", _DATA_FILE), ("offset", sink.tell()), ("length", len(data))):
        tensor.external_data.add(key=key, value=str(value))
    sink.write(data)
