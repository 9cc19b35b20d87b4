"""Mistral: a Llama whose layers may all look back a window only."""

from __future__ import annotations

from compiler.networks.decoder_family import DecoderFamily

FAMILY = DecoderFamily(("mistral",), windows_every_layer=True)
