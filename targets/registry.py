"""The targets, by name. A new target is one line here."""

from __future__ import annotations

import importlib
from types import ModuleType

TARGETS: tuple[tuple[str, str], ...] = (
    ("gguf", "targets.gguf.target"),
    ("onnx", "targets.onnx.target"),
    ("gptq", "targets.gptq"),
    (
        "coreml",
        "targets.coreml.target",
    ),  # Core AI, Apple's announced successor, would be a line and a file of its own here
    ("tflite", "targets.tflite"),
    ("neo", "targets.neo"),
)

TARGET_NAMES: tuple[str, ...] = tuple(name for name, _ in TARGETS)


def load_target(name: str) -> ModuleType:
    """The module of a target (compiler/target.py says what it holds). KeyError when there is none of that name."""
    return importlib.import_module(dict(TARGETS)[name])
