"""Recipes from a TOML file: everything that an option of `edgec build` can say of a recipe, a file can say too.

[[recipe]]
recipe = "gguf:int4-gptq-g32"
context_length = 2048
min_quality = "good"
[recipe.quantization]
calibration = "text.txt"
damping = 0.02
[recipe.thresholds]
max_mean_kl = 0.1
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.toml_file import read_toml
from compiler.quality import QUALITIES
from compiler.quantize.options import QuantizationOptions, require_mixed, with_options
from compiler.recipe import LARGEST, Recipe, Shapes, parse_recipe
from compiler.records import from_json

_LIMIT = re.compile(r"(max|min)_[a-z0-9_]+")
_TABLES = ("thresholds", "quantization")
_SHAPES = tuple(field.name for field in fields(Shapes))
_KEYS = ("recipe", "task", "min_quality", *_SHAPES, *_TABLES)


def read_recipe_file(
    path: Path, targets: Sequence[str], schemes_of: Callable[[str], Sequence[str]] = lambda target: ()
) -> list[Recipe]:
    """The recipes of a file. A calibration file is looked for beside it.

    Raises:
        UnusableInput: the file cannot be read, or has a key or value that means nothing here.
    """
    document, _ = read_toml(path, f"Recipe file {path}")
    tables = document.get("recipe")
    if not isinstance(tables, list) or not tables:
        raise UnusableInput(f"Recipe file {path} has no [[recipe]] table. Write one for each package.")
    return [_recipe_from_table(table, path, lambda text: parse_recipe(text, targets, schemes_of)) for table in tables]


def _recipe_from_table(table: Any, path: Path, parse: Callable[[str], Recipe]) -> Recipe:
    if not isinstance(table, dict) or not all(isinstance(table.get(name, {}), dict) for name in _TABLES):
        raise UnusableInput(
            f"Recipe file {path}: `recipe` must be [[recipe]] tables, and {' and '.join(_TABLES)} tables in one."
        )
    limits, said = table.get("thresholds", {}), table.get("quantization", {})
    known = [field.name for field in fields(QuantizationOptions)]
    unknown = sorted(set(table) - set(_KEYS)) + sorted(name for name in limits if not _LIMIT.fullmatch(name))
    unknown += sorted(set(said) - set(known))
    if unknown or "recipe" not in table:
        problem = f"unknown key {unknown[0]!r}" if unknown else "a table without the key 'recipe'"
        raise UnusableInput(
            f"Recipe file {path}: {problem}. Keys are: {', '.join(_KEYS)}; in thresholds max_FIGURE and min_FIGURE; in "
            f"quantization {', '.join(known)}."
        )
    _check_values(table, limits, path)
    recipe = parse(table["recipe"])
    shapes = replace(Shapes(), **{name: table[name] for name in _SHAPES if name in table})
    limited = tuple(sorted(limits.items()))
    recipe = replace(
        recipe,
        shapes=shapes,
        task=table.get("task"),
        thresholds=limited,
        min_quality=table.get("min_quality", recipe.min_quality),
    )
    if said and not recipe.uses_quantization:
        raise UnusableInput(
            f"Recipe file {path}: {recipe} is not quantized by edgec, so its table `quantization` says nothing. Remove it."
        )
    options = _options(said, path)
    require_mixed([recipe], options)
    return with_options(recipe, options)


def _check_values(table: Mapping[str, Any], limits: Mapping[str, Any], path: Path) -> None:
    quality = f"one of {', '.join(QUALITIES)}"
    wanted = dict.fromkeys(_SHAPES, "a whole number above 0") | {"recipe": "a string", "task": "a string"}
    wanted["min_quality"] = quality
    for name, value in {**table, **limits}.items():
        what = wanted.get(name, "a number")
        right = {
            "a string": isinstance(value, str),
            quality: value in QUALITIES,
            "a number": isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
            "a whole number above 0": type(value) is int and 0 < value <= LARGEST,
        }
        if name not in _TABLES and not right[what]:
            raise UnusableInput(f"Recipe file {path}: {name} = {value!r} is not {what}.")


def _options(said: Mapping[str, Any], path: Path) -> QuantizationOptions:
    try:
        options = from_json(QuantizationOptions, dict(said), "quantization")
    except ValueError as error:
        raise UnusableInput(f"Recipe file {path}: {error}.") from error
    text = options.calibration
    if text is None or text.startswith("hf:"):
        return options
    return replace(options, calibration=str(path.absolute().parent / Path(text).expanduser()))
