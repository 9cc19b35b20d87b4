"""Phi-3: queries, keys and values are one matrix, gate and up another."""

from __future__ import annotations

from compiler.networks.configs import DecoderConfig
from compiler.networks.decoder_family import DecoderFamily, Rows


def _fused_rows(config: DecoderConfig) -> dict[str, Rows]:
    width, kv_width, wide = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.intermediate
    return {
        "attention.query.": ("self_attn.qkv_proj.", (0, width)),
        "attention.key.": ("self_attn.qkv_proj.", (width, width + kv_width)),
        "attention.value.": ("self_attn.qkv_proj.", (width + kv_width, width + 2 * kv_width)),
        "gate.": ("mlp.gate_up_proj.", (0, wide)),
        "up.": ("mlp.gate_up_proj.", (wide, 2 * wide)),
    }


FAMILY = DecoderFamily(("phi3",), windows_every_layer=True, rows=_fused_rows)
