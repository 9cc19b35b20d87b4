"""Token vectors to one vector of the text, as the modules of sentence-transformers compute it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compiler.formats.safetensors import TensorInfo
from compiler.model import Model
from compiler.networks.parts import MASKED_SCORE, Projection
from compiler.networks.weights import Source, read_float
from compiler.sentence import Dense, SentenceVector, dense_tensors

# Keeps 0 / 0 from rows without a token, which fill a batch of fixed size.
LEAST_COUNT = 1e-4
# The same from the square root of vectors of zeros.
LEAST_SQUARES = 1e-12


class TokenWeights(nn.Module):
    """What each token counts in the pooled vector: (B, 1, S) of a mask (B, S) of ones, then zeros.

    The sum of the products with the token vectors is the pooled vector: no sum of many vectors is made that would overflow,
    and what is padding counts nothing.
    """

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, mask: Tensor) -> Tensor:
        seen = mask.to(torch.float32)
        if self.pooling == "cls":
            before = torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], 1)
            weights = seen * (1.0 - before)
        elif self.pooling == "lasttoken":
            after = torch.cat([seen[:, 1:], torch.zeros_like(seen[:, :1])], 1)
            weights = seen * (1.0 - after)
        elif self.pooling == "weightedmean":
            places = torch.arange(1, mask.shape[1] + 1, dtype=torch.float32)[None] / mask.shape[1]
            counted = seen * places
            weights = counted / counted.sum(1, keepdim=True).clamp(min=LEAST_COUNT)
        elif self.pooling == "mean_sqrt_len_tokens":
            weights = seen * torch.rsqrt(seen.sum(1, keepdim=True).clamp(min=1.0))
        else:
            weights = seen / seen.sum(1, keepdim=True).clamp(min=1.0)
        return weights[:, None, :]


class LargestValues(nn.Module):
    """The largest value of each channel over the tokens that a mask (B, S) shows: (B, S, C) to (B, C)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = (1.0 - mask.to(torch.float32)) * MASKED_SCORE
        return (x + hidden[:, :, None]).amax(1)


class LengthOne(nn.Module):
    """Vectors (B, C) over their length; a vector of zeros stays one."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = x / x.abs().amax(1, keepdim=True).clamp(min=LEAST_SQUARES)
        return scaled * torch.rsqrt(scaled.square().sum(1, keepdim=True).clamp(min=LEAST_SQUARES))


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "Identity": nn.Identity,
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Sigmoid": nn.Sigmoid,
}


class DenseLayer(nn.Module):
    """`activation(W x + b)` of (B, inputs)."""

    def __init__(self, layer: Dense) -> None:
        super().__init__()
        self.linear = Projection(layer.inputs, layer.outputs, "plain", layer.bias)
        self.activation = _ACTIVATIONS[layer.activation]()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.linear(x))
        return activated


class SentenceHead(nn.Module):
    """(B, S, hidden) token vectors and a mask (B, S) to (B, width)."""

    def __init__(self, vector: SentenceVector) -> None:
        super().__init__()
        self.poolings = vector.pooling
        self.weights = nn.ModuleList(TokenWeights(each) for each in vector.pooling if each != "max")
        self.largest = LargestValues() if "max" in vector.pooling else None
        self.dense = nn.ModuleList(DenseLayer(layer) for layer in vector.dense)
        self.length_one = LengthOne() if vector.normalized else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        pooled: list[Tensor] = []
        weights = iter(self.weights)
        for pooling in self.poolings:
            if self.largest is not None and pooling == "max":
                pooled.append(self.largest(x, mask))
            else:
                pooled.append(torch.matmul(next(weights)(mask), x).squeeze(1))
        vector = torch.cat(pooled, 1)
        for layer in self.dense:
            vector = layer(vector)
        return vector if self.length_one is None else self.length_one(vector)


def with_sentence(model: Model, sources: Mapping[str, Source]) -> tuple[dict[str, TensorInfo], dict[str, Source]]:
    """An encoder's tensors by name and the sources of its parameters, with those of its sentence head where it has one."""
    infos, found = {info.name: info for info in model.tensors}, dict(sources)
    if model.sentence is not None:
        own = {f"sentence.{name}": info for name, info in sentence_tensors(model.folder, model.sentence).items()}
        infos |= own
        found |= {name: Source(name) for name in own}
    return infos, found


def sentence_tensors(folder: Path, vector: SentenceVector) -> dict[str, TensorInfo]:
    """Where the parameters of `SentenceHead` lie."""
    return {
        f"dense.{number}.linear.{part}": info
        for number, layer in enumerate(vector.dense)
        for part, info in dense_tensors(folder, layer).items()
    }


def load_sentence_head(folder: Path, vector: SentenceVector) -> SentenceHead:
    """The head with its weights, fp32."""
    head = SentenceHead(vector)
    tensors = sentence_tensors(folder, vector)
    values = {name: torch.from_numpy(np.array(read_float(info))) for name, info in tensors.items()}
    head.load_state_dict(values)
    return head.requires_grad_(False).eval()
