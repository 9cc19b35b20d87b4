"""Tensors of safetensors files, listed without loading and read one at a time.

The format: 8 bytes little-endian header length, a JSON header, then the data; offsets are relative to the data
(https://github.com/huggingface/safetensors, README). Everything that the format forbids is refused here, so that a
damaged file ends in a sentence before any converter sees it.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json, read_object

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
}  # fmt: skip

# Types of weights as models are published; tensors of the others are codes or buffers.
FLOATS = ("F64", "F32", "F16", "BF16")

_MAX_HEADER_BYTES = 100_000_000  # The limit of the reference implementation.
_LONGEST_NAME = 255
_MAX_DIMENSIONS, _MAX_SIZE = 8, 1 << 48


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: the tensor's name in the model.
        dtype: safetensors' name of the element type, e.g. `BF16`.
        shape: its dimensions, outermost first.
        file: the file that holds it.
        offset: absolute byte offset in that file.
        nbytes: its length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def list_tensors(file: Path) -> list[TensorInfo]:
    """All tensors of one safetensors file, in the order of their data.

    Raises:
        UnusableInput: the file is empty, truncated, or has overlapping or inconsistent tensors.
    """

    def broken(what: str) -> UnusableInput:
        return UnusableInput(f"{file.name} is not a usable safetensors file: {what}. Download or save it again.")

    size = file.stat().st_size
    if size < 8:
        raise broken(f"it has {size} bytes, and the header alone takes more")
    with file.open("rb") as stream:
        (header_bytes,) = struct.unpack("<Q", stream.read(8))
        if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            raise broken(f"its header should have {header_bytes:,} bytes, the whole file has {size:,}: it is truncated")
        header = parse_json(stream.read(header_bytes), f"The header of {file.name}")
    if not isinstance(header, dict):
        raise broken("its header is not a JSON object")
    start = 8 + header_bytes
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    try:
        infos = [_tensor_info(name, entry, file, start) for name, entry in entries]
    except ValueError as error:
        raise broken(str(error)) from error
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    end = start
    for info in infos:
        if info.nbytes != info.elements * DTYPE_BYTES[info.dtype]:
            raise broken(
                f"tensor {info.name} has {info.nbytes:,} bytes, its shape {list(info.shape)} needs another number"
            )
        if info.offset < end:
            raise broken(f"tensor {info.name} overlaps the tensor before it")
        if info.offset > end:
            raise broken(f"there is a hole before tensor {info.name}")
        end = info.offset + info.nbytes
    if end > size:
        raise broken(f"its tensors end at byte {end:,}, the file at {size:,}: it is truncated")
    if end < size:
        raise broken(f"{size - end:,} bytes follow its last tensor")
    if not infos:
        raise broken("it has no tensors")
    return infos


def _tensor_info(name: str, entry: Any, file: Path, start: int) -> TensorInfo:
    sizes = _whole_numbers(entry, "shape")
    offsets = _whole_numbers(entry, "data_offsets")
    if sizes is None or offsets is None or len(offsets) != 2 or not isinstance(entry.get("dtype"), str):
        raise ValueError(f"the entry of the tensor {name} has no usable dtype, shape and data_offsets")
    if entry["dtype"] not in DTYPE_BYTES:
        raise UnusableInput(
            f"Tensor {name} in {file.name} is stored as {entry['dtype']!r:.40}, a type that edgec does not read. Give the "
            "model that it was made from, in float32, float16 or bfloat16."
        )
    begin, end = offsets
    shape = tuple(sizes)
    if begin < 0 or end < begin or min(shape, default=0) < 0:
        raise ValueError(f"tensor {name} has negative sizes")
    if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > _MAX_SIZE:
        raise ValueError(f"tensor {name} has a shape that no tensor has")
    return TensorInfo(name, entry["dtype"], shape, file, start + begin, end - begin)


def _whole_numbers(entry: Any, key: str) -> list[int] | None:
    values = entry.get(key) if isinstance(entry, dict) else None
    return values if isinstance(values, list) and all(type(value) is int for value in values) else None


def find_tensors(folder: Path) -> tuple[TensorInfo, ...]:
    """All tensors of a Hugging Face folder, from `model.safetensors` or from the shards that its index names.

    Raises:
        UnusableInput: there are no safetensors weights, a shard is missing or lies outside the folder, or a file is
            damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        infos = [info for file in _shards(folder, index) for info in list_tensors(file)]
        names = Counter(info.name for info in infos)
        if len(names) < len(infos):
            twice = names.most_common(1)[0][0]
            raise UnusableInput(f"Tensor {twice} is in two shards of {folder.name}. Save the model again.")
        return tuple(infos)
    single = folder / "model.safetensors"
    if single.is_file():
        return tuple(list_tensors(single))
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    if pickles:
        raise UnusableInput(
            f"{folder.name} has its weights only as a pickle ({pickles[0]}), and reading a pickle can run code. Convert "
            "it where you trust it: load it with transformers there and call save_pretrained, which writes safetensors."
        )
    raise UnusableInput(
        f"{folder.name} has no weights: there is neither model.safetensors nor model.safetensors.index.json in it."
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        weight_map = read_object(index)["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (KeyError, AttributeError, TypeError) as error:
        raise UnusableInput(f"{index.name} has no weight_map of tensor names to files. Download it again.") from error
    shards = []
    for name in names:
        if not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
            raise UnusableInput(
                f"{index.name} names the shard {name!r:.80}, which is no name of a file. Download it again."
            )
        shard = folder / name
        if Path(name).is_absolute() or not shard.resolve().is_relative_to(_root_of(folder)):
            raise UnusableInput(f"{index.name} names the shard {name!r}, which leaves the model's folder. Refused.")
        if not shard.is_file():
            raise UnusableInput(f"The shard {name} that {index.name} names is missing. Download the model again.")
        shards.append(shard)
    return shards


def _root_of(folder: Path) -> Path:
    """The folder within which a model's files may lie: the hub's cache links snapshots/REV/file to blobs/."""
    resolved = folder.resolve()
    in_hub_cache = resolved.parent.name == "snapshots" and (resolved.parent.parent / "blobs").is_dir()
    return resolved.parent.parent if in_hub_cache else resolved


def write_tensors(file: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], data: Iterable[bytes]) -> None:
    """Write a safetensors file one tensor at a time.

    Args:
        file: the file.
        tensors: name, dtype as safetensors names it, and shape of each.
        data: the bytes of each, little-endian, in the same order.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for part in data:
            stream.write(part)
    if file.stat().st_size != 8 + len(text) + end:
        raise ValueError(f"{file.name} did not get the bytes that its header promises")


def read_bytes(info: TensorInfo) -> bytes:
    """The tensor's bytes as they are stored."""
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        return stream.read(info.nbytes)


# The bits of the exponent, all set where a value is infinite or not a number, and the unsigned type of that width.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}
_VALUES_AT_ONCE = 1 << 20


def require_finite(tensors: Iterable[TensorInfo]) -> None:
    """Raise UnusableInput when a float tensor has a value that is infinite or not a number."""
    import numpy as np

    for info in tensors:
        if info.dtype not in _EXPONENTS or not info.elements:
            continue
        kind, exponent = _EXPONENTS[info.dtype]
        mask = np.dtype(kind).type(exponent)
        stored = np.memmap(info.file, kind, "r", info.offset, (info.elements,))
        for start in range(0, info.elements, _VALUES_AT_ONCE):
            if ((stored[start : start + _VALUES_AT_ONCE] & mask) == mask).any():
                raise UnusableInput(
                    f"Tensor {info.name} in {info.file.name} has values that are not finite; the model is damaged. Download "
                    "or save it again."
                )
