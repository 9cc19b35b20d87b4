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

    def matrix(self, function: Function, parameter: str, shape: tuple[int, int]) -> tuple[Value, bool]:
        """A matrix (outputs, inputs) as a constant, and whether it is in codes."""
        source = self.sources[parameter]
        entry = self.codes.get(source.tensor) if source.plain else None
        if entry is not None:
            return self._coded(function, source, entry, shape), True
        if not self.halves:
            return function.constant(_key(source), lambda: read_source(self.infos, source, shape)), False
        half = function.constant(_key(source), lambda: _halved(read_source(self.infos, source, shape), source.tensor))
        return function.once(f"{_key(source)} as float32", lambda: ops.dequantize(function, half)), False

    def _coded(self, function: Function, source: Source, entry: QuantizedInfo, shape: tuple[int, int]) -> Value:
        first, last = source.rows or (0, entry.rows)
        key, by_row = _key(source), entry.group_size == entry.columns

        def read_codes() -> NDArray[np.uint8]:
            return packed(read_quantized(entry).codes[first:last], entry.bits)

        def read_scales() -> NDArray[np.float16]:
            return np.asarray(read_quantized(entry).scales[first:last], np.float16)

        if by_row and key not in self.scales:
            self.scales[key] = Shared(_by_row(read_scales()))
        quantization = self.scales[key] if by_row else None
        if quantization is None:
            quantization = _in_blocks(function.constant(f"{key} scales", read_scales), entry.group_size)
        return function.stored(key, shape, CODE_TYPES[entry.bits], read_codes, quantization)


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
