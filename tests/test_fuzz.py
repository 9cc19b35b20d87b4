"""Damaged input of every parser: it is read, or ends in an error of edgec's own. `make fuzz` gives them 200,000 inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_damaged_input_ends_in_an_error_of_our_own() -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), "--inputs", "2000", "--processes", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "EDGEC_CACHE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "0 missed in 0 places" in done.stdout


def test_the_fuzzer_tells_a_foreign_error_and_a_hang(tmp_path: Path) -> None:
    """What fails in the fuzzer itself must not look like a pass."""
    program = """
import signal, sys
from pathlib import Path
import fuzz
from fuzz_parsers import Parser

fuzz.LIMIT_S = 0.2
signal.signal(signal.SIGALRM, fuzz._too_long)
file = Path(sys.argv[1])
file.write_text("{}")
def raises(path): raise KeyError("x")
def hangs(path):
    while True: pass
for parser in (Parser("a", file, raises), Parser("b", file, hangs)):
    print(fuzz.read_damaged(parser, 0).what.split(":")[0])
print(file.read_text())
"""
    command = [sys.executable, "-c", program, str(tmp_path / "input")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["KeyError", "TooLong", "{}"], done.stderr
