"""What the keys and tensors of a .gguf file say beyond what transformers reads of them.

transformers leaves out keys and tensors that it has no use for, in silence: the file of a model with scaled rotary
embeddings becomes another model. So each key under the architecture's name is one that transformers reads, one that is
restored here, or a reason to refuse; so is each tensor. llama.cpp reads no keys but those of `general`, of the architecture,
`tokenizer` and `split`. Keys: docs/gguf.md of ggml and `gguf/constants.py` of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput

# What `tokenizer.` keys may be called; the tokenizer that is made of them is held to llama.cpp's.
_TOKENIZER = frozenset(
    [
        "model",
        "pre",
        "tokens",
        "token_type",
        "token_type_count",
        "scores",
        "merges",
        "added_tokens",
        "precompiled_charsmap",
        "add_space_prefix",
        "remove_extra_whitespaces",
        "add_bos_token",
        "add_eos_token",
        "add_sep_token",
        "bos_token_id",
        "eos_token_id",
        "eot_token_id",
        "eom_token_id",
        "unknown_token_id",
        "padding_token_id",
        "seperator_token_id",
        "separator_token_id",
        "cls_token_id",
        "mask_token_id",
        "prefix_token_id",
        "suffix_token_id",
        "middle_token_id",
        "fim_pre_token_id",
        "fim_suf_token_id",
        "fim_mid_token_id",
        "fim_pad_token_id",
        "fim_rep_token_id",
        "fim_sep_token_id",
    ]
)
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ROPE_KEYS = {
    "type": "rope_type",
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
_RESTORED = frozenset(
    [
        *(f"rope.scaling.{key}" for key in _ROPE_KEYS),
        *(
            "rope.freq_base_swa",
            "attention.key_length",
            "attention.value_length",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ),
    ]
)
# Written by converters, and read by nobody.
_UNREAD = frozenset(["rope.scaling.finetuned", "attention.causal", "context_length", "vocab_size"])
# transformers' names of architectures that llama.cpp writes otherwise
_NAMES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}


def check_keys(fields: Mapping[str, Any], file: str) -> None:
    """Refuse keys that neither transformers nor `restore_config` reads.

    Raises:
        UnusableInput: it names the key.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = text_of(fields, "general.architecture") or ""
    kind = text_of(fields, "general.type") or "model"
    if kind != "model":
        raise UnusableInput(f"{file} is no model: its general.type is {kind!r}. Give the file of the model itself.")
    if "split.count" in fields and number_of(fields, "split.count") > 1:
        raise UnusableInput(
            f"{file} is one of {number_of(fields, 'split.count'):.0f} parts. Join them with llama-gguf-split --merge."
        )
    read: Any = GGUF_CONFIG_MAPPING.get(_NAMES.get(architecture, architecture), {})
    for key in fields:
        name, _, rest = key.partition(".")
        if name == architecture:
            known = rest in read or rest in _RESTORED or rest in _UNREAD
        elif name == "tokenizer":
            known = rest.removeprefix("ggml.") in _TOKENIZER or rest.startswith(("chat_template", "huggingface."))
        else:
            continue
        if not known:
            raise UnusableInput(
                f"{file} has the key {key}, which cannot be taken over into a Hugging Face model: without it this would be "
                "another model. Use the original Hugging Face model in place of the GGUF file."
            )


def check_tensors(names: Iterable[str], mapped: Iterable[str], file: str) -> None:
    """Refuse a tensor that transformers has no weight for. Experts are left to the check of what is missing.

    Raises:
        UnusableInput: it names the tensor.
    """
    known = {*mapped, *_ROPE_TENSORS}
    for name in names:
        if name not in known and "_exps." not in name:
            raise UnusableInput(
                f"{file} has the tensor {name}, for which the architecture has no weight in transformers: without it this "
                "would be another model. Use the original Hugging Face model in place of the GGUF file."
            )


def restore_config(config: Any, fields: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], file: str) -> None:
    """Put into `config` what transformers has left out of it: scaled rotary embeddings, widths of heads, soft caps.

    `tensors` holds those of `_ROPE_TENSORS` that the file has, by name.

    Raises:
        UnusableInput: what the file says cannot be said in a config of transformers.
    """
    architecture = text_of(fields, "general.architecture") or ""

    def own(key: str) -> float | None:
        return number_of(fields, f"{architecture}.{key}") if f"{architecture}.{key}" in fields else None

    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (value := own(cap)) is not None:
            setattr(config, cap, value)
    key_length, value_length = own("attention.key_length"), own("attention.value_length")
    if key_length != value_length:
        raise UnusableInput(f"{file} has keys and values of different lengths, {key_length} and {value_length}.")
    if key_length is not None and architecture != "gemma4":
        config.head_dim = int(key_length)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = own("rope.dimension_count") or width
    if rotated != int(width * getattr(config, "partial_rotary_factor", 1.0)):
        raise UnusableInput(
            f"{file} rotates {rotated:.0f} of the {width} values of a head ({architecture}.rope.dimension_count), which "
            "is lost when transformers reads it. Use the original Hugging Face model."
        )
    if (base := own("rope.freq_base_swa")) is not None:
        sliding = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention")
        if not isinstance(sliding, dict):
            raise UnusableInput(
                f"{file} has {architecture}.rope.freq_base_swa, and transformers has no such setting for it."
            )
        sliding["rope_theta"] = base
    if scaling := _rope_scaling(fields, tensors, config, int(rotated), file):
        _rope_of(config).update(scaling)


def _rope_scaling(
    fields: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], config: Any, rotated: int, file: str
) -> dict[str, Any]:
    architecture = text_of(fields, "general.architecture")
    prefix = f"{architecture}.rope.scaling."
    said: dict[str, Any] = {
        name: text_of(fields, prefix + key) if key == "type" else number_of(fields, prefix + key)
        for key, name in _ROPE_KEYS.items()
        if prefix + key in fields
    }
    if "original_max_position_embeddings" in said:
        said["original_max_position_embeddings"] = int(said["original_max_position_embeddings"])
    freqs, long, short = (tensors.get(name) for name in _ROPE_TENSORS)
    if freqs is not None and not np.allclose(freqs, 1):
        if said.get("rope_type", "none") != "none":
            raise UnusableInput(f"{file} has rope_freqs.weight and {prefix}type: two scalings of the rotary embedding.")
        base = float(_rope_of(config).get("rope_theta") or 10000.0)
        return _llama3(np.asarray(freqs, np.float64).reshape(-1), base, rotated, file)
    if long is not None and short is not None:
        told = {"rope_type": "longrope", "long_factor": long.tolist(), "short_factor": short.tolist()}
        return {**told, **{key: value for key, value in said.items() if key not in ("rope_type", "factor")}}
    kind = said.pop("rope_type", "linear" if "factor" in said else "none")
    if kind == "none" or (kind == "linear" and said.get("factor", 1.0) == 1.0):
        return {}
    if kind not in ("linear", "yarn"):
        raise UnusableInput(f"{file} scales its rotary embedding by {kind!r}, which is not known (linear, yarn).")
    if kind == "linear":
        return {"rope_type": kind, "factor": said["factor"]}
    return {"rope_type": kind, **said}


def _llama3(freqs: NDArray[np.float64], base: float, rotated: int, file: str) -> dict[str, Any]:
    """The settings of Llama 3's scaling that give these factors.

    A factor is 1 for short waves, `factor` for long ones, and between them 1 / ((1 - s) / factor + s), where s goes from 0
    to 1 with 1 / wavelength (`LlamaModel.generate_extra_tensors` of llama.cpp's converter).
    """
    waves = 2 * math.pi * base ** (np.arange(0, rotated, 2) / rotated)
    factor = float(freqs.max())
    choices = [(1.0, 4.0, float(1 << power)) for power in range(5, 21)]
    between = (freqs > 1 + 1e-6) & (freqs < factor * (1 - 1e-6))
    if between.sum() > 1:
        slope, start = np.polyfit(1 / waves[between], (1 / freqs[between] - 1 / factor) / (1 - 1 / factor), 1)
        if start < 0:
            high = 1 - 1 / start
            choices.append((1.0, float(high), float(round(slope * (high - 1)))))
    for low, high, original in choices:
        smooth = np.clip((original / waves - low) / (high - low), 0, 1)
        if freqs.shape == waves.shape and np.allclose(1 / ((1 - smooth) / factor + smooth), freqs, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(original),
            }
    raise UnusableInput(
        f"The tensor rope_freqs.weight of {file} is no scaling of the rotary embedding that transformers knows (Llama 3's). "
        "Use the original Hugging Face model in place of the GGUF file."
    )


def _rope_of(config: Any) -> dict[str, Any]:
    """The rotary settings of full attention: in some configs of transformers each kind of layer has its own."""
    settings: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    inner = settings.get("full_attention")
    return inner if isinstance(inner, dict) else settings


def text_of(fields: Mapping[str, Any], key: str) -> str | None:
    """The value of a key as text, None where the file lacks it."""
    return str(fields[key].contents()) if key in fields else None


def number_of(fields: Mapping[str, Any], key: str) -> float:
    """The value of a key that the file has.

    Raises:
        UnusableInput: it is no number.
    """
    value = fields[key].contents()
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int | float):
        raise UnusableInput(f"The key {key} holds {value!r:.60} where a number is needed.")
    return float(value)
