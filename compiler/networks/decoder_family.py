"""What is told of a family of decoders, and what a model of one has: its configuration and the names of its tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compiler.model import Model
from compiler.networks.configs import Activation, DecoderConfig, Part
from compiler.networks.weights import Source, match_sources

if TYPE_CHECKING:
    from compiler.networks.kv_cache import Rotation

# Gemma 3's stream goes beyond 1e5 (measured on its 270M), where float16 ends at 65504. A power of two costs no digit.
GEMMA_STREAM_SCALE = 2.0**-5
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# The start of a tensor's name within a layer, and the rows of it that are taken: (first, last + 1), or all.
Rows = tuple[str, tuple[int, int] | None]


def separate_rows(config: DecoderConfig) -> dict[str, Rows]:
    """Queries, keys, values, gate and up as matrices of their own."""
    names = {"attention.query.": "self_attn.q", "attention.key.": "self_attn.k", "attention.value.": "self_attn.v"}
    names |= {"gate.": "mlp.gate", "up.": "mlp.up"}
    return {ours: (f"{theirs}_proj.", None) for ours, theirs in names.items()}


@dataclass(frozen=True)
class DecoderFamily:
    """How the models of a family differ from a Llama.

    Attributes:
        model_types: as config.json names them.
        query_bias: queries, keys and values have biases whatever `attention_bias` says.
        head_norms: queries and keys are normed head by head.
        post_norms: attention and feed-forward are normed after themselves too.
        norm_plus: what is added to the stored weights of norms.
        scaled_embedding: token vectors are multiplied with the root of their size.
        stream_scale: what the stream between the blocks is multiplied with beside transformers' own.
        windows_every_layer: `sliding_window` holds for all layers where the configuration names no layer types.
        rotary_by_layer_type: each kind of layer has a rotary table of its own.
        activation_key: the one key that tells the activation; None where `hidden_act` does too.
        default_activation: of a configuration that tells none.
        transformers_module: the folder of transformers' implementation, where it is not named as the model type.
        rows: where the matrices of a layer lie.
    """

    model_types: tuple[str, ...]
    query_bias: bool = False
    head_norms: bool = False
    post_norms: bool = False
    norm_plus: float = 0.0
    scaled_embedding: bool = False
    stream_scale: float = 1.0
    windows_every_layer: bool = False
    rotary_by_layer_type: bool = False
    activation_key: str | None = None
    default_activation: str = "silu"
    transformers_module: str | None = None
    rows: Callable[[DecoderConfig], dict[str, Rows]] = separate_rows


def refuse_decoder(model: Model, family: DecoderFamily) -> str | None:
    """Why the network of `family` does not compute this model; None when it does."""
    activation = model.config.get("hidden_activation") or model.config.get("hidden_act") or "silu"
    return None if activation in ACTIVATIONS else f"its activation {activation} is none of {', '.join(ACTIVATIONS)}."


def _activation_of(config: Any, family: DecoderFamily) -> Activation:
    keys = (family.activation_key,) if family.activation_key else ("hidden_activation", "hidden_act")
    told = [value for key in keys if (value := getattr(config, key, None))]
    return ACTIVATIONS[told[0] if told else family.default_activation]


def describe_decoder(model: Model, family: DecoderFamily, context: int) -> DecoderConfig:
    """The configuration of a model that `refuse_decoder` lets pass, for a cache of `context` positions."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if types:
        windows = tuple(window if each == "sliding_attention" else None for each in types)
    else:
        windows = (window if family.windows_every_layer else None,) * layers
    biased = getattr(config, "attention_bias", False)
    return DecoderConfig(
        hidden=config.hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=head_dim,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=context,
        eps=config.rms_norm_eps,
        activation=_activation_of(config, family),
        query_bias=bool(biased) or family.query_bias,
        output_bias=bool(biased),
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        head_norms=family.head_norms,
        post_norms=family.post_norms,
        embedding_scale=family.stream_scale * (config.hidden_size**0.5 if family.scaled_embedding else 1.0),
        stream_scale=family.stream_scale,
        score_scale=(getattr(config, "query_pre_attn_scalar", None) or head_dim) ** -0.5,
        # Gemma 3's configuration may have it, and its classes do not use it.
        score_cap=getattr(config, "attn_logit_softcapping", None) if config.model_type == "gemma2" else None,
        logit_cap=getattr(config, "final_logit_softcapping", None),
        windows=tuple(each if each is not None and each < context else None for each in windows),
        rotaries=tuple(types or ()) if family.rotary_by_layer_type else ("",) * layers,
    )


def rotary_tables(model: Model, family: DecoderFamily, config: DecoderConfig) -> dict[str, Rotation]:
    """The rotary embeddings as transformers' own module makes them.

    Scalings whose factors depend on the length (`longrope`, `dynamic`) take those of the whole context.
    """
    import torch
    from transformers import AutoConfig

    from compiler.networks.kv_cache import Rotation

    theirs = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
    module = _rotary_module(family.transformers_module or theirs.model_type, theirs)
    places = torch.arange(config.context)[None]
    tables = {}
    for name in sorted(set(config.rotaries)):
        named = {"layer_type": name} if name else {}
        cos, sin = (each[0].float() for each in module(torch.zeros(1), places, **named))
        half = sin.shape[1] // 2
        # The module has taken those that suit the places.
        prefix = f"{name}_" if name else ""
        frequencies = getattr(module, f"{prefix}inv_freq").float()
        factor = float(getattr(module, f"{prefix}attention_scaling"))
        tables[name] = Rotation(cos, torch.cat([-sin[:, :half], sin[:, half:]], 1), frequencies, factor)
    return tables


def _rotary_module(folder: str, config: Any) -> Any:
    """transformers' rotary embedding of the model type: the one class of that kind in its module."""
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    classes = [value for name, value in vars(module).items() if name.endswith("RotaryEmbedding")]
    return classes[0](config)


def decoder_sources(
    model: Model, family: DecoderFamily, config: DecoderConfig, part: Part | None = None
) -> dict[str, Source]:
    """The tensor of every parameter of `Decoder(config, part, ...)`; of all layers without `part`.

    Raises:
        UnusableInput: a tensor of the model is missing or left over.
    """
    part = part or Part(0, config.layers, True, True)
    plus = family.norm_plus
    table = "model.embed_tokens.weight"
    stored = {info.name for info in model.tensors}
    tied = not ({"lm_head.weight", "model.lm_head.weight"} & stored)
    whole: dict[str, Source] = {
        "embedding.weight": Source(table),
        "norm.weight": Source("model.norm.weight", plus=plus),
        "head.weight": Source(table if tied else "lm_head.weight"),
    }
    for number in range(config.layers):
        whole |= _block(config, family, number)
    found = match_sources(model, whole, ("model.", "language_model."))
    if not part.embedding:
        del found["embedding.weight"]
    if not part.head:
        del found["norm.weight"], found["head.weight"]
    return {_within(part, name): source for name, source in found.items() if _within(part, name)}


def _within(part: Part, name: str) -> str:
    """A parameter's name in a part, whose blocks count from 0; empty for blocks of other parts."""
    if not name.startswith("blocks."):
        return name
    number, _, rest = name.removeprefix("blocks.").partition(".")
    return f"blocks.{int(number) - part.first}.{rest}" if part.first <= int(number) < part.last else ""


def _block(config: DecoderConfig, family: DecoderFamily, number: int) -> dict[str, Source]:
    ours, theirs, plus = f"blocks.{number}.", f"model.layers.{number}.", family.norm_plus
    before_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    found = {
        f"{ours}attention_norm.weight": Source(f"{theirs}input_layernorm.weight", plus=plus),
        f"{ours}mlp_norm.weight": Source(f"{theirs}{before_mlp}.weight", plus=plus),
    }
    if config.post_norms:
        for part, name in (("attention", "post_attention"), ("mlp", "post_feedforward")):
            tensor = f"{theirs}{name}_layernorm.weight"
            found[f"{ours}{part}_out_norm.weight"] = Source(tensor, plus=plus, times=config.stream_scale)
    if config.head_norms:
        for part, name in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            found[f"{ours}attention.{part}.weight"] = Source(f"{theirs}self_attn.{name}.weight", plus=plus)
    rows = family.rows(config) | {"attention.output.": ("self_attn.o_proj.", None), "down.": ("mlp.down_proj.", None)}
    for part, (name, taken) in rows.items():
        found[f"{ours}{part}weight"] = Source(f"{theirs}{name}weight", taken)
        biased = config.mlp_bias
        if part.startswith("attention."):
            biased = config.output_bias if part == "attention.output." else config.query_bias
        if biased:
            found[f"{ours}{part}bias"] = Source(f"{theirs}{name}bias", taken)
    return found
