"""Attention windows in ONNX Runtime GenAI, whose builder takes a window of config.json for all layers but Gemma's."""

from __future__ import annotations

from compiler.attention_windows import layer_windows, same_up_to, told_window
from compiler.model import Model

# Of these it takes the layers that config.json names.
_BY_LAYER = ("gemma2", "gemma3_text")
# Tokens of a cache where no context is asked for, at least.
_CACHE = 2048


def same_in_genai(model: Model) -> int | None:
    """The longest context in which GenAI attends as the model does; None for any."""
    if model.config.get("model_type") in _BY_LAYER:
        return None
    return same_up_to(model, {}, applies_strays=True)


def cache_slides(model: Model, context: int | None) -> bool:
    """Whether caches may slide: the runtime fails where all layers have a window, none has, or it is beyond the cache."""
    window = told_window(model.config) or same_in_genai(model)
    if window is None:
        return True
    return len(set(layer_windows(model))) > 1 and window < (context or _CACHE)
