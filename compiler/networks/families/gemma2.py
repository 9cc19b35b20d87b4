"""Gemma 2: attention and feed-forward are normed after themselves too, and scores are capped."""

from __future__ import annotations

from compiler.networks.decoder_family import GEMMA_STREAM_SCALE, DecoderFamily

FAMILY = DecoderFamily(
    ("gemma2",), norm_plus=1.0, scaled_embedding=True, post_norms=True, stream_scale=GEMMA_STREAM_SCALE
)
