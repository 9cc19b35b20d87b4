"""What an ONNX file says of itself: the model, its licence and authors, the recipe and edgec's version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def describe(file: Path, told: Mapping[str, str]) -> None:
    """Write `told` into the file's metadata; its data, where it lies outside, stays as it is, and so does its producer."""
    import onnx

    document = onnx.load(str(file), load_external_data=False)
    del document.metadata_props[:]
    onnx.helper.set_model_props(document, dict(told))
    onnx.save(document, str(file))
