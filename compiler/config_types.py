"""The types of what edgec reads of a config.json, checked once, so that nobody who uses a setting need ask what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compiler.errors import UnusableInput

_COUNTS = (
    "hidden_size", "n_embd", "dim", "d_model", "num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head",
    "n_heads", "num_key_value_heads", "head_dim", "intermediate_size", "hidden_dim", "n_inner", "vocab_size",
    "max_position_embeddings", "n_positions", "n_ctx", "type_vocab_size", "num_channels", "sliding_window", "num_labels",
    "original_max_position_embeddings", "embedding_size", "num_experts", "num_local_experts",
)  # fmt: skip
_NUMBERS = (
    "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps", "rope_theta", "partial_rotary_factor",
    "final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar", "embedding_multiplier",
)  # fmt: skip
_WORDS = (
    "model_type", "hidden_act", "hidden_activation", "activation", "activation_function", "position_embedding_type",
    "problem_type", "torch_dtype", "dtype",
)  # fmt: skip
_SWITCHES = (
    "tie_word_embeddings", "attention_bias", "mlp_bias", "qkv_bias", "use_sliding_window", "is_decoder",
    "add_cross_attention", "norm_topk_prob",
)  # fmt: skip
_LISTS = ("architectures", "layer_types")
_OBJECTS = ("rope_scaling", "rope_parameters", "id2label", "label2id", "vision_config")
# Larger than any model's, and small enough for all that is reckoned with.
_LARGEST = 1 << 31


def require_types(config: Mapping[str, Any], name: str) -> None:
    """Refuse a config.json in which a setting that edgec reads is of another type than its name says.

    Raises:
        UnusableInput: it names the setting, its value, and what it should be.
    """
    for kind, settings, fits in _KINDS:
        for setting in settings:
            value = config.get(setting)
            if value is not None and not fits(value):
                raise UnusableInput(
                    f"config.json of {name} has {setting} = {value!r:.60}, which is not {kind}. Compare it with the file in "
                    "the model's repository."
                )


def image_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) of the pictures that a config.json tells of, with transformers' defaults."""
    size = config.get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return config.get("num_channels", 3), height, width


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _LARGEST


def _is_size(value: Any) -> bool:
    pair = value if isinstance(value, list) else [value, value]
    return len(pair) == 2 and all(_is_count(each) and each > 0 for each in pair)


def _is_ids(value: Any) -> bool:
    return all(type(each) is int and abs(each) < _LARGEST for each in (value if isinstance(value, list) else [value]))


_KINDS: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ("a whole number from 0", _COUNTS, _is_count),
    ("a number", _NUMBERS, _is_number),
    ("a word", _WORDS, lambda value: isinstance(value, str)),
    ("true or false", _SWITCHES, lambda value: isinstance(value, bool)),
    ("a list of words", _LISTS, lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value)),
    ("an object", _OBJECTS, lambda value: isinstance(value, dict)),
    ("a size, or height and width", ("image_size", "patch_size"), _is_size),
    ("a token's id, or several", ("eos_token_id", "bos_token_id", "pad_token_id"), _is_ids),
)
