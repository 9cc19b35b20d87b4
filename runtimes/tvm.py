"""TVM's virtual machine for compiled encoders. Of TVM only its runtime is used, which is all that a board needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.package import Package
from runtimes.session import EncodingSession

# Else TVM loads its compiler too, 100 MB of it. A process that has it keeps it.
os.environ["TVM_USE_RUNTIME_LIB"] = "1"
import tvm
from tvm.runtime.vm import VirtualMachine

# Processes that come of this one may compile.
del os.environ["TVM_USE_RUNTIME_LIB"]


def open_session(package: Package, threads: int) -> EncodingSession:
    """A session on the package's `compiled.so`."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    # Else TVM binds this process to cores of its choice, busy ones among them.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    return TvmSession(package)


class TvmSession:
    """An encoder compiled by TVM; every shape is fixed."""

    def __init__(self, package: Package) -> None:
        self._machine = VirtualMachine(tvm.runtime.load_module(str(package.artifact)), tvm.cpu())
        self._inputs = {port.name: port.dtype for port in package.lowered.main.inputs}
        self.input_names = tuple(self._inputs)
        self._output_names = tuple(port.name for port in package.lowered.main.outputs)
        config = package.folder / "config.json"
        rows = read_object(config).get("vocab_size") if config.is_file() else None
        self._rows = rows if isinstance(rows, int) else None
        self.fixed_sequence_length = self.longest_sequence = package.lowered.shapes.longest_sequence

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        ids = inputs.get("input_ids")
        if ids is not None and self._rows is not None and not 0 <= ids.min() <= ids.max() < self._rows:
            # TVM looks up what lies behind a table without asking.
            raise UnusableInput(f"A token has the id {ids.max()}, and the model's table has {self._rows:,} rows.")
        arguments = [
            tvm.runtime.tensor(np.ascontiguousarray(inputs[name], dtype)) for name, dtype in self._inputs.items()
        ]
        result = self._machine["main"](*arguments)
        values = [result] if hasattr(result, "numpy") else list(result)
        return dict(zip(self._output_names, (value.numpy() for value in values), strict=True))

    def tokenize(self, text: str) -> list[int] | None:
        return None

    def close(self) -> None:
        del self._machine
