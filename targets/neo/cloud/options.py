"""CompilerOptions: which keys a target of Neo's takes, and what they may be.

Source: the text of OutputConfig.CompilerOptions in botocore's service model of SageMaker (2026-05).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MOST, _LEAST = 1024, 3
_DTYPES = ("float", "float32", "int64", "long")
_LEVELS = range(21, 30)
_APPLE = "iOS, macOS"


@dataclass(frozen=True)
class OptionTarget:
    """What of a target decides on its options.

    Attributes:
        title: what it is called.
        system, accelerator: as its table tells them; empty where it tells none.
        instance: whether it is one of the cloud's, other than Inferentia.
        told_by_parts: whether it is given as a TargetPlatform.
        framework: of the model.
    """

    title: str
    system: str
    accelerator: str
    instance: bool
    told_by_parts: bool
    framework: str

    @property
    def nvidia(self) -> bool:
        """Whether it has a GPU of NVIDIA's."""
        return self.accelerator.upper() == "NVIDIA"

    @property
    def android(self) -> bool:
        """Whether it runs Android."""
        return self.system.upper() == "ANDROID"


@dataclass(frozen=True)
class Option:
    """A key.

    Attributes:
        name: as Neo has it.
        form: what a value looks like, in words.
        fits: whether a value has that form.
        goes_with: whether a target takes the key.
        whose: the targets that take it, in words.
    """

    name: str
    form: str
    fits: Callable[[Any], bool]
    goes_with: Callable[[OptionTarget], bool]
    whose: str


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _are_flags(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_matches(r"[+-][\w.-]{1,40}"), value))


def _has_cpu_code(target: OptionTarget) -> bool:
    return target.system != _APPLE and target.accelerator in ("", "Mali", "MALI", "INTEL_GRAPHICS")


_GPU = ("gpu-code", "trt-ver", "cuda-ver")
OPTIONS = (
    Option("dtype", f"one of {', '.join(_DTYPES)}", lambda value: isinstance(value, str) and value in _DTYPES,
           lambda target: target.instance and target.framework == "PYTORCH", "instances of the cloud, of PyTorch models"),
    Option("mcpu", "a CPU as LLVM names it, such as skylake-avx512", _matches(r"[\w.+-]{1,60}"), _has_cpu_code,
           "CPUs"),
    Option("mattr", 'a list of CPU flags, such as ["+neon"]', _are_flags, _has_cpu_code, "CPUs"),
    Option("gpu-code", "an architecture such as sm_72", _matches(r"sm_\d{2,3}"), lambda target: target.nvidia, "NVIDIA"),
    Option("trt-ver", "TensorRT's version as x.y.z", _matches(r"\d+\.\d+\.\d+"), lambda target: target.nvidia, "NVIDIA"),
    Option("cuda-ver", "CUDA's version as x.y", _matches(r"\d+\.\d+"), lambda target: target.nvidia, "NVIDIA"),
    Option("ANDROID_PLATFORM", f"a whole number from {_LEVELS[0]} to {_LEVELS[-1]}",
           lambda value: type(value) is int and value in _LEVELS, lambda target: target.android, "Android"),
    Option("class_labels", "the name of a file in the archive", _matches(r"[\w.-]{1,100}"),
           lambda target: target.system == _APPLE, "Core ML"),
)  # fmt: skip


def find_option_faults(target: OptionTarget, options: Mapping[str, Any] | None) -> Iterator[str]:
    """A sentence for everything about these options that the target does not take."""
    text = json.dumps(options or {})
    if options is not None and not _LEAST <= len(text) <= _MOST:
        yield f"CompilerOptions have {len(text)} characters; {_LEAST} to {_MOST} are taken."
    given = options or {}
    if target.nvidia and target.told_by_parts and (lacking := [name for name in _GPU if name not in given]):
        yield f"NVIDIA as Accelerator needs CompilerOptions {', '.join(_GPU)}; {lacking[0]} is not there."
    for name, value in given.items():
        option = next((each for each in OPTIONS if each.name == name), None)
        if option is None:
            known = ", ".join(each.name for each in OPTIONS if each.goes_with(target)) or "none"
            yield f"CompilerOptions have no {name!r:.60}. {target.title} takes: {known}."
        elif not option.goes_with(target):
            yield f"The {name} of CompilerOptions is for {option.whose}, and not for {target.title}. Leave it out."
        elif not option.fits(value):
            yield f"The {name} of CompilerOptions is {value!r:.60}; it is {option.form}."
