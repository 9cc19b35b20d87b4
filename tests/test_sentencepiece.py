"""Models whose tokenizer is a SentencePiece model and whose texts begin with a token, as Llama 2, TinyLlama and Mistral."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import tiny
import torch
import transformers
from conftest import Run, assert_refused, figures_of, misses_of, verification_of

from compiler.corpus import NASTY
from compiler.model import Model, read_model
from compiler.package import read_package
from compiler.quantization import Calibration
from compiler.quantize.calibrate.samples import generate_samples, samples_of_text
from compiler.tokenizer import load_tokenizer, start_of_text_ids
from runtimes.kinds.generation.reference import write_expected
from runtimes.kinds.generation.use import generate
from runtimes.registry import open_session

_BEGIN = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sentencepiece")
    return tiny.save_decoder("llama", tiny.save_sentencepiece(root / "tokenizer"), root / "model")


@pytest.fixture(scope="module")
def packages(model: Path, edgec_here: Run) -> Path:
    out = model.parent / "out"
    recipes = ("-r", "gguf:F32", "-r", "onnx:fp32")
    done = edgec_here("build", model, *recipes, "-o", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert edgec_here("verify", out / "gguf-F32").returncode == 0
    assert edgec_here("verify", out / "onnx-fp32").returncode == 1
    assert edgec_here("verify", out / "onnx-fp32", *misses_of(out / "onnx-fp32")).returncode == 0
    return out


def test_the_ids_are_those_that_sentencepiece_gives(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    for string in NASTY:
        assert tokenizer.encode(string, add_special_tokens=False) == processor.encode(string), string


def test_only_a_tokenizer_that_adds_a_begin_token_has_one(model: Path, smollm2: Model) -> None:
    assert start_of_text_ids(load_tokenizer(model)) == [_BEGIN]
    assert start_of_text_ids(load_tokenizer(smollm2.folder)) == []


def test_gguf_gives_every_id_and_genai_is_named_where_it_does_not(packages: Path) -> None:
    """GenAI splits by Llama 3's pattern, which parts runs of spaces and marks from letters; the gate must see it."""
    found = {name: verification_of(packages / name) for name in ("gguf-F32", "onnx-fp32")}
    assert found["gguf-F32"].failures == ()
    assert set(found["onnx-fp32"].accepted) == {miss.check for miss in found["onnx-fp32"].failures}
    assert any("two  spaces" in miss.sentence for miss in found["onnx-fp32"].failures)
    for name, each in found.items():
        assert all(miss.check.startswith("tokenizer:") for miss in each.failures)
        assert figures_of(packages / name)["mean_kl"] < 1e-5
        assert figures_of(packages / name)["greedy_agreement"] == 1


def test_windows_and_prompts_begin_with_the_token(model: Path, tmp_path: Path) -> None:
    write_expected(str(model), str(tmp_path), None, 64, 0, 2, "text-generation")
    told = json.loads((tmp_path / "expected.json").read_text())
    assert {ids[0] for ids in told["windows"] + told["prompts"]} == {_BEGIN}
    assert max(len(ids) for ids in told["windows"]) == 64
    write_expected(str(model), str(tmp_path), "the mill by the river " * 60, 64, 128, 2, "text-generation")
    windows = json.loads((tmp_path / "expected.json").read_text())["windows"]
    # As in llama.cpp's perplexity tool the token takes the place of a window's first.
    assert [(len(window), window[0]) for window in windows] == [(64, _BEGIN), (64, _BEGIN)]


def test_calibration_samples_begin_with_the_token(model: Path) -> None:
    source = read_model(model)
    of_text = samples_of_text(source, "the mill by the river " * 600, Calibration(samples=4, sample_tokens=32))
    written = generate_samples(source, Calibration(samples=4, sample_tokens=32))
    for samples in (of_text, written):
        assert samples.shape == (4, 32)
        assert np.array_equal(samples[:, 0], [_BEGIN] * 4)


@pytest.mark.parametrize("package", ["gguf-F32", "onnx-fp32"])
def test_a_prompt_without_a_template_begins_with_the_token(packages: Path, model: Path, package: str) -> None:
    session = open_session(read_package(packages / package), 1)
    text = generate(session, "The mill", 8, chat=False).text
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(model)
    ids = [_BEGIN, *load_tokenizer(model).encode("The mill", add_special_tokens=False)]
    expected = network.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    assert text == session.text.decode(expected)


def test_a_runtime_that_would_not_add_the_token_is_refused(packages: Path, edgec_here: Run) -> None:
    folder = packages / "gguf-F32"
    file = read_package(folder).artifact
    reader = gguf.GGUFReader(file, "r+")
    reader.fields["tokenizer.ggml.add_bos_token"].parts[-1][0] = False
    reader.data.flush()
    document = json.loads((folder / "package.json").read_text())
    content = file.read_bytes()
    document["files"][file.name] = {"sha256": hashlib.sha256(content).hexdigest(), "nbytes": len(content)}
    (folder / "package.json").write_text(json.dumps(document))
    assert_refused(edgec_here("verify", folder), 1, "start of text", "[1]")
