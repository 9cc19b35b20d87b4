"""The sizes and choices of re-authored networks, as data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compiler.sentence import SentenceVector

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
        sentence: how one vector is made of the token vectors; None where they are all that is asked for.
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
    sentence: SentenceVector | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes and choices of a decoder.

    Attributes:
        context: positions that the cache holds.
        activation: of the gate.
        query_bias: whether queries, keys and values have biases; `output_bias`, `mlp_bias` likewise.
        head_norms: whether queries and keys are normed head by head (Qwen3, Gemma 3).
        post_norms: whether attention and feed-forward are normed after themselves too (Gemma 2 and 3).
        embedding_scale: what token vectors are multiplied with.
        stream_scale: what the stream between the blocks is multiplied with beside transformers' own; it only enters norms,
            which take that out again.
        score_scale: what queries are multiplied with.
        score_cap, logit_cap: c of the soft caps c * tanh(x / c); None without.
        windows: for each layer how many positions it sees back; None for all.
        rotaries: for each layer which rotary table it uses; the names of transformers' layer types, `""` for one table.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    eps: float
    activation: Activation
    query_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norms: bool
    post_norms: bool
    embedding_scale: float
    stream_scale: float
    score_scale: float
    score_cap: float | None
    logit_cap: float | None
    windows: tuple[int | None, ...]
    rotaries: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A run of a decoder's layers, `first` to `last` - 1, with the embedding before or the head after them or not."""

    first: int
    last: int
    embedding: bool
    head: bool

    @property
    def layers(self) -> int:
        return self.last - self.first
