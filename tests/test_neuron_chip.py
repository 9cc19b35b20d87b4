"""neuron packages where Neuron is: finished by a compiler on the PATH, and run by nrtpy; both are stand-ins here."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
import tiny
from conftest import Run, assert_refused
from neuron_stand_in import compiler_on_path, runtime_on_path

from compiler.errors import UnusableInput
from compiler.formats.neff import require_neff
from compiler.model import Model
from compiler.package import check_files, read_package
from runtimes.verify.verification import read_verification


@pytest.fixture(scope="module")
def built(smollm2: Model, minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neuron-chip")
    llama = tiny.save_decoder("llama", smollm2.folder, out / "llama")
    bert = tiny.save_encoder("bert", minilm_folder, out / "bert")
    recipes = ("-r", "neuron:fp32", "-r", "neuron:bf16", "-r", "neuron:fp32+tp2")
    done = edgec_here("build", llama, *recipes, "--context-length", 96, "-o", out / "llama-out")
    assert done.returncode == 0, done.stdout + done.stderr
    recipes = ("-r", "neuron:fp32", "-r", "neuron:bf16", "-r", "neuron:fp32+lengths")
    done = edgec_here("build", bert, *recipes, "--sequence-length", 32, "-o", out / "bert-out")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_finishing_runs_the_compiler_and_leaves_the_rest_as_it_was(built: Path, edgec: Run, tmp_path: Path) -> None:
    folder = built / "llama-out" / "neuron-bf16"
    before = read_package(folder)
    done = edgec("build", "--finish", folder, "-o", tmp_path / "out", **compiler_on_path(tmp_path / "bin"))
    assert done.returncode == 0, done.stdout + done.stderr
    finished = read_package(tmp_path / "out" / "neuron-bf16")
    check_files(finished)
    assert finished.lowered.unfinished is None and finished.tools["neuronx-cc"] == "2.21.33363.0+82129205"
    assert set(finished.files) - set(before.files) == {"prefill.neff", "decode.neff"}
    assert {name: finished.files[name] for name in before.files} == before.files
    check_files(before)
    assert_refused(
        edgec("build", "--finish", tmp_path / "out" / "neuron-bf16", "-o", tmp_path / "o"), 2, "finished already"
    )


def test_the_script_is_the_same_command(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (built / "llama-out" / "neuron-bf16").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    subprocess.run(
        ["sh", folder / "compile.sh", "made"],
        check=True,
        env={**os.environ, **compiler_on_path(tmp_path / "bin")},
        cwd=tmp_path,
    )
    assert (tmp_path / "made" / "prefill.neff").is_file() and (tmp_path / "made" / "decode.neff").is_file()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ('print("[ERROR] [NCC_EOOM001] too large"); raise SystemExit(70)', ("NCC_EOOM001", "memory of a core", "+tpN")),
        (
            'print("[INTERNAL_ERROR] [NCC_ITEN404] strides"); raise SystemExit(1)',
            ("NCC_ITEN404", "fault of the compiler"),
        ),
        ("raise SystemExit(3)", ("exit code 3", "no error code")),
        ("raise SystemExit(0)", ("made no main.neff",)),
        ('neff.write_bytes(b"this is no NEFF"); raise SystemExit(0)', ("15 bytes and is no NEFF file",)),
        ('neff.write_bytes(b"x" * 4096); raise SystemExit(0)', ("is no NEFF file, or is cut",)),
        (
            'neff.write_bytes(struct.pack("<5Q", 2, 1024, 4000, 2, 0).ljust(5024, b"x")); raise SystemExit(0)',
            ("no archive with sg00/def.json",),
        ),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(
    fault: str, words: tuple[str, ...], built: Path, edgec: Run, tmp_path: Path
) -> None:
    done = edgec(
        "build",
        "--finish",
        built / "bert-out" / "neuron-fp32",
        "-o",
        tmp_path / "out",
        **compiler_on_path(tmp_path / "bin", fault),
    )
    assert_refused(done, 1, *words)
    assert not (tmp_path / "out").exists()


def test_a_build_where_the_compiler_is_has_the_neff(built: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("build", built / "bert", "-r", "neuron:fp32", "--sequence-length", 32, "-o")
    done = edgec(*words, tmp_path / "out", **compiler_on_path(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    package = read_package(tmp_path / "out" / "neuron-fp32")
    check_files(package)
    assert package.lowered.unfinished is None and package.tools["neuronx-cc"] == "2.21.33363.0+82129205"
    require_neff(package.folder / "main.neff")
    assert "UNFINISHED" not in done.stdout


def test_a_build_whose_compiler_fails_keeps_what_was_built(built: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("build", built / "bert", "-r", "neuron:fp32", "-r", "onnx:fp32", "--sequence-length", 32, "-o")
    fault = 'neff.write_bytes(b"half"); raise SystemExit(3)'
    failed = edgec(*words, tmp_path / "out", **compiler_on_path(tmp_path / "bad", fault))
    assert_refused(failed, 1, "exit code 3", "neuron-fp32 as it is where that tool is not, UNFINISHED")
    package = read_package(tmp_path / "out" / "neuron-fp32")
    check_files(package)
    assert package.lowered.unfinished is not None and (tmp_path / "out" / "onnx-fp32").is_dir()


def test_a_compiler_that_cannot_be_started_is_told(built: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("build", "--finish", built / "bert-out" / "neuron-fp32", "-o", tmp_path / "out")
    given = compiler_on_path(tmp_path / "bin")
    (tmp_path / "bin" / "neuronx-cc").write_text("#!/nowhere/python\n")
    assert_refused(edgec(*words, **given), 2, "cannot be started", "SDK anew")
    (tmp_path / "bin" / "neuronx-cc").write_text("#!/bin/sh\necho hello\n")
    assert_refused(edgec(*words, **given), 1, "tells no version")


def test_without_the_compiler_nothing_is_finished(built: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec("build", "--finish", built / "bert-out" / "neuron-fp32", "-o", tmp_path / "out")
    assert_refused(done, 2, "neuronx-cc is not on the PATH", "Neuron SDK")


def _finished(package: Path, edgec: Run, tmp_path: Path) -> Path:
    done = edgec("build", "--finish", package, "-o", tmp_path / "finished", **compiler_on_path(tmp_path / "bin"))
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / "finished" / package.name


def test_without_the_chip_modules_are_evaluated_and_that_is_said(built: Path, edgec: Run, tmp_path: Path) -> None:
    folder = _finished(built / "bert-out" / "neuron-fp32", edgec, tmp_path)
    done = edgec("verify", folder)
    assert done.returncode == 0 and "XLA on this machine's CPU" in done.stdout and "no NeuronCore" in done.stdout
    found = read_verification(read_package(folder))
    assert found is not None and found.passed and "no NeuronCore" in found.evaluated_by
    assert "no NeuronCore" in edgec("run", folder, "-p", "a", "-p", "b").stderr
    assert_refused(edgec("bench", folder), 2, "only evaluated on this machine")


@pytest.mark.parametrize("name", ["llama-out/neuron-fp32", "llama-out/neuron-bf16", "bert-out/neuron-fp32-lengths"])
def test_beside_the_chip_its_runtime_computes_what_the_model_computes(
    name: str, built: Path, edgec: Run, tmp_path: Path
) -> None:
    """A language model's cache stays on the chip between calls, and is empty again for the next text."""
    folder, chip = _finished(built / name, edgec, tmp_path), runtime_on_path(tmp_path / "chip")
    done = edgec("verify", folder, **chip)
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_verification(read_package(folder))
    assert found is not None and found.passed and not found.evaluated_by
    assert (tmp_path / "chip" / "CALLS").read_text().count("a graph was called") > 4
    prompt = ("-p", "What is an edge?", "--max-tokens", 4) if "llama" in name else ("-p", "a", "-p", "b")
    done = edgec("run", folder, *prompt, **chip)
    assert done.returncode == 0 and "computed by" not in done.stderr, done.stderr


def test_beside_the_chip_it_is_measured(built: Path, edgec: Run, tmp_path: Path) -> None:
    folder, chip = _finished(built / "bert-out" / "neuron-fp32", edgec, tmp_path), runtime_on_path(tmp_path / "chip")
    done = edgec("bench", folder, "--rounds", 3, "--json", **chip)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["summary"]["latency_ms_p50"] > 0


def test_beside_the_chip_what_it_cannot_run_is_told(built: Path, edgec: Run, tmp_path: Path) -> None:
    chip = runtime_on_path(tmp_path / "chip")
    unfinished = built / "bert-out" / "neuron-fp32"
    assert_refused(edgec("verify", unfinished, **chip), 2, "is not compiled yet", "--finish")
    shared = _finished(built / "llama-out" / "neuron-fp32-tp2", edgec, tmp_path)
    assert_refused(edgec("verify", shared, **chip), 2, "shared among 2 cores", "without +tp")


def test_a_neff_with_an_endless_header_is_refused(tmp_path: Path) -> None:
    inside = io.BytesIO()
    with tarfile.open(fileobj=inside, mode="w:gz") as archive:
        member = tarfile.TarInfo("a")
        member.type, member.size = tarfile.XHDTYPE, 2 << 20
        archive.addfile(member, io.BytesIO(b"0" * member.size))
    head = struct.pack("<5Q", 2, 1024, len(inside.getvalue()), 2, 0)
    (tmp_path / "main.neff").write_bytes(head.ljust(1024, b"\0") + inside.getvalue())
    with pytest.raises(UnusableInput, match="header of 2097152 bytes"):
        require_neff(tmp_path / "main.neff")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes and is no NEFF file"),
        (b"\0" * 2048, "no NEFF file, or is cut"),
    ],
)
def test_what_is_no_neff_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "main.neff").write_bytes(data)
    with pytest.raises(UnusableInput, match=words):
        require_neff(tmp_path / "main.neff")
