"""HLO modules, the input of XLA's compilers and of AWS's neuronx-cc: reading, writing, and numbering them anew.

The messages are those parts of xla/service/hlo.proto and xla/xla_data.proto (openxla/xla) that edgec looks at, under the same
numbers; what else a module has is kept as it is. A module is a serialized `HloModuleProto`, not the `HloProto` around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from compiler.errors import UnusableInput

LARGEST_BYTES = 1 << 28
_PACKAGE = "edgec.xla"
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _FIELD.TYPE_STRING,
    "int64": _FIELD.TYPE_INT64,
    "int32": _FIELD.TYPE_INT32,
    "bool": _FIELD.TYPE_BOOL,
}
# Name, type and number of each field; `*` stands before what is repeated.
_MESSAGES: Mapping[str, tuple[tuple[str, str, int], ...]] = {
    "Layout": (("minor_to_major", "*int64", 1),),
    "Shape": (
        ("element_type", "int32", 2), ("dimensions", "*int64", 3), ("tuple_shapes", "*Shape", 4), ("layout", "Layout", 5),
        ("is_dynamic_dimension", "*bool", 6),
    ),
    "ProgramShape": (("parameters", "*Shape", 1), ("result", "Shape", 2), ("parameter_names", "*string", 3)),
    "Attribute": (("key", "string", 1), ("value", "string", 2)),
    "FrontendAttributes": (("map", "*Attribute", 1),),
    "ReplicaGroup": (("replica_ids", "*int64", 1),),
    "Opaque": (),
    "DeviceList": (("replica_groups", "*ReplicaGroup", 1),),
    "Instruction": (
        ("name", "string", 1), ("opcode", "string", 2), ("shape", "Shape", 3), ("metadata", "Opaque", 7),
        ("parameter_number", "int64", 9), ("custom_call_target", "string", 28),
        ("id", "int64", 35), ("operand_ids", "*int64", 36),
        ("control_predecessor_ids", "*int64", 37), ("called_computation_ids", "*int64", 38),
        ("replica_groups", "*ReplicaGroup", 49), ("frontend_attributes", "FrontendAttributes", 68),
        ("collective_device_list", "DeviceList", 87),
    ),
    "Computation": (
        ("name", "string", 1), ("instructions", "*Instruction", 2), ("program_shape", "ProgramShape", 4), ("id", "int64", 5),
        ("root_id", "int64", 6),
    ),
    "AliasEntry": (
        ("output_shape_index", "*int64", 1), ("parameter_number", "int64", 2), ("parameter_shape_index", "*int64", 3),
        ("kind", "int32", 4),
    ),
    "InputOutputAlias": (("entries", "*AliasEntry", 1),),
    "Module": (
        ("name", "string", 1), ("entry_computation_name", "string", 2), ("computations", "*Computation", 3),
        ("host_program_shape", "ProgramShape", 4), ("id", "int64", 5), ("entry_computation_id", "int64", 6),
        ("input_output_alias", "InputOutputAlias", 8), ("stack_frame_index", "Opaque", 17),
        ("frontend_attributes", "FrontendAttributes", 19),
    ),
}  # fmt: skip
_MUST_ALIAS = 2
# Operators of arithmetic and of moving values: none of them calls anything, waits for anything, or repeats.
PLAIN_OPERATORS = frozenset(
    ("abs", "add", "all-gather", "all-reduce", "and", "broadcast", "ceil", "clamp", "compare", "concatenate", "constant",
     "convert", "convolution", "copy", "cosine", "divide", "dot", "dynamic-update-slice", "exponential", "floor", "gather",
     "get-tuple-element", "iota", "log", "maximum", "minimum", "multiply", "negate", "not", "or", "pad", "parameter", "power",
     "reduce", "reshape", "reverse", "rsqrt", "scatter", "select", "sign", "sine", "slice", "sqrt", "subtract", "tanh",
     "transpose", "tuple", "xor")
)  # fmt: skip
# PrimitiveType of xla_data.proto: the element types by number, and the bytes of those with whole ones.
ELEMENT_TYPES = (
    "invalid", "pred", "s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64", "f16", "f32", "f64", "tuple", "opaque", "c64",
    "bf16", "token", "c128", "f8e5m2", "f8e4m3fn", "s4", "u4", "f8e4m3b11fnuz", "f8e5m2fnuz", "f8e4m3fnuz", "s2", "u2",
    "f8e4m3", "f8e3m4", "s1", "u1", "f4e2m1fn", "f8e8m0fnu",
)  # fmt: skip
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8, "c64": 8, "c128": 16}  # fmt: skip
# What AWS's own builder of modules calls the names of a NEFF's tensors (aws-neuron/nkipy).
_INPUT_NAME, _OUTPUT_NAMES = "neff_input_names", "neff_output_names"


@cache
def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="edgec/hlo.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, kind, number in fields:
            kind, repeated = kind.removeprefix("*"), kind.startswith("*")
            label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
            if kind in _SCALARS:
                message.field.add(name=field, number=number, type=_SCALARS[kind], label=label)
            else:
                full = f".{_PACKAGE}.{kind}"
                message.field.add(name=field, number=number, type=_FIELD.TYPE_MESSAGE, type_name=full, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


@dataclass(frozen=True)
class Tensor:
    """A parameter or a result of a module's entry."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return nbytes_of(self.dtype, self.shape)


def nbytes_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a dense array; element types of less than a byte count as one."""
    count = 1
    for size in shape:
        count *= size
    return count * _BYTES.get(dtype, 1)


def parse_module(data: bytes, name: str) -> Any:
    """A module's message.

    Raises:
        UnusableInput: it is no module, or larger than `LARGEST_BYTES`.
    """
    if len(data) > LARGEST_BYTES:
        raise UnusableInput(
            f"The HLO module {name} has {len(data)} bytes, more than the {LARGEST_BYTES} that are read."
        )
    module = _messages()["Module"]()
    try:
        module.ParseFromString(data)
    except DecodeError:
        raise UnusableInput(f"{name} is no HLO module: it is not of that protobuf format.") from None
    if not module.computations or entry_of(module) is None:
        raise UnusableInput(f"{name} is no HLO module: it has no entry computation.")
    return module


def read_module(path: Path) -> Any:
    """`parse_module` of a file."""
    if path.stat().st_size > LARGEST_BYTES:
        raise UnusableInput(f"The HLO module {path.name} is larger than the {LARGEST_BYTES} bytes that are read.")
    return parse_module(path.read_bytes(), path.name)


def write_module(module: Any) -> bytes:
    """The bytes of a module, the same for the same module."""
    data: bytes = module.SerializeToString(deterministic=True)
    return data


def entry_of(module: Any) -> Any:
    """The computation that is run; None where none has its number, which `parse_module` refuses."""
    return next((each for each in module.computations if each.id == module.entry_computation_id), None)


def root_of(computation: Any) -> Any:
    """The instruction whose value is the computation's."""
    root = next((each for each in computation.instructions if each.id == computation.root_id), None)
    if root is None:
        raise UnusableInput(f"The HLO computation {computation.name} has no instruction that is its result.")
    return root


def instructions_of(module: Any) -> Iterator[Any]:
    """All instructions of all computations."""
    for computation in module.computations:
        yield from computation.instructions


def dtype_of(shape: Any) -> str:
    """The name of a shape's element type; its number where XLA has a newer one than edgec."""
    number = shape.element_type
    return ELEMENT_TYPES[number] if 0 <= number < len(ELEMENT_TYPES) else f"type {number}"


def parameters_of(module: Any) -> tuple[Tensor, ...]:
    """The parameters of the entry by their numbers, under the names that `name_tensors` gave.

    Raises:
        UnusableInput: their numbers have a gap, or the file names none.
    """
    entry = entry_of(module)
    found = sorted(
        (each for each in entry.instructions if each.opcode == "parameter"), key=lambda i: i.parameter_number
    )
    if [each.parameter_number for each in found] != list(range(len(found))):
        raise UnusableInput(f"The parameters of the HLO module {module.name} are not numbered from 0 without a gap.")
    return tuple(
        Tensor(_attribute(each, _INPUT_NAME) or each.name, dtype_of(each.shape), tuple(each.shape.dimensions))
        for each in found
    )


def results_of(module: Any) -> tuple[Tensor, ...]:
    """The results of the entry."""
    root = root_of(entry_of(module))
    shapes = root.shape.tuple_shapes if dtype_of(root.shape) == "tuple" else [root.shape]
    names = (_attribute(root, _OUTPUT_NAMES) or "").split(",")
    names = names if len(names) == len(shapes) else [f"output{number}" for number in range(len(shapes))]
    return tuple(
        Tensor(name, dtype_of(shape), tuple(shape.dimensions)) for name, shape in zip(names, shapes, strict=True)
    )


def require_plain(module: Any, name: str) -> None:
    """Refuse a module that could do anything but compute: nothing of a package may call what this process has.

    Raises:
        UnusableInput: it has an operator that is none of `PLAIN_OPERATORS`, or results in places that are none.
    """
    for instruction in instructions_of(module):
        if instruction.opcode not in PLAIN_OPERATORS:
            raise UnusableInput(
                f"The HLO module {name} has the operator {instruction.opcode!r:.40} ({instruction.name!r:.60}), which no "
                "module of edgec's has. It is refused, and was not run."
            )
    parameters, results = parameters_of(module), results_of(module)
    for result, parameter in aliases_of(module).items():
        if not (0 <= result < len(results) and 0 <= parameter < len(parameters)):
            raise UnusableInput(f"The HLO module {name} puts a result into the place of a parameter that is not there.")


def aliases_of(module: Any) -> dict[int, int]:
    """For each result that takes the place of a parameter, the number of that."""
    return {
        entry.output_shape_index[0] if entry.output_shape_index else 0: entry.parameter_number
        for entry in module.input_output_alias.entries
    }


def _attribute(instruction: Any, key: str) -> str | None:
    return next((each.value for each in instruction.frontend_attributes.map if each.key == key), None)


def name_tensors(module: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the parameters and results of the entry their names."""
    entry = entry_of(module)
    for instruction in entry.instructions:
        if instruction.opcode == "parameter":
            instruction.frontend_attributes.map.add(key=_INPUT_NAME, value=inputs[instruction.parameter_number])
        if instruction.id == entry.root_id:
            instruction.frontend_attributes.map.add(key=_OUTPUT_NAMES, value=",".join(outputs))


def alias(module: Any, places: Mapping[int, int]) -> None:
    """Let results take the place of parameters: by the result's number the parameter's."""
    del module.input_output_alias.entries[:]
    for result, parameter in sorted(places.items()):
        module.input_output_alias.entries.add(output_shape_index=[result], parameter_number=parameter, kind=_MUST_ALIAS)


def renumber(module: Any) -> None:
    """Number instructions from 0 without a gap, and computations too, callees first, the entry last.

    Newer XLA packs an instruction's computation into the upper 32 bits of its number, and neuronx-cc 2.23 and 2.26 end at
    numbers of 2^31 and more.
    """
    ordered = _callees_first(module)
    of_computation = {computation.id: number for number, computation in enumerate(ordered)}
    next_id = 0
    for computation in ordered:
        numbers = {}
        for instruction in computation.instructions:
            numbers[instruction.id] = next_id
            next_id += 1
        for instruction in computation.instructions:
            instruction.id = numbers[instruction.id]
            instruction.operand_ids[:] = [numbers[each] for each in instruction.operand_ids]
            instruction.control_predecessor_ids[:] = [numbers[each] for each in instruction.control_predecessor_ids]
            instruction.called_computation_ids[:] = [
                of_computation[each] for each in instruction.called_computation_ids
            ]
        computation.root_id = numbers[computation.root_id]
        computation.id = of_computation[computation.id]
    module.entry_computation_id = of_computation[module.entry_computation_id]
    module.id = 0
    copies = [type(each).FromString(each.SerializeToString(deterministic=True)) for each in ordered]
    del module.computations[:]
    module.computations.extend(copies)


def _callees_first(module: Any) -> list[Any]:
    by_id = {computation.id: computation for computation in module.computations}
    ordered: dict[int, Any] = {}
    waiting = [(module.entry_computation_id, False)]
    while waiting:
        number, ready = waiting.pop()
        if number in ordered:
            continue
        if ready:
            ordered[number] = by_id[number]
            continue
        waiting.append((number, True))
        called = [each for instruction in by_id[number].instructions for each in instruction.called_computation_ids]
        waiting += [(each, False) for each in reversed(called) if each not in ordered]
    return list(ordered.values())


def lay_out_by_rows(module: Any) -> None:
    """Let every array lie with its last axis innermost. What is computed is the same: layouts have no part in it."""
    for instruction in instructions_of(module):
        _by_rows(instruction.shape)


def _by_rows(shape: Any) -> None:
    for each in shape.tuple_shapes:
        _by_rows(each)
    if dtype_of(shape) != "tuple":
        shape.layout.minor_to_major[:] = reversed(range(len(shape.dimensions)))


def forget_sources(module: Any) -> None:
    """Leave out which lines of which files instructions come from: paths of the machine that wrote the module."""
    module.ClearField("stack_frame_index")
    for instruction in instructions_of(module):
        instruction.ClearField("metadata")


def use_replica_groups(module: Any) -> None:
    """Give collectives their groups in the field that every XLA reads; newer ones write another, which older ones skip."""
    for instruction in instructions_of(module):
        if instruction.HasField("collective_device_list"):
            groups = instruction.collective_device_list.replica_groups
            if not groups:
                raise ValueError(f"{instruction.name} names its groups in a form that is not known")
            instruction.replica_groups.extend(groups)
            instruction.ClearField("collective_device_list")
