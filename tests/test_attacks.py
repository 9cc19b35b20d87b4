"""What a hostile or damaged input must not bring about: each ends in a sentence of edgec's own, and soon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from conftest import Run, assert_refused, run_edgec

from compiler.errors import CheckFailed, UnusableInput
from compiler.formats.gguf import read_gguf_header
from compiler.formats.gptq import read_form
from compiler.formats.json_file import LIMIT_DEPTH, parse_json, read_json
from compiler.formats.safetensors import list_tensors
from compiler.model import read_model
from compiler.output_file import check_output
from compiler.package import (
    FileRecord,
    Graph,
    Lowered,
    ModelIdentity,
    Package,
    StoredWeights,
    check_files,
    read_package,
    write_manifest,
)
from compiler.recipe import Shapes
from compiler.recipe_file import read_recipe_file
from compiler.stages.cache import cache_folder, clear_cache
from compiler.stages.executor import LocalExecutor, Source, stamp_of
from compiler.stages.stage import Stage
from compiler.time_limit import at_most
from runtimes.kinds.encoding.pictures import picture_inputs
from runtimes.verify.verify import reference_stage


def test_json_that_is_nested_too_deep_is_refused_at_once() -> None:
    assert parse_json("[" * 50 + "]" * 50, "it")
    for depth in (LIMIT_DEPTH + 1, 100_000):
        with pytest.raises(UnusableInput, match="nested deeper"):
            parse_json("[" * depth + "]" * depth, "it")


def test_a_pipe_or_a_device_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("config.json", "zero.json"):
        with pytest.raises(UnusableInput, match="no regular file"):
            read_json(tmp_path / name)


def test_a_pipe_is_refused_wherever_the_user_names_a_file(minilm_folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    decoder = tiny.save_decoder("llama", minilm_folder, tmp_path / "tiny-llama")
    model, package = read_model(decoder), _package(tmp_path / "package")
    (package.folder / "preprocessor_config.json").write_text("{}")
    readers = (
        lambda: read_recipe_file(pipe, ("gguf",)),
        lambda: reference_stage(model, Shapes(), pipe, 64),
        lambda: picture_inputs(package, pipe),
    )
    for read in readers:
        with pytest.raises(UnusableInput, match="pipe is no regular file"):
            read()


def test_a_gguf_array_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    import struct

    pair = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 40)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair + bytes(4000))
    with pytest.raises(UnusableInput, match="no room"):
        read_gguf_header(tmp_path / "a.gguf")


def test_a_safetensors_shape_of_a_million_sizes_is_refused_at_once(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40] * 1_000_000, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    started = time.monotonic()
    with pytest.raises(UnusableInput, match="no tensor has"):
        list_tensors(tmp_path / "a.safetensors")
    assert time.monotonic() - started < 10


def test_only_what_edgec_made_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "wedding.jpg").touch()
    assert cache_folder("stages").is_dir() and cache_folder("pictures").is_dir()
    assert clear_cache() == ["pictures"]
    assert (tmp_path / "pictures" / "wedding.jpg").is_file() and not (tmp_path / "stages").exists()


def _stage(name: str, **inputs: Stage) -> Stage:
    return Stage(name, "test_attacks:write_or_read", {"text": name}, inputs=inputs, sources=())


def write_or_read(out: str, text: str, before: str | None = None) -> str:
    """A stage: writes a file, or tells what an earlier one wrote."""
    (Path(out) / "a").write_text(text)
    return (Path(before) / "a").read_text() if before else ""


def test_a_damaged_result_is_made_again_before_a_stage_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    first = _stage("first")
    entry = LocalExecutor().run_one(first, {}, "")
    (entry.files / "a").write_text("FIRST")  # of the same size
    assert LocalExecutor().run_one(_stage("second", before=first), {}, "").value == "first"


def test_a_file_that_changes_while_a_stage_reads_it_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "w").write_text("before")
    source = Source(tmp_path / "w", "digest", stamp_of([tmp_path / "w"]))
    stage = Stage("change", "test_attacks:change_source", {}, sources=("model",))
    with pytest.raises(UnusableInput, match="changed while it was read"):
        LocalExecutor().run_one(stage, {"model": source}, "")


def change_source(model: str, out: str) -> None:
    """A stage whose source changes meanwhile."""
    Path(model).write_text("after it was hashed")


def test_results_take_no_other_files_place(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("{}")
    (tmp_path / "link").symlink_to("read")
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in (("link", "a link"), ("pipe", "a device or a pipe"), (".", "a folder")):
        with pytest.raises(UnusableInput, match=sentence):
            check_output(tmp_path / name)
    with pytest.raises(UnusableInput, match="the file that is read"):
        check_output(tmp_path / "read", [tmp_path / "read"])
    for text in ("{}", '{"model_type": "llama"}', "print()", "<!doctype html><html>mine</html>"):
        (tmp_path / "mine").write_text(text)
        with pytest.raises(UnusableInput, match="no file of results"):
            check_output(tmp_path / "mine")
    for text in (
        "",
        '{"package": "p", "recipe": "onnx:fp32", "device": "local"}',
        "<!doctype html>\n<title>edgec report</title>",
    ):
        (tmp_path / "own").write_text(text)
        check_output(tmp_path / "own")
    package = _package(tmp_path / "package")
    with pytest.raises(UnusableInput, match="would lie in the package"):
        check_output(package.folder / "x.jsonl")


def _package(folder: Path) -> Package:
    folder.mkdir()
    (folder / "a").write_text("x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    lowered = Lowered("onnxruntime", (Graph("main", ("a",), (), ()),), StoredWeights(32.0, {}))
    model = ModelIdentity("m", "m", "0", "A", "feature-extraction", 1, None, ())
    package = Package(folder, model, "onnx:fp32", {}, lowered, {}, {"a": FileRecord(digest, 1)})
    write_manifest(package)
    return package


def test_a_package_holds_files_and_folders_only(tmp_path: Path) -> None:
    for number, make in enumerate(
        (lambda at: at.symlink_to("/etc"), lambda at: at.symlink_to("nowhere"), lambda at: os.mkfifo(at))
    ):
        package = _package(tmp_path / str(number))
        check_files(package)
        make(package.folder / "extra")
        with pytest.raises(CheckFailed, match="extra is"):
            check_files(package)


def test_a_loop_in_a_template_ends() -> None:
    with pytest.raises(UnusableInput, match="does not end"), at_most(0.2, "The chat template"):
        while True:
            pass


def test_settings_of_a_gptq_checkpoint_that_nobody_reads_are_named() -> None:
    said = {"bits": 4, "group_size": 32, "quant_method": "gptq", "sym": True}
    assert read_form({**said, "meta": {"quantizer": ["x"]}, "dynamic": {"-:lm_head": {}}}).bits == 4
    for more, named in (
        ({"dynamic": {"+:.*down_proj": {"bits": 8}}}, "down_proj"),
        ({"adapter": {"rank": 8}}, "adapter"),
        ({"pack_dtype": "int8"}, "int8"),
    ):
        with pytest.raises(UnusableInput, match=named):
            read_form({**said, **more})


def test_streams_and_signals_end_as_a_shell_expects(tmp_path: Path) -> None:
    edgec = Path(sys.executable).with_name("edgec")
    closed = subprocess.run(["sh", "-c", f"'{edgec}' targets >&-"], capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    process = subprocess.Popen([edgec, "targets", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE and process.stderr.read() == b""


def test_an_argument_that_is_not_utf_8_or_has_400_digits_is_wrong_use(tmp_path: Path) -> None:
    assert "not UTF-8" in run_edgec("inspect", os.fsdecode(b"\xff")).stderr
    for option, value in (("--max-bytes", "9" * 400 + "MB"), ("--context-length", "9" * 23)):
        done = run_edgec("build", tmp_path, "-r", "gguf:Q8_0", option, value, "-o", tmp_path / "o")
        assert done.returncode == 2 and "error in edgec" not in done.stderr


def test_a_model_that_names_code_of_the_hub_or_more_layers_than_it_has_is_refused(
    minilm_folder: Path, tmp_path: Path
) -> None:
    for change, sentence in (
        ({"attn_implementation": "evil/kernel"}, "code from the hub"),
        ({"num_hidden_layers": 10**9}, "says layers 1,000,000,000"),
        ({"image_size": 32}, "a model of pictures"),
    ):
        folder = tmp_path / sentence[:6].strip()
        shutil.copytree(minilm_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        done = run_edgec("build", folder, "-r", "onnx:fp32", "-o", tmp_path / "o")
        assert done.returncode == 2 and sentence in done.stderr


def test_native_code_runs_only_where_it_was_built_or_is_trusted(
    tmp_path: Path, minilm_folder: Path, edgec_here: Run
) -> None:
    model = tiny.save_encoder("bert", minilm_folder, tmp_path / "model")
    done = edgec_here("build", model, "-r", "neo:fp32", "--sequence-length", 32, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "neo-fp32"
    ask = ("run", package, "-p", "hello", "--json")
    assert edgec_here(*ask).returncode == 0
    (cache_folder("built") / read_package(package).digest).unlink()
    for command in (ask, ("verify", package), ("bench", package)):
        assert_refused(edgec_here(*command), 2, "native code", "compiled.so", "--trust")
    assert edgec_here(*ask, "--trust").returncode == 0


@pytest.mark.parametrize(
    ("runtime", "file", "word"), [("tvm", "model.onnx", "does not write for"), ("onnxruntime", "evil.so", "*.onnx")]
)
def test_a_package_is_what_its_target_writes(
    runtime: str, file: str, word: str, tmp_path: Path, minilm_folder: Path, edgec_here: Run
) -> None:
    model = tiny.save_encoder("bert", minilm_folder, tmp_path / "model")
    assert edgec_here("build", model, "-r", "onnx:fp32", "-o", tmp_path).returncode == 0
    package = read_package(tmp_path / "onnx-fp32")
    (package.folder / "model.onnx").rename(package.folder / file)
    graph = replace(package.lowered.main, files=(file,))
    files = {**package.files, file: package.files["model.onnx"]}
    files = {name: record for name, record in files.items() if (package.folder / name).exists()}
    write_manifest(replace(package, files=files, lowered=replace(package.lowered, runtime=runtime, graphs=(graph,))))
    for command in (("run", package.folder, "-p", "hello"), ("verify", package.folder), ("bench", package.folder)):
        assert_refused(edgec_here(*command), 2, word)
