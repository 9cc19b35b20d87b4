"""Core ML itself, on macOS. What a package's functions mean stands in calls.py; here are the calls to coremltools."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.coreml.calls import open_with
from runtimes.session import EncodingSession, GenerationSession


class CoreMlCaller:
    """One .mlpackage in Core ML. Each function is a model of its own; they share one state."""

    def __init__(self, folder: Path, library: Any) -> None:
        self._folder, self._library = folder, library
        self._models: dict[str | None, Any] = {}
        self._state: Any = None

    def _model(self, function: str | None) -> Any:
        if function not in self._models:
            named = {"function_name": function} if function is not None else {}
            units = self._library.ComputeUnit.ALL
            self._models[function] = self._library.models.MLModel(str(self._folder), compute_units=units, **named)
        return self._models[function]

    def input_shapes(self, function: str | None) -> dict[str, tuple[int, ...]] | None:
        description = self._library.models.utils.load_spec(str(self._folder)).description
        if function is not None:
            description = next((each for each in description.functions if each.name == function), None)
        elif description.functions:
            description = next(each for each in description.functions if each.name == description.defaultFunctionName)
        if description is None:
            return None
        return {each.name: tuple(int(size) for size in each.type.multiArrayType.shape) for each in description.input}

    def run(self, inputs: Mapping[str, NDArray[Any]], function: str | None) -> dict[str, NDArray[Any]]:
        model = self._model(function)
        given = {name: np.asarray(value, _framework_dtype(value)) for name, value in inputs.items()}
        if self._has_state(model):
            if self._state is None:
                self._state = model.make_state()
            return dict(model.predict(given, state=self._state))
        return dict(model.predict(given))

    def _has_state(self, model: Any) -> bool:
        description = model.get_spec().description
        return any(len(each.state) for each in (description, *description.functions))

    def reset(self) -> None:
        self._state = None


def _framework_dtype(value: NDArray[Any]) -> Any:
    """Core ML's arrays hold int32, float16 and float32."""
    return np.int32 if value.dtype.kind in "iub" else value.dtype


def open_session(package: Package, threads: int) -> GenerationSession | EncodingSession:
    """A session on macOS; the system chooses its own threads.

    Raises:
        UnusableInput: this is not macOS.
    """
    if sys.platform != "darwin":
        raise UnusableInput(
            f"{package.title} runs in Core ML, which needs macOS. Here `edgec verify` and `edgec run` evaluate it instead."
        )
    import coremltools

    return open_with(package, lambda folder: CoreMlCaller(folder, coremltools))
