"""StoredMatrix: a matrix as a package stores it, and what its runtime rounds beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rounding:
    """What a runtime rounds the other factor of a product to, before or while it multiplies.

    Attributes:
        to: the type; `uint8` has a range that need not lie around zero.
        group: values along a row that share a scale and a range, 0 for all values together; of integers only.
        results: what comes out is rounded alike.
        span: least and largest of the range, where it is fixed beforehand; None where it is that of the values.
        result_spans: the same of each output, in the order of rows; empty where results are not rounded so.
        attention: queries, keys, shares and values are rounded so too.
    """

    to: Literal["float32", "float16", "bfloat16", "int8", "uint8"] = "float32"
    group: int = 0
    results: bool = False
    span: tuple[float, float] | None = None
    result_spans: tuple[tuple[float, float], ...] = ()
    attention: bool = False


EXACT = Rounding()


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix of a package, dequantized by the rules of its format.

    Attributes:
        name: as the package has it.
        values: float32 (rows, columns), rows being outputs or tokens; or turned, where the format has it so.
        looked_up: rows of it are looked up.
        multiplied: it is a factor of a product.
        quantized: it is stored in codes.
        rounding: what the other factor of that product is rounded to.
    """

    name: str
    values: NDArray[np.float32]
    looked_up: bool
    multiplied: bool
    quantized: bool
    rounding: Rounding = EXACT
