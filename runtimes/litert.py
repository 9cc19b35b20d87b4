"""LiteRT (TFLite) for encoders with fixed shapes: of one length, or of a few, each with its signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.package import Graph, Package
from runtimes.lengths import run_padded
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
        self.input_names = tuple(port.name for port in package.lowered.main.inputs)
        self._graphs, shapes = package.lowered.graphs, package.lowered.shapes
        signatures = self._interpreter.get_signature_list()
        for graph in self._graphs:
            self._require(package, graph, signatures.get(graph.name, {}))
        self._lengths = shapes.sequence_lengths if len(self._graphs) > 1 else ()
        self._runners: dict[str, Any] = {}
        self.longest_sequence = shapes.longest_sequence
        self.fixed_sequence_length = None if self._lengths else shapes.longest_sequence

    def _require(self, package: Package, graph: Graph, signature: Mapping[str, Sequence[str]]) -> None:
        wanted = {
            "inputs": sorted(port.name for port in graph.inputs),
            "outputs": sorted(port.name for port in graph.outputs),
        }
        if {side: sorted(names) for side, names in signature.items()} != wanted:
            raise UnusableInput(
                f"{package.title} has no signature {graph.name} with the inputs and outputs that its package.json names. "
                "Build it again."
            )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        given = {name: inputs[name] for name in self.input_names}
        if not self._lengths:
            return self._call(self._graphs[0], given)
        by_length = dict(zip(self._lengths, self._graphs, strict=True))
        return run_padded(lambda padded, length: self._call(by_length[length], padded), given, self._lengths)

    def _call(self, graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """A signature takes memory when it is called first."""
        if graph.name not in self._runners:
            self._runners[graph.name] = self._interpreter.get_signature_runner(graph.name)
        taken = {port.name: inputs[port.name].astype(port.dtype, copy=False) for port in graph.inputs}
        given: dict[str, NDArray[np.float32]] = self._runners[graph.name](**taken)
        return given

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._runners, self._interpreter
