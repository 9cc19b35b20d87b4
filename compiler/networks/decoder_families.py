"""The decoder families: what transformers' configuration says of each, and the names that its tensors have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from compiler.model import Model
from compiler.networks.configs import Activation, DecoderConfig, Part
from compiler.networks.weights import Source, match_sources

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
_GEMMAS = ("gemma", "gemma2", "gemma3_text")
# Gemma 3's stream goes beyond 1e5 (measured on its 270M), where float16 ends at 65504. A power of two costs no digit.
_SANDWICH_STREAM_SCALE = 2.0**-5
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def refuse_decoder(model: Model) -> str | None:
    """Why no re-authored decoder computes this model; None when one does."""
    family = model.config.get("model_type")
    if family not in MODEL_TYPES:
        return f"the re-authored decoders cover the model types {', '.join(MODEL_TYPES)}, not {family}."
    activation = model.config.get("hidden_activation") or model.config.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        return f"its activation {activation} is none of {', '.join(_ACTIVATIONS)}."
    return None


def describe_decoder(model: Model, context: int) -> DecoderConfig:
    """The configuration of a model that `refuse_decoder` lets pass, for a cache of `context` positions."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
    family, layers = config.model_type, config.num_hidden_layers
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if types:
        windows = tuple(window if each == "sliding_attention" else None for each in types)
    else:
        windows = (window if family in ("mistral", "phi3") else None,) * layers
    gemma = family in _GEMMAS
    sandwich = family in ("gemma2", "gemma3_text")
    stream_scale = _SANDWICH_STREAM_SCALE if sandwich else 1.0
    biased = getattr(config, "attention_bias", False)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or "silu"
    if family == "gemma":
        activation = getattr(config, "hidden_activation", None) or "gelu_pytorch_tanh"
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
        activation=_ACTIVATIONS[activation],
        query_bias=bool(biased) or family == "qwen2",
        output_bias=bool(biased),
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        head_norms=family in ("qwen3", "gemma3_text"),
        sandwich=sandwich,
        embedding_scale=stream_scale * (config.hidden_size**0.5 if gemma else 1.0),
        stream_scale=stream_scale,
        score_scale=(getattr(config, "query_pre_attn_scalar", None) or head_dim) ** -0.5,
        score_cap=getattr(config, "attn_logit_softcapping", None),
        logit_cap=getattr(config, "final_logit_softcapping", None),
        windows=tuple(each if each is not None and each < context else None for each in windows),
        rotaries=tuple(types or ()) if family == "gemma3_text" else ("",) * layers,
    )


def rotary_tables(model: Model, config: DecoderConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and signed sines, float32 (context, turned width), as transformers' own module makes them.

    Scalings whose factors depend on the length (`longrope`, `dynamic`) take those of the whole context.
    """
    import torch
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
    module = _rotary_module(theirs)
    places = torch.arange(config.context)[None]
    tables = {}
    for name in sorted(set(config.rotaries)):
        named = {"layer_type": name} if name else {}
        cos, sin = (each[0].float() for each in module(torch.zeros(1), places, **named))
        half = sin.shape[1] // 2
        tables[name] = (cos, torch.cat([-sin[:, :half], sin[:, half:]], 1))
    return tables


def _rotary_module(config: Any) -> Any:
    """transformers' rotary embedding of the model type: the one class of that kind in its module."""
    folder = {"gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
    classes = [value for name, value in vars(module).items() if name.endswith("RotaryEmbedding")]
    return classes[0](config)


def decoder_sources(model: Model, config: DecoderConfig, part: Part | None = None) -> dict[str, Source]:
    """The tensor of every parameter of `Decoder(config, part, ...)`; of all layers without `part`.

    Raises:
        UnusableInput: a tensor of the model is missing or left over.
    """
    part = part or Part(0, config.layers, True, True)
    family = model.config["model_type"]
    plus = 1.0 if family in _GEMMAS else 0.0
    table = "model.embed_tokens.weight"
    stored = {info.name for info in model.tensors}
    tied = not ({"lm_head.weight", "model.lm_head.weight"} & stored)
    whole: dict[str, Source] = {
        "embedding.weight": Source(table),
        "norm.weight": Source("model.norm.weight", plus=plus),
        "head.weight": Source(table if tied else "lm_head.weight"),
    }
    for number in range(config.layers):
        whole |= _block(config, family, number, plus)
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


def _block(config: DecoderConfig, family: str, number: int, plus: float) -> dict[str, Source]:
    ours, theirs = f"blocks.{number}.", f"model.layers.{number}."
    after = "post_feedforward_layernorm" if config.sandwich else ""
    before_mlp = "pre_feedforward_layernorm" if config.sandwich else "post_attention_layernorm"
    found = {
        f"{ours}attention_norm.weight": Source(f"{theirs}input_layernorm.weight", plus=plus),
        f"{ours}mlp_norm.weight": Source(f"{theirs}{before_mlp}.weight", plus=plus),
    }
    if config.sandwich:
        scale = config.stream_scale
        found |= {
            f"{ours}attention_out_norm.weight": Source(
                f"{theirs}post_attention_layernorm.weight", plus=plus, times=scale
            ),
            f"{ours}mlp_out_norm.weight": Source(f"{theirs}{after}.weight", plus=plus, times=scale),
        }
    if config.head_norms:
        for part, name in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
            found[f"{ours}attention.{part}.weight"] = Source(f"{theirs}self_attn.{name}.weight", plus=plus)
    width, kv_width, wide = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.intermediate
    attention, mlp = f"{theirs}self_attn.", f"{theirs}mlp."
    if family == "phi3":
        fused, gated = f"{attention}qkv_proj.", f"{mlp}gate_up_proj."
        rows: dict[str, tuple[str, tuple[int, int] | None]] = {
            "attention.query.": (fused, (0, width)),
            "attention.key.": (fused, (width, width + kv_width)),
            "attention.value.": (fused, (width + kv_width, width + 2 * kv_width)),
            "gate.": (gated, (0, wide)),
            "up.": (gated, (wide, 2 * wide)),
        }
    else:
        rows = {
            "attention.query.": (f"{attention}q_proj.", None),
            "attention.key.": (f"{attention}k_proj.", None),
            "attention.value.": (f"{attention}v_proj.", None),
            "gate.": (f"{mlp}gate_proj.", None),
            "up.": (f"{mlp}up_proj.", None),
        }
    rows |= {"attention.output.": (f"{attention}o_proj.", None), "down.": (f"{mlp}down_proj.", None)}
    for part, (name, taken) in rows.items():
        found[f"{ours}{part}weight"] = Source(f"{name}weight", taken)
        biased = config.mlp_bias
        if part.startswith("attention."):
            biased = config.output_bias if part == "attention.output." else config.query_bias
        if biased:
            found[f"{ours}{part}bias"] = Source(f"{name}bias", taken)
    return found
