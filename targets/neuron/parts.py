"""The parts of re-authored networks (layout `plain`) in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from compiler.networks import kv_cache, parts, sentence
from compiler.networks.ranks import BY_COLUMN
from targets.neuron import arithmetic
from targets.neuron.ranks import all_gather, all_reduce


@dataclass(frozen=True)
class Weights:
    """The parameters of a network while it is traced, and what each rank does.

    Attributes:
        values: by name.
        ranks: how many cores share the matrices.
        head_by_rank: whether each computes its own part of the logits.
    """

    values: Mapping[str, Array]
    ranks: int
    head_by_rank: bool

    def part(self, prefix: str) -> Part:
        """Those of one part."""
        return Part(self, prefix)


@dataclass(frozen=True)
class Part:
    """The parameters of one part, `prefix` before their names."""

    weights: Weights
    prefix: str

    def __getitem__(self, name: str) -> Array:
        return self.weights.values[f"{self.prefix}.{name}"]

    def vector(self, name: str) -> Array:
        """A parameter as float32."""
        return self[name].astype(jnp.float32)


Emit = Callable[..., Any]


def _projection(module: parts.Projection, own: Part, x: Array) -> Array:
    result = arithmetic.product(x, own["weight"], (x.ndim - 1, 1))
    if own.weights.ranks > 1 and own.prefix.endswith(BY_COLUMN):
        result = all_reduce(result, own.weights.ranks)
    if module.bias is not None:
        result = result + own.vector("bias")
    if own.prefix == "head" and own.weights.head_by_rank:
        result = all_gather(result, own.weights.ranks)
    return result


def _layer_norm(module: parts.LayerNorm, own: Part, x: Array) -> Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + module.eps)
    return normed * own.vector("weight") + own.vector("bias")


def _rms_norm(module: parts.RmsNorm, own: Part, x: Array) -> Array:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + module.eps) * own.vector("weight")


def _head_norm(module: parts.HeadNorm, own: Part, x: Array) -> Array:
    by_head = x.reshape(*x.shape[:-1], module.heads, -1)
    normed = by_head * lax.rsqrt(jnp.mean(by_head * by_head, -1, keepdims=True) + module.eps)
    return (normed * own.vector("weight")).reshape(x.shape)


def _embedding(module: parts.Embedding, own: Part, ids: Array) -> Array:
    return arithmetic.rows(own["weight"], ids)


def _segments(module: parts.Segments, own: Part, ids: Array) -> Array:
    table = own.vector("weight")
    return table[0] + ids.astype(jnp.float32)[:, :, None] * (table[1] - table[0])


def _positions(module: parts.Positions, own: Part, ids: Array) -> Array:
    return own.vector("weight")[module.offset : module.offset + ids.shape[1]][None]


def _attention_mask(module: parts.AttentionMask, own: Part, mask: Array) -> Array:
    return ((1 - mask.astype(jnp.float32)) * parts.MASKED_SCORE)[:, None, None, :]


def _patches(module: parts.Patches, own: Part, picture: Array) -> Array:
    """Patches do not overlap, so the convolution is a product of matrices."""
    batch, channels, height, width = picture.shape
    side, weight = module.size, own["weight"]
    # As a convolution does, what fills no patch is left out.
    height, width = height // side * side, width // side * side
    picture = picture[:, :, :height, :width]
    cut = picture.reshape(batch, channels, height // side, side, width // side, side).transpose(0, 2, 4, 1, 3, 5)
    flat = cut.reshape(batch, -1, channels * side * side)
    patches = arithmetic.product(flat, weight.reshape(weight.shape[0], -1), (2, 1)) + own.vector("bias")
    first = jnp.broadcast_to(own.vector("first"), (batch, 1, weight.shape[0]))
    return jnp.concatenate([first, patches], 1) + own.vector("positions")[None]


def _rotary(module: kv_cache.Rotary, own: Part, position: Array) -> tuple[Array, Array]:
    places = position + jnp.arange(module.length, dtype=jnp.int32)
    cos, sin = (arithmetic.rows(own[name], places)[None, None] for name in ("cos", "sin"))
    return cos, sin


def _causal(module: kv_cache.Causal, own: Part, position: Array) -> Array:
    query = position + lax.broadcasted_iota(jnp.int32, (module.length, module.context), 0)
    ahead = lax.broadcasted_iota(jnp.int32, (module.length, module.context), 1) - query
    hidden = ahead > 0
    if module.window is not None:
        hidden = hidden | (ahead <= -module.window)
    shown = jnp.zeros(hidden.shape, jnp.float32)
    return lax.select(hidden, jnp.full_like(shown, parts.MASKED_SCORE), shown)[None, None]


def _token_weights(module: sentence.TokenWeights, own: Part, mask: Array) -> Array:
    seen = mask.astype(jnp.float32)
    none = jnp.zeros_like(seen[:, :1])
    total = jnp.sum(seen, 1, keepdims=True)
    if module.pooling == "cls":
        weights = seen * (1 - jnp.concatenate([none, seen[:, :-1]], 1))
    elif module.pooling == "lasttoken":
        weights = seen * (1 - jnp.concatenate([seen[:, 1:], none], 1))
    elif module.pooling == "weightedmean":
        counted = seen * (np.arange(1, mask.shape[1] + 1, dtype=np.float32)[None] / mask.shape[1])
        weights = counted / jnp.maximum(jnp.sum(counted, 1, keepdims=True), sentence.LEAST_COUNT)
    elif module.pooling == "mean_sqrt_len_tokens":
        weights = seen * lax.rsqrt(jnp.maximum(total, 1.0))
    else:
        weights = seen / jnp.maximum(total, 1.0)
    return weights[:, None, :]


def _largest_values(module: sentence.LargestValues, own: Part, x: Array, mask: Array) -> Array:
    hidden = (1 - mask.astype(jnp.float32)) * parts.MASKED_SCORE
    return jnp.max(x + hidden[:, :, None], 1)


def _length_one(module: sentence.LengthOne, own: Part, x: Array) -> Array:
    scaled = x / jnp.maximum(jnp.max(jnp.abs(x), 1, keepdims=True), sentence.LEAST_SQUARES)
    return scaled * lax.rsqrt(jnp.maximum(jnp.sum(scaled * scaled, 1, keepdims=True), sentence.LEAST_SQUARES))


EMITS: Mapping[type, Emit] = {
    parts.Projection: _projection,
    parts.LayerNorm: _layer_norm,
    parts.RmsNorm: _rms_norm,
    parts.HeadNorm: _head_norm,
    parts.Embedding: _embedding,
    parts.Segments: _segments,
    parts.Positions: _positions,
    parts.AttentionMask: _attention_mask,
    parts.Patches: _patches,
    parts.TokensOut: lambda module, own, x: x,
    parts.FirstToken: lambda module, own, x: x[:, :1],
    parts.OneOut: lambda module, own, x: x[:, 0],
    kv_cache.Rotary: _rotary,
    kv_cache.Causal: _causal,
    sentence.TokenWeights: _token_weights,
    sentence.LargestValues: _largest_values,
    sentence.LengthOne: _length_one,
}
