"""DLR, the runtime of models that SageMaker Neo compiled. Nothing of this file was run: AWS compiles, and only there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput, missing_extra
from compiler.formats.dlr import device_of
from compiler.package import Package
from runtimes.session import EncodingSession


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


class DlrSession:
    """An encoder; every shape is fixed."""

    def __init__(self, package: Package) -> None:
        try:
            import dlr
        except ModuleNotFoundError as error:
            raise missing_extra("dlr", "") from error
        self._model: Any = dlr.DLRModel(str(package.artifact.parent), device_of(package.artifact.parent))
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
