"""The walk-throughs of docs/devices.md, followed command by command with small models and a board on the loopback.

What a line names that is not here takes another's place: the hub's models small ones, the Raspberry Pi an OpenSSH server, its
packages those that need no compiler there. `ssh-copy-id` is left out: the server knows the key.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run
from ssh_board import SshBoard, can_serve, serve

_PAGE = (Path(__file__).parent.parent / "docs" / "devices.md").read_text(encoding="utf-8")
_BOARD = pytest.mark.skipif(not can_serve(), reason="needs Debian's openssh-server, and root to run it")


def _section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", _PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def _commands(title: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", _section(title), re.DOTALL)
    return [line.removeprefix("$ ").partition(" #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    with serve(tmp_path_factory.mktemp("board"), {}) as served:
        yield served


@pytest.fixture(scope="module")
def place(tiny_models: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packages that a board runs without a compiler."""
    folder = tmp_path_factory.mktemp("walk")
    words = ("-r", "tflite:int8", "-r", "tflite:fp32", "--sequence-length", 16, "-o", folder / "packages")
    done = edgec_here("build", tiny_models / "bert", *words)
    assert done.returncode == 0, done.stderr
    return folder


def _follow(line: str, changes: dict[str, str], place: Path, edgec: Run, **environment: str) -> None:
    for old, new in changes.items():
        line = line.replace(old, new)
    program, *words = shlex.split(line)
    assert program == "edgec", line
    done = edgec(*words, cwd=place, **environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@_BOARD
def test_a_raspberry_pi(board: SshBoard, place: Path, edgec: Run) -> None:
    changes = {
        "packages/gguf-Q4_0 packages/onnx-int4-rtn-g32": "packages/tflite-int8 packages/tflite-fp32",
        "ssh://pi@raspberrypi.local": board.address, "--threads 4": "--threads 1 --sequence-length 16 --rounds 3",
    }  # fmt: skip
    lines = [*_commands("A Raspberry Pi over ssh"), *_commands("Whether a device computes the same")]
    assert lines[0].startswith("ssh-copy-id") and len(lines) == 5
    for line in lines[1:]:
        _follow(line, changes, place, edgec, EDGEC_SSH=board.client)
    assert "tflite:int8" in (place / "pi.html").read_text()
    measured = [json.loads(line) for line in (place / "pi.jsonl").read_text().splitlines()]
    assert {each["device"] for each in measured} == {board.address}


def test_a_phone(tiny_models: Path, place: Path, edgec: Run) -> None:
    """As far as the kit: what needs a phone is tests/test_adb.py's."""
    lines = [line for line in _commands("A phone") if "adb:" not in line]
    changes = {
        "HuggingFaceTB/SmolLM2-135M-Instruct": str(tiny_models / "llama"), "packages": "phone",
        "--context 2048": "--context 128", "--verify": "--verify --min-quality unusable",
    }  # fmt: skip
    for line in lines:
        _follow(line, changes, place, edgec)
    assert len(lines) == 3 and list((place / "kits" / "android").rglob("*.kt"))


@_BOARD
def test_a_fleet(board: SshBoard, tiny_models: Path, place: Path, edgec: Run) -> None:
    """On one machine; the lines for several are tests/test_matrix.py's."""
    (text,) = re.findall(r"```toml\n(models = .*?)```", _section("A fleet"), re.DOTALL)
    lists = {"models": [str(tiny_models / "bert")], "recipes": ["tflite:int8"], "devices": ["local", board.address]}
    for name, values in lists.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {json.dumps(values)}", text, flags=re.MULTILINE)
        assert count == 1
    text = text.replace("sequence_length = 128", "sequence_length = 16")
    (place / "matrix.toml").write_text(f"{text}rounds = 3\nrepetitions = 3\n")
    (first, *others) = _commands("A fleet")
    _follow(first, {}, place, edgec, EDGEC_SSH=board.client)
    rows = [json.loads(line) for line in (place / "fleet" / "cells.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["measured"] * 2 and rows[1]["computes_the_same"] is True
    assert (place / "fleet" / "report.html").is_file() and len(others) == 4
