"""A folder called `model` is no name: the card, the configuration or the hub's cache knows better; containers say it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import tiny
from conftest import Run
from coremltools.proto import Model_pb2

from compiler import __version__
from compiler.inputs.real_name import real_name
from compiler.package import read_package

_CARD = "---\nlicense: mit\nauthors:\n- Ada Example\nbase_model: org/base\n---\n\n# Sea-Words-2B\n\nA model.\n"


@pytest.mark.parametrize(
    ("folder", "card", "original", "name"),
    [
        ("model", _CARD, "", "Sea-Words-2B"),
        ("checkpoint-500", "", "org/Sea-Words-2B", "Sea-Words-2B"),
        ("models--org--Sea-Words-2B/snapshots/" + "a" * 40, "", "", "Sea-Words-2B"),
        ("Sea-Words", _CARD, "org/other", None),
        ("model", "# A model that writes about the sea\n", "", None),
        ("model", "# ../../etc/passwd\n", "../..", None),
        ("model", "", "/home/me/output", None),
    ],
)
def test_a_folder_without_a_name_gets_the_model_s_own(
    folder: str, card: str, original: str, name: str | None, tmp_path: Path
) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)
    if card:
        (path / "README.md").write_text(card)
    (path / "config.json").write_text(json.dumps({"_name_or_path": original}))
    assert real_name(path) == name


def test_containers_say_whose_the_model_is_and_what_made_them(
    minilm_folder: Path, tmp_path: Path, edgec_here: Run
) -> None:
    folder = tiny.save_encoder("bert", minilm_folder, tmp_path / "model")
    (folder / "README.md").write_text(_CARD)
    done = edgec_here("build", folder, "-r", "onnx:int8", "-r", "coreml:fp16", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    package = read_package(tmp_path / "out" / "onnx-int8")
    assert package.model.name == "Sea-Words-2B" and package.tools["edgec"] == __version__
    document = onnx.load(str(package.artifact))
    told = {each.key: each.value for each in document.metadata_props}
    assert told["name"] == "Sea-Words-2B" and told["license"] == "mit" and told["author"] == "Ada Example"
    assert told["edgec"] == __version__ and told["recipe"] == "onnx:int8" and told["base_model"] == "org/base"
    (program,) = (tmp_path / "out" / "coreml-fp16").rglob("*.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(program.read_bytes())
    metadata = model.description.metadata
    assert (metadata.license, metadata.author, metadata.versionString) == ("mit", "Ada Example", __version__)
    assert metadata.shortDescription == "Sea-Words-2B, coreml:fp16"
