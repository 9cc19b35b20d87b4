"""How the parameters of a network become constants of a TFLite model: float32, float16, or codes kept to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.errors import CheckFailed
from compiler.formats.codes import QuantizedInfo, read_quantized
from compiler.formats.safetensors import TensorInfo
from compiler.networks.weights import Source, read_source
from targets.tflite import ops
from targets.tflite.graph import Function, Shared, Value

CODE_TYPES = {4: schema.TensorType.INT4, 8: schema.TensorType.INT8}
_LARGEST_HALF = 65504.0
# XNNPACK rounds the inputs of a product with codes to 8 bits over one range a row, which one large channel widens for all.
# So products are made in pieces of so many columns at most. The head, one operator of hundreds, can have smaller ones.
_PIECE, _HEAD_PIECE = 512, 192


@dataclass(frozen=True)
class Matrix:
    """A matrix (outputs, inputs) of a function: constants of neighbouring columns, all but the last equally wide."""

    pieces: tuple[Value, ...]
    coded: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each piece."""
        return tuple(piece.shape[1] for piece in self.pieces)


@dataclass(frozen=True)
class Weights:
    """The parameters of a network.

    Attributes:
        infos: the model's tensors by name.
        sources: the tensor of each parameter.
        codes: codes of matrices, by the tensor's name; empty where none are carried.
        halves: whether matrices without codes are stored in float16.
        scales: the scales of rows that were stored, by the constant.
    """

    infos: Mapping[str, TensorInfo]
    sources: Mapping[str, Source]
    codes: Mapping[str, QuantizedInfo] = field(default_factory=dict)
    halves: bool = False
    scales: dict[str, Shared] = field(default_factory=dict)

    def vector(self, function: Function, parameter: str, size: int) -> Value:
        """A vector as a float32 constant."""
        source = self.sources[parameter]
        return function.constant(_key(source), lambda: read_source(self.infos, source, (size,)))

    def matrix(self, function: Function, parameter: str, shape: tuple[int, int]) -> Matrix:
        """A matrix (outputs, inputs) as constants, in codes where it has them."""
        source = self.sources[parameter]
        entry = self.codes.get(source.tensor) if source.plain else None
        if entry is not None:
            head = self.sources.get("head.weight")
            widest = _HEAD_PIECE if head is not None and head.tensor == source.tensor else _PIECE
            spans = cut_columns(entry.columns, widest, entry.group_size)
            return Matrix(tuple(self._coded(function, source, entry, span) for span in spans), True)
        if not self.halves:
            return Matrix((function.constant(_key(source), lambda: read_source(self.infos, source, shape)),), False)
        half = function.constant(_key(source), lambda: _halved(read_source(self.infos, source, shape), source.tensor))
        whole = function.once(f"{_key(source)} as float32", lambda: ops.dequantize(function, half))
        return Matrix((whole,), False)

    def _coded(self, function: Function, source: Source, entry: QuantizedInfo, columns: tuple[int, int]) -> Value:
        first, last = source.rows or (0, entry.rows)
        begin, end = columns
        row, group = _key(source), entry.group_size
        key = row if columns == (0, entry.columns) else f"{row}[{begin}:{end}]"

        def read_codes() -> NDArray[np.uint8]:
            return packed(read_quantized(entry).codes[first:last, begin:end], entry.bits)

        def read_scales() -> NDArray[np.float16]:
            return np.asarray(read_quantized(entry).scales[first:last], np.float16)

        if group == entry.columns:
            if row not in self.scales:
                self.scales[row] = Shared(_by_row(read_scales()))
            quantization: Any = self.scales[row]
        else:
            scales = function.constant(f"{key} scales", lambda: read_scales()[:, begin // group : end // group])
            quantization = _in_blocks(scales, group)
        return function.stored(key, (last - first, end - begin), CODE_TYPES[entry.bits], read_codes, quantization)


def cut_columns(columns: int, widest: int, group_size: int) -> list[tuple[int, int]]:
    """Columns (first, last + 1) of equal pieces of `widest` at most, which cut no group; the last one may be smaller."""
    unit = group_size if group_size < columns else 1
    count = -(-columns // max(widest, unit))
    # Equal pieces are cut by an operator of XNNPACK's.
    even = next((more for more in range(count, 2 * count) if columns % (more * unit) == 0), count)
    width = -(-columns // (even * unit)) * unit
    return [(begin, min(begin + width, columns)) for begin in range(0, columns, width)]


def _key(source: Source) -> str:
    """The name of the constant that a source becomes: equal sources share it."""
    changed = f" +{source.plus:g} x{source.times:g}" if not source.plain else ""
    return f"{source.tensor}{source.rows or ''}{changed}"


def _by_row(scales: NDArray[np.float16]) -> Any:
    made = schema.QuantizationParametersT()
    made.quantizedDimension = 0
    made.scale = scales.astype(np.float32).ravel()
    made.zeroPoint = np.zeros(scales.size, np.int64)
    return made


def _in_blocks(scales: Value, group_size: int) -> Any:
    details = schema.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = scales.index, -1, group_size
    made = schema.QuantizationParametersT()
    made.quantizedDimension = 0
    made.detailsType, made.details = schema.QuantizationDetails.BlockwiseQuantization, details
    return made


def packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Bytes of codes from 0 on as signed ones about the middle, in row order, the first of two in the low half."""
    flat = (codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8).ravel()
    if bits == 8:
        return flat.view(np.uint8)
    if len(flat) % 2:
        flat = np.append(flat, np.int8(0))
    low, high = flat[0::2].view(np.uint8) & 15, flat[1::2].view(np.uint8) & 15
    return np.asarray(low | (high << 4), np.uint8)


def _halved(values: NDArray[np.float32], tensor: str) -> NDArray[np.float16]:
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _LARGEST_HALF:
        raise CheckFailed(
            "float16",
            f"Tensor {tensor} has a value of {largest:g}, and float16 ends at {_LARGEST_HALF:g}. Use tflite:fp32.",
        )
    return values.astype(np.float16)
