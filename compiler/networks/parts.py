"""The parts that re-authored networks are made of, in two layouts.

`plain` tensors are (B, S, C). `ane` tensors are (B, C, 1, S), as Apple's "Deploying Transformers on the Apple Neural
Engine" lays them out: the engine pads the last axis to 64 bytes and works on channels, so the long sequence axis comes last
and every projection is a 1x1 convolution. Parameters have the same names and shapes in both.

Each class here is a leaf to whoever lowers a network (compiler/networks/interpret.py): it becomes a known, small group of the
target's operators.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Layout = Literal["plain", "ane"]
# Added to the scores of keys that must not be seen. float16 holds it, and its exponential is 0 there; -inf would become NaN
# on the Neural Engine where a whole row is hidden.
MASKED_SCORE = -1e4


class Projection(nn.Module):
    """y = W x + b along the channels; weight (outputs, inputs), bias (outputs,)."""

    def __init__(self, inputs: int, outputs: int, layout: Layout, bias: bool = True) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "ane":
            return functional.conv2d(x, self.weight[:, :, None, None], self.bias)
        return functional.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer norm along the channels."""

    def __init__(self, channels: int, eps: float, layout: Layout) -> None:
        super().__init__()
        self.layout, self.eps = layout, eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.layout == "ane" else -1
        centred = x - x.mean(axis, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(axis, keepdim=True) + self.eps)
        return normed * along_channels(self.weight, self.layout) + along_channels(self.bias, self.layout)


class RmsNorm(nn.Module):
    """Root-mean-square norm along the channels."""

    def __init__(self, channels: int, eps: float, layout: Layout) -> None:
        super().__init__()
        self.layout, self.eps = layout, eps
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.layout == "ane" else -1
        normed = x * torch.rsqrt(x.square().mean(axis, keepdim=True) + self.eps)
        return normed * along_channels(self.weight, self.layout)


class HeadNorm(nn.Module):
    """Root-mean-square norm of each head for itself, heads lying one after the other along the channels."""

    def __init__(self, head_dim: int, heads: int, eps: float, layout: Layout) -> None:
        super().__init__()
        self.layout, self.eps, self.heads = layout, eps, heads
        self.weight = nn.Parameter(torch.empty(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.layout == "ane" else -1
        by_head = x.unflatten(axis, (self.heads, self.weight.shape[0]))
        over = 2 if self.layout == "ane" else -1
        normed = by_head * torch.rsqrt(by_head.square().mean(over, keepdim=True) + self.eps)
        weight = self.weight[None, None, :, None, None] if self.layout == "ane" else self.weight
        return (normed * weight).reshape(x.shape)


class Embedding(nn.Module):
    """Rows of a table by int ids (B, S); weight (rows, channels)."""

    def __init__(self, rows: int, channels: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(rows, channels))

    def forward(self, ids: Tensor) -> Tensor:
        return channels_at_home(functional.embedding(ids, self.weight), self.layout)


class Segments(nn.Module):
    """Rows of a table of two by 0 or 1 (B, S), as arithmetic, so that no look-up is needed; weight (2, channels)."""

    def __init__(self, channels: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(2, channels))

    def forward(self, ids: Tensor) -> Tensor:
        chosen = ids.to(self.weight.dtype)
        chosen = chosen[:, None, None, :] if self.layout == "ane" else chosen[:, :, None]
        step = along_channels(self.weight[1] - self.weight[0], self.layout)
        return along_channels(self.weight[0], self.layout) + chosen * step


class Positions(nn.Module):
    """The first rows of a table, as many as there are ids (B, S), from `offset` on; weight (rows, channels)."""

    def __init__(self, rows: int, channels: int, offset: int, layout: Layout) -> None:
        super().__init__()
        self.layout, self.offset = layout, offset
        self.weight = nn.Parameter(torch.empty(rows, channels))

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight[self.offset : self.offset + ids.shape[1]]
        return channels_at_home(rows[None], self.layout)


class AttentionMask(nn.Module):
    """What is added to scores for a mask (B, S) of 0 and 1: `MASKED_SCORE` at 0.

    `ane`: (B, S, 1, 1), since keys lie on the second axis of its scores. `plain`: (B, 1, 1, S).
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, mask: Tensor) -> Tensor:
        hidden = (1.0 - mask.to(torch.float32)) * MASKED_SCORE
        return hidden[:, :, None, None] if self.layout == "ane" else hidden[:, None, None, :]


class Patches(nn.Module):
    """A picture (B, channels, height, width) as patches with a class token before them and positions added.

    weight (hidden, channels, size, size), bias (hidden,), first (hidden,), positions (patches + 1, hidden).
    """

    def __init__(self, channels: int, size: int, patches: int, hidden: int, layout: Layout) -> None:
        super().__init__()
        self.layout, self.size = layout, size
        self.weight = nn.Parameter(torch.empty(hidden, channels, size, size))
        self.bias = nn.Parameter(torch.empty(hidden))
        self.first = nn.Parameter(torch.empty(hidden))
        self.positions = nn.Parameter(torch.empty(patches + 1, hidden))

    def forward(self, picture: Tensor) -> Tensor:
        patches = functional.conv2d(picture, self.weight, self.bias, stride=self.size).flatten(2)
        first = self.first[None, :, None].expand(patches.shape[0], -1, 1)
        joined = torch.cat([first, patches], 2) + self.positions.t()[None]
        return joined[:, :, None, :] if self.layout == "ane" else joined.transpose(1, 2)


class TokensOut(nn.Module):
    """Token vectors as the world expects them: (B, S, C)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(2).transpose(1, 2) if self.layout == "ane" else x


class FirstToken(nn.Module):
    """The first token alone, its axis kept: (B, C, 1, 1) or (B, 1, C)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :, 0:1] if self.layout == "ane" else x[:, 0:1]


class OneOut(nn.Module):
    """One token's vector (of `FirstToken`'s form) as (B, C)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0] if self.layout == "ane" else x[:, 0]


def along_channels(vector: Tensor, layout: Layout) -> Tensor:
    """A vector of one value a channel, shaped to meet tensors of the layout."""
    return vector[None, :, None, None] if layout == "ane" else vector


def channels_at_home(x: Tensor, layout: Layout) -> Tensor:
    """(B, S, C) in the layout."""
    return x.transpose(1, 2)[:, :, None, :] if layout == "ane" else x
