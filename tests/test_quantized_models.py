"""GPTQ on whole models: every number of bits and kind of group, Conv1D layers, encoders, pictures, runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
import transformers
from conftest import Run, assert_refused, figures_of, write_samples
from PIL import Image

from compiler.corpus import PASSAGES
from compiler.errors import UnusableInput
from compiler.model import Model, read_model
from compiler.package import read_package
from compiler.quantization import Calibration
from compiler.quantize.calibrate.pictures import draw_samples, keep_pictures


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(PASSAGES * 3), encoding="utf-8")
    return path


def _options(text: Path) -> list[object]:
    return ["--calibration", text, "--calibration-samples", "16", "--calibration-tokens", "128"]


def test_fewer_bits_are_further_from_the_model_and_all_are_readable(
    smollm2: Model, text: Path, tmp_path: Path, edgec_here: Run
) -> None:
    folder = tiny.save_decoder("llama", smollm2.folder, tmp_path / "model")
    schemes = ("int8-gptq-pc", "int3-gptq-g64", "int2-gptq-g32-asym")
    recipes = [part for scheme in schemes for part in ("-r", f"gptq:{scheme}")]
    done = edgec_here("build", folder, *recipes, *_options(text), "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    packages = [tmp_path / "out" / f"gptq-{scheme}" for scheme in schemes]
    done = edgec_here("verify", *packages, "--min-quality", "unusable", "--json")
    assert done.returncode == 0, done.stderr
    kl = [each["figures"]["mean_kl"] for each in json.loads(done.stdout)]
    assert kl == sorted(kl)
    assert kl[0] < 0.03


@pytest.mark.parametrize(("kind", "recipe"), [("gpt2", "gguf:int8-gptq-g32"), ("roberta", "onnx:int8-gptq-g32")])
def test_layers_of_other_kinds_are_quantized_and_verified(
    kind: str, recipe: str, smollm2: Model, minilm_folder: Path, text: Path, tmp_path: Path, edgec_here: Run
) -> None:
    if kind == "gpt2":
        folder = tiny.save_decoder(kind, smollm2.folder, tmp_path / "model")
    else:
        folder = tiny.save_encoder(kind, minilm_folder, tmp_path / "model")
    done = edgec_here("build", folder, "-r", recipe, *_options(text), "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    layers = json.loads((next((tmp_path / "out").iterdir()) / "layers.json").read_text())
    assert {row["bits"] for row in layers} == {8}
    # RoBERTa's padding token is a row of zeros in its table of words, which is quantized, and of positions, which is not.
    expected = "h.0.attn.c_attn.weight" if kind == "gpt2" else "layer.0.attention.self.query.weight"
    assert any(row["tensor"].endswith(expected) for row in layers)


def _draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_an_image_model_calibrates_on_pictures(
    minilm_folder: Path, text: Path, tmp_path: Path, edgec_here: Run
) -> None:
    folder = tiny.save_encoder("vit", minilm_folder, tmp_path / "vit")
    pictures = _draw(tmp_path / "pictures", 12)
    command = ["build", folder, "-r", "onnx:int8-gptq-g32", "--calibration"]
    done = edgec_here(*command, pictures, "-o", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    package = read_package(tmp_path / "out" / "onnx-int8-gptq-g32")
    assert figures_of(package.folder)["mean_cosine"] > 0.999
    assert package.recipe_full["quantization"]["calibration"]["source"] == "pictures"
    layers = {row["tensor"] for row in json.loads((package.folder / "layers.json").read_text())}
    assert "vit.encoder.layer.1.attention.attention.query.weight" in layers
    assert_refused(edgec_here(*command, text, "-o", tmp_path / "text"), 2, "takes pictures", "text.txt")
    (tmp_path / "empty").mkdir()
    assert_refused(edgec_here(*command, tmp_path / "empty", "-o", tmp_path / "none"), 2, "no picture", ".png")


def test_pictures_that_cannot_be_used_are_named(minilm_folder: Path, tmp_path: Path) -> None:
    folder = tiny.save_encoder("vit", minilm_folder, tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    pictures = _draw(tmp_path / "pictures", 3)

    def write(model: Path) -> None:
        digest, name = keep_pictures(pictures)
        write_samples(model, tmp_path, read_model(model).task, Calibration(pictures=digest, source=name))

    with pytest.raises(UnusableInput, match="no image processor"):
        write(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    write(folder)
    assert np.load(tmp_path / "samples.npy").shape == (3, 3, 32, 32)
    (pictures / "1.png").write_bytes(b"no picture")
    with pytest.raises(UnusableInput, match="Picture 2 of the calibration folder pictures"):
        write(folder)
    with pytest.raises(UnusableInput, match="takes text, and the calibration pictures"):
        write(tiny.save_encoder("bert", minilm_folder, tmp_path / "bert"))


def test_drawn_pictures_have_the_spectrum_of_photographs() -> None:
    pictures = draw_samples((3, 64, 48), 8, seed=1)
    assert pictures.shape == (8, 3, 64, 48) and np.abs(pictures).max() <= 1
    assert np.array_equal(pictures, draw_samples((3, 64, 48), 8, seed=1))
    power = np.abs(np.fft.fft2(pictures[:, 0])) ** 2
    low, high = (power[:, rows, 0].mean() for rows in (slice(2, 4), slice(16, 32)))
    assert low > 20 * high


def test_a_killed_build_leaves_nothing_and_goes_on_at_the_block_that_it_had_reached(
    minilm_folder: Path, text: Path, tmp_path: Path, edgec: Run
) -> None:
    """The real MiniLM, killed without warning. That the codes are equal is told by tests/test_resume.py."""
    options = ["--calibration", text, "--calibration-samples", "8", "--calibration-tokens", "64"]
    command = ["build", minilm_folder, "-r", "coreml:int4-gptq-g32", *options, "-o"]
    environment = {**os.environ, "EDGEC_CACHE": str(tmp_path / "cache")}
    script = str(Path(sys.executable).with_name("edgec"))
    process = subprocess.Popen([script, *map(str, command), str(tmp_path / "cut")], env=environment)
    partial = tmp_path / "cache" / "partial"

    def reached() -> int:
        states = list(partial.glob("*/state.json"))
        return json.loads(states[0].read_text())["done"] if states else -1

    deadline = time.monotonic() + 300
    while reached() < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children and psutil.wait_procs(children, timeout=10)[1] == [], "the converter does not live on"
    done_before = reached()
    assert 2 <= done_before < 6
    work = next(partial.glob("*/state.json")).parent
    kept = {file.name: file.stat().st_mtime_ns for file in work.glob("codes-*.safetensors")}
    resumed = edgec(*command, tmp_path / "resumed", EDGEC_CACHE=str(tmp_path / "cache"))
    assert resumed.returncode == 0, resumed.stderr
    assert not (tmp_path / "cut").exists()
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["coreml-int4-gptq-g32"]
    assert list((tmp_path / "cache" / "stages").glob(".new*")) == []
    codes = next((tmp_path / "cache" / "stages").rglob("codes-0000.safetensors")).parent
    for name in (f"codes-{number:04}.safetensors" for number in range(done_before)):
        assert (codes / name).stat().st_mtime_ns == kept[name], "done before the kill, so not written again"
    assert not work.exists()
