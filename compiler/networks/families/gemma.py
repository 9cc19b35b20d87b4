"""Gemma: norms are stored as the difference to 1, token vectors are multiplied with the root of their size."""

from __future__ import annotations

from compiler.networks.decoder_family import DecoderFamily

FAMILY = DecoderFamily(
    ("gemma",),
    norm_plus=1.0,
    scaled_embedding=True,
    # Older files say `hidden_act` "gelu" and mean the tanh form, as transformers has it too.
    activation_key="hidden_activation",
    default_activation="gelu_pytorch_tanh",
)
