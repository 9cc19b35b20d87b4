"""The weights that the HLO modules of a package take, by rank: a file for each core that shares the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.hlo import Tensor
from compiler.formats.safetensors import TensorInfo, list_tensors
from compiler.package import Package

_WEIGHTS = re.compile(r"weights/tp(\d+)_sharded_checkpoint\.safetensors")
DTYPES: dict[str, Any] = {
    "f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16, "s32": np.int32, "u8": np.uint8, "pred": np.bool_,
}  # fmt: skip
_STORED: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "I32": np.int32}


def stored_by_rank(package: Package) -> list[dict[str, TensorInfo]]:
    """Where each rank's tensors lie, by name.

    Raises:
        UnusableInput: the file of a rank is missing.
    """
    files = {int(found[1]): name for name in package.files if (found := _WEIGHTS.fullmatch(name))}
    if sorted(files) != list(range(len(files))) or not files:
        raise UnusableInput(f"{package.title} lacks the weights of a core. Build it again.")
    return [{info.name: info for info in list_tensors(package.folder / files[rank])} for rank in sorted(files)]


def require_stored(
    parameters: Sequence[Tensor],
    results: Sequence[Tensor],
    stored: Sequence[Mapping[str, TensorInfo]],
    package: Package,
) -> None:
    """Hold the weights of every rank to what a module takes, and what it takes to types that are known.

    Raises:
        UnusableInput: they are not of one package.
    """
    for each in (*parameters, *results):
        if each.dtype not in DTYPES or (not each.shape and each in parameters):
            raise UnusableInput(
                f"{package.title} has {each.name!r:.60} of {each.dtype} {list(each.shape)}. Build it again."
            )
    for each in parameters:
        found = [rank.get(each.name) for rank in stored]
        if any(found) and not all(
            info is not None
            and info.dtype in _STORED
            and _STORED[info.dtype] == DTYPES[each.dtype]
            and info.shape == each.shape
            for info in found
        ):
            raise UnusableInput(
                f"The weights of {package.title} do not fit its graphs: {each.name!r:.60} has another type or shape in the "
                "file of a core, or is missing there. Build it again."
            )


def read_stored(info: TensorInfo) -> NDArray[Any]:
    """A tensor, mapped from its file."""
    return np.memmap(info.file, _STORED[info.dtype], "r", info.offset, info.shape)
