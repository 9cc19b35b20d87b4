"""Sessions on graphs of fixed shapes: an encoder's, one for each length, and a language model's, `prefill` and `decode`.

What runs the graphs is another's: XLA on the CPU (xla.py), or Neuron's runtime (nrt.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.package import Package
from compiler.task import GENERATION, find_task
from runtimes.lengths import chunk_length, require_room, run_padded
from runtimes.session import EncodingSession, GenerationSession
from runtimes.text import HuggingFaceText


class Graphs(Protocol):
    """The graphs of a package, ready to be called."""

    names: tuple[str, ...]

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]], states: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """The results of a graph by name, in float32; states are changed, and begin as zeros where they are not there."""


def session_on(package: Package, graphs: Graphs) -> GenerationSession | EncodingSession:
    """The session of the package's task."""
    if find_task(package.model.task).kind == GENERATION:
        return DecoderSession(package, graphs)
    return EncoderSession(package, graphs)


class EncoderSession:
    """An encoder, of one length or of any of a few."""

    def __init__(self, package: Package, graphs: Graphs) -> None:
        self._called = graphs
        self.input_names = tuple(port.name for port in package.lowered.main.inputs)
        shapes = package.lowered.shapes
        self._graphs = dict(zip(shapes.sequence_lengths, graphs.names, strict=False)) or {0: package.lowered.main.name}
        self.longest_sequence = shapes.longest_sequence
        self.fixed_sequence_length = None if len(self._graphs) > 1 else shapes.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        given = {name: inputs[name] for name in self.input_names}
        if len(self._graphs) > 1:
            return run_padded(lambda padded, length: self._call(padded, length), given, tuple(self._graphs))
        return self._call(given, next(iter(self._graphs)))

    def _call(self, inputs: Mapping[str, NDArray[Any]], length: int) -> dict[str, NDArray[Any]]:
        return self._called.run(self._graphs[length], inputs, {})

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._called


class DecoderSession:
    """A language model with its cache: chunks of what `prefill` takes, then tokens one by one."""

    def __init__(self, package: Package, graphs: Graphs) -> None:
        self._called, self._folder = graphs, package.folder
        shapes = package.lowered.shapes
        assert shapes.context_length is not None and shapes.vocabulary is not None
        self.context_length, self.vocabulary = shapes.context_length, shapes.vocabulary
        self._graphs = {
            int(port.shape[1]): graph.name
            for graph in package.lowered.graphs
            for port in graph.inputs
            if port.name == "input_ids"
        }
        self._states: dict[str, Any] = {}
        self._position = 0

    @cached_property
    def text(self) -> HuggingFaceText:
        """The files in the package."""
        return HuggingFaceText(self._folder)

    def _take(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        require_room(self._position + len(token_ids), self.context_length)
        rows, start = [], 0
        while start < len(token_ids):
            length = chunk_length(len(token_ids) - start, self._position, self._graphs, self.context_length)
            chunk = list(token_ids[start : start + length])
            ids = np.asarray([[*chunk, *[0] * (length - len(chunk))]], np.int32)
            inputs = {"input_ids": ids, "position": np.asarray([self._position], np.int32)}
            found = self._called.run(self._graphs[length], inputs, self._states)
            rows.append(found["logits"][0, : len(chunk)])
            start += len(chunk)
            self._position += len(chunk)
        return np.concatenate(rows)

    def reset(self) -> None:
        self._position = 0
        self._states.clear()

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._take(token_ids)[-1]

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self._take(token_ids)

    def close(self) -> None:
        del self._called
