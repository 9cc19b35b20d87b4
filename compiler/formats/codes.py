"""QuantizedTensor: the one form of a quantized matrix that every container carries, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.safetensors import TensorInfo, list_tensors

_RECORD = "edgec_quantized"
_DTYPES = {"U8": np.uint8, "F16": np.float16, "I32": np.int32, "F32": np.float32}


@dataclass(frozen=True)
class QuantizedTensor:
    """Integer codes with their scales and zero points: a weight is `(code - zero_point) * scale`.

    Attributes:
        name: the tensor's name in the model.
        codes: uint8 (rows, columns), 0 to 2**bits - 1; rows are outputs (or tokens), columns inputs.
        scales: float16 (rows, groups).
        zero_points: uint8 (rows, groups); all 2**(bits-1) when symmetric.
        bits: of a code.
        group_size: columns that share a scale.
        symmetric: whether zero points are all the middle code.
        group_of_column: int32 (columns,), the group of each column where groups are not contiguous (GPTQ checkpoints
            with `desc_act`); None where column c belongs to group c // group_size.
        transposed: the model stores the matrix as (inputs, outputs), as GPT-2 does.
        palette: float16 (tables, 2**bits); a weight is then the value of its code in the table of its row, tables have
            equal numbers of neighbouring rows, and scales and zero points are (rows, 0). None for evenly spaced codes.
    """

    name: str
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zero_points: NDArray[np.uint8]
    bits: int
    group_size: int
    symmetric: bool
    group_of_column: NDArray[np.int32] | None = None
    transposed: bool = False
    palette: NDArray[np.float16] | None = None

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        return int(self.codes.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """The weights, float32 (rows, columns)."""
        if self.palette is not None:
            table = np.repeat(self.palette, self.rows // len(self.palette), 0)
            return np.take_along_axis(table, self.codes, 1).astype(np.float32)
        if self.group_of_column is not None:
            scales, zeros = self.scales[:, self.group_of_column], self.zero_points[:, self.group_of_column]
        else:
            scales = np.repeat(self.scales, self.group_size, 1)[:, : self.columns]
            zeros = np.repeat(self.zero_points, self.group_size, 1)[:, : self.columns]
        return (self.codes.astype(np.float32) - zeros) * scales.astype(np.float32)


def in_groups(tensor: QuantizedTensor, group_size: int) -> QuantizedTensor:
    """The same weights with that group size, which divides the tensor's own: scales and zero points are repeated."""
    repeat = tensor.group_size // group_size
    if repeat == 1:
        return tensor
    scales, zeros = np.repeat(tensor.scales, repeat, 1), np.repeat(tensor.zero_points, repeat, 1)
    return replace(tensor, scales=scales, zero_points=zeros, group_size=group_size)


@dataclass(frozen=True)
class QuantizedInfo:
    """What is known of a stored QuantizedTensor before its data is read; `tables` is 0 where it has no palette."""

    name: str
    rows: int
    columns: int
    bits: int
    group_size: int
    symmetric: bool
    transposed: bool
    parts: Mapping[str, TensorInfo]

    @property
    def tables(self) -> int:
        return self.parts["palette"].shape[0] if "palette" in self.parts else 0


def write_quantized(path: Path, tensors: list[QuantizedTensor]) -> None:
    """Write a safetensors file with the parts `NAME.codes`, `.scales`, `.zero_points`, `.palette` and what they mean."""
    from safetensors.numpy import save_file

    parts: dict[str, NDArray[Any]] = {}
    record = {}
    for tensor in tensors:
        parts[f"{tensor.name}.codes"] = np.ascontiguousarray(tensor.codes)
        parts[f"{tensor.name}.scales"] = np.ascontiguousarray(tensor.scales)
        parts[f"{tensor.name}.zero_points"] = np.ascontiguousarray(tensor.zero_points)
        if tensor.group_of_column is not None:
            parts[f"{tensor.name}.group_of_column"] = np.ascontiguousarray(tensor.group_of_column)
        if tensor.palette is not None:
            parts[f"{tensor.name}.palette"] = np.ascontiguousarray(tensor.palette)
        record[tensor.name] = [tensor.bits, tensor.group_size, tensor.symmetric, tensor.transposed]
    save_file(parts, path, metadata={_RECORD: json.dumps(record, sort_keys=True)})


def list_quantized(folder: Path) -> dict[str, QuantizedInfo]:
    """Every tensor in the files `codes-*.safetensors` of a folder, by name; no data is read."""
    entries: dict[str, QuantizedInfo] = {}
    for file in sorted(folder.glob("codes-*.safetensors")):
        infos = {info.name: info for info in list_tensors(file)}
        for name, (bits, group_size, symmetric, transposed) in _record(file).items():
            parts = {
                part: infos[f"{name}.{part}"]
                for part in ("codes", "scales", "zero_points", "group_of_column", "palette")
                if f"{name}.{part}" in infos
            }
            if not {"codes", "scales", "zero_points"} <= set(parts) or len(parts["codes"].shape) != 2:
                raise UnusableInput(f"{file.name} lacks a part of the codes of {name}.")
            rows, columns = parts["codes"].shape
            entries[name] = QuantizedInfo(name, rows, columns, bits, group_size, symmetric, transposed, parts)
    return entries


def read_quantized(entry: QuantizedInfo) -> QuantizedTensor:
    """The tensor of an entry."""
    arrays = {part: _read(info) for part, info in entry.parts.items()}
    return QuantizedTensor(
        entry.name,
        arrays["codes"],
        arrays["scales"],
        arrays["zero_points"],
        entry.bits,
        entry.group_size,
        entry.symmetric,
        group_of_column=arrays.get("group_of_column"),
        transposed=entry.transposed,
        palette=arrays.get("palette"),
    )


def _record(file: Path) -> dict[str, list[Any]]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    try:
        return json.loads(header["__metadata__"][_RECORD])
    except (KeyError, ValueError) as error:
        raise UnusableInput(f"{file.name} is not a file of edgec's codes.") from error


def _read(info: TensorInfo) -> NDArray[Any]:
    mapped = np.memmap(info.file, _DTYPES[info.dtype], "r", info.offset, info.shape)
    return np.array(mapped)
