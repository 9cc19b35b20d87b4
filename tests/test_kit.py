"""A kit is a Swift package that parses, holds the package's own files, and is refused where its wrapper would not fit."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path

import pytest
import tiny
import tree_sitter_swift
from conftest import Run, assert_refused
from grammar import errors_of

from compiler.kit import type_name
from compiler.model import Model


@pytest.fixture(scope="module")
def packages(minilm_folder: Path, smollm2: Model, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kits")
    tiny.save_encoder("bert", minilm_folder, root / "bert")
    tiny.save_decoder("llama", smollm2.folder, root / "tiny-llama")
    recipes = ["-r", "coreml:fp16", "-r", "coreml:fp16+lengths"]
    assert edgec_here("build", root / "bert", *recipes, "-o", root / "encoder").returncode == 0
    recipes = ["-r", "coreml:fp16", "-r", "coreml:fp16+argmax", "--context-length", "64"]
    assert edgec_here("build", root / "tiny-llama", *recipes, "-o", root / "decoder").returncode == 0
    return root


def test_the_parser_sees_what_is_no_swift() -> None:
    assert errors_of("public final class A { let = }", tree_sitter_swift.language())
    assert not errors_of("public final class A { let b = 1 }", tree_sitter_swift.language())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder/coreml-fp16", ("inputIds: [Int32]", "attentionMask: [Int32]", "last_hidden_state", "1 x 128")),
        ("encoder/coreml-fp16-lengths", ("64, 128, 256", "inputIds.count / 1")),
        ("decoder/coreml-fp16", ("contextLength = 64", "mostProbable", "makeState()", 'load("prefill"')),
        ("decoder/coreml-fp16-argmax", ('featureValue(for: "token")', "int32Value")),
    ],
)
def test_a_kit_parses_and_holds_the_package(
    name: str, words: tuple[str, ...], packages: Path, edgec_here: Run, tmp_path: Path
) -> None:
    done = edgec_here("kit", packages / name, "--for", "ios", "-o", tmp_path / "kit", "--json")
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert {"Package.swift", "README.md"} <= set(files)
    wrapper = next(file for file in files if file.startswith("Sources/") and file.endswith(".swift"))
    source = (tmp_path / "kit" / wrapper).read_text()
    assert errors_of(source, tree_sitter_swift.language()) == []
    assert errors_of((tmp_path / "kit" / "Package.swift").read_text(), tree_sitter_swift.language()) == []
    for word in words:
        assert word in source
    resources = (tmp_path / "kit" / wrapper).parent / "Resources"
    for file in ("model.mlpackage/Data/com.apple.CoreML/weights/weight.bin", "tokenizer.json"):
        assert filecmp.cmp(resources / file, packages / name / file, shallow=False)


def test_what_the_wrapper_does_not_fit_is_refused(packages: Path, edgec: Run, tmp_path: Path) -> None:
    out = tmp_path / "kit"
    changed = shutil.copytree(packages / "decoder" / "coreml-fp16", tmp_path / "changed")
    manifest = (changed / "package.json").read_text()
    for old, new, words in (
        ('"runtime": "coreml"', '"runtime": "onnxruntime"', ("onnxruntime", "does not write for")),
        ('"variant": null', '"variant": "ios17"', ("states", "iOS 18")),
    ):
        assert old in manifest
        (changed / "package.json").write_text(manifest.replace(old, new))
        assert_refused(edgec("kit", changed, "-o", out), 2, *words)
    assert not out.exists()
    out.mkdir()
    assert_refused(edgec("kit", packages / "encoder" / "coreml-fp16", "-o", out), 2, "exists already")


@pytest.mark.parametrize(
    ("model", "name"), [("all-MiniLM-L6-v2", "AllMiniLML6V2"), ("7b chat", "Model7bChat"), ("--", "Model")]
)
def test_a_models_name_becomes_a_swift_type(model: str, name: str) -> None:
    assert type_name(model) == name
