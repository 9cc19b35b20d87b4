"""TVM's virtual machine for compiled encoders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from compiler.package import Package
from runtimes.session import EncodingSession


def open_session(package: Package, threads: int) -> EncodingSession:
    """A session on the package's `compiled.so`."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    return TvmSession(package)


class TvmSession:
    """An encoder compiled by TVM; every shape is fixed."""

    def __init__(self, package: Package) -> None:
        self._machine = relax.VirtualMachine(tvm.runtime.load_module(str(package.artifact)), tvm.cpu())
        self.input_names = tuple(port.name for port in package.lowered.main.inputs)
        self._output_names = tuple(port.name for port in package.lowered.main.outputs)
        self.fixed_sequence_length = self.longest_sequence = package.lowered.shapes.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        arguments = [tvm.runtime.tensor(np.ascontiguousarray(inputs[name])) for name in self.input_names]
        result = self._machine["main"](*arguments)
        values = [result] if hasattr(result, "numpy") else list(result)
        return dict(zip(self._output_names, (value.numpy() for value in values), strict=True))

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._machine
