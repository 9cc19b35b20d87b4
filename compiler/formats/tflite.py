"""A TFLite file as objects, and back: the schema is tensorflow/compiler/mlir/lite/schema/schema.fbs."""

from __future__ import annotations

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
# Offsets within a flatbuffer are signed and have 32 bits.
_LARGEST = 2**31 - 2**24


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
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
    return model


def write_tflite(model: Any, file: Path) -> None:
    """Write the model; equal models give equal bytes.

    Raises:
        UnusableInput: it is larger than a flatbuffer can be.
    """
    file.write_bytes(tflite_bytes(model, file.name))


def tflite_bytes(model: Any, name: str) -> memoryview:
    """The file's bytes; `name` is what it is called in a refusal.

    Raises:
        UnusableInput: it is larger than a flatbuffer can be.
    """
    model.buffers = [_Aligned(buffer) for buffer in model.buffers]
    nbytes = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if nbytes > _LARGEST:
        raise UnusableInput(
            f"The weights of {name} have {nbytes:,} bytes, and a TFLite file of edgec's ends at {_LARGEST:,}. Use a "
            "scheme with fewer bits, or gguf."
        )
    builder = flatbuffers.Builder(nbytes + _room(model))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return memoryview(builder.Bytes)[builder.Head() :]


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
