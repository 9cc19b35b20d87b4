"""What `edgec targets` and `edgec inspect` say of targets, schemes and models."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
from conftest import Run, assert_refused

from compiler.cli.scheme_names import shorten
from compiler.model import Model
from targets.gguf.architectures import ARCHITECTURES
from targets.gguf.converter import converter_folder
from targets.registry import TARGET_NAMES, load_target


def _unfold(text: str) -> Iterator[str]:
    for word in re.split(r", ", text):
        found = re.fullmatch(r"(.*-)(?:\{(.*)\}|(g\d+|pc))(\[-asym\]|-asym)?", word)
        if found is None:
            yield word
            continue
        for group in (found[2] or found[3]).split(","):
            yield from (
                f"{found[1]}{group}{form}" for form in {"[-asym]": ("", "-asym")}.get(found[4], (found[4] or "",))
            )


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_the_short_form_names_every_scheme(target: str) -> None:
    schemes = load_target(target).schemes
    assert sorted(_unfold(shorten(schemes))) == sorted(schemes)


def test_the_architectures_of_gguf_are_those_that_the_converter_registers() -> None:
    found: set[str] = set()
    for file in (converter_folder() / "conversion").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "register":
                found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    assert found == ARCHITECTURES


def test_the_table_of_targets_names_the_extra_to_install(edgec_here: Run) -> None:
    said = edgec_here("targets").stdout
    assert "edgec[gguf]" in said
    assert "@ios18" in said


def test_schemes_that_would_fall_back_are_told_apart(smollm2: Model, edgec_here: Run, tmp_path: Path) -> None:
    folder = tiny.save_decoder("llama", smollm2.folder, tmp_path / "model")
    (gguf,) = (
        each
        for each in json.loads(edgec_here("inspect", folder, "--json").stdout)["targets"]
        if each["target"] == "gguf"
    )
    assert "Q4_K_M" in gguf["falling_back"]
    assert set(gguf["falling_back"]) < set(gguf["schemes"])
    assert "Q8_0" not in gguf["falling_back"]
    assert "--allow type-fallback" in edgec_here("inspect", folder).stdout


def test_advice_names_a_scheme_that_stores_this_model(smollm2: Model, edgec_here: Run, tmp_path: Path) -> None:
    """Rows of 80 divide by no block of llama.cpp's; those of 96 by 32, but not by 256."""
    for width, advised in ((80, "gguf:F16"), (96, "gguf:Q4_0")):
        sizes = {**tiny.DECODER_CONFIGS["llama"][1], "hidden_size": width, "intermediate_size": 2 * width}
        with patch.dict(tiny.DECODER_CONFIGS, {"odd": ("LlamaConfig", sizes)}):
            folder = tiny.save_decoder("odd", smollm2.folder, tmp_path / f"model-{width}")
        done = edgec_here("build", folder, "-r", "gguf:Q4_K_M", "-o", tmp_path / f"out-{width}")
        assert_refused(done, 1, f"rows of {2 * width}", f"Use {advised}", "--allow type-fallback")
