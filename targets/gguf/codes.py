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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compiler.formats.codes import QuantizedTensor
from compiler.formats.gguf import DEFAULT_ALIGNMENT, GGML_TYPES, GgufHeader, GgufTensor, read_gguf_header
from compiler.quantize.carrying import (
    DTYPES,
    Origin,
    Rows,
    find_origin,
    gather_rows,
    index_rows,
    mark_rows,
    require_all_carried,
)

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
        body = [(low[..., :16] | (low[..., 16:] << 4)).astype(np.uint8)]
        if tensor.bits == 5:
            body.insert(0, np.packbits(codes >> 4, axis=-1, bitorder="little"))
    return np.concatenate([*head, *body], -1).reshape(tensor.rows, -1)


@dataclass(frozen=True)
class _Carried:
    """A tensor of the base file and the codes that take its place."""

    tensor: GgufTensor
    origin: Origin

    @property
    def type(self) -> str:
        return CONTAINERS[self.origin.bits, self.origin.symmetric][0]

    @property
    def nbytes(self) -> int:
        _, block, size = GGML_TYPES[_TYPE_NUMBERS[self.type]]
        return self.tensor.elements // block * size


def matrix_bytes(base: Path) -> int:
    """Bytes of the float matrices of a base file that may get codes."""
    return sum(t.nbytes for t in read_gguf_header(base).tensors if len(t.shape) == 2 and t.type in DTYPES)


def carry(base: Path, model: Path, codes: Path, target: Path) -> None:
    """Write `target`: the float file `base` with every matrix that has codes in their type.

    Args:
        base: what the converter made of the model, lossless.
        model: the model's folder.
        codes: the folder with `codes-*.safetensors`.
        target: the file to write; the type that most matrices have is the file type in its metadata.

    Raises:
        CheckFailed: the converter changed a matrix in another way than reordering its rows.
    """
    header, rows = read_gguf_header(base), index_rows(model, codes)
    carried = {each.tensor.name: each for each in _match(base, header, rows)}
    require_all_carried(rows, [each.origin for each in carried.values()])
    halved = {tensor.name for tensor in header.tensors if tensor.name not in carried and _fits_float16(base, tensor)}
    with base.open("rb") as source, target.open("wb") as sink:
        grids = Counter((each.origin.bits, each.origin.symmetric) for each in carried.values())
        _write_head(source, sink, header, carried, halved, CONTAINERS[grids.most_common(1)[0][0]][1])
        for tensor in header.tensors:
            _pad(sink)
            if tensor.name in carried:
                sink.write(pack_blocks(gather_rows(rows, carried[tensor.name].origin, tensor.name)).tobytes())
            elif tensor.name in halved:
                sink.write(_matrix(base, tensor).astype(np.float16).tobytes())
            else:
                source.seek(tensor.offset)
                sink.write(source.read(tensor.nbytes))
        _pad(sink)


def _matrix(base: Path, tensor: GgufTensor) -> NDArray[Any]:
    return np.memmap(base, DTYPES[tensor.type], "r", tensor.offset, (tensor.shape[1], tensor.shape[0]))


def _fits_float16(base: Path, tensor: GgufTensor) -> bool:
    """Whether a float32 matrix holds nothing that float16 would change: it was float16 before the codes were unpacked."""
    if len(tensor.shape) != 2 or tensor.type != "F32":
        return False
    values = _matrix(base, tensor)
    parts = (values[at : at + _ROWS_AT_ONCE] for at in range(0, len(values), _ROWS_AT_ONCE))
    with np.errstate(over="ignore"):
        return all(np.array_equal(part.astype(np.float16).astype(np.float32), part) for part in parts)


def _write_head(
    source: BinaryIO,
    sink: BinaryIO,
    header: GgufHeader,
    carried: dict[str, _Carried],
    halved: set[str],
    file_type: int,
) -> None:
    source.seek(header.pairs_begin)
    pairs = bytearray(source.read(header.pairs_end - header.pairs_begin))
    struct.pack_into("<I", pairs, header.positions["general.file_type"] - header.pairs_begin, file_type)
    sink.write(b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), header.pairs) + pairs)
    offset = 0
    for tensor in header.tensors:
        each = carried.get(tensor.name)
        name = tensor.name.encode()
        kind = _TYPE_NUMBERS[each.type if each else "F16" if tensor.name in halved else tensor.type]
        sink.write(struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape)))
        sink.write(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", kind, offset))
        nbytes = each.nbytes if each else tensor.nbytes // (2 if tensor.name in halved else 1)
        offset += nbytes + -nbytes % DEFAULT_ALIGNMENT


def _pad(sink: BinaryIO) -> None:
    sink.write(bytes(-sink.tell() % DEFAULT_ALIGNMENT))


def _match(base: Path, header: GgufHeader, rows: Rows) -> Iterator[_Carried]:
    """Find the base file's matrices that have codes."""
    placed: list[Origin] = []
    for tensor in header.tensors:
        if len(tensor.shape) == 2 and tensor.type in DTYPES:
            origin = find_origin(rows, mark_rows(_matrix(base, tensor), tensor.type), tensor.name, placed)
            if origin is not None:
                placed.append(origin)
                yield _Carried(tensor, origin)
