"""A model writes its own calibration text where none is given, and what that takes is told before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
from conftest import Run

from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.quantization import Calibration, Quantization
from compiler.quantize.calibrate.price import Price, price_of_writing
from compiler.quantize.calibrate.samples import generate_samples
from compiler.recipe import Recipe, parse_recipe
from compiler.stages.executor import LocalExecutor
from targets.registry import TARGET_NAMES

_SAMPLES = 8
_TRAINED = 256


@pytest.fixture(scope="module")
def folder(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_decoder("llama", smollm2.folder, tmp_path_factory.mktemp("priced") / "model")


def _recipe(text: str, calibration: Calibration | None = None) -> Recipe:
    settings = Quantization(calibration or Calibration(samples=_SAMPLES))
    return replace(parse_recipe(text, TARGET_NAMES), quantization=settings)


def _prices(folder: Path, *recipes: Recipe) -> list[Price]:
    return price_of_writing(open_model(str(folder)), recipes, LocalExecutor())


def test_recipes_that_share_a_text_are_priced_once(folder: Path) -> None:
    (price,) = _prices(folder, _recipe("gguf:int4-gptq-g32"), _recipe("onnx:int4-gptq-g32"))
    assert (price.samples, price.tokens) == (_SAMPLES, _TRAINED)
    assert price.seconds > 0


def test_the_price_grows_with_the_samples(folder: Path) -> None:
    few, many = _prices(
        folder, _recipe("gguf:int4-gptq-g32"), _recipe("gguf:int4-gptq-g32", Calibration(samples=100 * _SAMPLES))
    )
    assert many.seconds > 10 * few.seconds


@pytest.mark.parametrize("text", ["gguf:Q4_0", "gguf:int4-rtn-g32", "onnx:int8"])
def test_what_looks_at_no_samples_has_no_price(folder: Path, text: str) -> None:
    assert not _prices(folder, _recipe(text))


def test_a_text_of_the_users_has_no_price(folder: Path) -> None:
    assert not _prices(folder, _recipe("gguf:int4-gptq-g32", Calibration(text="0" * 64, source="own.txt")))


def test_a_build_tells_it_first_and_a_second_one_finds_the_text_in_the_cache(
    folder: Path, edgec: Run, tmp_path: Path
) -> None:
    options = ("--calibration-samples", _SAMPLES + 1)
    build = ("build", folder, "-r", "gguf:int4-gptq-g32", *options)
    done = edgec(*build, "-o", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    told = next(number for number, line in enumerate(lines) if "will write its own calibration text" in line)
    began = next(number for number, line in enumerate(lines) if line.startswith("calibration samples"))
    assert told < began
    assert f"{_SAMPLES + 1} samples of {_TRAINED} tokens" in lines[told]
    assert "--calibration FILE" in lines[told]
    assert "will write" not in edgec(*build, "-o", tmp_path / "second").stderr


def test_a_sample_is_several_short_texts_of_the_model_and_the_same_every_time(folder: Path) -> None:
    calibration = Calibration(samples=3, sample_tokens=200)
    model = open_model(str(folder))
    written = generate_samples(model, calibration)
    assert written.shape == (3, 200)
    assert ((written >= 0) & (written < model.geometry.vocabulary)).all()
    assert (written == generate_samples(model, calibration)).all()
    assert (written != generate_samples(model, replace(calibration, seed=1))).any()
    # A text begins as the tokenizer begins one, and the second text of a sample does too.
    with patch("compiler.quantize.calibrate.samples.start_of_text_ids", return_value=[1]):
        begun = generate_samples(model, calibration)
    assert (begun[:, 0] == 1).all()
    assert (begun[:, 128] == 1).all()
