"""DLR, the runtime of models that SageMaker Neo compiled. Nothing of this file was run: AWS compiles, and only there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput, missing_extra
from compiler.package import Package
from runtimes.session import EncodingSession

_DEVICES = ("cpu", "gpu", "opencl")
_MOST_META = 1 << 24


def open_session(package: Package, threads: int) -> EncodingSession:
    """A session on the folder with the compiled files.

    Raises:
        UnusableInput: Neo gave a model for PyTorch's runtime, which only AWS's container has.
    """
    if package.artifact.suffix in (".pt", ".pth"):
        raise UnusableInput(
            f"{package.title} is for PyTorch with Neo's own library, which AWS's container has. Nothing here runs it."
        )
    return DlrSession(package)


def _device_of(folder: Path) -> str:
    """cpu, gpu or opencl, as the compiled model's .meta file tells: DLR opens it for no other (dlr_common.cc)."""
    for file in sorted(folder.glob("*.meta"))[:1]:
        try:
            told = str(json.loads(file.read_bytes()[:_MOST_META])["Requirements"]["TargetDeviceType"]).lower()
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if told in _DEVICES:
            return told
    return _DEVICES[0]


class DlrSession:
    """An encoder; every shape is fixed."""

    def __init__(self, package: Package) -> None:
        try:
            import dlr
        except ModuleNotFoundError as error:
            raise missing_extra("dlr", "") from error
        self._model: Any = dlr.DLRModel(str(package.artifact.parent), _device_of(package.artifact.parent))
        self._inputs = {port.name: port.dtype for port in package.lowered.main.inputs}
        self.input_names = tuple(self._inputs)
        self._output_names = tuple(port.name for port in package.lowered.main.outputs)
        self.fixed_sequence_length = self.longest_sequence = package.lowered.shapes.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        results = self._model.run({name: np.asarray(inputs[name], dtype) for name, dtype in self._inputs.items()})
        return {name: np.asarray(each, np.float32) for name, each in zip(self._output_names, results, strict=True)}

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._model
