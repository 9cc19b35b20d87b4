"""A program here that carries a shell over there: run once with something to read, or followed line by line."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtimes.devices.board.shell import nonsense

MOST_BYTES = 1 << 20
# Before what a script prints: a login shell may print something of its own.
BEGIN = "edgec-begins-here"


@dataclass(frozen=True)
class Reason:
    """What such a program says, and what it means; what is `passing` counts only where nothing ever ran there."""

    said: str
    means: str
    passing: bool = False


def run_client(
    title: str, command: Sequence[str], given: bytes | tuple[Path, int], seconds: float
) -> tuple[int, bytes, str]:
    """(exit code, what it printed, what it complained of); a code below 0 where it took longer than `seconds`.

    Args:
        title: what the machine is called in sentences.
        command: the program and its arguments.
        given: its standard input: bytes, or a file from a byte on.
        seconds: how long it may take.

    Raises:
        UnusableInput: it prints more than any shell of edgec's does.
    """
    with tempfile.TemporaryFile() as complaint, tempfile.TemporaryFile() as kept:
        source = kept
        if isinstance(given, tuple):
            source = given[0].open("rb")  # type: ignore[assignment]
            source.seek(given[1])
        else:
            kept.write(given)
            kept.seek(0)
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=complaint)
        source.close()
        late = threading.Timer(seconds, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            out = process.stdout.read(MOST_BYTES + 1)
            if len(out) > MOST_BYTES:
                raise nonsense(title)
            code = process.wait()
        finally:
            late.cancel()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        complaint.seek(0)
        return code, out, complaint.read(MOST_BYTES).decode("utf-8", "replace")


def follow_client(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start it, and read up to where its script begins to print."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    while (line := process.stdout.readline(MOST_BYTES)) and line != f"{BEGIN}\n".encode():
        pass
    return process
