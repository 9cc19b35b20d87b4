"""The matrices of Core ML packages, decompressed as the evaluator does it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compiler.package import Package
from runtimes.stored.matrix import Rounding, StoredMatrix

_LOOKS_UP = ("gather", "gather_along_axis", "gather_nd")


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """Each constant with two axes of more than one value, of one function of each model, and what takes it."""
    from runtimes.coreml.evaluator import Evaluator

    for file in sorted({file for graph in package.lowered.graphs for file in graph.files}):
        evaluator = Evaluator(Path(package.folder) / file)
        ranges = any(operation.kind == "quantize" for operation in evaluator.operations())
        rounding = Rounding("int8") if ranges else Rounding("float16", results=True)
        for constant in evaluator.constants():
            values = constant.values.squeeze()
            if values.ndim < 2:
                continue
            looked_up = any(kind in _LOOKS_UP for kind in constant.takers)
            multiplied = any(kind not in _LOOKS_UP for kind in constant.takers)
            matrix = np.asarray(values.reshape(len(values), -1), np.float32)
            yield StoredMatrix(constant.name, matrix, looked_up, multiplied, constant.compressed, rounding)
