"""The head of a GGUF file: its scalar metadata and its tensors' names, types and shapes; no tensor data, no token lists.

The format is `docs/gguf.md` of ggml, version 3 (and 2). The official `gguf` package reads the same and builds a Python
object for each of a vocabulary's tokens, which takes seconds; tests hold this reader to that one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path

from compiler.errors import UnusableInput

Scalar = int | float | bool | str

DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY = 8, 9
# GGML_MAX_DIMS is 4; files of the largest models have some thousand entries.
_MOST_DIMENSIONS, _MOST_ENTRIES = 8, 100_000
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml type number: name, weights in a block, bytes of a block (ggml-common.h)
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """A tensor's entry. `shape` has the row length first, as GGUF has it; `offset` is from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class GgufHeader:
    """Scalar metadata by key, and the tensors in file order.

    Attributes:
        metadata: scalars and strings; arrays are left out.
        tensors: in file order.
        pairs: how many key-value pairs there are, arrays included.
        pairs_begin, pairs_end: the bytes of the file that hold them.
        positions: where in the file each scalar's value lies.
    """

    metadata: dict[str, Scalar]
    tensors: tuple[GgufTensor, ...]
    pairs: int = 0
    pairs_begin: int = 0
    pairs_end: int = 0
    positions: Mapping[str, int] = field(default_factory=dict)


class _Cursor:
    def __init__(self, data: mmap) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Scalar:
        self.require(struct.calcsize(f"<{form}"))
        value: Scalar = struct.unpack_from(f"<{form}", self.data, self.at)[0]
        self.at += struct.calcsize(f"<{form}")
        return value

    def require(self, nbytes: int) -> None:
        if self.at + nbytes > len(self.data):
            raise ValueError("it ends in the middle of its keys and tensors")

    def count(self, form: str = "Q") -> int:
        return int(self.take(form))

    def text(self) -> str:
        length = self.count()
        raw = self.data[self.at : self.at + length]
        if len(raw) < length:
            raise ValueError("a string ends behind the end of the file")
        self.at += length
        return raw.decode("utf-8", "replace")

    def skip_array(self) -> None:
        kind, length = self.count("I"), self.count()
        if kind in _SCALARS:
            self.at += length * struct.calcsize(f"<{_SCALARS[kind]}")
            if self.at > len(self.data):
                raise ValueError(f"an array of {length:,} numbers, for which it has no room")
            return
        if kind != _STRING:
            raise ValueError(f"an array of the unknown type {kind}")
        if length * 8 > len(self.data) - self.at:
            raise ValueError(f"an array of {length:,} strings, for which it has no room")
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(length):
            self.require(8)
            self.at += 8 + unpack(self.data, self.at)[0]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the head of a GGUF file.

    Raises:
        UnusableInput: it is not a GGUF file of version 2 or 3, or it ends too soon.
    """
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
            return _parse(_Cursor(data), path.stat().st_size)
    except ValueError as error:
        raise UnusableInput(f"{path.name} is not a usable GGUF file: {error}.") from error


def _parse(cursor: _Cursor, size: int) -> GgufHeader:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.at = 4
    version = cursor.count("I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, known are 2 and 3")
    tensor_count, pair_count = cursor.count(), cursor.count()
    if max(tensor_count, pair_count) > _MOST_ENTRIES:
        raise ValueError(f"it says {tensor_count:,} tensors and {pair_count:,} keys")
    metadata: dict[str, Scalar] = {}
    positions: dict[str, int] = {}
    begin = cursor.at
    for _ in range(pair_count):
        key, kind = cursor.text(), cursor.count("I")
        positions[key] = cursor.at
        if kind == _ARRAY:
            cursor.skip_array()
        elif kind == _STRING:
            metadata[key] = cursor.text()
        elif kind in _SCALARS:
            metadata[key] = cursor.take(_SCALARS[kind])
        else:
            raise ValueError(f"the key {key} has the unknown type {kind}")
    end = cursor.at
    entries = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise ValueError(f"its alignment is {alignment!r:.40}")
    start = cursor.at + -cursor.at % alignment
    tensors = tuple(replace(tensor, offset=start + tensor.offset) for tensor in entries)
    if max((tensor.offset + tensor.nbytes for tensor in tensors), default=0) > size:
        raise ValueError("its tensors end behind the end of the file: it is truncated")
    return GgufHeader(metadata, tensors, pair_count, begin, end, positions)


def _tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text()
    dimensions = cursor.count("I")
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"the tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.count() for _ in range(dimensions))
    kind, offset = cursor.count("I"), cursor.count()
    if kind not in GGML_TYPES:
        raise ValueError(f"the tensor {name} has the unknown type {kind}")
    type_name, block, block_bytes = GGML_TYPES[kind]
    return GgufTensor(name, type_name, shape, math.prod(shape) // block * block_bytes, offset)
