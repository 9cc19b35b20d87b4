"""Qwen3: queries and keys are normed head by head."""

from __future__ import annotations

from compiler.networks.decoder_family import DecoderFamily

FAMILY = DecoderFamily(("qwen3",), head_norms=True)
