"""A program here that carries a shell over there: run once with something to read, or followed line by line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from compiler.errors import UnusableInput
from runtimes.devices.board.shell import nonsense

MOST_BYTES = 1 << 20
# Before what a script prints: a login shell may print something of its own.
BEGIN = "edgec-begins-here"
_BEGIN_S, _END_S = 60.0, 5.0


@dataclass(frozen=True)
class Reason:
    """What such a program says, and what it means; what is `passing` counts only where nothing ever ran there."""

    said: str
    means: str
    passing: bool = False


def user_client(variable: str, program: str, missing: str) -> Sequence[str]:
    """The user's command for a program: what a variable of the environment says, or its name.

    Raises:
        UnusableInput: it is no command, or is not here; `missing` says what is missing and how to get it.
    """
    try:
        client = shlex.split(os.environ.get(variable) or program)
    except ValueError:
        raise UnusableInput(f"{variable} is no command: a quote in it has no end.") from None
    if not client or shutil.which(client[0]) is None:
        raise UnusableInput(missing)
    return client


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
    with tempfile.TemporaryFile() as kept:
        source = kept
        if isinstance(given, tuple):
            source = given[0].open("rb")  # type: ignore[assignment]
            source.seek(given[1])
        else:
            kept.write(given)
            kept.seek(0)
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        source.close()
        assert process.stdout is not None and process.stderr is not None
        said = bytearray()
        listener = threading.Thread(target=_keep_end, args=(process.stderr, said), daemon=True)
        listener.start()
        late = threading.Timer(seconds, process.kill)
        late.start()
        try:
            out = process.stdout.read(MOST_BYTES + 1)
            if len(out) > MOST_BYTES:
                raise nonsense(title)
            code = process.wait()
        finally:
            late.cancel()
            process.kill()
            process.wait()
            listener.join(_END_S)
            process.stdout.close()
            process.stderr.close()
        return code, out, bytes(said).decode("utf-8", "replace")


def _keep_end(stream: IO[bytes], said: bytearray) -> None:
    """Read all, and keep the end: what went wrong is told last."""
    with suppress(OSError, ValueError):
        while part := stream.read1(1 << 16):  # type: ignore[attr-defined]
            said += part
            del said[: max(0, len(said) - MOST_BYTES)]


def follow_client(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start it, and read up to where its script begins to print; where that takes too long it is ended."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    late, left = threading.Timer(_BEGIN_S, process.kill), MOST_BYTES
    late.start()
    while left > 0 and (line := process.stdout.readline(left)) and line != f"{BEGIN}\n".encode():
        left -= len(line)
    late.cancel()
    if left <= 0:
        process.kill()
    return process
