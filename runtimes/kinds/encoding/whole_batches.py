"""Packages that take exactly so many inputs at once, used with any number of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.package import Package
from runtimes.session import EncodingSession


class WholeBatches:
    """An encoder whose artifact has a fixed batch. The last batch is filled up with its first input again."""

    def __init__(self, session: EncodingSession, batch: int) -> None:
        self._session = session
        self._batch = batch
        self.input_names = session.input_names
        self.fixed_sequence_length = session.fixed_sequence_length
        self.longest_sequence = session.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        count = len(next(iter(inputs.values())))
        starts = range(0, count, self._batch)
        parts = [
            self._run_once({name: value[at : at + self._batch] for name, value in inputs.items()}) for at in starts
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_once(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        count = len(next(iter(inputs.values())))
        filler = self._batch - count
        full = {name: np.concatenate([value, np.repeat(value[:1], filler, 0)]) for name, value in inputs.items()}
        return {name: value[:count] for name, value in self._session.run(full).items()}

    def tokenize(self, text: str) -> list[int] | None:
        return self._session.tokenize(text)

    def close(self) -> None:
        self._session.close()


def in_whole_batches(session: EncodingSession, package: Package) -> EncodingSession:
    """The session, for any number of inputs where the package's own number is fixed and not 1."""
    batch = package.lowered.shapes.batch
    return WholeBatches(session, batch) if batch is not None and batch > 1 else session
