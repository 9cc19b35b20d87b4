"""Packages on an emulated ARM64 board: Debian's qemu-system-aarch64, an OpenSSH server inside, real wheels for ARM64.

It takes about 15 minutes, so `make board` runs it and `make test` does not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from conftest import Run, assert_refused

from compiler.model import Model

_NEEDED = ("qemu-system-aarch64", "mmdebstrap", "aarch64-linux-gnu-gcc")
pytestmark = [
    pytest.mark.skipif(not os.environ.get("EDGEC_EMULATED"), reason="takes about 15 minutes: make board"),
    pytest.mark.skipif(not all(map(shutil.which, _NEEDED)), reason=f"needs {', '.join(_NEEDED)}"),
]


@pytest.fixture(scope="module")
def packages(
    smollm2: Model, minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    out = tmp_path_factory.mktemp("emulated")
    llama = tiny.save_decoder("llama", smollm2.folder, out / "llama")
    bert = tiny.save_encoder("bert", minilm_folder, out / "bert")
    for model, recipes in ((llama, ("gguf:Q8_0", "tflite:int8")), (bert, ("onnx:fp32", "onnx:int8", "tflite:int8"))):
        words = [word for recipe in recipes for word in ("-r", recipe)]
        options = ("--sequence-length", 32, "--min-quality", "unusable", "--verify")
        done = edgec_here("build", model, *words, *options, "-o", out / f"{model.name}-out")
        assert done.returncode == 0, done.stdout + done.stderr
    return sorted((out / "llama-out").iterdir()) + sorted((out / "bert-out").iterdir())


def test_every_runtime_computes_there_what_it_does_here(packages: list[Path], edgec_here: Run) -> None:
    """onnxruntime, ai-edge-litert, LiteRT-LM's signatures and llama.cpp."""
    done = edgec_here("verify", *packages, "--device", "qemu:aarch64", "--json")
    found = json.loads(done.stdout)
    assert len(found) == len(packages) == 5
    assert done.returncode == 0, found
    floats = next(each for each in found if each["package"] == "onnx:fp32")
    assert floats["distance"] < 1e-5


def test_what_tvm_compiled_for_arm_computes_what_the_model_computes(
    minilm_folder: Path, edgec_here: Run, tmp_path: Path
) -> None:
    """The real MiniLM, 128 tokens."""
    words = ("-r", "neo:fp32@aarch64", "--sequence-length", 128, "-o", tmp_path / "out")
    assert edgec_here("build", minilm_folder, *words).returncode == 0
    done = edgec_here("verify", tmp_path / "out" / "neo-fp32-aarch64", "--device", "qemu:aarch64", "--json")
    (found,) = json.loads(done.stdout)
    print(f"MiniLM on the emulated board: {found['figure']} {found['distance']:.2g}, {found['max_abs_difference']:.2g}")
    assert done.returncode == 0 and found["held_to"] == "the fp32 model" and found["distance"] < 1e-5


def test_its_measurements_say_that_they_are_emulated(packages: list[Path], edgec_here: Run) -> None:
    words = ("--prompt-tokens", 8, "--generated-tokens", 4, "--rounds", 3, "--device", "qemu:aarch64", "--json")
    done = edgec_here("bench", packages[1], *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[0]
    assert found["environment"]["machine"] == "aarch64" and found["device"] == "qemu:aarch64"
    assert found["verdict"]["word"] == "invalid" and any("emulated" in reason for reason in found["verdict"]["reasons"])


def test_one_process_at_a_time_has_it(packages: list[Path], edgec: Run) -> None:
    """The other may be this one, which the tests before have left with it."""
    holding = (
        "import contextlib, fcntl; from runtimes.devices.emulated.image import image\n"
        "held = image().file('lock').open('w')\n"
        "with contextlib.suppress(BlockingIOError): fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-P", "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert_refused(edgec("verify", packages[1], "--device", "qemu:aarch64"), 2, "Another run of edgec")
    finally:
        holder.kill()
        holder.wait()
