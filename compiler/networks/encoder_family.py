"""What is told of a family of encoders, and what a model of one has: its configuration and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.config_types import image_shape
from compiler.model import Model
from compiler.networks.configs import Activation, EncoderConfig
from compiler.networks.weights import Source, match_sources

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class EncoderFamily:
    """How the models of a family are described.

    Attributes:
        model_types: as config.json names them.
        prefix: of the base model in the names of tensors.
        names: our parameters, and the tensors that they are; names that end with a dot stand for weight and bias.
        heads: the same of the head of each task that the family has.
        default_segments: token types where config.json tells none.
        offset_positions: the first position is the one behind the padding token's id.
        norm_first: norms stand before attention and feed-forward.
        eps: of the norms where config.json has no say.
        intermediate_key, activation_key: of config.json.
        head_activation: between the two layers of a head.
        word_head_activation: the same of the head of fill-mask; None for the activation of the feed-forward part.
    """

    model_types: tuple[str, ...]
    prefix: str
    names: Callable[[EncoderConfig], dict[str, str]]
    heads: Mapping[str, Mapping[str, str]]
    default_segments: int = 2
    offset_positions: bool = False
    norm_first: bool = False
    eps: float | None = None
    intermediate_key: str = "intermediate_size"
    activation_key: str = "hidden_act"
    head_activation: Activation = "tanh"
    word_head_activation: Activation | None = None


def refuse_encoder(model: Model, family: EncoderFamily) -> str | None:
    """Why the network of `family` does not compute this model; None when it does."""
    config = model.config
    if model.task not in family.heads:
        return f"the re-authored {config['model_type']} is not for {model.task}."
    activation = _activation_name(config, family)
    if activation not in _ACTIVATIONS:
        return f"its activation {activation} is none of {', '.join(_ACTIVATIONS)}."
    if isinstance(config.get("patch_size"), list):
        return f"its patches are {config['patch_size']}, and only square ones, told by one number, are covered."
    if config.get("qkv_bias") is False:
        return "its queries, keys and values have no bias (qkv_bias), and the re-authored network has one."
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"its positions are {config['position_embedding_type']}, and only absolute ones are covered."
    if (config.get("type_vocab_size") or 0) > 2:
        return f"it has {config['type_vocab_size']} token types, and at most 2 are covered."
    if config.get("is_decoder") or config.get("add_cross_attention"):
        return "it is set up as a decoder."
    return None


def describe_encoder(model: Model, family: EncoderFamily) -> EncoderConfig:
    """The configuration of a model that `refuse_encoder` lets pass."""
    config, geometry = model.config, model.geometry
    activation = _ACTIVATIONS[_activation_name(config, family)]
    image = None
    if model.takes == "image":
        image = (image_shape(config), config.get("patch_size", 16))
    head_activation = family.head_activation
    if model.task == "fill-mask":
        head_activation = family.word_head_activation or activation
    return EncoderConfig(
        hidden=geometry.hidden_size,
        layers=geometry.layers,
        heads=geometry.heads,
        intermediate=config.get(family.intermediate_key, 3072),
        vocabulary=geometry.vocabulary,
        positions=config.get("max_position_embeddings", 512),
        position_offset=_padding(config) + 1 if family.offset_positions else 0,
        segments=config.get("type_vocab_size", family.default_segments) == 2,
        eps=family.eps if family.eps is not None else config.get("layer_norm_eps", 1e-12),
        activation=activation,
        norm_first=family.norm_first,
        task=model.task,
        head_activation=head_activation,
        labels=_labels(config),
        image=image,
        sentence=model.sentence,
    )


def encoder_sources(model: Model, family: EncoderFamily, config: EncoderConfig) -> dict[str, Source]:
    """The tensor of every parameter of `build_encoder(config, ...)`.

    Raises:
        UnusableInput: a tensor is missing or left over.
    """
    sources: dict[str, Source] = {}
    for parameter, tensor in {**family.names(config), **family.heads[config.task]}.items():
        if parameter.endswith("."):
            sources |= {f"{parameter}{part}": Source(f"{tensor}{part}") for part in ("weight", "bias")}
        else:
            sources[parameter] = Source(tensor)
    if family.names is bert_names and not config.segments:
        types = "embeddings.token_type_embeddings.weight"
        sources["positions.weight"] = Source("embeddings.position_embeddings.weight", added=types)
    return match_sources(model, sources, (family.prefix,))


def bert_names(config: EncoderConfig) -> dict[str, str]:
    """The names of BERT and of what has its form."""
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


def _activation_name(config: Mapping[str, Any], family: EncoderFamily) -> str:
    return str(config.get(family.activation_key, "gelu"))


def _padding(config: Mapping[str, Any]) -> int:
    """The padding token's id; as transformers has it where none is told."""
    told = config.get("pad_token_id")
    return told if isinstance(told, int) else 1


def _labels(config: Mapping[str, Any]) -> int:
    names = config.get("id2label")
    return len(names) if isinstance(names, Mapping) else int(config.get("num_labels", 2))
