"""Holds an HLO module to what is known of Neuron's compiler, before an hour of compiling tells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compiler.errors import CheckFailed
from compiler.formats.hlo import (
    aliases_of,
    dtype_of,
    entry_of,
    instructions_of,
    nbytes_of,
    parameters_of,
    results_of,
    root_of,
)
from targets.neuron.rules import (
    CORE_BYTES,
    CUSTOM_CALLS,
    KNOWN_OPERATORS,
    KNOWN_TYPES,
    NO_INTEGERS,
    REFUSED_OPERATORS,
    REFUSED_TYPES,
    TENSOR_BYTES,
    WIDE_INTEGERS,
)

_LARGEST_ID = (1 << 31) - 1
_GIB = 1 << 30


def find_faults(module: Any, device: str, advice: str = "") -> Iterator[str]:
    """A sentence for each thing that the compiler would not take, with its own code where it has one.

    `advice` is what this very model can do where it does not fit a core.
    """
    for instruction in instructions_of(module):
        where = f"{instruction.name} ({instruction.opcode})"
        yield from _of_operator(instruction, device, where)
        yield from _of_shape(instruction.shape, where)
        if not 0 <= instruction.id <= _LARGEST_ID:
            yield f"{where} has the number {instruction.id}, and neuronx-cc ends at numbers of 2^31 and more."
    if any(dtype_of(shape) == "tuple" for shape in root_of(entry_of(module)).shape.tuple_shapes):
        yield "The module's result is a tuple with tuples in it; it has to be one of arrays."
    in_place = aliases_of(module)
    results = [each for number, each in enumerate(results_of(module)) if number not in in_place]
    held = sum(each.nbytes for each in (*parameters_of(module), *results))
    if (room := CORE_BYTES[device]) < held:
        yield (
            f"Its parameters and results take {held / _GIB:.1f} GiB, and a core of {device} has {room / _GIB:.0f}: "
            f"{(held - room) / _GIB:.1f} GiB are missing [NCC_EVRF009]. {advice}".strip()
        )


def _of_operator(instruction: Any, device: str, where: str) -> Iterator[str]:
    opcode = instruction.opcode
    refused = REFUSED_OPERATORS.get(opcode)
    if refused is not None and (not refused.devices or device in refused.devices):
        yield f"{where}: {refused.reason}{f' [{refused.code}]' if refused.code else ''}."
    elif opcode in NO_INTEGERS and dtype_of(instruction.shape) in WIDE_INTEGERS:
        yield f"{where}: {NO_INTEGERS[opcode].reason} [{NO_INTEGERS[opcode].code}]."
    elif opcode == "custom-call":
        if instruction.custom_call_target not in CUSTOM_CALLS:
            yield f"{where} calls {instruction.custom_call_target!r}, which the compiler does not know [NCC_EVRF015]."
    elif refused is None and opcode not in KNOWN_OPERATORS:
        yield f"{where}: nothing says that the compiler takes it, so it is refused."


def _of_shape(shape: Any, where: str) -> Iterator[str]:
    dtype = dtype_of(shape)
    if dtype == "tuple":
        for each in shape.tuple_shapes:
            yield from _of_shape(each, where)
        return
    if dtype in REFUSED_TYPES:
        code, reason = REFUSED_TYPES[dtype]
        yield f"{where} is of {dtype}: {reason}{f' [{code}]' if code else ''}."
    elif dtype not in KNOWN_TYPES:
        yield f"{where} is of {dtype}, which Neuron does not have."
    if any(shape.is_dynamic_dimension) or any(size < 0 for size in shape.dimensions):
        yield f"{where} has a size that changes at run time; every size must be fixed [NCC_EMOD025]."
    elif nbytes_of(dtype, shape.dimensions) > TENSOR_BYTES:
        size = nbytes_of(dtype, shape.dimensions) / _GIB
        yield f"{where} takes {size:.1f} GiB, and one tensor has at most {TENSOR_BYTES / _GIB:.0f} [NCC_EVRF023]."
    if list(shape.layout.minor_to_major) != list(reversed(range(len(shape.dimensions)))):
        yield f"{where} does not lie row by row, the last axis innermost, which the compiler wants of all."


def require_accepted(module: Any, name: str, device: str, advice: str = "") -> None:
    """Refuse a module that the compiler would not take.

    Raises:
        CheckFailed: with the first reason, and how many there are.
    """
    faults = list(dict.fromkeys(find_faults(module, device, advice)))
    if faults:
        more = f" ({len(faults)} such places in all)" if len(faults) > 1 else ""
        raise CheckFailed("neuron", f"neuronx-cc would not compile the graph {name} for {device}: {faults[0]}{more}")
