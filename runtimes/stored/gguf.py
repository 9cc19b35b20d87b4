"""The matrices of a GGUF file, dequantized by the `gguf` distribution, which is not what runs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compiler.package import Package
from runtimes.stored.matrix import EXACT, Rounding, StoredMatrix

_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
_LOOKED_UP = (_EMBEDDING, "position_embd.weight", "token_types.weight")
_FLOATS = {"F32": EXACT, "F16": Rounding("float16"), "BF16": Rounding("bfloat16")}
_BLOCK, _SUPER_BLOCK = 32, 256


def stored_matrices(package: Package) -> Iterator[StoredMatrix]:
    """Each matrix of the file, those of experts one by one.

    llama.cpp rounds the other factor of a product to the type that ggml names for it (`vec_dot_type` in ggml-cpu.c): Q8_0
    or Q8_1, in groups of 32, for the types with blocks of 32, and Q8_K, in groups of 256, for the K types.
    """
    import gguf

    tensors: list[Any] = gguf.GGUFReader(package.artifact).tensors
    tied = all(tensor.name != _HEAD for tensor in tensors)
    for tensor in tensors:
        if len(tensor.shape) < 2:
            continue
        kind = tensor.tensor_type.name
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        looked_up = tensor.name in _LOOKED_UP
        multiplied = not looked_up or (tied and tensor.name == _EMBEDDING)
        rounding = _FLOATS.get(kind) or Rounding("int8", _SUPER_BLOCK if kind.endswith("_K") else _BLOCK)
        for matrix in values.reshape(-1, *values.shape[-2:]):
            yield StoredMatrix(tensor.name, matrix, looked_up, multiplied, kind not in _FLOATS, rounding)
