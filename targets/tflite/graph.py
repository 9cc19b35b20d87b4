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
class Document:
    """The file: the schema's object, which all functions share, and where constants and operators are in it."""

    model: Any = field(default_factory=schema.ModelT)
    buffers: dict[str, int] = field(default_factory=dict)
    forms: dict[str, tuple[Shape, int]] = field(default_factory=dict)
    codes: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.version = _SCHEMA_VERSION
        self.model.description = "edgec"
        self.model.operatorCodes, self.model.subgraphs, self.model.signatureDefs = [], [], []
        # The first buffer is the empty one, by the schema.
        self.model.buffers = [schema.BufferT()]

    def buffer(self, key: str, read: Callable[[], NDArray[np.uint8]]) -> int:
        """The buffer of that key, made of what `read` gives when it is not there yet."""
        if key not in self.buffers:
            made = schema.BufferT()
            made.data = read()
            self.model.buffers.append(made)
            self.buffers[key] = len(self.model.buffers) - 1
        return self.buffers[key]

    def operator_code(self, operator: int, version: int) -> int:
        """The index of an operator's code."""
        key = (operator, version)
        if key not in self.codes:
            made = schema.OperatorCodeT()
            made.builtinCode, made.version = operator, version
            made.deprecatedBuiltinCode = min(operator, 127)
            self.model.operatorCodes.append(made)
            self.codes[key] = len(self.model.operatorCodes) - 1
        return self.codes[key]


class Shared:
    """A table of the schema that several tensors have, written once."""

    def __init__(self, table: Any) -> None:
        self._builder: Any = None
        self._table, self._place = table, 0
        self.scale, self.zeroPoint, self.details = table.scale, table.zeroPoint, table.details

    def Pack(self, builder: Any) -> int:
        """As the schema's generated classes call it."""
        if self._builder is not builder:
            self._builder, self._place = builder, int(self._table.Pack(builder))
        return self._place

    def forget(self) -> None:
        """Let the builder go, which has the bytes of the whole file."""
        self._builder = None


class Function:
    """A subgraph with a signature."""

    def __init__(self, document: Document, name: str) -> None:
        self.document, self.name = document, name
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
        """What `make` gives, made on the first call with the key; constants have theirs among the same keys."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def constant(self, key: str, read: Callable[[], NDArray[Any]]) -> Value:
        """A constant of the values that `read` gives; functions share those of one key."""
        if key not in self._made:
            if key not in self.document.forms:
                values = read()
                self.document.forms[key] = (values.shape, _TYPES[values.dtype])
                self.document.buffer(key, lambda: np.ascontiguousarray(values).reshape(-1).view(np.uint8))
            shape, kind = self.document.forms[key]
            self._made[key] = self._tensor(key, shape, kind, self.document.buffers[key])
        return self._made[key]

    def stored(
        self, key: str, shape: Shape, kind: int, read: Callable[[], NDArray[np.uint8]], quantization: Any
    ) -> Value:
        """A constant whose bytes are codes."""
        if key not in self._made:
            self._made[key] = value = self._tensor(key, shape, kind, self.document.buffer(key, read))
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
        made.opcodeIndex = self.document.operator_code(operator, version)
        values = [self._tensor(f"{self.name}/{len(self.subgraph.tensors)}", shape, kind) for shape in shapes]
        made.inputs = np.asarray([each.index for each in inputs], np.int32)
        made.outputs = np.asarray([each.index for each in values], np.int32)
        if options is not None:
            made.builtinOptionsType, made.builtinOptions = options
        self.subgraph.operators.append(made)
        return values

    def finish(self, outputs: Mapping[str, Value]) -> None:
        """Close the function: operators and tensors that no output needs are left out."""
        needed = {value.index for value in outputs.values()}
        kept = []
        for operator in reversed(self.subgraph.operators):
            if needed & set(operator.outputs.tolist()):
                needed |= set(operator.inputs.tolist())
                kept.append(operator)
        self.subgraph.operators = kept[::-1]
        places = self._keep_tensors(needed | set(self.subgraph.inputs))
        self.subgraph.inputs = np.asarray([places[index] for index in self.subgraph.inputs], np.int32)
        self.subgraph.outputs = np.asarray([places[value.index] for value in outputs.values()], np.int32)
        model = self.document.model
        model.subgraphs.append(self.subgraph)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = self.name, len(model.subgraphs) - 1
        signature.inputs = [_entry(name, places[value.index]) for name, value in self._inputs.items()]
        signature.outputs = [_entry(name, places[value.index]) for name, value in outputs.items()]
        model.signatureDefs.append(signature)

    def _keep_tensors(self, needed: set[int]) -> dict[int, int]:
        """Leave out the other tensors; the new index of each that stays, by the old one."""
        tensors = self.subgraph.tensors
        details = {index: getattr(tensors[index].quantization, "details", None) for index in needed}
        blocks = [each for each in details.values() if isinstance(each, schema.BlockwiseQuantizationT)]
        kept = sorted(needed | {each.scales for each in blocks} | self._results())
        places = {index: place for place, index in enumerate(kept)}
        self.subgraph.tensors = [tensors[index] for index in kept]
        for each in blocks:
            each.scales = places[each.scales]
        for operator in self.subgraph.operators:
            operator.inputs = np.asarray([places[index] for index in operator.inputs], np.int32)
            operator.outputs = np.asarray([places[index] for index in operator.outputs], np.int32)
        return places

    def _results(self) -> set[int]:
        return {int(index) for operator in self.subgraph.operators for index in operator.outputs}

    def _tensor(self, name: str, shape: Shape, kind: int, buffer: int = 0) -> Value:
        made = schema.TensorT()
        made.name, made.type, made.buffer, made.hasRank = name, kind, buffer, True
        made.shape = np.asarray([1 if size == FREE else size for size in shape], np.int32)
        if FREE in shape:
            made.shapeSignature = np.asarray(shape, np.int32)
        self.subgraph.tensors.append(made)
        return Value(len(self.subgraph.tensors) - 1, tuple(int(size) for size in shape), kind)


def _entry(name: str, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made
