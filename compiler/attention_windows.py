"""How far each layer of a language model looks back, as transformers reads its configuration.

And up to which context a runtime that has windows of its own computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compiler.model import Model

Windows = tuple[int | None, ...]
# Whether a layer has a window, by its number.
Pattern = Callable[[int], bool]
_DEFAULT_WINDOW = 4096
# Types whose classes in transformers have no window, whatever stands in config.json.
_WITHOUT = ("llama", "gpt2", "gpt_neox", "gemma", "olmo", "olmo2", "granite", "stablelm", "phi", "falcon", "glm")
_BY_SWITCH = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3")


def alternate(layer: int) -> bool:
    """Gemma 2's: every second layer sees all tokens."""
    return layer % 2 == 0


def every_but(turn: int) -> Pattern:
    """Every `turn`-th layer sees all tokens, as of Gemma 3 (6) and Command R7B (4)."""
    return lambda layer: (layer + 1) % turn != 0


def told_window(config: Mapping[str, Any]) -> int | None:
    """The window that transformers takes from config.json; None where it takes none."""
    kind, window = str(config.get("model_type")), config.get("sliding_window")
    if kind in _WITHOUT or (kind in _BY_SWITCH and not config.get("use_sliding_window")):
        return None
    if window is None and "sliding_window" not in config and kind in ("gemma2", "gemma3_text", "cohere2"):
        return _DEFAULT_WINDOW
    return window if type(window) is int and window > 0 else None


def layer_windows(model: Model) -> Windows:
    """Tokens that each layer looks back; None where it sees all. Empty of what is no language model."""
    config, layers = model.config, model.geometry.layers
    if not model.is_decoder:
        return ()
    window = told_window(config)
    if window is None:
        return (None,) * layers
    types = config.get("layer_types")
    if isinstance(types, list):
        named = [each == "sliding_attention" for each in types[:layers]]
        return tuple(window if each else None for each in (*named, *[False] * (layers - len(named))))
    return tuple(window if _pattern(config)(layer) else None for layer in range(layers))


def _pattern(config: Mapping[str, Any]) -> Pattern:
    kind = str(config.get("model_type"))
    if kind == "gemma2":
        return alternate
    if kind in ("gemma3_text", "cohere2"):
        turn = config.get("sliding_window_pattern")
        return every_but(turn if type(turn) is int and turn > 0 else {"gemma3_text": 6, "cohere2": 4}[kind])
    if kind in _BY_SWITCH:
        first = config.get("max_window_layers", 28)
        return lambda layer: type(first) is int and layer >= first
    return lambda layer: True


def same_up_to(model: Model, patterns: Mapping[str, Pattern], *, applies_strays: bool = False) -> int | None:
    """The longest context in which a runtime's windows are the model's own; None where they are in any.

    Args:
        model: a language model.
        patterns: of the runtime's, by the model's type; it gives no window to the layers of others.
        applies_strays: it takes a window that stands in config.json for all layers, whatever transformers does.
    """
    own, config = layer_windows(model), model.config
    if not own:
        return None
    kind, told = str(config.get("model_type")), config.get("sliding_window")
    stray = type(told) is int and told > 0 and not (kind in _BY_SWITCH and not config.get("use_sliding_window"))
    pattern, window = patterns.get(kind), told_window(config)
    if pattern is None and applies_strays and stray:
        return told
    theirs = tuple(window if pattern is not None and pattern(layer) else None for layer in range(len(own)))
    differing = [a or b for a, b in zip(own, theirs, strict=True) if a != b]
    return min((each for each in differing if each), default=None)
