"""Activations of all calibration samples, kept on disk and mapped: they cost page cache, not memory of the process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Activations:
    """One tensor of (samples, positions, size) float32 in a file.

    Attributes:
        path: the file.
        samples, positions, size: its shape.
    """

    path: Path
    samples: int
    positions: int
    size: int

    def create(self) -> None:
        """Make the file, sparse."""
        with self.path.open("wb") as file:
            file.truncate(4 * self.samples * self.positions * self.size)

    def write(self, start: int, values: Tensor) -> None:
        """Store `values` (n, positions, size) as the samples from `start`."""
        mapped = np.memmap(self.path, np.float32, "r+", 0, (self.samples, self.positions, self.size))
        mapped[start : start + len(values)] = values.reshape(len(values), self.positions, self.size).numpy()

    def read(self, start: int, end: int) -> Tensor:
        """The samples from `start` to `end`, as a copy."""
        mapped = np.memmap(self.path, np.float32, "r", 0, (self.samples, self.positions, self.size))
        return torch.from_numpy(np.array(mapped[start:end]))

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)
