"""ViT: patches of a picture in place of tokens, norms before attention and feed-forward."""

from __future__ import annotations

from compiler.networks.configs import EncoderConfig
from compiler.networks.encoder_family import EncoderFamily


def _names(config: EncoderConfig) -> dict[str, str]:
    names = {
        "patches.weight": "embeddings.patch_embeddings.projection.weight",
        "patches.bias": "embeddings.patch_embeddings.projection.bias",
        "patches.first": "embeddings.cls_token",
        "patches.positions": "embeddings.position_embeddings",
        "norm.": "layernorm.",
    }
    for number in range(config.layers):
        ours, theirs = f"blocks.{number}.", f"encoder.layer.{number}."
        names |= {
            f"{ours}attention.query.": f"{theirs}attention.attention.query.",
            f"{ours}attention.key.": f"{theirs}attention.attention.key.",
            f"{ours}attention.value.": f"{theirs}attention.attention.value.",
            f"{ours}attention.output.": f"{theirs}attention.output.dense.",
            f"{ours}attention_norm.": f"{theirs}layernorm_before.",
            f"{ours}up.": f"{theirs}intermediate.dense.",
            f"{ours}down.": f"{theirs}output.dense.",
            f"{ours}output_norm.": f"{theirs}layernorm_after.",
        }
    return names


FAMILY = EncoderFamily(
    ("vit",),
    prefix="vit.",
    names=_names,
    default_segments=0,
    norm_first=True,
    heads={"image-classification": {"classifier.": "classifier."}},
)
