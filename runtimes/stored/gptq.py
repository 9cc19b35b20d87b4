"""The matrices of a GPTQ checkpoint, dequantized under the model's own names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from compiler.formats.safetensors import find_tensors
from compiler.inputs.gptq import import_gptq
from compiler.networks.weights import read_float
from compiler.package import Package
from runtimes.stored.matrix import StoredMatrix


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """Each matrix of the checkpoint; torch computes with it in float32."""
    with tempfile.TemporaryDirectory(prefix="edgec-gptq-") as temporary:
        import_gptq(str(package.folder), temporary)
        for info in find_tensors(Path(temporary)):
            if len(info.shape) == 2:
                looked_up = "embed" in info.name
                values = np.array(read_float(info))
                yield StoredMatrix(info.name, values, looked_up, not looked_up, quantized=False)
