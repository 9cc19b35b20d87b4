"""How a Core ML package of edgec is called, on macOS and in the evaluator alike: chunks for prefill, positions, caches, parts.

Whoever runs one .mlpackage is a Caller; the sessions here know what its functions mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.package import Graph, Package
from compiler.task import GENERATION, find_task
from runtimes.lengths import chunk_length, require_room, run_padded
from runtimes.session import EncodingSession, GenerationSession
from runtimes.text import HuggingFaceText

CACHES = ("keys", "values")


class Caller(Protocol):
    """One .mlpackage."""

    def input_shapes(self, function: str | None) -> dict[str, tuple[int, ...]] | None:
        """Shapes of a function's inputs, states left out; None when there is no such function."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]], function: str | None) -> dict[str, NDArray[Any]]:
        """Outputs by name. States live in the caller."""
        ...

    def reset(self) -> None:
        """Forget all states."""
        ...


class EncoderCalls:
    """An encoder, of one length or of any of a few."""

    def __init__(self, package: Package, caller: Caller) -> None:
        self._caller = caller
        shapes = caller.input_shapes(None) or {}
        self.input_names = tuple(shapes)
        first = next(iter(shapes.values()))
        lengths = package.lowered.shapes.sequence_lengths
        self._lengths = lengths if len(lengths) > 1 else ()
        self.fixed_sequence_length: int | None = first[1] if len(first) == 2 and not self._lengths else None
        self.longest_sequence: int | None = max(self._lengths) if self._lengths else self.fixed_sequence_length

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        given = {name: inputs[name] for name in self.input_names}
        if self._lengths:
            return run_padded(lambda padded, _: self._caller.run(padded, None), given, self._lengths)
        return {name: np.asarray(value, np.float32) for name, value in self._caller.run(given, None).items()}

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._caller


class DecoderCalls:
    """A language model, in one part or several."""

    def __init__(self, package: Package, callers: Sequence[Caller]) -> None:
        self._callers = callers
        self._folder = package.folder
        shapes = package.lowered.shapes
        assert shapes.context_length is not None and shapes.vocabulary is not None
        self.context_length, self.vocabulary = shapes.context_length, shapes.vocabulary
        # Tokens that each function takes at a time, and its name.
        self._names = {self._tokens(graph): graph.function for graph in package.lowered.graphs}
        self._caches: list[dict[str, NDArray[Any]]] = [{} for _ in callers]
        self._position = 0

    @cached_property
    def text(self) -> HuggingFaceText:
        """The files in the package; what is only measured needs no tokenizer."""
        return HuggingFaceText(self._folder)

    @staticmethod
    def _tokens(graph: Graph) -> int:
        ids = next(port for port in graph.inputs if port.name == "input_ids")
        return int(ids.shape[1])

    def _run(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Take tokens after those that are there; logits after each of them."""
        require_room(self._position + len(token_ids), self.context_length)
        rows = []
        start = 0
        while start < len(token_ids):
            length = chunk_length(len(token_ids) - start, self._position, self._names, self.context_length)
            chunk = list(token_ids[start : start + length])
            rows.append(self._step([*chunk, *[0] * (length - len(chunk))])[: len(chunk)])
            start += len(chunk)
            self._position += len(chunk)
        return np.concatenate(rows)

    def _step(self, chunk: list[int]) -> NDArray[np.float32]:
        function = self._names[len(chunk)]
        flowing: dict[str, NDArray[Any]] = {"input_ids": np.asarray([chunk], np.int32)}
        for caller, caches in zip(self._callers, self._caches, strict=True):
            shapes = caller.input_shapes(function) or {}
            for name in CACHES:
                if name in shapes and name not in caches:
                    caches[name] = np.zeros(shapes[name], np.float16)
            inputs = {**flowing, **caches}
            if "position" in shapes:
                inputs["position"] = np.asarray([self._position], np.int32)
            flowing = caller.run(inputs, function)
            for name in CACHES:
                if f"new_{name}" in flowing:
                    caches[name] = flowing.pop(f"new_{name}")
        if "token" in flowing:
            return self._certain(flowing["token"][0])
        return np.asarray(flowing["logits"][0], np.float32)

    def _certain(self, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of which one is 0 and the others far below, where the package tells only the most probable token."""
        logits = np.full((len(tokens), self.vocabulary), -1e4, np.float32)
        logits[np.arange(len(tokens)), tokens.astype(np.int64)] = 0
        return logits

    def reset(self) -> None:
        self._position = 0
        for caller, caches in zip(self._callers, self._caches, strict=True):
            caller.reset()
            caches.clear()

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._run(token_ids)[-1]

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self._run(token_ids)

    def close(self) -> None:
        del self._callers


def open_with(package: Package, call: Callable[[Path], Caller]) -> GenerationSession | EncodingSession:
    """A session on a package whose files are opened by `call`, in the order in which they run."""
    callers = [call(package.folder / name) for name in package.lowered.main.files]
    if find_task(package.model.task).kind == GENERATION:
        return DecoderCalls(package, callers)
    return EncoderCalls(package, callers[0])
