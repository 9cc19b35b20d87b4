"""The matrices of Neuron packages, those that several cores share put together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from compiler.formats.safetensors import TensorInfo, list_tensors
from compiler.networks.ranks import whole
from compiler.package import Package
from runtimes.stored.matrix import EXACT, Rounding, StoredMatrix

_LOOKED_UP = ("embedding.weight", "words.weight")


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """Each matrix, as the ranks' files have it; tables of positions and rotations are none."""
    files = sorted((name for name in package.files if name.startswith("weights/tp")), key=_rank_of)
    ranks = [{info.name: info for info in list_tensors(package.folder / name)} for name in files]
    for name, info in ranks[0].items():
        if len(info.shape) < 2 or not name.endswith("weight"):
            continue
        values = whole([_read(each[name]) for each in ranks], name)
        looked_up = name in _LOOKED_UP
        rounding = Rounding("bfloat16", attention=True) if info.dtype == "BF16" else EXACT
        matrix = values.reshape(len(values), -1)
        yield StoredMatrix(name, matrix, looked_up, not looked_up, info.dtype == "BF16", rounding)


def _rank_of(name: str) -> int:
    return int("".join(each for each in name.partition("_")[0] if each.isdigit()) or 0)


def _read(info: TensorInfo) -> NDArray[np.float32]:
    stored: Any = ml_dtypes.bfloat16 if info.dtype == "BF16" else np.float32
    return np.memmap(info.file, stored, "r", info.offset, info.shape).astype(np.float32)
