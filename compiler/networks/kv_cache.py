"""What a decoder does with its cache of keys and values, its positions and its mask: parts and functions that lowering knows.

Layouts of the caches, batch 1:

`ane`: keys (layers, context, 1, heads x head_dim), values (layers, heads x head_dim, 1, context), so that a layer of either
is what Apple's per-head products take, with no reshape.
`plain`: keys and values (layers, heads, context, head_dim).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.networks.parts import MASKED_SCORE, Layout


@torch.fx.wrap
def store(cache: Tensor, layer: int, axis: int, position: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Put `new` into one layer of a cache from `position` on along `axis`; return the cache and that layer of it.

    Args:
        cache: (layers, a, b, c).
        layer: which layer.
        axis: 1 to 3, the axis of positions.
        position: int (1,).
        new: (1, a, b, c) but for the axis of positions.
    """
    start = int(position)
    updated = cache.clone()
    updated[layer].narrow(axis - 1, start, new.shape[axis]).copy_(new[0])
    return updated, updated[layer : layer + 1]


@torch.fx.wrap
def attend(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, cap: float | None) -> Tensor:
    """Attention of the layout `plain`, each run of query heads on one head of keys and values.

    Args:
        query: (1, heads, length, head_dim), scaled.
        keys, values: (1, kv_heads, context, head_dim).
        hidden: (1, 1, length, context), added to the scores.
        cap: c of c * tanh(scores / c); None without.

    Returns:
        (1, heads, length, head_dim).
    """
    group = query.shape[1] // keys.shape[1]
    mixed = []
    for head, queries in enumerate(torch.split(query, group, 1)):
        scores = torch.matmul(queries, keys[:, head : head + 1].transpose(2, 3))
        scores = scores if cap is None else torch.tanh(scores * (1 / cap)) * cap
        mixed.append(torch.matmul(torch.softmax(scores + hidden, 3), values[:, head : head + 1]))
    return torch.cat(mixed, 1)


@dataclass(frozen=True)
class Rotation:
    """A rotary embedding: what it turns by, and the tables that follow.

    Attributes:
        cos, sin: cosines and signed sines, float32 (context, turned width).
        frequencies: radians a position, float32 (turned width / 2,).
        factor: what cosines and sines are multiplied with.
    """

    cos: Tensor
    sin: Tensor
    frequencies: Tensor
    factor: float


class Rotary(nn.Module):
    """Cosines and signed sines of the rotary embedding for `length` positions from `position` on.

    `ane`: (1, head_dim, 1, length). `plain`: (1, 1, length, head_dim). The sines of the first half are negative, so that
    `x * cos + swapped(x) * sin` turns x. Channels that do not turn have cosines of 1.
    """

    def __init__(self, rotation: Rotation, head_dim: int, length: int, layout: Layout) -> None:
        super().__init__()
        self.layout, self.length, self.rotation = layout, length, rotation
        self.cos = nn.Buffer(_padded(rotation.cos, head_dim, 1.0), persistent=False)
        self.sin = nn.Buffer(_padded(rotation.sin, head_dim, 0.0), persistent=False)

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor]:
        start = int(position)
        rows = [table[start : start + self.length] for table in (self.cos, self.sin)]
        if self.layout == "ane":
            return rows[0].t()[None, :, None], rows[1].t()[None, :, None]
        return rows[0][None, None], rows[1][None, None]


def _padded(table: Tensor, width: int, fill: float) -> Tensor:
    """A rotary table with the columns that do not turn."""
    rest = width - table.shape[1]
    return torch.cat([table, torch.full((len(table), rest), fill, device=table.device)], 1) if rest else table


class Causal(nn.Module):
    """What is added to scores of `length` queries from `position` on, over all keys of the cache.

    `MASKED_SCORE` for keys after the query, and for those that a sliding window has left behind. `ane`: (1, context, 1,
    length). `plain`: (1, 1, length, context). It is a slice of a fixed table of 2 * context rows, so that no accelerator
    has to compare integers.
    """

    def __init__(self, context: int, length: int, window: int | None, layout: Layout) -> None:
        super().__init__()
        self.context, self.length, self.window, self.layout = context, length, window, layout

    def table(self) -> Tensor:
        """float32 (2 * context, length): row context - position + key, column query."""
        ahead = torch.arange(2 * self.context)[:, None] - self.context - torch.arange(self.length)[None]
        hidden = ahead > 0
        if self.window is not None:
            hidden |= ahead <= -self.window
        return hidden * MASKED_SCORE

    def forward(self, position: Tensor) -> Tensor:
        start = self.context - int(position)
        rows = self.table()[start : start + self.context]
        return rows[None, :, None] if self.layout == "ane" else rows.t()[None, None]
