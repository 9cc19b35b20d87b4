"""A re-authored encoder with its weights, in float32, to look at what goes through it on calibration samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compiler.model import Model
from compiler.networks.configs import EncoderConfig
from compiler.networks.encoder import build_encoder
from compiler.networks.encoder_family import describe_encoder, encoder_sources
from compiler.networks.families import encoder_family
from compiler.networks.weights import fill


def filled_encoder(source: Model) -> tuple[nn.Module, EncoderConfig]:
    """The network in layout `plain`, without the dense layers that a sentence model has behind it."""
    family = encoder_family(source)
    config = replace(describe_encoder(source, family), sentence=None)
    with torch.device("meta"):
        network = build_encoder(config, "plain").eval()
    fill(network, source, encoder_sources(source, family, config))
    return network, config


def spread_samples(folder: Path, most: int) -> Iterator[Tensor]:
    """At most so many of the samples in `samples.npy`, evenly chosen: token ids (tokens,), or a picture."""
    kept = torch.from_numpy(np.load(folder / "samples.npy"))
    yield from kept[torch.linspace(0, len(kept) - 1, min(len(kept), most)).long()]


def run_encoder(network: nn.Module, config: EncoderConfig, sample: Tensor) -> None:
    """Run one sample, no token of which is padding."""
    batch = sample[None]
    if config.image:
        network(batch)
    else:
        network(batch, torch.ones_like(batch), *([torch.zeros_like(batch)] if config.segments else []))
