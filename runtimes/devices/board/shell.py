"""What a transport to another machine brings: a POSIX shell there. Copies, environments and agents are made of that alone."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol


class ConnectionLostError(Exception):
    """The way to the other machine was cut; what was asked may or may not have been done."""


class Shell(Protocol):
    """A way to run scripts on another machine.

    Attributes:
        title: what the machine is called in sentences.
    """

    @property
    def title(self) -> str: ...

    def run(self, script: str, given: bytes | tuple[Path, int] = b"", *, seconds: float = 60) -> tuple[int, bytes, str]:
        """Run a script of a POSIX shell; (exit code, what it printed, what it complained of).

        Args:
            script: the script.
            given: its standard input: bytes, or a file from a byte on.
            seconds: how long it may take.

        Raises:
            ConnectionLostError: the way was cut, or it took longer.
            UnusableInput: the machine cannot be reached, or does not let the user in.
        """
        ...

    def follow(self, script: str) -> subprocess.Popen[bytes]:
        """Start a script whose output is read while it runs; the process ends with 255 when the way is cut."""
        ...
