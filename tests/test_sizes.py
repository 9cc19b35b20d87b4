"""The bytes that `edgec inspect` tells are those of the packages that `edgec build` makes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
from conftest import Run

import edgec as api
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.package import read_package
from compiler.recipe import parse_recipe
from compiler.size import matrices_of, vector_weights
from targets.gguf.sizes import type_of
from targets.registry import TARGET_NAMES

_NEAR = 0.02
# Wide enough for blocks of 256, deep enough for the mixtures to choose.
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16}


def _told(model: Path, target: str) -> dict[str, int | None]:
    (found,) = (each for each in api.inspect(str(model)).targets if each.target == target)
    return dict(zip(found.schemes, found.nbytes, strict=True))


def _require_near(model: Path, recipes: Iterable[str], out: Path, edgec_here: Run, *options: object) -> None:
    """Build the packages and hold what was told of each to its bytes."""
    named = [part for recipe in recipes for part in ("-r", recipe)]
    done = edgec_here("build", model, *named, *options, "-o", out)
    assert done.returncode == 0, done.stderr
    built = [read_package(folder) for folder in out.iterdir()]
    assert len(built) == len(named) // 2
    told = {
        f"{each.target}:{scheme}": nbytes
        for each in api.inspect(str(model)).targets
        for scheme, nbytes in zip(each.schemes, each.nbytes, strict=True)
    }
    pairs = [(each.recipe, told[each.recipe.split("@")[0]] or 0, each.nbytes) for each in built]
    assert not [(recipe, tells, is_) for recipe, tells, is_ in pairs if abs(tells / is_ - 1) > _NEAR]


@pytest.fixture(scope="module", params=["tied", "untied"])
def wide(request: pytest.FixtureRequest, smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, sizes = tiny.DECODER_CONFIGS["llama"]
    config = {**sizes, **_WIDE, "tie_word_embeddings": request.param == "tied"}
    # Sizes do not depend on what the weights are.
    with patch.dict(tiny.DECODER_CONFIGS, {"wide": (kind, config)}), patch("tiny._train"):
        return tiny.save_decoder("wide", smollm2.folder, tmp_path_factory.mktemp(request.param) / "model")


def test_every_type_of_gguf(wide: Path, edgec_here: Run, tmp_path: Path) -> None:
    codes = ("int4-rtn-g32", "int4-rtn-g64-asym", "int8-rtn-g128")
    schemes = [scheme for scheme in _told(wide, "gguf") if not scheme.startswith(("int", "mixed")) or scheme in codes]
    _require_near(wide, [f"gguf:{scheme}" for scheme in schemes], tmp_path / "out", edgec_here)
    model = open_model(str(wide))
    for package in map(read_package, (tmp_path / "out").iterdir()):
        types = Counter({"F32": vector_weights(model)})
        for matrix in matrices_of(model):
            types[type_of(model, parse_recipe(package.recipe, TARGET_NAMES), matrix)] += matrix.elements
        assert dict(types) == package.lowered.weights.types, package.title


def test_every_form_of_onnx(wide: Path, edgec_here: Run, tmp_path: Path) -> None:
    schemes = (
        "fp32",
        "fp16",
        "int8",
        "int4-rtn-g32",
        "int4-rtn-g64",
        "int4-rtn-g128",
        "int4-rtn-g32-asym",
        "int8-rtn-g64",
    )
    _require_near(wide, [f"onnx:{scheme}" for scheme in schemes], tmp_path / "out", edgec_here)
    for group in ("32", "64", "128"):
        types = read_package(tmp_path / "out" / f"onnx-int4-rtn-g{group}").lowered.weights.types
        assert {kind for kind in types if kind.startswith("int")} == {f"int4-block{group}"}


def test_core_ml_and_gptq(wide: Path, edgec_here: Run, tmp_path: Path) -> None:
    schemes = (
        "coreml:fp16",
        "coreml:int8",
        "coreml:lut4",
        "coreml:int4-rtn-g32",
        "gptq:int4-rtn-g32",
        "gptq:int8-rtn-pc",
    )
    _require_near(wide, schemes, tmp_path / "out", edgec_here, "--context-length", 256)


def test_language_models_for_neuron(wide: Path, edgec_here: Run, tmp_path: Path) -> None:
    _require_near(wide, ("neuron:fp32", "neuron:bf16"), tmp_path / "out", edgec_here)


def test_language_models_on_litert(wide: Path, edgec_here: Run, tmp_path: Path) -> None:
    schemes = [f"tflite:{scheme}" for scheme in ("fp32", "fp16", "int8", "int4-rtn-g32", "int4-rtn-g128")]
    _require_near(wide, schemes, tmp_path / "out", edgec_here)


def test_an_encoder_in_every_container(minilm_folder: Path, edgec_here: Run, tmp_path: Path) -> None:
    schemes = ("gguf:F16", "gguf:Q8_0", "gguf:Q4_0", "onnx:fp32", "onnx:fp16", "onnx:int8", "onnx:int4-rtn-g32")
    others = ("coreml:fp16", "coreml:int8", "coreml:lut6", "tflite:fp32", "neo:fp32@local")
    litert = ("tflite:fp16", "tflite:int8", "tflite:int8-rtn-g32", "tflite:int4-rtn-g32")
    _require_near(minilm_folder, (*schemes, *others, *litert), tmp_path / "out", edgec_here)


def test_the_table_has_each_scheme_with_its_bytes(wide: Path, edgec_here: Run) -> None:
    targets = json.loads(edgec_here("inspect", wide, "--json").stdout)["targets"]
    for each in targets:
        assert len(each["nbytes"]) == len(each["schemes"])
    said = edgec_here("inspect", wide).stdout
    (gguf,) = (each for each in targets if each["target"] == "gguf")
    nbytes = gguf["nbytes"][gguf["schemes"].index("Q4_K_M")]
    assert any(f"{nbytes / 1e6:.1f} MB" in line and "Q4_K_M" in line for line in said.splitlines())
