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

_HEAD = "lm_head.weight"


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """Each matrix of the checkpoint; torch computes with it in float32."""
    with tempfile.TemporaryDirectory(prefix="edgec-gptq-") as temporary:
        import_gptq(str(package.folder), temporary)
        infos = [info for info in find_tensors(Path(temporary)) if len(info.shape) == 2]
        tied = not any(info.name == _HEAD for info in infos)
        for info in infos:
            looked_up = "embed" in info.name
            multiplied = not looked_up or tied
            yield StoredMatrix(info.name, np.array(read_float(info)), looked_up, multiplied, quantized=False)
