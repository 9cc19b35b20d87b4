"""`edgec build --force` replaces packages, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
from conftest import Run, assert_refused

from compiler.model import Model
from compiler.package import read_package

_NAME = "gguf-F16"


@pytest.fixture(scope="module")
def models(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that differ."""
    folder = tmp_path_factory.mktemp("models")
    return tuple(tiny.save_decoder(kind, smollm2.folder, folder / kind) for kind in ("llama", "qwen3"))  # type: ignore[return-value]


@pytest.fixture
def out(models: tuple[Path, Path], edgec_here: Run, tmp_path: Path) -> Path:
    assert edgec_here("build", models[0], "-r", "gguf:F16", "-o", tmp_path / "out").returncode == 0
    return tmp_path / "out"


def _architecture(out: Path) -> str:
    return read_package(out / _NAME).model.architecture


def test_a_package_that_is_there_stays_unless_it_is_forced(
    models: tuple[Path, Path], out: Path, edgec_here: Run
) -> None:
    assert_refused(edgec_here("build", models[1], "-r", "gguf:F16", "-o", out), 2, _NAME, "--force")
    assert _architecture(out) == "LlamaForCausalLM"
    done = edgec_here("build", models[1], "-r", "gguf:F16", "-o", out, "--force")
    assert done.returncode == 0, done.stderr
    assert _architecture(out) == "Qwen3ForCausalLM"
    assert sorted(path.name for path in out.iterdir()) == [_NAME]


def test_other_packages_in_the_folder_stay(models: tuple[Path, Path], out: Path, edgec_here: Run) -> None:
    done = edgec_here("build", models[1], "-r", "gguf:Q8_0", "-o", out, "--force")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [_NAME, "gguf-Q8_0"]
    assert _architecture(out) == "LlamaForCausalLM"


def test_a_file_of_the_user_is_never_removed(models: tuple[Path, Path], out: Path, edgec_here: Run) -> None:
    (out / _NAME / "notes.txt").write_text("mine")
    done = edgec_here("build", models[1], "-r", "gguf:F16", "-o", out, "--force")
    assert_refused(done, 2, "notes.txt", "Move that file away")
    assert (out / _NAME / "notes.txt").read_text() == "mine"
    assert _architecture(out) == "LlamaForCausalLM"


def test_a_folder_that_is_no_package_is_never_replaced(
    models: tuple[Path, Path], edgec_here: Run, tmp_path: Path
) -> None:
    (tmp_path / "out" / _NAME).mkdir(parents=True)
    (tmp_path / "out" / _NAME / "thesis.tex").write_text("mine")
    done = edgec_here("build", models[1], "-r", "gguf:F16", "-o", tmp_path / "out", "--force")
    assert_refused(done, 2, "no package of edgec's")
    assert (tmp_path / "out" / _NAME / "thesis.tex").read_text() == "mine"


def test_a_build_that_fails_leaves_the_package_that_was_there(
    models: tuple[Path, Path], out: Path, edgec_here: Run, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models[1], broken)
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-64:] = b"\xff" * 64
    (broken / "model.safetensors").write_bytes(weights)
    assert edgec_here("build", broken, "-r", "gguf:F16", "-o", out, "--force", "--verify").returncode != 0
    assert _architecture(out) == "LlamaForCausalLM"
    assert sorted(path.name for path in out.iterdir()) == [_NAME]
