"""A Core ML package as data: what stands in the saved protobuf and in the file of weights, and nothing from a converter.

Formats: MIL.proto and Model.proto of coremltools' mlmodel/format; MILBlob's StorageFormat.hpp for weight.bin, which is a
header of 64 bytes, then for each blob 64 bytes of metadata (sentinel, type, bytes, offset, unused bits) and the data.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.quiet import quiet_imports
from compiler.relative_name import stays_inside

# MIL.proto's DataType: the name here, and bits.
TYPES: Mapping[int, tuple[str, int]] = {
    1: ("bool", 8), 2: ("string", 0), 10: ("fp16", 16), 11: ("fp32", 32), 12: ("fp64", 64), 21: ("int8", 8),
    22: ("int16", 16), 23: ("int32", 32), 24: ("int64", 64), 25: ("int4", 4), 31: ("uint8", 8), 32: ("uint16", 16),
    33: ("uint32", 32), 34: ("uint64", 64), 35: ("uint4", 4), 36: ("uint2", 2), 37: ("uint1", 1), 38: ("uint6", 6),
    39: ("uint3", 3),
}  # fmt: skip
_NUMPY: Mapping[str, Any] = {
    "bool": np.bool_, "fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "int8": np.int8, "int16": np.int16,
    "int32": np.int32, "int64": np.int64, "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32,
    "uint64": np.uint64,
}  # fmt: skip
_SENTINEL = 0xDEADBEEF


@dataclass(frozen=True)
class TensorType:
    """A dtype (`fp16`, `int4`, ...) and a shape; -1 where a size is free. `state` is what a state wraps."""

    dtype: str
    shape: tuple[int, ...]
    state: bool = False


@dataclass(frozen=True)
class BlobValue:
    """A constant in a file of weights."""

    file: Path
    offset: int
    type: TensorType

    @cached_property
    def key(self) -> tuple[str, int]:
        """What two constants with the same bytes share."""
        return self.file.name, self.offset


@dataclass(frozen=True)
class Reference:
    """The name of an earlier result."""

    name: str


Argument = Reference | BlobValue | NDArray[Any] | str | tuple[Any, ...]


@dataclass(frozen=True)
class Operation:
    """One operator: its kind, arguments by parameter, and the results' names and types."""

    kind: str
    name: str
    arguments: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[tuple[str, TensorType], ...]


@dataclass(frozen=True)
class Function:
    """Operators in order; `inputs` are names and types, states among them."""

    name: str
    inputs: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class MilPackage:
    """A package's functions, the default one's name, and the specification version."""

    functions: Mapping[str, Function]
    default: str
    specification: int


def read_mil(folder: Path) -> MilPackage:
    """Read an .mlpackage.

    Raises:
        UnusableInput: it is damaged, not an ML Program, or names files outside itself.
    """
    with quiet_imports():
        from coremltools.proto import Model_pb2

    root = _root(folder)
    model = Model_pb2.Model()
    try:
        model.ParseFromString(root.read_bytes())
    except Exception as error:
        raise UnusableInput(f"{root.name} of {folder.name} is no Core ML model. Build the package again.") from error
    if model.WhichOneof("Type") != "mlProgram":
        raise UnusableInput(f"{folder.name} holds a {model.WhichOneof('Type')}, and only ML Programs can be evaluated.")
    try:
        functions = {name: _function(name, each, root.parent) for name, each in model.mlProgram.functions.items()}
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
        raise UnusableInput(
            f"{root.name} of {folder.name} holds a program with a value or a type that no ML Program has. It is damaged; "
            "build the package again."
        ) from error
    default = model.description.defaultFunctionName or "main"
    if default not in functions:
        raise UnusableInput(f"{folder.name} has no function {default}, which it says is its default one.")
    return MilPackage(functions, default, model.specificationVersion)


def _root(folder: Path) -> Path:
    try:
        manifest = read_object(folder / "Manifest.json")
        path = str(manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UnusableInput(
            f"{folder.name} is not an .mlpackage, its Manifest.json does not name a model in it. Build it again."
        ) from error
    return _inside(folder / "Data", path, folder.name)


def _inside(folder: Path, path: str, name: str) -> Path:
    if not stays_inside(path):
        raise UnusableInput(f"{name} names the file {path!r}, which leaves the package. Refused.")
    found = folder / path
    try:
        there = found.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise UnusableInput(f"{name} lacks the file {path}. Build the package again.")
    return found


def _function(name: str, function: Any, folder: Path) -> Function:
    block = function.block_specializations[function.opset]
    operations = []
    for each in block.operations:
        if each.blocks:
            raise UnusableInput(
                f"the operator {each.type} of the function {name} has blocks of its own (control flow)."
            )
        arguments = {
            parameter: tuple(_binding(binding, folder) for binding in argument.arguments)
            for parameter, argument in each.inputs.items()
        }
        arguments |= {key: (_value(value, folder),) for key, value in each.attributes.items() if key != "name"}
        outputs = tuple((output.name, _type(output.type)) for output in each.outputs)
        title = _value(each.attributes["name"], folder) if "name" in each.attributes else ""
        operations.append(Operation(each.type, str(title), arguments, outputs))
    inputs = {each.name: _type(each.type) for each in function.inputs}
    return Function(name, inputs, tuple(operations), tuple(block.outputs))


def _binding(binding: Any, folder: Path) -> Argument:
    return Reference(binding.name) if binding.WhichOneof("binding") == "name" else _value(binding.value, folder)


def _type(value: Any) -> TensorType:
    kind = value.WhichOneof("type")
    if kind == "stateType":
        inner = _type(value.stateType.wrappedType)
        return TensorType(inner.dtype, inner.shape, True)
    if kind != "tensorType":
        raise UnusableInput(f"the package has a value of the kind {kind}, which the evaluator does not know.")
    tensor = value.tensorType
    sizes = tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else -1 for d in tensor.dimensions)
    return TensorType(TYPES[tensor.dataType][0], sizes)


def _value(value: Any, folder: Path) -> Any:
    if value.WhichOneof("value") == "blobFileValue":
        path = value.blobFileValue.fileName.removeprefix("@model_path/")
        return BlobValue(_inside(folder, path, "the program"), int(value.blobFileValue.offset), _type(value.type))
    immediate = value.immediateValue
    if immediate.WhichOneof("value") == "list":
        return tuple(_value(each, folder) for each in immediate.list.values)
    declared = _type(value.type)
    field = immediate.tensor.WhichOneof("value")
    held = getattr(immediate.tensor, field).values
    if field == "strings":
        texts = [text.decode() if isinstance(text, bytes) else text for text in held]
        return texts[0] if not declared.shape else tuple(texts)
    if field == "bytes":
        return unpack(held, declared)
    array = np.asarray(list(held), _NUMPY[declared.dtype])
    return array.reshape(declared.shape)


def unpack(data: bytes, declared: TensorType) -> NDArray[Any]:
    """Values from bytes: little-endian, those of fewer than 8 bits packed from the lowest bit on."""
    elements = int(np.prod(declared.shape))
    if declared.dtype in _NUMPY:
        return np.frombuffer(data, _NUMPY[declared.dtype], elements).reshape(declared.shape)
    bits = next(width for name, width in TYPES.values() if name == declared.dtype)
    packed = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: elements * bits].reshape(elements, bits)
    values = (packed << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)
    if declared.dtype == "int4":
        return (values.astype(np.int8) - ((values & 8) << 1).astype(np.int8)).reshape(declared.shape)
    return values.reshape(declared.shape)


def read_blob(blob: BlobValue) -> NDArray[Any]:
    """The values of a constant in a file of weights.

    Raises:
        UnusableInput: there is no blob at that place, or it has not the bytes that its type needs.
    """
    with blob.file.open("rb") as stream:
        stream.seek(blob.offset)
        head = stream.read(64)
        if len(head) < 32:
            raise UnusableInput(f"{blob.file.name} ends before the blob at {blob.offset}. Build the package again.")
        sentinel, _, nbytes, start = struct.unpack_from("<IIQQ", head)
        bits = next(width for name, width in TYPES.values() if name == blob.type.dtype)
        needed = -(-int(np.prod(blob.type.shape)) * bits // 8)
        if sentinel != _SENTINEL or nbytes < needed:
            raise UnusableInput(
                f"{blob.file.name} has no blob of {needed} bytes at {blob.offset}. Build the package again."
            )
        stream.seek(start)
        data = stream.read(nbytes)
    if len(data) < needed:
        raise UnusableInput(f"{blob.file.name} ends within the blob at {blob.offset}. Build the package again.")
    return unpack(data, blob.type)
