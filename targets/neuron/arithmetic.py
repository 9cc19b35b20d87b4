"""Arithmetic in JAX of operators that Neuron is known to take: no custom calls, no error function, no logistic, no top-k.

Matrices are multiplied in the type of the weights and added up in float32; everything else is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

# Of the exponent of erfc(x) = t exp(-x^2 + P(t)), t = 1 / (1 + x / 2): fractional error below 1.2e-7 (W. H. Press and others,
# Numerical Recipes, "Incomplete Gamma Function, Error Function").
_ERFC = (
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277,
)  # fmt: skip

# Batch, heads, queries, keys. A pooled vector is a product of three axes.
_ATTENTION_AXES = 4


def product(x: Array, y: Array, contracted: tuple[int, int], batch: Sequence[int] = ()) -> Array:
    """The sum over one axis of each of products, in the type of `y`, added up in float32; `batch` are axes of both."""
    x = x.astype(y.dtype)
    precision = lax.Precision.HIGHEST if y.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((contracted[0],), (contracted[1],)), (tuple(batch), tuple(batch)))
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


def matmul(x: Array, y: Array, dtype: str) -> Array:
    """The product of matrices of the same batch axes, both activations; those of attention in the type of the weights."""
    y = y.astype(dtype) if x.ndim == _ATTENTION_AXES else y
    if y.ndim > x.ndim or y.shape[:-2] != x.shape[:-2]:
        y = jnp.broadcast_to(y, (*x.shape[:-2], *y.shape[-2:]))
    batch = tuple(range(x.ndim - 2))
    return product(x, y, (x.ndim - 1, y.ndim - 2), batch)


def gelu(x: Array, approximate: str = "none") -> Array:
    """As torch has it."""
    if approximate == "tanh":
        return 0.5 * x * (1 + jnp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + error_function(x * 0.7071067811865476))


def error_function(x: Array) -> Array:
    """erf, to 2e-7."""
    size = jnp.abs(x)
    t = 1 / (1 + 0.5 * size)
    exponent = jnp.full_like(x, _ERFC[-1])
    for factor in reversed(_ERFC[:-1]):
        exponent = exponent * t + factor
    rest = t * jnp.exp(exponent - size * size)
    return lax.select(x >= 0, 1 - rest, rest - 1)


def sigmoid(x: Array) -> Array:
    """By the hyperbolic tangent, which overflows nowhere."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    return x * sigmoid(x)


def softmax(x: Array, axis: int) -> Array:
    """Over one axis."""
    raised = jnp.exp(x - jnp.max(x, axis, keepdims=True))
    return raised / jnp.sum(raised, axis, keepdims=True)


def rows(table: Array, indices: Array) -> Array:
    """Rows of a table, float32; an index beyond its ends takes the last there."""
    numbers = lax.GatherDimensionNumbers(offset_dims=(indices.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,))
    width = table.shape[1]
    found = lax.gather(table, indices[..., None], numbers, (1, width), mode=lax.GatherScatterMode.CLIP)
    return found.astype(jnp.float32)
