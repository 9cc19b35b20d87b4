"""The runtimes, by the name that stands in package.json. A new runtime is one line here."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from compiler.errors import EdgecError, UnusableInput, missing_extra
from compiler.package import Package
from compiler.package_use import require_usable
from compiler.trust import is_built_here
from runtimes.context import choose_context, require_context
from runtimes.kinds import kind_of_task
from runtimes.stored.matrix import StoredMatrix

# Elsewhere than on macOS packages are evaluated, which says what they compute and nothing of how fast.
_COREML = "runtimes.coreml.macos" if sys.platform == "darwin" else "runtimes.coreml.evaluator"
# Elsewhere than beside a Neuron chip, graphs are evaluated from what their compiler was given.
_ON_CHIP = importlib.util.find_spec("nrtpy") is not None
_NEURON, _OF_NEURON = ("runtimes.neuron.nrt", ("nrtpy",)) if _ON_CHIP else ("runtimes.neuron.xla", ("jaxlib", "jax"))
_EVALUATORS = {
    "runtimes.coreml.evaluator": "edgec's evaluator of its program; Core ML itself, on a Mac, was not run",
    "runtimes.neuron.xla": "XLA on this machine's CPU, from its HLO modules; no NeuronCore was used",
}


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        name: as package.json has it.
        module: ours.
        distributions: what it needs.
        extra: what brings them; empty where none does.
        targets: those that write packages for it.
        artifact: how the files are called that it opens.
        stored: the module that reads what its packages store; empty where that is the model's weights as they are.
        float16_inside: it computes parts in float16 whatever the weights are.
        context_when_opened: how many tokens fit is decided when a package is opened: `open_session` takes it as well.
        native: whether it runs native code out of the package.
    """

    name: str
    module: str
    distributions: tuple[str, ...]
    extra: str
    targets: tuple[str, ...]
    artifact: str
    stored: str = ""
    float16_inside: bool = False
    context_when_opened: bool = False
    native: bool = False


_STORED = "runtimes.stored."
RUNTIMES: tuple[Runtime, ...] = (
    Runtime(
        "llamacpp", "runtimes.llamacpp", ("llama-cpp-python",), "gguf", ("gguf",), "*.gguf", f"{_STORED}gguf",
        # Keys and values are kept in float16.
        float16_inside=True, context_when_opened=True,
    ),
    Runtime(
        "ortgenai", "runtimes.ortgenai", ("onnxruntime-genai", "onnxruntime"), "onnx", ("onnx",), "*.onnx", f"{_STORED}onnx",
        context_when_opened=True,
    ),
    Runtime("onnxruntime", "runtimes.onnxruntime", ("onnxruntime",), "onnx", ("onnx",), "*.onnx", f"{_STORED}onnx"),
    Runtime(
        "coreml", _COREML, ("coremltools", "torch"), "coreml", ("coreml",), "*.mlpackage", "runtimes.coreml.stored",
        float16_inside=True,
    ),
    Runtime("litert", "runtimes.litert", ("ai-edge-litert",), "tflite", ("tflite",), "*.tflite", f"{_STORED}tflite"),
    Runtime(
        "litertlm", "runtimes.litertlm", ("ai-edge-litert", "litert-lm-api", "litert-lm-builder"), "tflite", ("tflite",),
        "*.litertlm", f"{_STORED}tflite", context_when_opened=True,
    ),
    Runtime("dlr", "runtimes.dlr", ("dlr",), "", ("neo",), "*", native=True),
    Runtime("xla", _NEURON, _OF_NEURON, "neuron", ("neuron",), "*.hlo_module.pb", f"{_STORED}neuron"),
    Runtime("tvm", "runtimes.tvm", ("apache-tvm",), "neo", ("neo",), "*.so", native=True),
    Runtime(
        "gptq", "runtimes.gptq", ("torch", "transformers"), "reference", ("gptq",), "*.safetensors", f"{_STORED}gptq",
        context_when_opened=True,
    ),
)  # fmt: skip


def open_session(
    package: Package, threads: int, context_length: int | None = None, at_least: int = 0, *, proving: bool = False
) -> Any:
    """Open a package with its runtime; what the session can do is told by the kind of its task (runtimes/session.py).

    Args:
        package: the package.
        threads: threads that the runtime may use.
        context_length: tokens that a language model's cache is to hold; None for the package's own.
        at_least: tokens that it must hold where nothing is asked and the model can.
        proving: it is opened to be verified, which a package that is unfinished may allow.

    Raises:
        UnusableInput: the runtime is unknown or not installed, this machine cannot use the package, or the context is more
            than the package can hold.
    """
    require_usable(package, proving=proving)
    module = import_runtime(package)
    if runtime_of(package).context_when_opened:
        session = module.open_session(package, threads, choose_context(package, context_length, at_least))
    else:
        require_context(package, context_length)
        session = module.open_session(package, threads)
    return kind_of_task(package.model.task).wrap(session, package)


def import_runtime(package: Package) -> ModuleType:
    """The module of a package's runtime, with the libraries that it needs imported.

    Raises:
        UnusableInput: the runtime is unknown or not installed.
    """
    runtime = runtime_of(package)
    try:
        return importlib.import_module(runtime.module)
    except ModuleNotFoundError as error:
        raise missing_extra(runtime.distributions[0], runtime.extra) from error


def runtime_of(package: Package) -> Runtime:
    """The runtime of a package, which must be the one that its target writes for, as must be the files that it opens.

    Raises:
        UnusableInput: the runtime is unknown, or the package is none that its target would write.
    """
    named = package.lowered.runtime
    runtime = next((each for each in RUNTIMES if each.name == named), None)
    if runtime is None:
        known = ", ".join(each.name for each in RUNTIMES)
        raise UnusableInput(f"{package.title} wants the runtime {named!r}; this edgec has {known}.")
    target = package.recipe.partition(":")[0]
    if target not in runtime.targets:
        raise UnusableInput(
            f"{package.title} is of the target {target!r} and names the runtime {named}, which that target does not write "
            "for. It is refused: the package was not made by edgec, or was changed."
        )
    for file in (file for graph in package.lowered.graphs for file in graph.files):
        if not fnmatch.fnmatchcase(file, runtime.artifact):
            raise UnusableInput(
                f"{package.title} has {named} open {file!r:.80}, and packages of {target} have {runtime.artifact}. It is "
                "refused: the package was not made by edgec, or was changed."
            )
    return runtime


def require_trusted(package: Package, trust: bool) -> None:
    """Refuse native code that another machine built, unless the user trusts it in so many words.

    Raises:
        UnusableInput: it is such a package.
    """
    if runtime_of(package).native and not trust and not is_built_here(package):
        raise UnusableInput(
            f"{package.title} is native code ({package.artifact.name}), which can do whatever you can, and this machine has "
            "no record of having built it. Where you know who built it, add --trust; else build it here from the model."
        )


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """The matrices that a package stores, read from its files alone; none where they are the model's own.

    Raises:
        UnusableInput: the files are not of their format.
    """
    name = runtime_of(package).stored
    if not name:
        return
    matrices = importlib.import_module(name).stored_matrices(package)
    while True:
        try:
            matrix = next(matrices, None)
        except EdgecError:
            raise
        except Exception as error:
            raise UnusableInput(
                f"What {package.title} stores cannot be read: its files are not of their format, or hold a type that this "
                "edgec does not know. Build it again; --debug shows where."
            ) from error
        if matrix is None:
            return
        yield matrix


def runtime_distributions(name: str) -> tuple[str, ...]:
    """The distributions whose versions a measurement with this runtime records."""
    return next((each.distributions for each in RUNTIMES if each.name == name), ())


def require_measurable(package: Package) -> None:
    """Refuse a package that is only evaluated on this machine.

    Raises:
        UnusableInput: it is.
    """
    if only_evaluated(package):
        raise UnusableInput(
            f"{package.title} is only evaluated on this machine, which says nothing of its speed on a device. Leave it out"
            f"{', or measure it on macOS' if package.lowered.runtime == 'coreml' else ''}."
        )


def only_evaluated(package: Package) -> bool:
    """Whether this machine can tell what the package computes, but nothing of its speed and memory."""
    return bool(evaluator_of(package))


def evaluator_of(package: Package) -> str:
    """What computes a package here in the place of the engine that it is for, in words; empty where that engine does."""
    modules = [each.module for each in RUNTIMES if each.name == package.lowered.runtime]
    return _EVALUATORS.get(modules[0], "") if modules else ""
