"""The matrices of an ONNX graph, dequantized by the rules of its operators (ContribOperators.md and Operators.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.package import Package
from runtimes.stored.matrix import EXACT, Rounding, StoredMatrix

# Where an operator takes its matrix.
_FACTORS: Mapping[str, int] = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Attention": 1, "MatMulInteger": 1}
_INT8_LEVEL = 4


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """Each constant matrix that is multiplied or looked up."""
    import onnx

    graph = _Graph.of(onnx.load(str(package.artifact)).graph)
    for node in graph.nodes:
        if node.op_type == "MatMulNBits":
            yield _in_blocks(graph, node)
        elif node.op_type == "GatherBlockQuantized":
            yield _looked_up_in_blocks(graph, node)
        elif node.op_type == "Gather" and (table := _table(graph, node)) is not None:
            yield StoredMatrix(node.input[0], *_matrix(table.values), True, False, table.quantized)
        elif node.op_type == "MatMulInteger":
            yield from _times_integers(graph, node)
        elif node.op_type == "QAttention":
            yield _in_attention(graph, node)
        elif (place := _FACTORS.get(node.op_type)) and (factor := _constant(graph, node.input[place])) is not None:
            rounding = Rounding("float16", results=True) if factor.half else EXACT
            yield StoredMatrix(node.input[place], *_matrix(factor.values), False, True, factor.quantized, rounding)


@dataclass(frozen=True)
class _Graph:
    nodes: tuple[Any, ...]
    constants: Mapping[str, Any]
    makers: Mapping[str, Any]
    dequantizers: Mapping[str, Any]

    @classmethod
    def of(cls, graph: Any) -> _Graph:
        constants = {tensor.name: tensor for tensor in graph.initializer}
        makers = {name: node for node in graph.node for name in node.output}
        dequantizers = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
        return cls(tuple(graph.node), constants, makers, dequantizers)

    def array(self, name: str) -> NDArray[Any]:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])


@dataclass(frozen=True)
class _Constant:
    values: NDArray[np.float32]
    quantized: bool
    half: bool


def _matrix(values: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
    """Kernels of convolutions as (outputs, the rest)."""
    return (values.reshape(len(values), -1),)


def _constant(graph: _Graph, name: str) -> _Constant | None:
    """A float matrix that no input has a say in; None where there is none."""
    if name in graph.constants:
        values = graph.array(name)
        if values.ndim < 2 or values.dtype not in (np.float32, np.float16):
            return None
        return _Constant(values.astype(np.float32), False, values.dtype == np.float16)
    maker = graph.makers.get(name)
    if maker is None or not maker.input:
        return None
    if maker.op_type == "DequantizeLinear" and maker.input[0] in graph.constants:
        codes, scale, *zero = [graph.array(each) for each in maker.input if each]
        axis = next((each.i for each in maker.attribute if each.name == "axis"), 1)
        return _Constant(_dequantized(codes, scale, zero[0] if zero else None, axis), True, False)
    if maker.op_type in ("Cast", "Transpose"):
        made = _constant(graph, maker.input[0])
        turned = maker.op_type == "Transpose"
        return _Constant(made.values.T, made.quantized, made.half) if made is not None and turned else made
    return None


def _table(graph: _Graph, node: Any) -> _Constant | None:
    """What rows are looked up in: a float table, or codes that are dequantized after the look-up."""
    after = graph.dequantizers.get(node.output[0])
    if after is None or node.input[0] not in graph.constants:
        return _constant(graph, node.input[0])
    scale, *zero = [graph.array(each) for each in after.input[1:] if each]
    return _Constant(_dequantized(graph.array(node.input[0]), scale, zero[0] if zero else None, 0), True, False)


def _in_attention(graph: _Graph, node: Any) -> StoredMatrix:
    """The joined matrix of queries, keys and values; its scale is input 4, its zero point input 7."""
    zero = graph.array(node.input[7]) if len(node.input) > 7 and node.input[7] else None
    values = _dequantized(graph.array(node.input[1]), graph.array(node.input[4]), zero, 1)
    return StoredMatrix(node.input[1], values, False, True, True, Rounding("uint8"))


def _dequantized(codes: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None, axis: int) -> NDArray[np.float32]:
    """`(code - zero point) * scale`, of one scale or one for each place of an axis."""
    shape = [-1 if place == axis % codes.ndim else 1 for place in range(codes.ndim)] if scale.size > 1 else [1]
    shifted = codes.astype(np.float32) - (0 if zero is None else zero.astype(np.float32).reshape(shape))
    return np.asarray(shifted * scale.astype(np.float32).reshape(shape), np.float32)


def _attributes(node: Any) -> dict[str, int]:
    return {each.name: each.i for each in node.attribute}


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of 8, 4 or 2 bits along the last axis, the first in the lowest bits."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1)


def _blocks(
    codes: NDArray[np.uint8], scales: NDArray[Any], zeros: NDArray[Any] | None, bits: int
) -> NDArray[np.float32]:
    """Codes (rows, groups, values of a group) with a scale, and perhaps a packed zero point, for each group."""
    rows, groups = codes.shape[:2]
    middle = np.full((rows, groups), 1 << (bits - 1), np.float32)
    if zeros is not None:
        each = zeros.reshape(rows, -1)
        middle = (_unpacked(each, bits) if zeros.dtype == np.uint8 else each)[:, :groups].astype(np.float32)
    steps = scales.astype(np.float32).reshape(rows, groups, 1)
    return np.asarray(((codes.astype(np.float32) - middle[..., None]) * steps).reshape(rows, -1), np.float32)


def _in_blocks(graph: _Graph, node: Any) -> StoredMatrix:
    told = _attributes(node)
    codes = _unpacked(graph.array(node.input[1]), told["bits"])
    zeros = graph.array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    values = _blocks(codes, graph.array(node.input[2]), zeros, told["bits"])[:, : told["K"]]
    rounding = Rounding("int8", told["block_size"]) if told.get("accuracy_level") == _INT8_LEVEL else EXACT
    return StoredMatrix(node.input[1], values, False, True, True, rounding)


def _looked_up_in_blocks(graph: _Graph, node: Any) -> StoredMatrix:
    told = _attributes(node)
    name = node.input[0]
    if name not in graph.constants:
        name = graph.makers[name].input[0]
    scales = graph.array(node.input[2])
    packed = graph.array(name)
    bits = told.get("bits", 4)
    codes = _unpacked(packed.reshape(len(scales), -1), bits).reshape(*scales.shape, -1)
    zeros = graph.array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    return StoredMatrix(name, _blocks(codes, scales, zeros, bits), True, False, True)


def _times_integers(graph: _Graph, node: Any) -> Iterator[StoredMatrix]:
    """A product of integers as `quantize_dynamic` writes it, the scales of its matrix being a constant of a like name."""
    name = node.input[1]
    scale = name.removesuffix("_quantized") + "_scale"
    if name in graph.constants and scale in graph.constants:
        zero = graph.array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        values = _dequantized(graph.array(name), graph.array(scale), zero, 1)
        yield StoredMatrix(name, values, False, True, True, Rounding("uint8"))
