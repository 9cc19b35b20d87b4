"""The settings of an ONNX Runtime GenAI folder that a package may have: its builder's own. By others GenAI loads libraries of
native code, or writes files wherever they say (microsoft/onnxruntime-genai, src/config.cpp)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object

NAME = "genai_config.json"
_SEARCH = (
    "diversity_penalty", "do_sample", "early_stopping", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beams", "num_return_sequences", "past_present_share_buffer", "repetition_penalty", "temperature", "top_k", "top_p",
)  # fmt: skip
_INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names")
_OUTPUTS = ("logits", "present_key_names", "present_value_names")
_WINDOW = ("cache_slack", "layers", "slide_inputs", "slide_key_value_cache", "window_size")
_DECODER = (
    "filename", "head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "session_options.log_id", "session_options.provider_options", *(f"inputs.{name}" for name in _INPUTS),
    *(f"outputs.{name}" for name in _OUTPUTS), *(f"sliding_window.{name}" for name in _WINDOW),
)  # fmt: skip
_MODEL = ("bos_token_id", "context_length", "eos_token_id", "pad_token_id", "type", "vocab_size")
_KNOWN = frozenset(
    (
        *(f"model.{name}" for name in _MODEL),
        *(f"model.decoder.{name}" for name in _DECODER),
        *(f"search.{name}" for name in _SEARCH),
    )
)


def require_known_settings(folder: Path, title: str) -> None:
    """Refuse a configuration with other settings: a package is data.

    Raises:
        UnusableInput: genai_config.json has one, or asks for a provider of its own.
    """
    told = read_object(folder / NAME)
    for name, value in _settings(told, ""):
        if name not in _KNOWN or (name.endswith("provider_options") and value != []):
            raise UnusableInput(
                f"{NAME} of {title} has the setting {name:.80}, which no package of edgec's has: by such GenAI loads native "
                "code or writes files. Refused; build the package again."
            )


def _settings(value: dict[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _settings(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", inner
