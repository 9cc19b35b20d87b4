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
    """An encoder in LiteRT, called by the signature that package.json names."""

    def __init__(self, package: Package, threads: int) -> None:
        try:
            self._interpreter = Interpreter(str(package.artifact), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UnusableInput(
                f"LiteRT cannot load {package.title}: the file is damaged, or has an operator that this release does not "
                "know. Build it again here; --debug shows what it says."
            ) from error
        graph = package.lowered.main
        self.input_names = tuple(port.name for port in graph.inputs)
        signatures = self._interpreter.get_signature_list()
        wanted = {"inputs": sorted(self.input_names), "outputs": sorted(port.name for port in graph.outputs)}
        found = {side: sorted(names) for side, names in signatures.get(graph.name, {}).items()}
        if found != wanted:
            raise UnusableInput(
                f"{package.title} has no signature {graph.name} with the inputs and outputs that its package.json names. "
                "Build it again."
            )
        self._main = self._interpreter.get_signature_runner(graph.name)
        details = self._main.get_input_details()
        self._types = {name: details[name]["dtype"] for name in self.input_names}
        self.fixed_sequence_length = self.longest_sequence = package.lowered.shapes.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        taken = {name: inputs[name].astype(self._types[name], copy=False) for name in self.input_names}
        given: dict[str, NDArray[np.float32]] = self._main(**taken)
        return given

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._main, self._interpreter
