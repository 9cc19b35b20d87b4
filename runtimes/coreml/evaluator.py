"""An evaluator of Core ML packages: what a package computes, told on any machine from the saved files alone.

It is for checking, not for speed: no figure of time from it is ever a measurement. In `fp16` every result that the program
types float16 is rounded to it, sums being kept wider, as the Neural Engine does; `fp32` shows the program without rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import runtimes.coreml.mil_shapes  # noqa: F401  registers its operators
from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.coreml.calls import open_with
from runtimes.coreml.mil_ops import OPERATORS
from runtimes.coreml.mil_program import (
    BlobValue,
    Function,
    MilPackage,
    Operation,
    Reference,
    TensorType,
    read_blob,
    read_mil,
)
from runtimes.session import EncodingSession, GenerationSession

Precision = Literal["fp16", "fp32"]
# Operators that move values which are rounded already.
_MOVES = frozenset(
    ("concat", "expand_dims", "gather", "identity", "reshape", "slice_by_index", "slice_by_size", "slice_update", "split",
     "squeeze", "stack", "tile", "transpose")
)  # fmt: skip


@dataclass(frozen=True)
class Constant:
    """A constant of a program: its values as they are computed with, and the kinds of operators that take it."""

    name: str
    values: NDArray[np.float32]
    compressed: bool
    takers: tuple[str, ...]


class Evaluator:
    """Runs the functions of a package; states live as long as it does."""

    def __init__(self, folder: Path, precision: Precision = "fp16") -> None:
        self.package: MilPackage = read_mil(folder)
        self.precision = precision
        self._constants: dict[Any, Tensor] = {}
        self._states: dict[str, Tensor] = {}
        self._immediate: dict[int, Tensor] = {}
        self._forget_after = {name: _last_uses(function) for name, function in self.package.functions.items()}
        self._in_place = {name: _state_updates(function) for name, function in self.package.functions.items()}
        for function in self.package.functions.values():
            _require_known(function)

    def reset(self) -> None:
        """Forget all states: zeros, as a fresh `MLState` has."""
        self._states.clear()

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, NDArray[Any]], function: str | None = None) -> dict[str, NDArray[Any]]:
        """Run a function (the default one) and return its outputs by name.

        Raises:
            UnusableInput: an input is missing or has another shape.
        """
        name = function or self.package.default
        program = self.package.functions[name]
        values: dict[str, Any] = {}
        for key, declared in program.inputs.items():
            values[key] = self._state(key, declared) if declared.state else _taken(key, declared, inputs)
        in_place = self._in_place[name]
        for number, (operation, forget) in enumerate(zip(program.operations, self._forget_after[name], strict=True)):
            self._step(operation, values, number in in_place)
            for key in forget:
                del values[key]
        return {key: values[key].numpy() for key in program.outputs}

    def operations(self) -> tuple[Operation, ...]:
        """The operators of the default function, in order."""
        return self.package.functions[self.package.default].operations

    @torch.inference_mode()
    def constants(self) -> Iterator[Constant]:
        """The float constants of the default function, decompressed one by one."""
        takers: dict[str, list[str]] = {}
        for operation in self.operations():
            for held in operation.arguments.values():
                for each in held:
                    if isinstance(each, Reference):
                        takers.setdefault(each.name, []).append(operation.kind)
        for operation in self.operations():
            name, declared = operation.outputs[0] if operation.outputs else ("", None)
            compressed = operation.kind.startswith("constexpr_")
            if (
                declared is None
                or declared.dtype not in ("fp16", "fp32")
                or not (compressed or operation.kind == "const")
            ):
                continue
            values: dict[str, Any] = {}
            self._step(operation, values, in_place=False)
            if len(declared.shape) > 1:
                yield Constant(name, values[name].numpy(), compressed, tuple(takers.get(name, ())))
            self._constants.clear()

    def _state(self, key: str, declared: TensorType) -> Tensor:
        if key not in self._states:
            self._states[key] = torch.zeros(declared.shape)
        return self._states[key]

    def _step(self, operation: Operation, values: dict[str, Any], in_place: bool) -> None:
        kind = operation.kind
        if kind == "write_state":
            name = self._reference(operation, "input")
            self._states[name] = values[name] = self._read(operation.arguments["data"][0], values)
            return
        if kind == "const":
            held = operation.arguments["val"][0]
            values[operation.outputs[0][0]] = self._read(held, values)
            return
        if kind.startswith("constexpr_"):
            values[operation.outputs[0][0]] = self._decompressed(operation, values)
            return
        if kind == "read_state":
            values[operation.outputs[0][0]] = values[self._reference(operation, "input")]
            return
        named = {"in_place": True} if in_place else {}
        results = OPERATORS[kind](**self._arguments(operation, values), **named)
        listed = results if isinstance(results, tuple | list) else (results,)
        for (name, declared), result in zip(operation.outputs, listed, strict=False):
            result = result if kind in _MOVES else self._rounded(result, declared)
            values[name] = result if in_place else self._apart(result)

    def _apart(self, result: Tensor) -> Tensor:
        """A result that does not change when a state is written: a copy where it is a view of one."""
        place = result.untyped_storage().data_ptr()
        states = (state.untyped_storage().data_ptr() for state in self._states.values())
        return result.clone() if place in states else result

    def _reference(self, operation: Operation, parameter: str) -> str:
        held = operation.arguments[parameter][0]
        assert isinstance(held, Reference)
        return held.name

    def _arguments(self, operation: Operation, values: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for parameter, held in operation.arguments.items():
            read = tuple(self._read(each, values) for each in held)
            found[parameter] = read if parameter == "values" else read[0]
        return found

    def _read(self, held: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(held, Reference):
            return values[held.name]
        if isinstance(held, BlobValue):
            key = (*held.key, held.type)
            if key not in self._constants:
                self._constants[key] = _tensor(read_blob(held))
            return self._constants[key]
        if isinstance(held, np.ndarray):
            if id(held) not in self._immediate:
                self._immediate[id(held)] = _tensor(held)
            return self._immediate[id(held)]
        return held

    def _decompressed(self, operation: Operation, values: dict[str, Any]) -> Tensor:
        """A compressed constant, kept decompressed; its parts are not kept."""
        parts = sorted(operation.arguments.items())
        blobs = tuple(each.key for _, held in parts for each in held if isinstance(each, BlobValue))
        key = (operation.kind, blobs, operation.outputs[0][1])
        if key not in self._constants:
            arguments = {
                parameter: _tensor(read_blob(held[0]))
                if isinstance(held[0], BlobValue)
                else self._read(held[0], values)
                for parameter, held in parts
            }
            result = OPERATORS[operation.kind](**arguments)
            self._constants[key] = self._rounded(result, operation.outputs[0][1])
        return self._constants[key]

    def _rounded(self, value: Tensor, declared: TensorType) -> Tensor:
        if declared.dtype == "fp16" and self.precision == "fp16" and value.is_floating_point():
            return value.to(torch.float16).to(torch.float32)
        return value


def _tensor(values: NDArray[Any]) -> Tensor:
    """Floats as float32, integers as int64."""
    if values.dtype.kind == "f":
        return torch.from_numpy(np.array(values, np.float32))
    return torch.from_numpy(np.array(values, np.bool_ if values.dtype.kind == "b" else np.int64))


def _taken(key: str, declared: TensorType, inputs: Mapping[str, NDArray[Any]]) -> Tensor:
    if key not in inputs:
        raise UnusableInput(f"the function has an input {key} that was not given.")
    given = inputs[key]
    fits = given.ndim == len(declared.shape) and all(
        want in (-1, have) for want, have in zip(declared.shape, given.shape, strict=True)
    )
    if not fits:
        raise UnusableInput(
            f"the input {key} has the shape {list(given.shape)}, the package takes {list(declared.shape)}."
        )
    return _tensor(np.asarray(given))


def _require_known(function: Function) -> None:
    """Raise UnusableInput that names the first operator that the evaluator does not have."""
    for operation in function.operations:
        if operation.kind not in OPERATORS and operation.kind not in ("const", "read_state", "write_state"):
            raise UnusableInput(
                f"the evaluator has no operator {operation.kind} ({operation.name} in the function {function.name}). The "
                "package may be right; hold it to the model on macOS."
            )


def _state_updates(function: Function) -> frozenset[int]:
    """Places of `slice_update`s of what was read from a state, whose result is written to that state at once and whose old
    value nothing reads any more: they may write the state itself."""
    read: dict[str, str] = {}
    found = []
    forget = _last_uses(function)
    for number, operation in enumerate(function.operations[:-1]):
        following = function.operations[number + 1]
        if operation.kind == "read_state":
            read[operation.outputs[0][0]] = str(operation.arguments["input"][0])
        if operation.kind != "slice_update" or following.kind != "write_state":
            continue
        old = operation.arguments["x"][0]
        written = following.arguments["data"][0] == Reference(operation.outputs[0][0])
        own = isinstance(old, Reference) and read.get(old.name) == str(following.arguments["input"][0])
        if written and own and isinstance(old, Reference) and old.name in forget[number]:
            found.append(number)
    return frozenset(found)


def _last_uses(function: Function) -> list[tuple[str, ...]]:
    """For each operation the results that nothing after it needs."""
    seen = set(function.outputs) | set(function.inputs)
    forget: list[tuple[str, ...]] = []
    for operation in reversed(function.operations):
        names = {each.name for held in operation.arguments.values() for each in held if isinstance(each, Reference)}
        names |= {name for name, _ in operation.outputs}
        forget.append(tuple(sorted(names - seen)))
        seen |= names
    return forget[::-1]


class EvaluatorCaller:
    """An evaluated .mlpackage, called as `runtimes.coreml.calls` calls any."""

    def __init__(self, folder: Path) -> None:
        self._evaluator = Evaluator(folder)

    def input_shapes(self, function: str | None) -> dict[str, tuple[int, ...]] | None:
        package = self._evaluator.package
        found = package.functions.get(function or package.default)
        return {name: each.shape for name, each in found.inputs.items() if not each.state} if found else None

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, NDArray[Any]], function: str | None) -> dict[str, NDArray[Any]]:
        return self._evaluator.run(inputs, function)

    def reset(self) -> None:
        self._evaluator.reset()


def open_session(package: Package, threads: int) -> GenerationSession | EncodingSession:
    """A session on a Core ML package, evaluated."""
    torch.set_num_threads(threads)
    return open_with(package, EvaluatorCaller)
