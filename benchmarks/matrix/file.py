"""The file that `edgec matrix` reads.

models = ["HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"]
recipes = ["gguf:Q4_K_M", "onnx:int4-rtn-g32", "tflite:int8"]
devices = ["local", "ssh://pi@raspberrypi"]
verify = true
sequence_length = 128
[quantization]
calibration = "text.txt"
[workload]
prompt_tokens = 128
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.toml_file import read_toml
from compiler.quantize.options import QuantizationOptions
from compiler.recipe import LARGEST, Shapes
from compiler.records import from_json
from runtimes.workload import Workload

_LISTS = ("models", "recipes", "devices")
_SHAPES = tuple(field.name for field in fields(Shapes))
_TABLES = ("quantization", "workload")
_KEYS = (*_LISTS, "verify", "allow", *_SHAPES, *_TABLES)
MOST_CELLS = 100_000


@dataclass(frozen=True)
class Matrix:
    """What is built and measured.

    Attributes:
        models: folders or Hugging Face ids.
        recipes: short forms.
        devices: as `--device` takes them.
        verify: hold packages to the fp32 model before they are measured.
        allow: names of checks whose failure is accepted, as `--allow` of `edgec verify` takes them.
        shapes: of packages.
        quantization: how codes are found.
        workload: what is measured.
    """

    models: tuple[str, ...]
    recipes: tuple[str, ...]
    devices: tuple[str, ...]
    verify: bool
    allow: tuple[str, ...]
    shapes: Shapes
    quantization: QuantizationOptions
    workload: Workload


def read_matrix(path: Path) -> Matrix:
    """Read a matrix file; a calibration file is looked for beside it.

    Raises:
        UnusableInput: it cannot be read, or has a key or value that means nothing here; the sentence gives line and column.
    """
    where = f"Matrix file {path}"
    document, text = read_toml(path, where)
    _require_known(document, text, where)
    for name in _LISTS:
        values = document.get(name)
        if not isinstance(values, list) or not values or not all(isinstance(each, str) and each for each in values):
            raise UnusableInput(f"{where}: {name} is a list of at least one string.")
        if twice := next((each for each in values if values.count(each) > 1), None):
            raise UnusableInput(f"{where}: {name} has {twice!r} twice{_place(text, twice)}.")
    if type(document.get("verify", True)) is not bool:
        raise UnusableInput(f"{where}: verify is true or false{_place(text, 'verify')}.")
    allow = document.get("allow", [])
    if not isinstance(allow, list) or not all(isinstance(each, str) for each in allow):
        raise UnusableInput(f"{where}: allow is a list of strings{_place(text, 'allow')}.")
    for name in _SHAPES:
        value = document.get(name, 1)
        if type(value) is not int or not 0 < value <= LARGEST:
            raise UnusableInput(f"{where}: {name} is a whole number above 0{_place(text, name)}.")
    try:
        quantization = from_json(QuantizationOptions, _table(document, "quantization", path))
        workload = Workload(**vars(from_json(Workload, _table(document, "workload", path))))
    except ValueError as error:
        raise UnusableInput(f"{where}: {error}.") from error
    lists = [tuple(document[name]) for name in _LISTS]
    if (cells := len(lists[0]) * len(lists[1]) * len(lists[2])) > MOST_CELLS:
        raise UnusableInput(f"{where} has {cells} cells, and {MOST_CELLS} is the most. Split it.")
    shapes = Shapes(**{name: document[name] for name in _SHAPES if name in document})
    verify = document.get("verify", True)
    return Matrix(lists[0], lists[1], lists[2], verify, tuple(allow), shapes, quantization, workload)


def _table(document: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ValueError(f"{name} is a table")
    found = dict(table)
    named = found.get("calibration")
    if isinstance(named, str) and not named.startswith("hf:"):
        found["calibration"] = str(path.parent.resolve() / Path(named).expanduser())
    return found


def _require_known(document: Mapping[str, Any], text: str, where: str) -> None:
    allowed = {
        "": _KEYS,
        "quantization": tuple(field.name for field in fields(QuantizationOptions)),
        "workload": tuple(field.name for field in fields(Workload)),
    }
    for table, keys in allowed.items():
        found = document.get(table, {}) if table else document
        unknown = next((key for key in found if key not in keys), None) if isinstance(found, dict) else None
        if unknown is not None:
            inside = f" in [{table}]" if table else ""
            raise UnusableInput(
                f"{where}: unknown key {unknown!r}{inside}{_place(text, unknown, table)}. Keys there are: {', '.join(keys)}."
            )


def _place(text: str, word: str, table: str = "") -> str:
    """Where a word stands first as a key, or else at all, behind the head of its table."""
    begin = text.find(f"[{table}]") if table else 0
    rest = text[max(begin, 0) :]
    found = re.search(rf"(?m)^[ \t]*(?P<word>{re.escape(word)})[ \t]*=", rest)
    found = found or re.search(rf"(?P<word>(?<![\w-]){re.escape(word)}(?![\w-]))", rest)
    if found is None:
        return ""
    at = max(begin, 0) + found.start("word")
    line = text.count("\n", 0, at) + 1
    return f" (line {line}, column {at - text.rfind(chr(10), 0, at)})"


def cells_of(matrix: Matrix) -> Sequence[tuple[str, str, str]]:
    """(model, recipe, device) of every cell, a package's devices together."""
    return [
        (model, recipe, device) for model in matrix.models for recipe in matrix.recipes for device in matrix.devices
    ]
