"""LiteRT (TFLite) for encoders with fixed shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.session import EncodingSession


def open_session(package: Package, threads: int) -> EncodingSession:
    """A session on the package's `model.tflite`."""
    return LiteRtSession(package, threads)


class LiteRtSession:
    """An encoder in LiteRT. Inputs and outputs follow the signature in package.json by position."""

    def __init__(self, package: Package, threads: int) -> None:
        try:
            self._interpreter = Interpreter(str(package.artifact), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UnusableInput(
                f"LiteRT cannot load {package.title}: the file is damaged, or has an operator that this release does not "
                "know. Build it again here; --debug shows what it says."
            ) from error
        self.input_names = tuple(port.name for port in package.lowered.main.inputs)
        self._output_names = tuple(port.name for port in package.lowered.main.outputs)
        self._inputs = sorted(self._interpreter.get_input_details(), key=lambda detail: detail["name"])
        self._outputs = self._interpreter.get_output_details()
        self.fixed_sequence_length = self.longest_sequence = package.lowered.shapes.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        for name, detail in zip(self.input_names, self._inputs, strict=True):
            self._interpreter.set_tensor(detail["index"], inputs[name].astype(detail["dtype"], copy=False))
        self._interpreter.invoke()
        values = [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs]
        return dict(zip(self._output_names, values, strict=True))

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._interpreter
