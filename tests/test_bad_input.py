"""Unusable input ends with exit code 2, one clear paragraph, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny
from conftest import Run, assert_refused, run_edgec
from safetensors.numpy import load_file, save_file

from compiler.errors import UnusableInput
from compiler.inputs.open import open_model
from compiler.model import Model, read_model
from runtimes.kinds.generation.reference import write_expected
from targets.gguf import target as gguf


@pytest.fixture
def encoder(minilm_folder: Path, tmp_path: Path) -> Path:
    """A copy of a real model that a test may damage."""
    folder = tmp_path / "model"
    shutil.copytree(minilm_folder, folder)
    return folder


def _build(
    folder: object, tmp_path: Path, recipe: str = "onnx:fp32", **environment: str
) -> subprocess.CompletedProcess[str]:
    return run_edgec("build", folder, "-r", recipe, "-o", tmp_path / "out", cwd=None, **environment)


def test_no_such_model(tmp_path: Path) -> None:
    assert_refused(_build(tmp_path / "nowhere" / "model", tmp_path), 2, "there is no model")
    assert not (tmp_path / "out").exists()


def test_no_such_model_on_an_unreachable_hub(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "hf")}
    assert_refused(_build("someone/some-model", tmp_path, **environment), 2, "hub", "someone/some-model")
    assert_refused(_build("someone/some-model", tmp_path, HF_HOME=str(tmp_path / "hf")), 2, "offline")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_config(encoder: Path, tmp_path: Path) -> None:
    (encoder / "config.json").unlink()
    assert_refused(_build(encoder, tmp_path), 2, "config.json")


def test_a_config_that_is_not_json(encoder: Path, tmp_path: Path) -> None:
    (encoder / "config.json").write_text("{")
    assert_refused(_build(encoder, tmp_path), 2, "config.json", "cannot be read")


@pytest.mark.parametrize(
    ("length", "word"), [(0, "0 bytes"), (5, "5 bytes"), (5000, "truncated"), (90_000_000, "truncated")]
)
def test_truncated_or_empty_weights(encoder: Path, tmp_path: Path, length: int, word: str) -> None:
    with (encoder / "model.safetensors").open("r+b") as stream:
        stream.truncate(length)
    assert_refused(_build(encoder, tmp_path), 2, "model.safetensors", word)
    assert not (tmp_path / "out").exists()


def test_weights_only_as_a_pickle(encoder: Path, tmp_path: Path) -> None:
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    assert_refused(_build(encoder, tmp_path), 2, "pickle", "pytorch_model.bin")


def test_a_model_that_wants_to_run_code(encoder: Path, tmp_path: Path) -> None:
    config = json.loads((encoder / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling.Evil"}, "model_type": "evil"}
    (encoder / "config.json").write_text(json.dumps(config))
    (encoder / "modeling.py").write_text("raise SystemExit('executed')")
    assert_refused(_build(encoder, tmp_path), 2, "code of its own")


def test_a_task_that_cannot_be_told(encoder: Path, tmp_path: Path) -> None:
    config = json.loads((encoder / "config.json").read_text()) | {"architectures": ["BertForSomething"]}
    (encoder / "config.json").write_text(json.dumps(config))
    assert_refused(_build(encoder, tmp_path), 2, "BertForSomething", "--task")


def test_a_converter_that_trusts_code_beside_a_model_sees_none(smollm2: Model, tmp_path: Path) -> None:
    """llama.cpp's loads tokenizers with trust_remote_code. transformers has classes of its own for Llama, so it is taken."""
    model = tiny.save_decoder("llama", smollm2.folder, tmp_path / "model")
    for name, entry in (
        ("config.json", {"AutoConfig": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": "x--evil.E"}),
    ):
        document = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(document | {"auto_map": entry}))
    (model / "evil.py").write_text("raise SystemExit('executed')")
    assert read_model(model).architecture == "LlamaForCausalLM"
    view = tmp_path / "view"
    gguf.view_without_code(model, view)
    assert list(view.rglob("*.py")) == []
    assert all("auto_map" not in file.read_text() for file in view.glob("*config.json"))
    assert (view / "model.safetensors").is_file()
    assert "auto_map" in (model / "config.json").read_text(), "the model itself stays as it is"


def test_an_unknown_recipe_gets_the_nearest(encoder: Path, tmp_path: Path) -> None:
    assert_refused(_build(encoder, tmp_path, "onnx:int7"), 2, "onnx:int8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": {"a": 1}}, ("architectures", "list of words")),
        ({"quantization_config": "awq"}, ("already quantized", "awq")),
    ],
)
def test_a_config_of_another_form(
    changes: dict[str, object], words: tuple[str, ...], encoder: Path, tmp_path: Path
) -> None:
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | changes))
    assert_refused(_build(encoder, tmp_path), 2, *words)


def test_a_decoder_that_lacks_a_tensor_is_no_reference(smollm2: Model, tmp_path: Path) -> None:
    """transformers would fill it with random numbers, and every package would be held to those."""
    model = tiny.save_decoder("llama", smollm2.folder, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnusableInput, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj"):
        write_expected(str(model), str(tmp_path), None, 64, 64, 4, "text-generation")


def test_no_recipe(encoder: Path, tmp_path: Path, edgec: Run) -> None:
    assert_refused(edgec("build", encoder, "-o", tmp_path / "out"), 2, "-r gguf:Q8_0")


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", "a\nb"])
def test_a_name_that_leaves_its_folder(name: str, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="cannot be a file's"):
        open_model(str(encoder), name=name)


def test_clearing_the_cache_leaves_what_is_not_edgecs(tmp_path: Path) -> None:
    """Only folders with edgec's mark go: the user may keep models and pictures of the same names in that place."""
    for name in ("stages/x", "models", "pictures", "holidays"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "stages" / ".edgec").touch()
    (tmp_path / "pictures" / "wedding.jpg").touch()
    done = run_edgec("cache", "--clear", EDGEC_CACHE=str(tmp_path))
    assert done.returncode == 0 and "left alone: models, pictures" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holidays", "models", "pictures"]


def test_an_output_that_exists_is_not_touched(encoder: Path, tmp_path: Path) -> None:
    existing = tmp_path / "out" / "onnx-fp32"
    existing.mkdir(parents=True)
    (existing / "mine").write_text("kept")
    assert_refused(_build(encoder, tmp_path), 2, "exists already")
    assert (existing / "mine").read_text() == "kept"


def test_an_image_model_for_a_text_target(encoder: Path, tmp_path: Path) -> None:
    config = json.loads((encoder / "config.json").read_text()) | {"model_type": "vilt", "architectures": ["ViltModel"]}
    (encoder / "config.json").write_text(json.dumps(config))
    assert_refused(_build(encoder, tmp_path), 2, "vilt", "bert")


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    assert_refused(_build(tmp_path / "x.gguf", tmp_path), 2, "x.gguf", "not a usable GGUF file")
    assert_refused(_build(tmp_path / "y.gguf", tmp_path), 2, "no file")


def test_the_disk_is_full(encoder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        done = run_edgec("build", encoder, "-r", "coreml:fp16", "-o", small / "out", EDGEC_CACHE=str(small / "cache"))
        assert_refused(done, 2, "disk is full")
        left = [path for path in small.rglob("*") if path.is_file() and path.stat().st_size > 100_000]
        assert left == []
        assert not (small / "out" / "coreml-fp16").exists()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_package_with_a_flipped_byte(encoder: Path, tmp_path: Path, edgec: Run) -> None:
    assert _build(encoder, tmp_path).returncode == 0
    folder = tmp_path / "out" / "onnx-fp32"
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    for command in ("verify", "bench", "run"):
        more = ["-p", "x"] if command == "run" else []
        assert_refused(edgec(command, folder, *more), 1, "model.onnx", "SHA-256")


def test_a_folder_that_is_no_package(tmp_path: Path, edgec: Run) -> None:
    assert_refused(edgec("verify", tmp_path), 2, "package.json")
    assert_refused(edgec("bench", tmp_path), 2, "package.json")


def test_results_of_another_schema(tmp_path: Path, edgec: Run) -> None:
    (tmp_path / "r.jsonl").write_text('{"schema_version": 99}\n')
    assert_refused(edgec("compare", tmp_path / "r.jsonl", "--html", tmp_path / "r.html"), 2, "99", "edgec bench")
    assert not (tmp_path / "r.html").exists()


def test_a_model_that_changed_since_the_build(encoder: Path, tmp_path: Path, edgec: Run) -> None:
    # No other copy of it is on this machine.
    (encoder / "README.md").write_text(f"# {tmp_path}\n")
    assert _build(encoder, tmp_path).returncode == 0
    config = json.loads((encoder / "config.json").read_text()) | {"layer_norm_eps": 1e-5}
    (encoder / "config.json").write_text(json.dumps(config))
    assert_refused(edgec("verify", tmp_path / "out" / "onnx-fp32"), 2, "not the one", "--model")


def test_debug_shows_where(tmp_path: Path, edgec: Run) -> None:
    assert "Traceback" in edgec("--debug", "verify", tmp_path).stderr
    assert "Traceback" in edgec("verify", tmp_path, "--debug").stderr


def test_a_killed_bench_leaves_no_stopped_process(encoder: Path, tmp_path: Path) -> None:
    assert _build(encoder, tmp_path).returncode == 0
    package = tmp_path / "out" / "onnx-fp32"
    script = str(Path(sys.executable).with_name("edgec"))
    copy = shutil.copytree(package, tmp_path / "copy" / "onnx-fp32")
    command = [script, "bench", str(package), str(copy), "--rounds", "500"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    children: list[psutil.Process] = []
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children()
        if any(child.status() == psutil.STATUS_STOPPED for child in children):
            break
        time.sleep(0.02)
    assert any(child.status() == psutil.STATUS_STOPPED for child in children)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == []
