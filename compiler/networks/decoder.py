"""Decoders re-authored for static accelerators: the Llama family and its kin, a fixed number of tokens at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compiler.networks import kv_cache
from compiler.networks.configs import DecoderConfig, Part
from compiler.networks.encoder import ACTIVATIONS
from compiler.networks.parts import Embedding, HeadNorm, Layout, Projection, RmsNorm, TokensOut

# Each rotary table by its name.
Tables = Mapping[str, kv_cache.Rotation]
# Cosines and signed sines for keys, and for queries.
Turn = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """Attention of `length` tokens on the cache, grouped queries."""

    def __init__(self, config: DecoderConfig, layer: int, turned: int, layout: Layout) -> None:
        super().__init__()
        self.layout, self.layer, self.turned = layout, layer, turned
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.scale, self.cap = config.score_scale, config.score_cap
        hidden, width, kv_width = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.query = Projection(hidden, width, layout, config.query_bias)
        self.key = Projection(hidden, kv_width, layout, config.query_bias)
        self.value = Projection(hidden, kv_width, layout, config.query_bias)
        self.output = Projection(width, hidden, layout, config.output_bias)
        norms = config.head_norms
        self.query_norm = HeadNorm(config.head_dim, config.heads, config.eps, layout) if norms else None
        self.key_norm = HeadNorm(config.head_dim, config.kv_heads, config.eps, layout) if norms else None

    def forward(
        self, x: Tensor, turn: Turn, hidden: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        attend = self._by_head if self.layout == "ane" else self._at_once
        mixed, keys, values = attend(query, key, value, turn, hidden, position, keys, values)
        return self.output(mixed), keys, values

    def _turned(self, x: Tensor, heads: int, turn: tuple[Tensor, Tensor], axis: int) -> Tensor:
        """The rotary embedding along `axis`, where `heads` heads lie one after the other."""
        half, rest = self.turned // 2, self.head_dim - self.turned
        sizes = [half, half, rest] if rest else [half, half]
        pieces = torch.split(x, sizes * heads, axis)
        swapped = []
        for head in range(heads):
            at = head * len(sizes)
            swapped += [pieces[at + 1], pieces[at], *((pieces[at + 2],) if rest else ())]
        cos, sin = (torch.cat([each] * heads, axis) for each in turn)
        return x * cos + torch.cat(swapped, axis) * sin

    def _capped(self, scores: Tensor) -> Tensor:
        return scores if self.cap is None else torch.tanh(scores * (1 / self.cap)) * self.cap

    def _by_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        turn: Turn,
        hidden: Tensor,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(1, C, 1, S) throughout; the queries that share a key stand side by side along S."""
        query = self._turned(query, self.heads, turn[1], 1) * self.scale
        key = self._turned(key, self.kv_heads, turn[0], 1).transpose(1, 3)
        keys, all_keys = kv_cache.store(keys, self.layer, 1, position, key)
        values, all_values = kv_cache.store(values, self.layer, 3, position, value)
        queries = torch.split(query, self.head_dim, 1)
        every_key = torch.split(all_keys, self.head_dim, 3)
        every_value = torch.split(all_values, self.head_dim, 1)
        group = self.heads // self.kv_heads
        hidden = torch.cat([hidden] * group, 3)
        mixed = []
        for head in range(self.kv_heads):
            side_by_side = torch.cat([queries[head * group + each] for each in range(group)], 3)
            scores = self._capped(torch.einsum("bchq,bkhc->bkhq", side_by_side, every_key[head])) + hidden
            out = torch.einsum("bkhq,bchk->bchq", torch.softmax(scores, 1), every_value[head])
            parts = torch.chunk(out, group, 3)
            mixed += [parts[each] for each in range(group)]
        return torch.cat(mixed, 1), keys, values

    def _at_once(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        turn: Turn,
        hidden: Tensor,
        position: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        query = self._turned(query.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2), 1, turn[1], 3)
        key = self._turned(key.unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2), 1, turn[0], 3)
        value = value.unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        keys, all_keys = kv_cache.store(keys, self.layer, 2, position, key)
        values, all_values = kv_cache.store(values, self.layer, 2, position, value)
        mixed = kv_cache.attend(query, all_keys, all_values, hidden, self.cap)
        return mixed.transpose(1, 2).flatten(2), keys, values


class Block(nn.Module):
    """Attention and gated feed-forward with their norms. `layer` counts within the part."""

    def __init__(self, config: DecoderConfig, layer: int, turned: int, layout: Layout) -> None:
        super().__init__()
        hidden, wide, stream_eps = config.hidden, config.intermediate, config.eps * config.stream_scale**2
        self.attention_norm = RmsNorm(hidden, stream_eps, layout)
        self.attention = Attention(config, layer, turned, layout)
        self.attention_out_norm = RmsNorm(hidden, config.eps, layout) if config.post_norms else None
        self.mlp_norm = RmsNorm(hidden, stream_eps, layout)
        self.gate = Projection(hidden, wide, layout, config.mlp_bias)
        self.up = Projection(hidden, wide, layout, config.mlp_bias)
        self.down = Projection(wide, hidden, layout, config.mlp_bias)
        self.mlp_out_norm = RmsNorm(hidden, config.eps, layout) if config.post_norms else None
        self.activation = ACTIVATIONS[config.activation]

    def forward(
        self, x: Tensor, turn: Turn, hidden: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, keys, values = self.attention(self.attention_norm(x), turn, hidden, position, keys, values)
        x = x + (mixed if self.attention_out_norm is None else self.attention_out_norm(mixed))
        normed = self.mlp_norm(x)
        fed = self.down(self.activation(self.gate(normed)) * self.up(normed))
        return x + (fed if self.mlp_out_norm is None else self.mlp_out_norm(fed)), keys, values


class Decoder(nn.Module):
    """A part of a decoder for `length` tokens at a time, batch 1.

    Takes `input_ids` int (1, length), or `hidden` in the layout where another part holds the embedding; `position` int (1,),
    the place of the first token; and the caches of this part's layers (compiler/networks/kv_cache.py). Returns logits (1,
    length, vocabulary), or tokens (1, length) with `greedy`, or `hidden` where another part holds the head; and the caches.
    """

    def __init__(
        self, config: DecoderConfig, part: Part, length: int, tables: Tables, layout: Layout, greedy: bool = False
    ) -> None:
        super().__init__()
        self.config, self.part, self.layout, self.greedy = config, part, layout, greedy
        numbers = range(part.first, part.last)
        self.embedding = Embedding(config.vocabulary, config.hidden, layout) if part.embedding else None
        self.rotaries, self.masks = nn.ModuleDict(), nn.ModuleDict()
        for name in sorted({config.rotaries[number] for number in numbers}):
            self.rotaries[f"rotary_{name}"] = kv_cache.Rotary(tables[name], config.head_dim, length, layout)
        for window in sorted({config.windows[number] or 0 for number in numbers}):
            self.masks[f"window_{window}"] = kv_cache.Causal(config.context, length, window or None, layout)
        turned = {name: int(each.cos.shape[1]) for name, each in tables.items()}
        self.blocks = nn.ModuleList(
            Block(config, number - part.first, turned[config.rotaries[number]], layout) for number in numbers
        )
        self.norm = RmsNorm(config.hidden, config.eps * config.stream_scale**2, layout) if part.head else None
        self.head = Projection(config.hidden, config.vocabulary, layout, False) if part.head else None
        self.out = TokensOut(layout)

    def forward(self, tokens: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        x = tokens
        if self.embedding is not None:
            x = self.embedding(tokens)
            if config.embedding_scale != 1.0:
                x = x * config.embedding_scale
        turns = {name: self._turn(rotary(position)) for name, rotary in self.rotaries.items()}
        masks = {name: mask(position) for name, mask in self.masks.items()}
        for block, number in zip(self.blocks, range(self.part.first, self.part.last), strict=True):
            turn = turns[f"rotary_{config.rotaries[number]}"]
            hidden = masks[f"window_{config.windows[number] or 0}"]
            x, keys, values = block(x, turn, hidden, position, keys, values)
        if self.norm is None or self.head is None:
            return x, keys, values
        logits = self.out(self.head(self.norm(x)))
        if config.logit_cap is not None:
            logits = torch.tanh(logits * (1 / config.logit_cap)) * config.logit_cap
        return torch.argmax(logits, 2) if self.greedy else logits, keys, values

    def _turn(self, turn: tuple[Tensor, Tensor]) -> Turn:
        """What keys and queries are turned by: in the layout `plain`, the scale of scores is in what queries are."""
        cos, sin = turn[0], turn[1]
        scale = self.config.score_scale if self.layout == "plain" else 1.0
        return (cos, sin), (cos, sin) if scale == 1.0 else (cos * scale, sin * scale)


def cache_shapes(config: DecoderConfig, part: Part, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the caches of keys and of values of a part."""
    width = config.kv_heads * config.head_dim
    if layout == "ane":
        return (part.layers, config.context, 1, width), (part.layers, width, 1, config.context)
    shape = (part.layers, config.kv_heads, config.context, config.head_dim)
    return shape, shape
