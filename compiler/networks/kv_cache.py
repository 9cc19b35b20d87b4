"""What a decoder does with its cache of keys and values, its positions and its mask: parts and functions that lowering knows.

Layouts of the caches, batch 1:

`ane`: keys (layers, context, 1, heads x head_dim), values (layers, heads x head_dim, 1, context), so that a layer of either
is what Apple's per-head products take, with no reshape.
`plain`: keys and values (layers, heads, context, head_dim).
"""

from __future__ import annotations

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


class Rotary(nn.Module):
    """Cosines and signed sines of the rotary embedding for `length` positions from `position` on.

    `ane`: (1, head_dim, 1, length). `plain`: (1, 1, length, head_dim). The sines of the first half are negative, so that
    `x * cos + swapped(x) * sin` turns x. Tables are float32 (context, head_dim).
    """

    def __init__(self, cos: Tensor, sin: Tensor, length: int, layout: Layout) -> None:
        super().__init__()
        self.layout, self.length = layout, length
        self.cos = nn.Buffer(cos, persistent=False)
        self.sin = nn.Buffer(sin, persistent=False)

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor]:
        start = int(position)
        rows = [table[start : start + self.length] for table in (self.cos, self.sin)]
        if self.layout == "ane":
            return rows[0].t()[None, :, None], rows[1].t()[None, :, None]
        return rows[0][None, None], rows[1][None, None]


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


LEAVES = (Rotary, Causal)
