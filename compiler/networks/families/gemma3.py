"""Gemma 3: Gemma 2 with normed heads and a rotary table for each kind of layer."""

from __future__ import annotations

from compiler.networks.decoder_family import GEMMA_STREAM_SCALE, DecoderFamily

FAMILY = DecoderFamily(
    ("gemma3_text",),
    norm_plus=1.0,
    scaled_embedding=True,
    post_norms=True,
    head_norms=True,
    stream_scale=GEMMA_STREAM_SCALE,
    rotary_by_layer_type=True,
    transformers_module="gemma3",
)
