"""Texts as an encoder takes them: the package's tokenizer, the arrays, and their padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.package import Package

TOKENIZER = "tokenizer.json"


def packaged_tokenizer(package: Package) -> Any | None:
    """The tokenizer in the package, which neither pads nor cuts; None where it has none."""
    from tokenizers import Tokenizer

    file = package.folder / TOKENIZER
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def text_arrays(ids: Sequence[int], segments: Sequence[int] | None = None) -> dict[str, NDArray[np.int64]]:
    """One text as int64 (1, tokens) arrays: ids, a mask of ones, and segments, which are 0 where none are given."""
    row = np.asarray([list(ids)], np.int64)
    types = np.zeros_like(row) if segments is None else np.asarray([list(segments)], np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": types}


def padded(inputs: dict[str, NDArray[Any]], length: int | None) -> dict[str, NDArray[Any]]:
    """Padded with zeros to a length; as they are without one, and for pictures."""
    if length is None or "input_ids" not in inputs:
        return inputs
    return {name: np.pad(value, ((0, 0), (0, length - value.shape[1]))) for name, value in inputs.items()}
