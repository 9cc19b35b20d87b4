"""How the parameters of a network become constants of a Core ML program: read late, written once, carried exactly.

Constants of the program are stand-ins that take no memory. Each has a Blob, which says where its values come from when the
file of weights is written; two constants with the same key share their bytes there, across functions too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from compiler.errors import CheckFailed
from compiler.formats.codes import QuantizedInfo, read_quantized
from compiler.formats.safetensors import TensorInfo
from compiler.networks.weights import Source, read_source

Kind = Literal["float16", "int8", "uint8", "int4", "uint4", "uint6"]
_DTYPES: dict[Kind, Any] = {
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "int4": types.np_int4_dtype,
    "uint4": types.np_uint4_dtype,
    "uint6": types.np_uint6_dtype,
}
_INDEX_KINDS: dict[int, Kind] = {4: "uint4", 6: "uint6", 8: "uint8"}
# Some rows of a parameter (first, last + 1), or all.
Rows = tuple[int, int] | None
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Blob:
    """Values of a constant: `read` gives them, in the shape of the constant or flat, when they are written."""

    key: str
    kind: Kind
    elements: int
    read: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Stored:
    """How a parameter is stored, for the package's account."""

    parameter: str
    elements: int
    type: str
    bits: float


@dataclass(frozen=True)
class Weights:
    """The parameters of a network and their stores.

    Attributes:
        infos: the model's tensors by name.
        sources: the tensor of each parameter.
        codes: codes of matrices, by the tensor's name; empty where none are carried.
        blockwise: whether the iOS has the operators of iOS 18 for codes; older ones have a scale for each row, and one palette
            for a whole matrix.
        input_scales: the step of each projection's input in 8 bits, by the projection; empty where they stay floats.
        blobs: what has been asked for, by the constant's name.
        stored: the account of parameters, by what they are made of.
    """

    infos: Mapping[str, TensorInfo]
    sources: Mapping[str, Source]
    codes: Mapping[str, QuantizedInfo] = field(default_factory=dict)
    blockwise: bool = True
    input_scales: Mapping[str, float] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)

    def account(self, parameter: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A parameter's values, float32, for a constant that is made of them; it counts as float16."""
        self._account(parameter, None, int(np.prod(shape)), "fp16", 16.0)
        return read_source(self.infos, self.sources[parameter], shape)

    def alone(self, parameter: str) -> bool:
        """Whether no other parameter is made of the same tensor."""
        own = self.sources[parameter]
        return sum(source == own for source in self.sources.values()) == 1

    def vector(self, parameter: str, shape: tuple[int, ...], form: tuple[int, ...], rows: Rows = None) -> Any:
        """A parameter of shape `shape`, or some rows of it, as a float16 constant of shape `form`."""
        source = self.sources[parameter]
        first, last = rows or (0, shape[0])
        self._account(parameter, rows, int(np.prod(form)), "fp16", 16.0)

        def read() -> NDArray[Any]:
            return to_float16(read_source(self.infos, source, shape)[first:last], source.tensor).reshape(form)

        blob = Blob(f"{source} {rows}", "float16", int(np.prod(form)), read)
        return self._constant(_name(parameter, rows), form, blob)

    def matrix(self, parameter: str, shape: tuple[int, int], form: tuple[int, ...], rows: Rows = None) -> Any:
        """A matrix (outputs, inputs), or some rows of it, as a constant of shape `form`, in codes or a palette where it has
        them."""
        source = self.sources[parameter]
        if source.plain and (entry := self.codes.get(source.tensor)) is not None:
            carry = self._palette if entry.tables else self._codes
            return carry(parameter, source, entry, rows, form)
        return self.vector(parameter, shape, form, rows)

    def _codes(self, parameter: str, source: Source, entry: QuantizedInfo, rows: Rows, form: tuple[int, ...]) -> Any:
        first, last = _taken(source, rows, entry.rows)
        groups, middle = entry.columns // entry.group_size, 2 ** (entry.bits - 1)
        kind: Kind = (
            ("int8" if entry.bits == 8 else "int4") if entry.symmetric else ("uint8" if entry.bits == 8 else "uint4")
        )
        scale_form = (form[0], groups, *form[2:])
        extra = (16.0 + (0.0 if entry.symmetric else entry.bits)) / entry.group_size
        self._account(parameter, rows, int(np.prod(form)), f"int{entry.bits}", entry.bits + extra)

        def read_codes() -> NDArray[Any]:
            codes = read_quantized(entry).codes[first:last].reshape(form)
            return (codes.astype(np.int16) - middle).astype(np.int8) if entry.symmetric else codes

        def read_scales() -> NDArray[Any]:
            return read_quantized(entry).scales[first:last].reshape(scale_form)

        def read_zeros() -> NDArray[Any]:
            return read_quantized(entry).zero_points[first:last].reshape(scale_form)

        name, key = _name(parameter, rows), f"{source} {rows}"
        elements, scales = int(np.prod(form)), int(np.prod(scale_form))
        if not self.blockwise:
            return mb.constexpr_affine_dequantize(
                quantized_data=self._constant(f"{name}_codes", form, Blob(f"{key} codes", kind, elements, read_codes)),
                zero_point=np.int8(0),
                scale=self._constant(
                    f"{name}_scales", (scales,), Blob(f"{key} scales", "float16", scales, read_scales)
                ),
                axis=np.int32(0),
                name=name,
            )
        parts = {
            "data": self._constant(f"{name}_codes", form, Blob(f"{key} codes", kind, elements, read_codes)),
            "scale": self._constant(
                f"{name}_scales", scale_form, Blob(f"{key} scales", "float16", scales, read_scales)
            ),
        }
        if not entry.symmetric:
            blob = Blob(f"{key} zeros", kind, scales, read_zeros)
            parts["offset"] = self._constant(f"{name}_zeros", scale_form, blob)
        return mb.constexpr_blockwise_shift_scale(**parts, name=name)

    def _palette(self, parameter: str, source: Source, entry: QuantizedInfo, rows: Rows, form: tuple[int, ...]) -> Any:
        first, last = _taken(source, rows, entry.rows)
        kind: Kind = _INDEX_KINDS[entry.bits]
        # Fused matrices may be cut where no table ends: a table for each row of the largest run that fits is the same.
        group = math.gcd(entry.rows // entry.tables, first, last)
        table_form = ((last - first) // group, *(1 for _ in form[1:]), 2**entry.bits, 1)
        extra = 16.0 * 2**entry.bits / (group * form[1])
        self._account(parameter, rows, int(np.prod(form)), f"lut{entry.bits}", entry.bits + extra)

        def read_indices() -> NDArray[Any]:
            return read_quantized(entry).codes[first:last].reshape(form)

        def read_table() -> NDArray[Any]:
            palette = read_quantized(entry).palette
            assert palette is not None
            every = np.arange(first, last, group) // (entry.rows // entry.tables)
            return palette[every].reshape(table_form)

        name, key = _name(parameter, rows), f"{source} {rows}"
        if not self.blockwise:
            return self._one_palette(name, key, entry, rows, form, read_indices, read_table)
        indices = Blob(f"{key} indices", kind, int(np.prod(form)), read_indices)
        table = Blob(f"{key} table", "float16", int(np.prod(table_form)), read_table)
        return mb.constexpr_lut_to_dense(
            indices=self._constant(f"{name}_indices", form, indices),
            lut=self._constant(f"{name}_table", table_form, table),
            name=name,
        )

    def _one_palette(
        self,
        name: str,
        key: str,
        entry: QuantizedInfo,
        rows: Rows,
        form: tuple[int, ...],
        read_indices: Callable[[], NDArray[Any]],
        read_table: Callable[[], NDArray[Any]],
    ) -> Any:
        """Before iOS 18: one table, and indices packed from the lowest bit on."""
        nbytes = -(-int(np.prod(form)) * entry.bits // 8)

        def read_packed() -> NDArray[Any]:
            every = np.unpackbits(read_indices().reshape(-1, 1), axis=1, bitorder="little")[:, : entry.bits]
            return np.packbits(every, bitorder="little")

        def read_first() -> NDArray[Any]:
            return read_table().reshape(-1, 2**entry.bits)[0]

        return mb.constexpr_lut_to_dense(
            indices=self._constant(f"{name}_indices", (nbytes,), Blob(f"{key} packed", "uint8", nbytes, read_packed)),
            lut=self._constant(
                f"{name}_table", (2**entry.bits,), Blob(f"{key} table", "float16", 2**entry.bits, read_first)
            ),
            shape=np.array(form, np.uint32),
            name=name,
        )

    def _constant(self, name: str, form: tuple[int, ...], blob: Blob) -> Any:
        self.blobs[name] = blob
        stand_in = np.broadcast_to(np.zeros((1,), _DTYPES[blob.kind]), form)
        return mb.const(val=stand_in, name=name)

    def _account(self, parameter: str, rows: Rows, elements: int, kind: str, bits: float) -> None:
        """A tensor that two parameters share counts once."""
        source = f"{self.sources[parameter]} {rows}"
        self.stored[source] = Stored(parameter, elements, kind, bits)


def to_float16(values: NDArray[Any], tensor: str) -> NDArray[np.float16]:
    """The values in float16.

    Raises:
        CheckFailed: one of them is beyond what float16 holds.
    """
    if values.size and float(np.abs(values).max()) > _LARGEST_FLOAT16:
        raise CheckFailed(
            "float16",
            f"Tensor {tensor} has a value of {float(np.abs(values).max()):g}, and float16, which the Neural Engine "
            f"computes in, ends at {_LARGEST_FLOAT16:g}. Use another target for this model.",
        )
    return values.astype(np.float16)


def _taken(source: Source, rows: Rows, count: int) -> tuple[int, int]:
    """The rows of the stored tensor that make some rows of a parameter."""
    first, last = source.rows or (0, count)
    return (first, last) if rows is None else (first + rows[0], first + rows[1])


def _name(parameter: str, rows: Rows) -> str:
    return re.sub(r"\W", "_", parameter) + (f"_{rows[0]}" if rows else "")
