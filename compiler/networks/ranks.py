"""How cores share a decoder: which part of each parameter each of them has, and the whole again of all their parts.

Queries, keys, values, gate, up and the head are cut by rows, the output of attention and down by columns; the rest each rank
has whole. Where there are more ranks than heads of keys, several have the same head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compiler.networks.configs import DecoderConfig

# Parameters of these parts: rows of the weights, whose results lie side by side, or columns, whose results are added up.
_BY_ROW = ("attention.query", "attention.key", "attention.value", "gate", "up")
BY_COLUMN = ("attention.output", "down")
_KEYS = ("attention.key", "attention.value")


@dataclass(frozen=True)
class Cut:
    """How ranks share a decoder.

    Attributes:
        ranks: how many.
        kv_heads: heads of keys and values of the model.
        head: whether each computes a part of the logits.
    """

    ranks: int = 1
    kv_heads: int = 1
    head: bool = False

    def part(self, values: NDArray[np.float32], name: str, rank: int) -> NDArray[np.float32]:
        """What a rank has of a parameter."""
        owner = name.rpartition(".")[0]
        if self.ranks == 1:
            return values
        if owner.endswith(_KEYS) and self.kv_heads < self.ranks:
            return np.split(values, self.kv_heads)[rank * self.kv_heads // self.ranks]
        if owner.endswith(_BY_ROW) or (self.head and owner == "head"):
            return np.split(values, self.ranks)[rank]
        if owner.endswith(BY_COLUMN) and values.ndim == 2:
            return np.split(values, self.ranks, 1)[rank]
        return values


def cut_of(config: DecoderConfig, ranks: int) -> Cut:
    """How so many ranks share a decoder.

    Raises:
        ValueError: they cannot share it evenly.
    """
    shared = config.kv_heads % ranks == 0 or ranks % config.kv_heads == 0
    if config.heads % ranks or config.intermediate % ranks or not shared:
        raise ValueError(f"{ranks} ranks cannot share {config.heads} heads of which {config.kv_heads} are of keys")
    return Cut(ranks, config.kv_heads, ranks > 1 and config.vocabulary % ranks == 0)


def of_rank(config: DecoderConfig, cut: Cut) -> DecoderConfig:
    """The configuration of what one rank computes."""
    return replace(config, heads=config.heads // cut.ranks, kv_heads=max(1, config.kv_heads // cut.ranks))


def whole(parts: Sequence[NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    """A parameter of what every rank has of it."""
    owner = name.rpartition(".")[0]
    if owner.endswith(BY_COLUMN) and parts[0].ndim == 2:
        return np.concatenate(parts, 1)
    distinct = [parts[0]]
    for part in parts[1:]:
        if not np.array_equal(part, distinct[-1]):
            distinct.append(part)
    return np.concatenate(distinct) if len(distinct) > 1 else parts[0]
