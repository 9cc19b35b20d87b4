"""Qwen2: queries, keys and values have biases, whatever `attention_bias` says."""

from __future__ import annotations

from compiler.networks.decoder_family import DecoderFamily

FAMILY = DecoderFamily(("qwen2",), query_bias=True)
