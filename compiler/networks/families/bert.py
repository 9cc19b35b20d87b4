"""BERT."""

from __future__ import annotations

from compiler.networks.encoder_family import EncoderFamily, bert_names

FAMILY = EncoderFamily(
    ("bert",),
    prefix="bert.",
    names=bert_names,
    heads={
        "feature-extraction": {},
        "text-classification": {"head.dense.": "pooler.dense.", "head.classifier.": "classifier."},
        "token-classification": {"head.classifier.": "classifier."},
        "question-answering": {"head.classifier.": "qa_outputs."},
        "fill-mask": {
            "head.decoder.weight": "embeddings.word_embeddings.weight",
            "head.dense.": "cls.predictions.transform.dense.",
            "head.norm.": "cls.predictions.transform.LayerNorm.",
            "head.decoder.bias": "cls.predictions.bias",
        },
    },
)
