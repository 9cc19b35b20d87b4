"""Llama 2 and 3, and what has their form."""

from __future__ import annotations

from compiler.networks.decoder_family import DecoderFamily

FAMILY = DecoderFamily(("llama",))
