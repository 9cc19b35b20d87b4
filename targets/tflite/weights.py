"""How the parameters of a network become constants of a TFLite model: float32, float16, or codes kept to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.formats.codes import QuantizedInfo, read_quantized
from compiler.formats.safetensors import TensorInfo
from compiler.networks.weights import Source, read_source
from targets.tflite import ops
from targets.tflite.graph import Function, Shared, Value
from targets.tflite.storage import CODE_TYPES, by_row, halved, in_blocks, packed


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
        widest: columns of a piece of a matrix with codes at most. XNNPACK rounds the inputs of a product with codes to 8 bits
            over one range a row, which one large channel widens for all; so products are made in pieces.
        widest_head: the same for the head of a language model, which is one operator of hundreds.
        most_pieces: of a matrix, which then are wider; XNNPACK itself cuts its inputs into four at most.
        scales: the scales of rows that were stored, by the constant.
    """

    infos: Mapping[str, TensorInfo]
    sources: Mapping[str, Source]
    codes: Mapping[str, QuantizedInfo] = field(default_factory=dict)
    halves: bool = False
    widest: int = 384
    widest_head: int = 192
    most_pieces: int | None = None
    scales: dict[str, Shared] = field(default_factory=dict)

    def read(self, parameter: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """A parameter's values, float32 of `shape`."""
        return read_source(self.infos, self.sources[parameter], tuple(int(size) for size in shape))

    def codes_of(self, parameter: str) -> QuantizedInfo | None:
        """The codes of a parameter; None where it has none."""
        source = self.sources[parameter]
        return self.codes.get(source.tensor) if source.plain else None

    def is_shared(self, parameter: str) -> bool:
        """Whether another parameter is the same tensor: a head that is the table of words too."""
        return self._shared(self.sources[parameter])

    def vector(self, function: Function, parameter: str, size: int) -> Value:
        """A vector as a float32 constant."""
        source = self.sources[parameter]
        return function.constant(_key(source), lambda: read_source(self.infos, source, (size,)))

    def filters(self, function: Function, parameter: str, shape: Sequence[int]) -> Value:
        """Filters (outputs, inputs, height, width) as a constant with channels last: float32, or made of float16."""
        source = self.sources[parameter]

        def read() -> NDArray[np.float32]:
            return np.ascontiguousarray(self.read(parameter, shape).transpose(0, 2, 3, 1))

        return self._floats(function, source, read)

    def matrix(self, function: Function, parameter: str, shape: tuple[int, int], *, looked_up: bool = False) -> Matrix:
        """A matrix (outputs, inputs) as constants, in codes where it has them; rows that are only looked up stay whole."""
        source, entry = self.sources[parameter], self.codes_of(parameter)
        if entry is not None:
            spans = self._spans(source, entry, looked_up=looked_up)
            return Matrix(tuple(self._coded(function, source, entry, span) for span in spans), True)
        return Matrix((self._floats(function, source, lambda: self.read(parameter, shape)),), False)

    def _floats(self, function: Function, source: Source, read: Callable[[], NDArray[np.float32]]) -> Value:
        if not self.halves:
            return function.constant(_key(source), read)
        half = function.constant(_key(source), lambda: halved(read(), source.tensor))
        whole: Value = function.once(f"{_key(source)} as float32", lambda: ops.dequantize(function, half))
        return whole

    def _shared(self, source: Source) -> bool:
        return sum(each.tensor == source.tensor for each in self.sources.values()) > 1

    def _spans(self, source: Source, entry: QuantizedInfo, *, looked_up: bool) -> list[tuple[int, int]]:
        """The columns of each piece."""
        columns, group = entry.columns, entry.group_size
        if looked_up and not self._shared(source):
            return [(0, columns)]
        if entry.bits == 8 and group < columns:
            return [(begin, begin + group) for begin in range(0, columns, group)]
        unit = 1 if entry.bits == 8 else group
        head = self.sources.get("head.weight")
        if head is not None and head.tensor == source.tensor:
            return cut_columns(columns, self.widest_head, unit)
        return cut_columns(columns, self.widest, unit, self.most_pieces)

    def _coded(self, function: Function, source: Source, entry: QuantizedInfo, columns: tuple[int, int]) -> Value:
        first, last = source.rows or (0, entry.rows)
        begin, end = columns
        row, group = _key(source), entry.group_size
        key = row if columns == (0, entry.columns) else f"{row}[{begin}:{end}]"

        def read_codes() -> NDArray[np.uint8]:
            return packed(read_quantized(entry).codes[first:last, begin:end], entry.bits)

        def read_scales() -> NDArray[np.float16]:
            return np.asarray(read_quantized(entry).scales[first:last], np.float16)

        if entry.bits == 8:
            # Groups of columns are pieces, each with scales of its own.
            own = key if group < entry.columns else row
            if own not in self.scales:
                self.scales[own] = Shared(by_row(read_scales()[:, begin // group : -(-end // group)]))
            quantization: Any = self.scales[own]
        else:
            scales = function.constant(f"{key} scales", lambda: read_scales()[:, begin // group : end // group])
            quantization = in_blocks(scales.index, group)
        return function.stored(key, (last - first, end - begin), CODE_TYPES[entry.bits], read_codes, quantization)


def cut_columns(columns: int, widest: int, unit: int, most: int | None = None) -> list[tuple[int, int]]:
    """Columns (first, last + 1) of equal pieces of `widest` at most, or wider ones where that makes more than `most`.

    Every piece has a multiple of `unit` columns, which divides `columns`; the last one may be smaller than the others.
    """
    units = columns // unit
    count = -(-units // max(1, widest // unit))
    count = min(count, most) if most else count
    # Equal pieces are cut by an operator of XNNPACK's.
    even = next((more for more in range(count, most + 1 if most else 2 * count) if units % more == 0), count)
    width = -(-units // even) * unit
    return [(begin, min(begin + width, columns)) for begin in range(0, columns, width)]


def _key(source: Source) -> str:
    """The name of the constant that a source becomes: equal sources share it."""
    changed = f" +{source.plus:g} {source.added or ''} x{source.times:g}" if not source.plain else ""
    return f"{source.tensor}{source.rows or ''}{changed}"
