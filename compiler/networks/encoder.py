"""Encoders re-authored for static accelerators: BERT and its kin, and ViT."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.networks.configs import Activation, EncoderConfig
from compiler.networks.parts import (
    AttentionMask,
    Embedding,
    FirstToken,
    LayerNorm,
    Layout,
    OneOut,
    Patches,
    Positions,
    Projection,
    Segments,
    TokensOut,
)
from compiler.networks.sentence import SentenceHead

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class Attention(nn.Module):
    """Self-attention of all tokens on all tokens; `additive_mask` is what `AttentionMask` gives, or None."""

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        self.layout, self.heads, self.head_dim = layout, config.heads, config.head_dim
        self.query = Projection(config.hidden, config.hidden, layout)
        self.key = Projection(config.hidden, config.hidden, layout)
        self.value = Projection(config.hidden, config.hidden, layout)
        self.output = Projection(config.hidden, config.hidden, layout)

    def forward(self, x: Tensor, additive_mask: Tensor | None) -> Tensor:
        attend = self._by_head if self.layout == "ane" else self._at_once
        return self.output(attend(self.query(x) * self.head_dim**-0.5, self.key(x), self.value(x), additive_mask))

    def _by_head(self, query: Tensor, key: Tensor, value: Tensor, additive_mask: Tensor | None) -> Tensor:
        """Each head for itself; (B, C, 1, S) throughout, and scores (B, keys, 1, queries)."""
        queries = torch.split(query, self.head_dim, 1)
        keys = torch.split(key.transpose(1, 3), self.head_dim, 3)
        values = torch.split(value, self.head_dim, 1)
        mixed = []
        for head in range(self.heads):
            scores = torch.einsum("bchq,bkhc->bkhq", queries[head], keys[head])
            if additive_mask is not None:
                scores = scores + additive_mask
            mixed.append(torch.einsum("bkhq,bchk->bchq", torch.softmax(scores, 1), values[head]))
        return torch.cat(mixed, 1)

    def _at_once(self, query: Tensor, key: Tensor, value: Tensor, additive_mask: Tensor | None) -> Tensor:
        query, key, value = (
            each.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for each in (query, key, value)
        )
        scores = torch.matmul(query, key.transpose(2, 3))
        if additive_mask is not None:
            scores = scores + additive_mask
        return torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Attention and feed-forward with their norms."""

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = Attention(config, layout)
        self.attention_norm = LayerNorm(config.hidden, config.eps, layout)
        self.up = Projection(config.hidden, config.intermediate, layout)
        self.down = Projection(config.intermediate, config.hidden, layout)
        self.output_norm = LayerNorm(config.hidden, config.eps, layout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, additive_mask: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), additive_mask)
            return x + self.down(self.activation(self.up(self.output_norm(x))))
        x = self.attention_norm(x + self.attention(x, additive_mask))
        return self.output_norm(x + self.down(self.activation(self.up(x))))


class TextEncoder(nn.Module):
    """Ids, a mask and (where the model has segments) token types, each int (B, S), to the task's outputs.

    `feature-extraction`: token vectors (B, S, hidden) and, where the model makes one, the sentence vector (B, width).
    `token-classification`, `fill-mask`: logits (B, S, labels).
    `text-classification`: logits (B, labels). `question-answering`: start and end logits, each (B, S).
    """

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        self.config = config
        self.words = Embedding(config.vocabulary, config.hidden, layout)
        self.positions = Positions(config.positions, config.hidden, config.position_offset, layout)
        self.segments = Segments(config.hidden, layout) if config.segments else None
        self.embedding_norm = LayerNorm(config.hidden, config.eps, layout)
        self.mask = AttentionMask(layout)
        self.blocks = nn.ModuleList(Block(config, layout) for _ in range(config.layers))
        self.head = _head(config, layout)
        self.sentence = SentenceHead(config.sentence) if config.sentence else None
        self.input_names = ("input_ids", "attention_mask") + (("token_type_ids",) if config.segments else ())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> object:
        x = self.words(input_ids) + self.positions(input_ids)
        if self.segments is not None:
            x = x + self.segments(token_type_ids)
        x = self.embedding_norm(x)
        additive_mask = self.mask(attention_mask)
        for block in self.blocks:
            x = block(x, additive_mask)
        result = self.head(x)
        return result if self.sentence is None else (result, self.sentence(result, attention_mask))


class ImageEncoder(nn.Module):
    """A picture (B, channels, height, width), as the image processor makes it, to logits (B, labels)."""

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        assert config.image is not None
        (channels, height, width), side = config.image
        self.config = config
        self.patches = Patches(channels, side, (height // side) * (width // side), config.hidden, layout)
        self.blocks = nn.ModuleList(Block(config, layout) for _ in range(config.layers))
        self.norm = LayerNorm(config.hidden, config.eps, layout)
        self.first = FirstToken(layout)
        self.classifier = Projection(config.hidden, config.labels, layout)
        self.out = OneOut(layout)
        self.input_names = ("pixel_values",)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values)
        for block in self.blocks:
            x = block(x, None)
        return self.out(self.classifier(self.first(self.norm(x))))


class VectorsHead(nn.Module):
    """Token vectors as they are."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.out = TokensOut(layout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class TextHead(nn.Module):
    """Labels of the text from its first token, through a dense layer."""

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        self.first = FirstToken(layout)
        self.dense = Projection(config.hidden, config.hidden, layout)
        self.activation = ACTIVATIONS[config.head_activation]
        self.classifier = Projection(config.hidden, config.labels, layout)
        self.out = OneOut(layout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.classifier(self.activation(self.dense(self.first(x)))))


class TokenHead(nn.Module):
    """Labels of each token."""

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        self.classifier = Projection(config.hidden, config.labels, layout)
        self.out = TokensOut(layout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.classifier(x))


class SpanHead(nn.Module):
    """Start and end logits of an answer."""

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        self.classifier = Projection(config.hidden, 2, layout)
        self.out = TokensOut(layout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = torch.split(self.out(self.classifier(x)), 1, 2)
        return parts[0].squeeze(2), parts[1].squeeze(2)


class WordHead(nn.Module):
    """The word at each position: a transform and the vocabulary's table."""

    def __init__(self, config: EncoderConfig, layout: Layout) -> None:
        super().__init__()
        self.dense = Projection(config.hidden, config.hidden, layout)
        self.activation = ACTIVATIONS[config.head_activation]
        self.norm = LayerNorm(config.hidden, config.eps, layout)
        self.decoder = Projection(config.hidden, config.vocabulary, layout)
        self.out = TokensOut(layout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.decoder(self.norm(self.activation(self.dense(x)))))


def _head(config: EncoderConfig, layout: Layout) -> nn.Module:
    if config.task == "feature-extraction":
        return VectorsHead(layout)
    heads = {
        "text-classification": TextHead,
        "token-classification": TokenHead,
        "question-answering": SpanHead,
        "fill-mask": WordHead,
    }
    return heads[config.task](config, layout)


def build_encoder(config: EncoderConfig, layout: Layout) -> TextEncoder | ImageEncoder:
    """The encoder of a configuration. Under `torch.device("meta")` its parameters take no memory."""
    return ImageEncoder(config, layout) if config.image else TextEncoder(config, layout)
