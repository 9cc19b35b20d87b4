"""A TFLite model under construction: functions as subgraphs with signatures, operators one by one, constants stored once.

Sizes that are not known before the model runs are `FREE`. The schema is tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Shape = tuple[int, ...]
FREE = -1
_TYPES: dict[Any, int] = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int8): schema.TensorType.INT8,
}
_SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Value:
    """A tensor of a function: its index there, its shape and its type (`TensorType` of the schema)."""

    index: int
    shape: Shape
    type: int


@dataclass
class Model:
    """What all functions share: the document, and where constants and operators are."""

    document: Any = field(default_factory=schema.ModelT)
    buffers: dict[str, int] = field(default_factory=dict)
    forms: dict[str, tuple[Shape, int]] = field(default_factory=dict)
    codes: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.document.version = _SCHEMA_VERSION
        self.document.description = "edgec"
        self.document.operatorCodes, self.document.subgraphs, self.document.signatureDefs = [], [], []
        # The first buffer is the empty one, by the schema.
        self.document.buffers = [schema.BufferT()]

    def buffer(self, key: str, read: Callable[[], NDArray[np.uint8]]) -> int:
        """The buffer of that key, made of what `read` gives when it is not there yet."""
        if key not in self.buffers:
            made = schema.BufferT()
            made.data = read()
            self.document.buffers.append(made)
            self.buffers[key] = len(self.document.buffers) - 1
        return self.buffers[key]

    def operator_code(self, operator: int, version: int) -> int:
        """The index of an operator's code."""
        key = (operator, version)
        if key not in self.codes:
            made = schema.OperatorCodeT()
            made.builtinCode, made.version = operator, version
            made.deprecatedBuiltinCode = min(operator, 127)
            self.document.operatorCodes.append(made)
            self.codes[key] = len(self.document.operatorCodes) - 1
        return self.codes[key]


class Shared:
    """A table of the schema that several tensors have, written once."""

    def __init__(self, table: Any) -> None:
        self._table, self._builder, self._place = table, None, 0
        self.scale, self.detailsType, self.details = table.scale, table.detailsType, table.details

    def Pack(self, builder: Any) -> int:
        """As the schema's generated classes call it."""
        if self._builder is not builder:
            self._builder, self._place = builder, int(self._table.Pack(builder))
        return self._place


class Function:
    """A subgraph with a signature."""

    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name = model, name
        self.subgraph = schema.SubGraphT()
        self.subgraph.name = name
        self.subgraph.tensors, self.subgraph.operators, self.subgraph.inputs = [], [], []
        self._inputs: dict[str, Value] = {}
        self._made: dict[str, Any] = {}

    def input(self, name: str, shape: Shape, dtype: Any) -> Value:
        """A new input."""
        value = self._tensor(name, shape, _TYPES[np.dtype(dtype)])
        self.subgraph.inputs.append(value.index)
        self._inputs[name] = value
        return value

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made on the first call with the key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def constant(self, key: str, read: Callable[[], NDArray[Any]]) -> Value:
        """A constant of the values that `read` gives; functions share those of one key."""
        if key not in self._made:
            if key not in self.model.forms:
                values = read()
                self.model.forms[key] = (values.shape, _TYPES[values.dtype])
                self.model.buffer(key, lambda: np.ascontiguousarray(values).reshape(-1).view(np.uint8))
            shape, kind = self.model.forms[key]
            self._made[key] = self._tensor(key, shape, kind, self.model.buffers[key])
        return self._made[key]

    def stored(
        self, key: str, shape: Shape, kind: int, read: Callable[[], NDArray[np.uint8]], quantization: Any
    ) -> Value:
        """A constant whose bytes are codes."""
        if key not in self._made:
            self._made[key] = value = self._tensor(key, shape, kind, self.model.buffer(key, read))
            self.subgraph.tensors[value.index].quantization = quantization
        return self._made[key]

    def numbers(self, *values: int) -> Value:
        """A constant of int32, (values,)."""
        return self.constant(f"int32 {list(values)}", lambda: np.asarray(values, np.int32))

    def number(self, value: int) -> Value:
        """A constant of one int32, ()."""
        return self.constant(f"int32 {value}", lambda: np.asarray(value, np.int32))

    def scalar(self, value: float) -> Value:
        """A constant of one float32, ()."""
        return self.constant(f"float32 {value!r}", lambda: np.asarray(value, np.float32))

    def emit(
        self,
        operator: int,
        inputs: Sequence[Value],
        shape: Shape,
        options: tuple[int, Any] | None = None,
        *,
        kind: int = schema.TensorType.FLOAT32,
        version: int = 1,
    ) -> Value:
        """Add an operator of one result."""
        return self.emit_all(operator, inputs, [shape], options, kind=kind, version=version)[0]

    def emit_all(
        self,
        operator: int,
        inputs: Sequence[Value],
        shapes: Sequence[Shape],
        options: tuple[int, Any] | None = None,
        *,
        kind: int = schema.TensorType.FLOAT32,
        version: int = 1,
    ) -> list[Value]:
        """Add an operator; its results.

        Args:
            operator: `BuiltinOperator` of the schema.
            inputs: what it takes.
            shapes: of the results.
            options: `BuiltinOptions` of the schema and their object.
            kind: type of the results.
            version: the operator's version.
        """
        made = schema.OperatorT()
        made.opcodeIndex = self.model.operator_code(operator, version)
        values = [self._tensor(f"{self.name}/{len(self.subgraph.tensors)}", shape, kind) for shape in shapes]
        made.inputs = np.asarray([each.index for each in inputs], np.int32)
        made.outputs = np.asarray([each.index for each in values], np.int32)
        if options is not None:
            made.builtinOptionsType, made.builtinOptions = options
        self.subgraph.operators.append(made)
        return values

    def finish(self, outputs: Mapping[str, Value]) -> None:
        """Close the function: operators that no output needs are left out."""
        needed = {value.index for value in outputs.values()}
        kept = []
        for operator in reversed(self.subgraph.operators):
            if needed & set(operator.outputs.tolist()):
                needed |= set(operator.inputs.tolist())
                kept.append(operator)
        self.subgraph.operators = kept[::-1]
        self.subgraph.inputs = np.asarray(self.subgraph.inputs, np.int32)
        self.subgraph.outputs = np.asarray([value.index for value in outputs.values()], np.int32)
        document = self.model.document
        document.subgraphs.append(self.subgraph)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = self.name, len(document.subgraphs) - 1
        signature.inputs = [_entry(name, value) for name, value in self._inputs.items()]
        signature.outputs = [_entry(name, value) for name, value in outputs.items()]
        document.signatureDefs.append(signature)

    def _tensor(self, name: str, shape: Shape, kind: int, buffer: int = 0) -> Value:
        made = schema.TensorT()
        made.name, made.type, made.buffer, made.hasRank = name, kind, buffer, True
        made.shape = np.asarray([max(1, size) if size < 0 else size for size in shape], np.int32)
        if -1 in shape:
            made.shapeSignature = np.asarray(shape, np.int32)
        self.subgraph.tensors.append(made)
        return Value(len(self.subgraph.tensors) - 1, tuple(int(size) for size in shape), kind)


def _entry(name: str, value: Value) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, value.index
    return made
