"""What people see: tables and errors that break no word on a narrow terminal, and progress without one."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest
from measurements import measurement

from benchmarks.agent.conditions import Conditions
from benchmarks.validity import Disturbance
from compiler.cli import steps
from compiler.cli.bench_command import print_measurements
from compiler.cli.display import fill
from compiler.cli.steps import Lines, shown_steps, time_in_words

_WORDS = ("edgec[reference]", "int8-gptq-{g32,g64,g128,pc}[-asym]", "@ios18", "mixed-gptq-g32")


def _on_a_terminal(columns: int, *arguments: str) -> tuple[int, str]:
    """Exit code and text of a command whose output and errors go to a terminal of so many columns."""
    here, there = os.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-c", "from compiler.cli.main import main; main()", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=environment) as process:
        os.close(there)
        parts = []
        while True:
            try:
                part = os.read(here, 4096)
            except OSError:
                break
            if not part:
                break
            parts.append(part)
    os.close(here)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode()).replace("\r", "")


@pytest.mark.parametrize("columns", [80, 60])
def test_a_table_breaks_no_word_and_keeps_within_the_terminal(columns: int) -> None:
    code, text = _on_a_terminal(columns, "targets")
    assert code == 0
    assert all(len(line.rstrip()) <= columns for line in text.splitlines())
    assert all(word in text for word in _WORDS)


def test_an_error_breaks_no_word() -> None:
    code, text = _on_a_terminal(50, "build", "nowhere/at/all", "-r", "onnx:int4-rnt-g32", "-o", "out")
    assert code == 2
    assert "onnx:int4-rtn-g32?" in text and all(len(line) <= 50 for line in text.splitlines())
    assert fill("one two-three", 8).splitlines() == ["one", "two-three"]


def test_without_a_terminal_each_step_is_a_line_and_time_left_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with shown_steps() as shown:
        assert isinstance(shown, Lines)
        step = shown.begin("quantize", "gguf:Q8_0")
        for done in range(1, 5):
            now[0] += 31
            step.update(done, 10)
        step.end()
    assert capsys.readouterr().err.splitlines() == [
        "quantize (gguf:Q8_0) ...",
        "quantize (gguf:Q8_0): 2 of 10, 4 min left",
        "quantize (gguf:Q8_0): 4 of 10, 3 min left",
        "quantize (gguf:Q8_0): done in 2 min",
    ]
    assert steps.time_in_words(119) == "119 s" and time_in_words(121) == "2 min"


def test_programs_read_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_steps(quiet=True) as shown:
        shown.begin("a", "b").end()
    assert capsys.readouterr().err == ""


def test_what_sensors_told_is_in_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    samples = {"latency_s": ((0.1,), (0.1,), (0.1,))}
    plain = measurement(samples, {"latency_ms_p50": 100.0}, {})
    seen = replace(Conditions(), hottest_c=71.6, lowest_mhz=1500.0, highest_mhz=2400.0, power_w=6.25)
    warm = replace(plain, disturbance=Disturbance(0.0, 0.0, 0, None, seen), summary={**plain.summary, "power_w": 6.25})
    print_measurements([plain])
    assert "sensors" not in capsys.readouterr().out
    print_measurements([plain, warm])
    table = capsys.readouterr().out.partition("sensors")[2]
    assert all(word in table for word in ("72", "1,500", "2,400", "6.2"))
