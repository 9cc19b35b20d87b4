"""The runtimes, by the name that stands in package.json. A new runtime is one line here."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from compiler.errors import UnusableInput, missing_extra
from compiler.package import Package, require_usable
from runtimes.kinds import kind_of_task

# Elsewhere than on macOS packages are evaluated, which says what they compute and nothing of how fast.
_COREML = "runtimes.coreml.macos" if sys.platform == "darwin" else "runtimes.coreml.evaluator"
_EVALUATORS = ("runtimes.coreml.evaluator",)

# name, module, distributions that it needs, the extra that brings them
RUNTIMES: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("llamacpp", "runtimes.llamacpp", ("llama-cpp-python",), "gguf"),
    ("ortgenai", "runtimes.ortgenai", ("onnxruntime-genai", "onnxruntime"), "onnx"),
    ("onnxruntime", "runtimes.onnxruntime", ("onnxruntime",), "onnx"),
    ("coreml", _COREML, ("coremltools", "torch"), "coreml"),
    ("litert", "runtimes.litert", ("ai-edge-litert",), "tflite"),
    ("tvm", "runtimes.tvm", ("apache-tvm",), "neo"),
    ("gptq", "runtimes.gptq", ("torch", "transformers"), "reference"),
)


def open_session(package: Package, threads: int) -> Any:
    """Open a package with its runtime; what the session can do is told by the kind of its task (runtimes/session.py).

    Raises:
        UnusableInput: the runtime is unknown or not installed, or this machine cannot use the package.
    """
    require_usable(package)
    return kind_of_task(package.model.task).wrap(import_runtime(package).open_session(package, threads), package)


def import_runtime(package: Package) -> ModuleType:
    """The module of a package's runtime, with the libraries that it needs imported.

    Raises:
        UnusableInput: the runtime is unknown or not installed.
    """
    for name, module, distributions, extra in RUNTIMES:
        if name == package.lowered.runtime:
            try:
                return importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise missing_extra(distributions[0], extra) from error
    known = ", ".join(name for name, *_ in RUNTIMES)
    raise UnusableInput(f"{package.name} wants the runtime {package.lowered.runtime!r}; this edgec has {known}.")


def runtime_distributions(name: str) -> tuple[str, ...]:
    """The distributions whose versions a measurement with this runtime records."""
    return next((distributions for known, _, distributions, _ in RUNTIMES if known == name), ())


def require_measurable(package: Package) -> None:
    """Refuse a package that is only evaluated on this machine.

    Raises:
        UnusableInput: it is.
    """
    if only_evaluated(package):
        raise UnusableInput(
            f"{package.name} is only evaluated on this machine, which says nothing of its speed on a device. Leave it out, or "
            "measure it on macOS."
        )


def only_evaluated(package: Package) -> bool:
    """Whether this machine can tell what the package computes, but nothing of its speed and memory."""
    return any(name == package.lowered.runtime and module in _EVALUATORS for name, module, *_ in RUNTIMES)
