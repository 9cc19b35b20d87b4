"""The targets, by name. A new target is one line here."""

from __future__ import annotations

import importlib

from compiler.kit import Kit
from compiler.target import Target

TARGETS: tuple[tuple[str, str], ...] = (
    ("gguf", "targets.gguf.target"),
    ("onnx", "targets.onnx.target"),
    ("gptq", "targets.gptq"),
    (
        "coreml",
        "targets.coreml.target",
    ),  # Core AI, Apple's announced successor, would be a line and a folder of its own here
    ("tflite", "targets.tflite.target"),
    ("neo", "targets.neo.target"),
    ("neuron", "targets.neuron.target"),
)

TARGET_NAMES: tuple[str, ...] = tuple(name for name, _ in TARGETS)


KITS: tuple[Kit, ...] = (
    Kit("ios", ("coreml",), "targets.coreml.kit"),
    Kit("android", ("litert", "litertlm"), "targets.tflite.kit_android"),
    Kit("python", ("litert", "litertlm"), "targets.tflite.kit_python"),
    Kit("docker", ("llamacpp",), "targets.gguf.kit_docker"),
    Kit("ollama", ("llamacpp",), "targets.gguf.kit_ollama"),
    Kit("sagemaker", ("llamacpp", "ortgenai", "onnxruntime", "litert", "tvm", "dlr"), "targets.aws.kit_sagemaker"),
    Kit("greengrass", ("llamacpp", "ortgenai", "onnxruntime", "litert", "tvm", "dlr"), "targets.aws.kit_greengrass"),
)


def schemes_of(name: str) -> tuple[str, ...]:
    """The schemes that a target takes."""
    return load_target(name).schemes


def load_target(name: str) -> Target:
    """The target of that name. KeyError when there is none."""
    target: Target = importlib.import_module(dict(TARGETS)[name]).TARGET
    return target
