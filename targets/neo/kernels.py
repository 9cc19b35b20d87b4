"""Kernels as tensor expressions of TVM: what they compute. How they run is told by schedules.py, which knows them by name.

Every product is followed by a copy of its sums, into which TVM fuses what comes after it, and whose loops the schedule tiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te

# Names of the blocks that hold the sums.
PACKED, SCORES, MIXED, CONVOLVED = "packed_product", "attention_scores", "attention_mix", "packed_convolution"
PRODUCTS = (PACKED, SCORES, MIXED, CONVOLVED)


def pack(weight: NDArray[Any], columns: int) -> NDArray[Any]:
    """(inputs, outputs) as (tiles, inputs, columns): each tile's columns lie side by side; the last is filled with zeros."""
    inputs, outputs = weight.shape
    filled = np.pad(weight, ((0, 0), (0, -outputs % columns)))
    return np.ascontiguousarray(filled.reshape(inputs, -1, columns).transpose(1, 0, 2))


def packed_product(x: Any, packed: Any) -> Any:
    """(..., inputs) x packed: (..., tiles * columns), float32 whatever the weights are stored in."""
    columns = int(packed.shape[2])
    tiles = int(packed.shape[0])
    k = te.reduce_axis((0, x.shape[-1]), "k")
    rows = x.shape[:-1]

    def summed(*at: Any) -> Any:
        weight = packed[at[-1] // columns, k, at[-1] % columns]
        return te.sum(x(*at[:-1], k) * (weight if packed.dtype == "float32" else weight.astype("float32")), axis=k)

    sums = te.compute((*rows, tiles * columns), summed, PACKED)
    return te.compute(sums.shape, lambda *at: sums(*at), "copied")


def pack_filters(weight: NDArray[Any], columns: int) -> NDArray[Any]:
    """(outputs, inputs, height, width) as (tiles, inputs, height, width, columns), the last tile filled with zeros."""
    outputs = len(weight)
    filled = np.pad(weight, ((0, -outputs % columns), (0, 0), (0, 0), (0, 0)))
    return np.ascontiguousarray(filled.reshape(-1, columns, *weight.shape[1:]).transpose(0, 2, 3, 4, 1))


def packed_convolution(x: Any, packed: Any, strides: tuple[int, int], outputs: int) -> Any:
    """Filters over (batch, inputs, height, width), padded already: (batch, outputs, rows, columns)."""
    batch, inputs, height, width = x.shape
    _, _, filter_height, filter_width, columns = packed.shape
    rows = (int(height) - int(filter_height)) // strides[0] + 1
    places = (int(width) - int(filter_width)) // strides[1] + 1
    i = te.reduce_axis((0, inputs), "i")
    dy, dx = te.reduce_axis((0, filter_height), "dy"), te.reduce_axis((0, filter_width), "dx")

    def summed(n: Any, y: Any, at: Any, o: Any) -> Any:
        weight = packed[o // columns, i, dy, dx, o % columns]
        value = x[n, i, y * strides[0] + dy, at * strides[1] + dx]
        return te.sum(value * (weight if packed.dtype == "float32" else weight.astype("float32")), axis=[i, dy, dx])

    sums = te.compute((batch, rows, places, int(packed.shape[0]) * int(columns)), summed, CONVOLVED)
    return te.compute((batch, outputs, rows, places), lambda n, o, y, at: sums[n, y, at, o], "copied")


def keys_turned(mixed: Any, heads: int, width: int, first: int) -> Any:
    """Keys of (batch, tokens, channels) from channel `first` on, as (batch, heads, width, tokens)."""
    batch, tokens = mixed.shape[:2]
    return te.compute(
        (batch, heads, width, tokens), lambda b, h, d, j: mixed[b, j, first + h * width + d], "keys_turned"
    )


def attention_scores(mixed: Any, keys: Any, mask: Any, scale: float) -> Any:
    """Scores (batch, heads, queries, keys), the mask (batch, keys) added; queries are the first channels of `mixed`."""
    batch, heads, width, tokens = keys.shape
    d = te.reduce_axis((0, width), "d")
    sums = te.compute(
        (batch, heads, tokens, tokens),
        lambda b, h, i, j: te.sum(mixed[b, i, h * width + d] * keys[b, h, d, j], axis=d),
        SCORES,
    )
    factor = np.float32(scale)
    return te.compute(sums.shape, lambda b, h, i, j: sums[b, h, i, j] * factor + mask[b, j], "scaled")


def attention_mix(shares: Any, mixed: Any, width: int, first: int) -> Any:
    """Values, the channels of `mixed` from `first` on, mixed by shares: (batch, tokens, heads, width)."""
    batch, heads, tokens, _ = shares.shape
    j = te.reduce_axis((0, tokens), "j")
    sums = te.compute(
        (batch, tokens, heads, width),
        lambda b, i, h, c: te.sum(shares[b, h, i, j] * mixed[b, j, first + h * width + c], axis=j),
        MIXED,
    )
    return te.compute(sums.shape, lambda *at: sums(*at), "copied")
