"""Sentence vectors: a package gives the vector that sentence-transformers gives, for every pooling, layer and setting."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import Run, assert_refused, misses_of
from safetensors.torch import save_file

from compiler.pretrained import load_encoder
from compiler.tokenizer import load_tokenizer

TEXTS = ("A red bicycle leans on the wall.", "The mill stands by the river, and the miller is asleep.")
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def embedder(
    folder: Path,
    tokenizer: Path,
    pooling: str | Sequence[str] = "mean",
    dense: str | None = None,
    normalize: bool = False,
    transformer: dict[str, Any] | None = None,
    prompts: dict[str, Any] | None = None,
) -> Path:
    """A tiny BERT with the modules of sentence-transformers, as its newest release writes them."""
    tiny.save_encoder("bert", tokenizer, folder)
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    names = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    paths = ["", *(f"{number}_{name}" for number, name in itertools.islice(enumerate(names), 1, None))]
    entries = zip(itertools.count(), names, paths)
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, name, path in entries
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    width = hidden * (1 if isinstance(pooling, str) else len(pooling))
    told = {"embedding_dimension": hidden, "pooling_mode": pooling, "include_prompt": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(told))
    if dense:
        (folder / "2_Dense").mkdir()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(24, width, generator=generator) * 0.2
        bias = torch.randn(24, generator=generator)
        save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
        layer = {"in_features": width, "out_features": 24, "bias": True, "activation_function": dense}
        (folder / "2_Dense/config.json").write_text(json.dumps(layer))
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer or {"max_seq_length": 64}))
    if prompts:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def by_sentence_transformers(folder: Path, texts: Sequence[str], **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(list(texts), **options)


def by_package(edgec_here: Run, package: Path, texts: Sequence[str], *options: str) -> Any:
    done = edgec_here("run", package, *(word for text in texts for word in ("-p", text)), "--json", *options)
    assert done.returncode == 0, done.stderr
    return np.asarray(json.loads(done.stdout)), done.stderr


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_gives_the_vector_of_sentence_transformers(
    pooling: str, normalize: bool, tmp_path: Path, minilm_folder: Path
) -> None:
    folder = embedder(tmp_path / "model", minilm_folder, pooling, "torch.nn.modules.activation.Tanh", normalize)
    encoder = load_encoder(folder, "feature-extraction")
    assert encoder.output_names == ("last_hidden_state", "sentence_embedding")
    # The second text is the longer one: the first is padded beside it.
    given = load_tokenizer(folder)(list(TEXTS), padding=True, return_tensors="pt")
    given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    with torch.inference_mode():
        vectors = encoder.module(*(given[name] for name in encoder.input_names))[1].numpy()
    np.testing.assert_allclose(vectors, by_sentence_transformers(folder, TEXTS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "recipe", ["onnx:fp32", "onnx:int8", "tflite:fp32", "neo:fp32", "coreml:fp16", "coreml:fp16@ios18"]
)
def test_every_target_has_the_whole_vector_in_its_graph(
    recipe: str, tmp_path: Path, minilm_folder: Path, edgec_here: Run
) -> None:
    folder = embedder(
        tmp_path / "model",
        minilm_folder,
        ["cls", "max", "weightedmean", "lasttoken"],
        "torch.nn.modules.activation.Tanh",
        True,
    )
    done = edgec_here("build", folder, "-r", recipe, "-o", tmp_path, "--sequence-length", 64, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    (package,) = [path.parent for path in tmp_path.glob("*/package.json")]
    told = json.loads((package / "package.json").read_text())
    assert [port["name"] for port in told["graphs"][0]["outputs"]] == ["last_hidden_state", "sentence_embedding"]
    assert told["sentence"]["width"] == 24 and told["sentence"]["normalized"]
    vectors, _ = by_package(edgec_here, package, TEXTS)
    cosines = (vectors * by_sentence_transformers(folder, TEXTS)).sum(1)
    assert vectors.shape == (2, 24) and cosines.min() > (0.95 if "int8" in recipe else 0.9999)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_a_gguf_file_pools_as_the_model_does(
    pooling: str, tmp_path: Path, minilm_folder: Path, edgec_here: Run
) -> None:
    import llama_cpp

    folder = embedder(tmp_path / "model", minilm_folder, pooling, normalize=True)
    package = tmp_path / "gguf-F32"
    assert edgec_here("build", folder, "-r", "gguf:F32", "-o", tmp_path).returncode == 0
    # Its WordPiece cuts Hangul otherwise.
    assert edgec_here("verify", package).returncode == 1
    assert edgec_here("verify", package, *misses_of(package)).returncode == 0
    wanted = by_sentence_transformers(folder, TEXTS)
    vectors, _ = by_package(edgec_here, package, TEXTS)
    np.testing.assert_allclose(vectors, wanted, atol=1e-4)
    (file,) = package.glob("*.gguf")
    own = llama_cpp.Llama(str(file), embedding=True, verbose=False)
    np.testing.assert_allclose(own.embed(list(TEXTS), normalize=True), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "dense", "word"),
    [("max", None, "max pooling"), (["cls", "mean"], None, "cls and mean"), ("mean", "torch.nn.Tanh", "dense layer")],
)
def test_llama_cpp_is_refused_what_it_cannot_pool(
    pooling: Any, dense: str | None, word: str, tmp_path: Path, minilm_folder: Path, edgec_here: Run
) -> None:
    folder = embedder(tmp_path / "model", minilm_folder, pooling, dense)
    done = edgec_here("build", folder, "-r", "gguf:F32", "-o", tmp_path)
    assert_refused(done, 2, word)


def test_prompts_lower_case_and_the_longest_text_are_the_models_own(
    tmp_path: Path, minilm_folder: Path, edgec_here: Run
) -> None:
    prompts = {"prompts": {"query": "Find what answers: ", "document": ""}, "default_prompt_name": "query"}
    transformer = {"max_seq_length": 16, "do_lower_case": True}
    folder = embedder(tmp_path / "model", minilm_folder, "cls", transformer=transformer, prompts=prompts)
    assert edgec_here("build", folder, "-r", "onnx:fp32", "-o", tmp_path).returncode == 0
    package = tmp_path / "onnx-fp32"
    long = " ".join(["The Mill stands by the River."] * 9)
    texts = (*TEXTS, long)
    vectors, said = by_package(edgec_here, package, texts)
    np.testing.assert_allclose(vectors, by_sentence_transformers(folder, texts), rtol=1e-4, atol=1e-5)
    assert "it is cut" in said and "16" in said
    plain, _ = by_package(edgec_here, package, TEXTS, "--prompt-name", "query")
    np.testing.assert_allclose(plain, vectors[:2])
    done = edgec_here("run", package, "-p", "x", "--prompt-name", "passage")
    assert_refused(done, 2, "query")


def spoil_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.WeightedLayerPooling"
    (folder / "modules.json").write_text(json.dumps(modules))


def spoil_path(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))


def edit(folder: Path, file: str, **changes: Any) -> None:
    document = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**document, **changes}))


SPOILT = {
    "a module that is not known": (spoil_module, "WeightedLayerPooling"),
    "a folder outside": (spoil_path, "../1_Pooling"),
    "a pooling that is not known": (lambda f: edit(f, "1_Pooling/config.json", pooling_mode="median"), "median"),
    "prompts left out": (lambda f: edit(f, "1_Pooling/config.json", include_prompt=False), "include_prompt"),
    "another width": (lambda f: edit(f, "1_Pooling/config.json", embedding_dimension=7), "7"),
    "no pooling folder": (lambda f: shutil.rmtree(f / "1_Pooling"), "1_Pooling/config.json is missing"),
    "a dense layer of another width": (lambda f: edit(f, "2_Dense/config.json", in_features=7), "7"),
    "an activation of its own": (
        lambda f: edit(f, "2_Dense/config.json", activation_function="os.system"),
        "activation system",
    ),
    "a residual layer": (lambda f: edit(f, "2_Dense/config.json", use_residual=True), "use_residual"),
    "no weights": (lambda f: (f / "2_Dense/model.safetensors").unlink(), "2_Dense/model.safetensors is missing"),
    "a default prompt without text": (
        lambda f: (f / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}'),
        "query",
    ),
    "other outputs": (lambda f: edit(f, "sentence_bert_config.json", transformer_task="fill-mask"), "fill-mask"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_modules_that_would_make_another_vector_are_refused_by_name(
    name: str, tmp_path: Path, minilm_folder: Path, edgec_here: Run
) -> None:
    folder = embedder(tmp_path / "model", minilm_folder, "mean", "torch.nn.modules.activation.Tanh")
    spoil, word = SPOILT[name]
    spoil(folder)
    for command in (("inspect", folder), ("build", folder, "-r", "onnx:fp32", "-o", tmp_path)):
        done = edgec_here(*command)
        assert_refused(done, 2, word)


def test_a_changed_module_is_another_model(tmp_path: Path, minilm_folder: Path, edgec_here: Run) -> None:
    folder = embedder(tmp_path / "model", minilm_folder, "mean")
    assert edgec_here("build", folder, "-r", "onnx:fp32", "-o", tmp_path / "first").returncode == 0
    edit(folder, "1_Pooling/config.json", pooling_mode="cls")
    assert edgec_here("build", folder, "-r", "onnx:fp32", "-o", tmp_path / "second").returncode == 0
    first, second = (json.loads((tmp_path / n / "onnx-fp32/package.json").read_text()) for n in ("first", "second"))
    assert first["model"]["digest"] != second["model"]["digest"]
    assert first["files"]["model.onnx"]["sha256"] != second["files"]["model.onnx"]["sha256"]
