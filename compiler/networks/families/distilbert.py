"""DistilBERT."""

from __future__ import annotations

from compiler.networks.configs import EncoderConfig
from compiler.networks.encoder_family import EncoderFamily


def _names(config: EncoderConfig) -> dict[str, str]:
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "embedding_norm.": "embeddings.LayerNorm.",
    }
    for number in range(config.layers):
        ours, theirs = f"blocks.{number}.", f"transformer.layer.{number}."
        names |= {
            f"{ours}attention.query.": f"{theirs}attention.q_lin.",
            f"{ours}attention.key.": f"{theirs}attention.k_lin.",
            f"{ours}attention.value.": f"{theirs}attention.v_lin.",
            f"{ours}attention.output.": f"{theirs}attention.out_lin.",
            f"{ours}attention_norm.": f"{theirs}sa_layer_norm.",
            f"{ours}up.": f"{theirs}ffn.lin1.",
            f"{ours}down.": f"{theirs}ffn.lin2.",
            f"{ours}output_norm.": f"{theirs}output_layer_norm.",
        }
    return names


FAMILY = EncoderFamily(
    ("distilbert",),
    prefix="distilbert.",
    names=_names,
    default_segments=0,
    eps=1e-12,
    intermediate_key="hidden_dim",
    activation_key="activation",
    head_activation="relu",
    heads={
        "feature-extraction": {},
        "text-classification": {"head.dense.": "pre_classifier.", "head.classifier.": "classifier."},
        "token-classification": {"head.classifier.": "classifier."},
        "question-answering": {"head.classifier.": "qa_outputs."},
        "fill-mask": {
            "head.decoder.weight": "embeddings.word_embeddings.weight",
            "head.dense.": "vocab_transform.",
            "head.norm.": "vocab_layer_norm.",
            "head.decoder.bias": "vocab_projector.bias",
        },
    },
)
