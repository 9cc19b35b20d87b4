"""The sizes and choices of re-authored networks, as data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes and choices of an encoder.

    Attributes:
        position_offset: row of the position table that the first token takes.
        segments: whether there are token types.
        activation: of the feed-forward part.
        norm_first: norms stand before attention and feed-forward (ViT) rather than after (BERT).
        task: the Hugging Face task, which decides the head.
        head_activation: between the two layers of a head, where it has two.
        labels: outputs of the head.
        image: (channels, height, width) and the side of a patch; None for text.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    position_offset: int
    segments: bool
    eps: float
    activation: Activation
    norm_first: bool
    task: str
    head_activation: Activation
    labels: int
    image: tuple[tuple[int, int, int], int] | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads
