"""What `edgec build` and a recipe file can say of a quantization: the same words in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.quantization import Quantization, Storage, quantization_from_full
from compiler.quantize.calibrate.arrays import SUFFIX, keep_arrays
from compiler.quantize.calibrate.pictures import keep_pictures
from compiler.quantize.calibrate.texts import keep_text
from compiler.recipe import Recipe
from compiler.scheme import MIXED


@dataclass(frozen=True)
class QuantizationOptions:
    """None stands for what is not said; compiler/quantization.py tells what each means.

    Attributes:
        calibration: a file of text, `hf:DATASET`, a folder of pictures, or a .npz file of arrays.
        calibration_samples, calibration_tokens, seed: of the samples.
    """

    calibration: str | None = None
    calibration_samples: int | None = None
    calibration_tokens: int | None = None
    seed: int | None = None
    head: Storage | None = None
    embedding: Storage | None = None
    smaller_groups: bool | None = None
    portable_scales: bool | None = None
    target_bpw: float | None = None
    max_bytes: int | None = None
    activation_order: bool | None = None
    damping: float | None = None
    feedback: float | None = None
    refinements: int | None = None


_OF_CALIBRATION = {"calibration_samples": "samples", "calibration_tokens": "sample_tokens", "seed": "seed"}
_BUDGETS = ("target_bpw", "max_bytes")


def with_options(recipe: Recipe, options: QuantizationOptions) -> Recipe:
    """The recipe with what the options say; recipes that are not ours to quantize stay as they are.

    Raises:
        UnusableInput: a calibration text, or folder of pictures, cannot be used, or a value is out of range.
    """
    if not recipe.uses_quantization:
        return recipe
    old = recipe.quantization
    given = {field.name: value for field in fields(options) if (value := getattr(options, field.name)) is not None}
    calibration: dict[str, Any] = {own: given.pop(name) for name, own in _OF_CALIBRATION.items() if name in given}
    if (text := given.pop("calibration", None)) is not None:
        folder = Path(text).expanduser()
        calibration |= {"text": None, "pictures": None, "arrays": None}
        if folder.is_dir():
            calibration["pictures"], calibration["source"] = keep_pictures(folder)
        elif folder.suffix == SUFFIX:
            calibration["arrays"], calibration["source"] = keep_arrays(text)
        else:
            calibration["text"], calibration["source"] = keep_text(text)
    if not recipe.scheme.mixed:
        given = {name: value for name, value in given.items() if name not in _BUDGETS}
    changed: Quantization = replace(old, calibration=replace(old.calibration, **calibration), **given)
    return replace(recipe, quantization=quantization_from_full(changed.full()))


def require_mixed(recipes: Sequence[Recipe], options: QuantizationOptions) -> None:
    """Raise UnusableInput when a budget is given and no recipe would use it."""
    budget = options.target_bpw is not None or options.max_bytes is not None
    if budget and not any(recipe.scheme.mixed for recipe in recipes):
        raise UnusableInput(
            f"A budget shares bits out among layers, and {recipes[0]} gives all layers the same. Use the scheme {MIXED.name}, "
            f"as in {recipes[0].target}:{MIXED.name}."
        )
