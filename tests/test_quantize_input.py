"""What quantization refuses: texts, models and checkpoints that it cannot work with. Exit 2, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
from conftest import Run, assert_refused
from safetensors.numpy import load_file, save_file

from compiler.corpus import PASSAGES
from compiler.formats.gguf import read_gguf_header
from compiler.model import Model
from compiler.stages.cache import cache_root

_LONG = "\n\n".join(PASSAGES * 3)


@pytest.fixture(scope="module")
def llama(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_decoder("llama", smollm2.folder, tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def _refused(edgec: Run, model: Path, tmp_path: Path, recipe: str, words: tuple[str, ...], *options: object) -> None:
    assert_refused(edgec("build", model, "-r", recipe, *options, "-o", tmp_path / "out"), 2, *words)
    assert not (tmp_path / "out").exists()
    left = [folder.name.split("-")[1] for folder in (cache_root() / "stages").glob(".new*")]
    assert all(psutil.pid_exists(int(pid)) for pid in left), "those of the other worker's tests are at work"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.txt", None, ("no calibration file",)),
        ("empty.txt", b" \n", ("empty",)),
        ("short.txt", b"Too short to say much.", ("too short", "2048")),
        ("binary.txt", b"\x00\xff\xfe" * 1000, ("binary",)),
        ("latin.txt", "Größe ".encode("latin-1") * 1000, ("binary",)),
        ("lines.jsonl", b'{"text": "one"}\nnot json\n', ("lines.jsonl", "field text")),
        ("table.parquet", b"PAR1", ("table.parquet",)),
    ],
)
def test_calibration_texts_that_cannot_be_used(
    name: str, content: bytes | None, words: tuple[str, ...], llama: Path, tmp_path: Path, edgec: Run
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    _refused(edgec, llama, tmp_path, "gguf:int4-gptq-g32", words, "--calibration", tmp_path / name)


def test_tokens_that_the_model_does_not_have(model: Path, tmp_path: Path, edgec: Run) -> None:
    config = json.loads((model / "config.json").read_text()) | {"vocab_size": 100}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    name = "model.embed_tokens.weight"
    save_file({**tensors, name: np.ascontiguousarray(tensors[name][:100])}, model / "model.safetensors")
    (tmp_path / "text.txt").write_text(_LONG, encoding="utf-8")
    words = ("has the id 100", "the embedding has 100 rows", "Resize the embedding")
    _refused(edgec, model, tmp_path, "gptq:int4-gptq-g32", words, "--calibration", tmp_path / "text.txt")


@pytest.mark.parametrize("recipe", ["gguf:int4-gptq-g128", "onnx:int4-rtn-g128", "gptq:int4-gptq-g128"])
def test_groups_that_do_not_divide_the_rows(recipe: str, llama: Path, tmp_path: Path, edgec: Run) -> None:
    _refused(edgec, llama, tmp_path, recipe, ("64 weights", "groups of 128 do not divide", "--smaller-groups"))


def test_smaller_groups_by_name_where_the_container_can_have_them(llama: Path, tmp_path: Path, edgec_here: Run) -> None:
    recipes = ["-r", "gguf:int4-rtn-g128", "-r", "onnx:int4-rtn-g128"]
    done = edgec_here("build", llama, *recipes, "--smaller-groups", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    verified = edgec_here("verify", tmp_path / "out" / "onnx-int4-rtn-g128", "--min-quality", "unusable")
    assert verified.returncode == 0, verified.stderr
    for name in ("gguf-int4-rtn-g128", "onnx-int4-rtn-g128"):
        table = json.loads((tmp_path / "out" / name / "layers.json").read_text())
        groups = {row["columns"]: row["group_size"] for row in table if "layers" in row["tensor"]}
        assert groups == {64: 64, 128: 128}
    _refused(
        edgec_here, llama, tmp_path / "again", "gptq:int4-rtn-g128", ("one group size for all",), "--smaller-groups"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("recipe", ["gguf:int4-gptq-g32", "onnx:int4-rtn-g32"])
def test_weights_that_are_not_finite(recipe: str, value: float, model: Path, tmp_path: Path, edgec: Run) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, model / "model.safetensors")
    _refused(edgec, model, tmp_path, recipe, ("model.layers.1.mlp.up_proj.weight", "not finite"))


@pytest.fixture(scope="module")
def checkpoint(llama: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint")
    done = edgec_here("build", llama, "-r", "gptq:int4-rtn-g32", "-o", out)
    assert done.returncode == 0, done.stderr
    return out / "gptq-int4-rtn-g32"


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


def _edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


_LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: _edit_config(f, checkpoint_format="marlin"), ("gptq/marlin", "gptq_v2")),
        (lambda f: _edit_config(f, quant_method="awq"), ("'awq'",)),
        (lambda f: _edit_config(f, bits=5), ("5 bits",)),
        (lambda f: _edit_config(f, group_size=48), ("inconsistent", "down_proj", "[3, 64]")),
        (lambda f: _edit_tensors(f, lambda t: t.pop(f"{_LAYER}.scales")), (f"no {_LAYER}.scales",)),
        (
            lambda f: _edit_tensors(f, lambda t: t.update({f"{_LAYER}.qzeros": t[f"{_LAYER}.qzeros"][:1].copy()})),
            ("inconsistent", _LAYER),
        ),
        (
            lambda f: _edit_tensors(f, lambda t: t[f"{_LAYER}.scales"].__setitem__((0, 0), np.nan)),
            (_LAYER, "scales", "finite"),
        ),
        (
            lambda f: _edit_tensors(f, lambda t: t[f"{_LAYER}.g_idx"].__setitem__(0, 99)),
            ("inconsistent", _LAYER),
        ),
    ],
)  # fmt: skip
def test_damaged_or_unknown_checkpoints(
    damage: Callable[[Path], object], words: tuple[str, ...], checkpoint: Path, tmp_path: Path, edgec: Run
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    damage(folder)
    _refused(edgec, folder, tmp_path, "gguf:F16", words)


def test_a_float16_checkpoint_goes_into_other_containers_with_its_tables_as_asked(
    checkpoint: Path, tmp_path: Path, edgec_here: Run
) -> None:
    """Checkpoints from elsewhere say float16, and keep embedding and head so."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16", "torch_dtype": "float16"}))
    recipes = ("-r", "gguf:int4-gptq-g32", "-r", "onnx:int4-gptq-g32", "--min-quality", "unusable")
    for storage, stored in (("auto", "Q8_0"), ("int4", "Q4_0"), ("kept", "F16")):
        tables = ("--embedding", storage, "--head", storage)
        done = edgec_here("build", folder, *recipes, *tables, "-o", tmp_path / storage)
        assert done.returncode == 0, done.stderr
        tensors = {each.name: each.type for each in read_gguf_header(_gguf(tmp_path / storage)).tensors}
        assert tensors["token_embd.weight"] == stored
        assert tensors["blk.0.ffn_up.weight"] == "Q4_0"
    sizes = [_gguf(tmp_path / storage).stat().st_size for storage in ("int4", "auto", "kept")]
    assert sizes == sorted(sizes)


def _gguf(folder: Path) -> Path:
    return next((folder / "gguf-int4-gptq-g32").glob("*.gguf"))
