"""Which re-authored network computes a model. Imports no torch, so that a recipe can be refused at once."""

from __future__ import annotations

from compiler.model import Model
from compiler.networks.decoder_families import refuse_decoder
from compiler.networks.encoder_families import refuse_encoder


def refuse_network(model: Model) -> str | None:
    """Why no re-authored network computes this model; None when one does."""
    if model.is_decoder:
        return refuse_decoder(model)
    return refuse_encoder(model)
