"""What grows while a re-authored network becomes a function of a TFLite model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.tflite.graph import Function, Value
from targets.tflite.ranges import ProductRange
from targets.tflite.weights import Matrix, Weights

# Adds the operators of a part, or of a function of torch: takes the `Lowering`, a part's module, and what it is called with.
Emit = Callable[..., Any]


@dataclass
class Lowering:
    """A function that grows, the parameters, and the part that is lowered.

    Attributes:
        prefix: the part's name in the network.
        longest: tokens of the longest function of the file, for an encoder.
        ranges: of products that are made in whole numbers, by the part's name; empty where none are.
        swapped: what was there before its last two axes were swapped, by the index of the result.
    """

    function: Function
    weights: Weights
    longest: int = 0
    prefix: str = ""
    ranges: Mapping[str, ProductRange] = field(default_factory=dict)
    swapped: dict[int, Value] = field(default_factory=dict)

    def vector(self, name: str, size: int) -> Value:
        """A parameter of the part."""
        return self.weights.vector(self.function, f"{self.prefix}.{name}", size)

    def matrix(self, name: str, shape: Sequence[int], *, looked_up: bool = False) -> Matrix:
        """A matrix of the part."""
        return self.weights.matrix(self.function, f"{self.prefix}.{name}", (shape[0], shape[1]), looked_up=looked_up)

    def filters(self, name: str, shape: Sequence[int]) -> Value:
        """The filters of a convolution, (outputs, inputs, height, width) in the model."""
        return self.weights.filters(self.function, f"{self.prefix}.{name}", shape)

    def values(self, name: str, shape: Sequence[int]) -> Callable[[], NDArray[np.float32]]:
        """What reads a parameter of the part, which becomes a constant in another form."""
        return lambda: self.weights.read(f"{self.prefix}.{name}", shape)
