"""RoBERTa, XLM-R and CamemBERT: positions count from behind the padding token's id, and there is one token type."""

from __future__ import annotations

from compiler.networks.encoder_family import EncoderFamily, bert_names

FAMILY = EncoderFamily(
    ("roberta", "xlm-roberta", "camembert"),
    prefix="roberta.",
    names=bert_names,
    offset_positions=True,
    word_head_activation="gelu",
    heads={
        "feature-extraction": {},
        "text-classification": {"head.dense.": "classifier.dense.", "head.classifier.": "classifier.out_proj."},
        "token-classification": {"head.classifier.": "classifier."},
        "question-answering": {"head.classifier.": "qa_outputs."},
        "fill-mask": {
            "head.decoder.weight": "embeddings.word_embeddings.weight",
            "head.dense.": "lm_head.dense.",
            "head.norm.": "lm_head.layer_norm.",
            "head.decoder.bias": "lm_head.bias",
        },
    },
)
