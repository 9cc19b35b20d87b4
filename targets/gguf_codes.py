"""Our codes in GGUF's own blocks, written into a copy of what llama.cpp's converter made.

The blocks are those of ggml-common.h: 32 weights with a float16 scale d, and in the `_1` types a float16 minimum m.
A weight is d * (q - 8) in Q4_0, d * (q - 16) in Q5_0, d * q in Q8_0 and d * q + m in Q4_1 and Q5_1. Symmetric codes are
carried to the bit. Asymmetric ones too, but for m = -d * zero_point, which float16 rounds: a weight is then off by at most
2**-11 of |d * zero_point|.

The converter renames, reorders and transposes. Which of its tensors a matrix became, and in which order its rows stand, is
told by the rows themselves, so that no table of names can be wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CheckFailed
from compiler.gguf_header import DEFAULT_ALIGNMENT, GGML_TYPES, GgufHeader, GgufTensor, read_gguf_header
from compiler.quantize.quantized import Entry, QuantizedTensor, list_quantized, read_quantized
from compiler.tensors import TensorInfo, find_tensors

BLOCK = 32

# (bits, symmetric): the type that holds such codes, and the llama_ftype of a file that is mostly of it.
CONTAINERS: dict[tuple[int, bool], tuple[str, int]] = {
    (4, True): ("Q4_0", 2),
    (4, False): ("Q4_1", 3),
    (5, True): ("Q5_0", 8),
    (5, False): ("Q5_1", 9),
    (8, True): ("Q8_0", 7),
}
_TYPE_NUMBERS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
_ROWS_AT_ONCE = 1024


def pack_blocks(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """The rows as GGUF blocks, uint8 (rows, bytes of a row). The group size must be a multiple of 32."""
    codes = tensor.codes.reshape(tensor.rows, -1, BLOCK)
    repeat = tensor.group_size // BLOCK
    scales = np.repeat(tensor.scales, repeat, 1)[..., None]
    head = [scales.view(np.uint8)]
    if not tensor.symmetric:
        zeros = np.repeat(tensor.zero_points, repeat, 1)[..., None]
        minimum = (-(scales.astype(np.float32) * zeros)).astype(np.float16)
        head.append(minimum.view(np.uint8))
    if tensor.bits == 8:
        body = [(codes.astype(np.int16) - 128).astype(np.int8).view(np.uint8)]
    else:
        low = codes & 15
        body = [low[..., :16] | (low[..., 16:] << 4)]
        if tensor.bits == 5:
            body.insert(0, np.packbits(codes >> 4, axis=-1, bitorder="little"))
    return np.concatenate([*head, *body], -1).reshape(tensor.rows, -1)


def unpack_blocks(blocks: NDArray[np.uint8], kind: str, columns: int) -> tuple[NDArray[Any], ...]:
    """(codes, scales, minima or None) of rows of blocks: the inverse of `pack_blocks`, group size 32."""
    rows = len(blocks)
    block = blocks.reshape(rows, columns // BLOCK, -1)
    scales = np.ascontiguousarray(block[..., 0:2]).view(np.float16)[..., 0]
    at = 2
    minima = None
    if kind.endswith("_1"):
        minima, at = np.ascontiguousarray(block[..., 2:4]).view(np.float16)[..., 0], 4
    if kind == "Q8_0":
        codes = (block[..., at:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
    else:
        high = 0
        if kind.startswith("Q5"):
            high = np.unpackbits(block[..., at : at + 4], axis=-1, bitorder="little") << 4
            at += 4
        codes = np.concatenate([block[..., at:] & 15, block[..., at:] >> 4], -1) | high
    return codes.reshape(rows, columns), scales, minima


@dataclass(frozen=True)
class _Carried:
    """A tensor of the base file and the codes that take its place; `order` gives, for each of its rows, ours."""

    tensor: GgufTensor
    entry: Entry
    order: NDArray[np.int64]

    @property
    def type(self) -> str:
        return CONTAINERS[self.entry.bits, self.entry.symmetric][0]

    @property
    def nbytes(self) -> int:
        _, block, size = GGML_TYPES[_TYPE_NUMBERS[self.type]]
        return self.entry.rows * self.entry.columns // block * size


def carry(base: Path, model: Path, codes: Path, target: Path, bits: int, symmetric: bool) -> None:
    """Write `target`: the float file `base` with every matrix that has codes in their type.

    Args:
        base: what the converter made of the model, lossless.
        model: the model's folder.
        codes: the folder with `codes-*.safetensors`.
        target: the file to write.
        bits, symmetric: of the scheme, for the file type in the metadata.

    Raises:
        CheckFailed: the converter changed a matrix in another way than reordering its rows.
    """
    header = read_gguf_header(base)
    carried = {each.tensor.name: each for each in _match(base, header, model, codes)}
    with base.open("rb") as source, target.open("wb") as sink:
        _write_head(source, sink, header, carried, CONTAINERS[bits, symmetric][1])
        for tensor in header.tensors:
            _pad(sink)
            if tensor.name in carried:
                each = carried[tensor.name]
                blocks = pack_blocks(read_quantized(each.entry))
                sink.write(np.ascontiguousarray(blocks[each.order]).tobytes())
            else:
                source.seek(tensor.offset)
                sink.write(source.read(tensor.nbytes))
        _pad(sink)


def _write_head(
    source: BinaryIO, sink: BinaryIO, header: GgufHeader, carried: dict[str, _Carried], file_type: int
) -> None:
    source.seek(header.pairs_begin)
    pairs = bytearray(source.read(header.pairs_end - header.pairs_begin))
    struct.pack_into("<I", pairs, header.positions["general.file_type"] - header.pairs_begin, file_type)
    sink.write(b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), header.pairs) + pairs)
    offset = 0
    for tensor in header.tensors:
        each = carried.get(tensor.name)
        name = tensor.name.encode()
        kind = _TYPE_NUMBERS[each.type if each else tensor.type]
        sink.write(struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape)))
        sink.write(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", kind, offset))
        nbytes = each.nbytes if each else tensor.nbytes
        offset += nbytes + -nbytes % DEFAULT_ALIGNMENT


def _pad(sink: BinaryIO) -> None:
    sink.write(bytes(-sink.tell() % DEFAULT_ALIGNMENT))


def _match(base: Path, header: GgufHeader, model: Path, codes: Path) -> Iterator[_Carried]:
    """Find every matrix with codes among the base file's tensors."""
    marks: dict[tuple[int, int], list[tuple[GgufTensor, NDArray[np.uint64]]]] = {}
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.type in _FLOATS:
            rows = _row_marks(base, tensor.offset, _FLOATS[tensor.type], (tensor.shape[1], tensor.shape[0]), False)
            marks.setdefault((_multiset(rows), tensor.shape[1]), []).append((tensor, rows))
    stored = {info.name: info for info in find_tensors(model)}
    for name, entry in list_quantized(codes).items():
        info = _stored(stored, name)
        own = _row_marks(info.file, info.offset, info.dtype, info.shape, entry.transposed)
        places = marks.get((_multiset(own), entry.rows), [])
        if not places:
            raise CheckFailed(
                "carry",
                f"llama.cpp's converter changed the values of {name}, so its codes cannot be carried into GGUF. Use a "
                "GGUF type of llama.cpp's own, such as gguf:Q4_K_M.",
            )
        ranks = np.argsort(own, kind="stable")
        for tensor, rows in places:
            order = np.empty(len(rows), np.int64)
            order[np.argsort(rows, kind="stable")] = ranks
            yield _Carried(tensor, entry, order)


def _stored(stored: dict[str, TensorInfo], name: str) -> TensorInfo:
    """The model's tensor of that name; transformers may put the base model's prefix before it or leave it out."""
    if name in stored:
        return stored[name]
    return next(info for key, info in stored.items() if key.endswith(f".{name}") or name.endswith(f".{key}"))


_FLOATS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_FLOAT_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F64": np.float64}


def _row_marks(file: Path, offset: int, dtype: str, shape: tuple[int, ...], transposed: bool) -> NDArray[np.uint64]:
    """A 64-bit mark of each row's float32 values."""
    mapped: NDArray[Any] = np.memmap(file, _FLOAT_DTYPES[dtype], "r", offset, shape)
    mapped = mapped.T if transposed else mapped
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**63, mapped.shape[1], dtype=np.uint64) | np.uint64(1)
    marks = np.empty(len(mapped), np.uint64)
    for start in range(0, len(mapped), _ROWS_AT_ONCE):
        part = np.ascontiguousarray(mapped[start : start + _ROWS_AT_ONCE])
        values = part.astype(np.uint32) << 16 if dtype == "BF16" else part.astype(np.float32).view(np.uint32)
        with np.errstate(over="ignore"):
            mixed = values.astype(np.uint64) * factors
            marks[start : start + _ROWS_AT_ONCE] = (mixed ^ (mixed >> np.uint64(29))).sum(1, dtype=np.uint64)
    return marks


def _multiset(marks: NDArray[np.uint64]) -> int:
    with np.errstate(over="ignore"):
        return int((marks * (marks | np.uint64(1))).sum(dtype=np.uint64))
