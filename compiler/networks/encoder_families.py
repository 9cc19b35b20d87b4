"""The encoder families: what config.json says of each, and the names that its tensors have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.model import IMAGE_CLASSIFICATION, Model
from compiler.networks.configs import Activation, EncoderConfig
from compiler.networks.weights import Source, match_sources

_BERT = ("bert", "roberta", "xlm-roberta", "camembert")
MODEL_TYPES = (*_BERT, "distilbert", "vit")
_PREFIXES = ("bert.", "roberta.", "distilbert.", "vit.")

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def refuse_encoder(model: Model) -> str | None:
    """Why no re-authored encoder computes this model; None when one does."""
    config = model.config
    family = config.get("model_type")
    if family not in MODEL_TYPES:
        return f"the re-authored encoders cover the model types {', '.join(MODEL_TYPES)}, not {family}."
    if (family == "vit") != (model.task == IMAGE_CLASSIFICATION):
        return f"the re-authored {family} is not for {model.task}."
    if _activation_name(config) not in _ACTIVATIONS:
        return f"its activation {_activation_name(config)} is none of {', '.join(_ACTIVATIONS)}."
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"its positions are {config['position_embedding_type']}, and only absolute ones are covered."
    if (config.get("type_vocab_size") or 0) > 2:
        return f"it has {config['type_vocab_size']} token types, and at most 2 are covered."
    if config.get("is_decoder") or config.get("add_cross_attention"):
        return "it is set up as a decoder."
    return None


def describe_encoder(model: Model) -> EncoderConfig:
    """The configuration of a model that `refuse_encoder` lets pass."""
    config = model.config
    family = config["model_type"]
    geometry = model.geometry
    image = None
    if family == "vit":
        size = config.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        image = ((config.get("num_channels", 3), height, width), config.get("patch_size", 16))
    offset = (config.get("pad_token_id", 1) + 1) if family in ("roberta", "xlm-roberta", "camembert") else 0
    return EncoderConfig(
        hidden=geometry.hidden_size,
        layers=geometry.layers,
        heads=geometry.heads,
        intermediate=config.get("hidden_dim" if family == "distilbert" else "intermediate_size", 3072),
        vocabulary=geometry.vocabulary,
        positions=config.get("max_position_embeddings", 512),
        position_offset=offset,
        segments=config.get("type_vocab_size", 0 if family in ("distilbert", "vit") else 2) == 2,
        eps=1e-12 if family == "distilbert" else config.get("layer_norm_eps", 1e-12),
        activation=_ACTIVATIONS[_activation_name(config)],
        norm_first=family == "vit",
        task=model.task,
        head_activation=_head_activation(model),
        labels=_labels(config),
        image=image,
    )


def encoder_sources(model: Model, config: EncoderConfig) -> dict[str, Source]:
    """The tensor of every parameter of `build_encoder(config, ...)`.

    Raises:
        UnusableInput: a tensor is missing or left over.
    """
    family = model.config["model_type"]
    names = {"distilbert": _distilbert, "vit": _vit}.get(family, _bert)(config)
    names |= _head_names(family, config)
    sources: dict[str, Source] = {}
    for parameter, tensor in names.items():
        if parameter.endswith("."):
            sources |= {f"{parameter}{part}": Source(f"{tensor}{part}") for part in ("weight", "bias")}
        else:
            sources[parameter] = Source(tensor)
    if family in _BERT and not config.segments:
        types = "embeddings.token_type_embeddings.weight"
        sources["positions.weight"] = Source("embeddings.position_embeddings.weight", added=types)
    return match_sources(model, sources, _PREFIXES)


def _bert(config: EncoderConfig) -> dict[str, str]:
    names = {
        "words.weight": "embeddings.word_embeddings.weight",
        "positions.weight": "embeddings.position_embeddings.weight",
        "embedding_norm.": "embeddings.LayerNorm.",
    }
    if config.segments:
        names["segments.weight"] = "embeddings.token_type_embeddings.weight"
    for number in range(config.layers):
        ours, theirs = f"blocks.{number}.", f"encoder.layer.{number}."
        names |= {
            f"{ours}attention.query.": f"{theirs}attention.self.query.",
            f"{ours}attention.key.": f"{theirs}attention.self.key.",
            f"{ours}attention.value.": f"{theirs}attention.self.value.",
            f"{ours}attention.output.": f"{theirs}attention.output.dense.",
            f"{ours}attention_norm.": f"{theirs}attention.output.LayerNorm.",
            f"{ours}up.": f"{theirs}intermediate.dense.",
            f"{ours}down.": f"{theirs}output.dense.",
            f"{ours}output_norm.": f"{theirs}output.LayerNorm.",
        }
    return names


def _distilbert(config: EncoderConfig) -> dict[str, str]:
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


def _vit(config: EncoderConfig) -> dict[str, str]:
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


def _head_names(family: str, config: EncoderConfig) -> dict[str, str]:
    task = config.task
    if task == IMAGE_CLASSIFICATION:
        return {"classifier.": "classifier."}
    if task == "text-classification":
        if family == "distilbert":
            return {"head.dense.": "pre_classifier.", "head.classifier.": "classifier."}
        if family == "bert":
            return {"head.dense.": "pooler.dense.", "head.classifier.": "classifier."}
        return {"head.dense.": "classifier.dense.", "head.classifier.": "classifier.out_proj."}
    if task == "token-classification":
        return {"head.classifier.": "classifier."}
    if task == "question-answering":
        return {"head.classifier.": "qa_outputs."}
    if task == "fill-mask":
        words = {"head.decoder.weight": "embeddings.word_embeddings.weight"}
        if family == "distilbert":
            own = {"head.dense.": "vocab_transform.", "head.norm.": "vocab_layer_norm."}
            return {**words, **own, "head.decoder.bias": "vocab_projector.bias"}
        if family == "bert":
            start = "cls.predictions."
            own = {"head.dense.": f"{start}transform.dense.", "head.norm.": f"{start}transform.LayerNorm."}
            return {**words, **own, "head.decoder.bias": f"{start}bias"}
        own = {"head.dense.": "lm_head.dense.", "head.norm.": "lm_head.layer_norm."}
        return {**words, **own, "head.decoder.bias": "lm_head.bias"}
    return {}


def _head_activation(model: Model) -> Activation:
    family = model.config["model_type"]
    if model.task == "fill-mask":
        return "gelu" if family not in ("bert", "distilbert") else _ACTIVATIONS[_activation_name(model.config)]
    return "relu" if family == "distilbert" else "tanh"


def _activation_name(config: Mapping[str, Any]) -> str:
    return str(config.get("activation" if config.get("model_type") == "distilbert" else "hidden_act", "gelu"))


def _labels(config: Mapping[str, Any]) -> int:
    names = config.get("id2label")
    return len(names) if isinstance(names, Mapping) else int(config.get("num_labels", 2))
