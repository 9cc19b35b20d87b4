"""A TFLite file as objects, and back: the schema is tensorflow/compiler/mlir/lite/schema/schema.fbs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from compiler.errors import UnusableInput

# Kernels read weights sixteen bytes at a time (force_align in the schema).
_ALIGNMENT = 16
_IDENTIFIER = b"TFL3"
# Offsets within a flatbuffer are signed and have 32 bits; beyond this many bytes of buffers they lie behind it.
LARGEST_WITHIN = 2**31 - 2**27
_LEAST_OUTSIDE = 4096
_SOMEWHERE = 2**40
Piece = bytes | memoryview


def read_tflite(file: Path) -> Any:
    """The model as the schema's object.

    Raises:
        UnusableInput: it is no TFLite file, or a damaged one.
    """
    return parse_tflite(file.read_bytes(), file.name)


def require_whole(data: bytes, name: str) -> None:
    """Let LiteRT look whether every offset lies inside, as it does of content, not of a path.

    Raises:
        UnusableInput: it is no TFLite file, or a damaged one.
    """
    try:
        Interpreter(model_content=data)
    except (ValueError, RuntimeError) as error:
        raise UnusableInput(f"{name} is no TFLite file, or a damaged one. Build the package again.") from error


def parse_tflite(data: bytes, name: str) -> Any:
    """The bytes of a file as the schema's object; `name` is what it is called in a refusal.

    Raises:
        UnusableInput: it is no TFLite file, or a damaged one.
    """
    require_whole(data, name)
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        # Of files beyond 2 GB the data lies behind the flatbuffer.
        if buffer.offset > 1:
            if buffer.offset + buffer.size > len(data):
                raise UnusableInput(f"{name} is a damaged TFLite file. Build the package again.")
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    return model


def write_tflite(model: Any, file: Path) -> None:
    """Write the model; equal models give equal bytes."""
    with file.open("wb") as stream:
        for piece in tflite_pieces(model):
            stream.write(piece)


def tflite_pieces(model: Any) -> list[Piece]:
    """The file's bytes, one piece after the other. Beyond what a flatbuffer holds, large buffers lie behind it."""
    total = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if total <= LARGEST_WITHIN:
        return [_packed(model, [_Aligned(buffer) for buffer in model.buffers], total)]
    outside = [buffer for buffer in model.buffers if buffer.data is not None and len(buffer.data) >= _LEAST_OUTSIDE]
    places = dict.fromkeys(map(id, outside), _SOMEWHERE)
    # Where they lie follows from how large the flatbuffer is, which does not depend on where they lie.
    for _ in range(2):
        buffers = [
            _Outside(len(each.data), places[id(each)]) if id(each) in places else _Aligned(each)
            for each in model.buffers
        ]
        first = _packed(model, buffers, 0)
        place = _up(len(first))
        for each in outside:
            places[id(each)] = place
            place = _up(place + len(each.data))
    pieces: list[Piece] = [first, bytes(_up(len(first)) - len(first))]
    for each in outside:
        data = np.asarray(each.data, np.uint8)
        pieces += [data.data, bytes(_up(len(data)) - len(data))]
    return pieces


def _packed(model: Any, buffers: list[Any], nbytes: int) -> memoryview:
    """A flatbuffer of a model with these buffers, which have about so many bytes in it."""
    builder = flatbuffers.Builder(nbytes + _room(model))
    own, model.buffers = model.buffers, buffers
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    model.buffers = own
    # Tables that several tensors have know where they were written, and by whom.
    for tensor in (tensor for subgraph in model.subgraphs for tensor in subgraph.tensors):
        if hasattr(tensor.quantization, "forget"):
            tensor.quantization.forget()
    return memoryview(builder.Bytes)[builder.Head() :]


def _up(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT


def _room(model: Any) -> int:
    """Bytes beside the buffers, about: a builder that grows takes as much again."""
    tensors = [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors]
    quantizations = {id(each.quantization): each.quantization for each in tensors if each.quantization is not None}
    scales = [0 if each.scale is None else len(each.scale) for each in quantizations.values()]
    return 2**20 + 512 * len(tensors) + 16 * sum(scales)


class _Aligned:
    """A buffer that the schema's own class would pack on any byte."""

    def __init__(self, buffer: Any) -> None:
        self.data: NDArray[np.uint8] | None = None if buffer.data is None else np.asarray(buffer.data, np.uint8)

    def Pack(self, builder: Any) -> int:
        """As the schema's generated classes call it."""
        if self.data is not None:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            data = builder.EndVector()
        schema.BufferStart(builder)
        if self.data is not None:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


@dataclass(frozen=True)
class _Outside:
    """A buffer whose bytes lie at `place` of the file."""

    nbytes: int
    place: int
    data: None = None

    def Pack(self, builder: Any) -> int:
        """As the schema's generated classes call it."""
        schema.BufferStart(builder)
        schema.BufferAddOffset(builder, self.place)
        schema.BufferAddSize(builder, self.nbytes)
        return int(schema.BufferEnd(builder))


def name_of(tensor: Any) -> str:
    """A tensor's name."""
    return tensor.name.decode("utf-8", "replace") if isinstance(tensor.name, bytes) else str(tensor.name)


def operator_of(model: Any, operator: Any) -> int:
    """The number of a builtin operator (`BuiltinOperator` of the schema)."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def constant_floats(model: Any, tensor: Any) -> NDArray[np.float32] | None:
    """The values of a constant float32 tensor; None for anything else."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.FLOAT32 or data is None or tensor.shape is None:
        return None
    return np.asarray(data, np.uint8).view(np.float32).reshape(tensor.shape)
