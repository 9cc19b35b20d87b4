"""What a transport to another machine brings: a POSIX shell there. Copies, environments and agents are made of that alone.

What comes from there is not trusted: its length is limited, and signs that a terminal would obey are taken out of sentences.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from compiler.errors import UnusableInput

# How long the way may be cut before edgec gives up, and how long it waits between two tries.
PATIENCE_S = 120.0
PAUSE_S = 2.0
T = TypeVar("T")


class ConnectionLostError(Exception):
    """The way to the other machine was cut; what was asked may or may not have been done."""


class TimeUpError(ConnectionLostError):
    """A script took longer than it may, or the way was cut and nobody said so."""


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
            UnusableInput: the machine cannot be reached, does not let the user in, or answers nonsense.
        """
        ...

    def follow(self, script: str) -> subprocess.Popen[bytes]:
        """Start a script whose output, without what came before it, is read while it runs; it ends when the way is cut."""
        ...


def patiently(shell: Shell, step: Callable[[], T]) -> T:
    """A step that may be done twice, tried until the way is there.

    Raises:
        UnusableInput: the way was cut for too long.
    """
    ended = time.monotonic() + PATIENCE_S
    while True:
        begun = time.monotonic()
        try:
            return step()
        except ConnectionLostError as error:
            if time.monotonic() - begun > PATIENCE_S and not isinstance(error, TimeUpError):
                # It was there meanwhile: the time without it begins now.
                ended = time.monotonic() + PATIENCE_S
            if time.monotonic() > ended:
                if isinstance(error, TimeUpError):
                    spent = time.monotonic() - begun
                    raise UnusableInput(
                        f"a step on {shell.title} had not ended after {spent / 60:.0f} min. See what it is busy with there."
                    ) from None
                raise UnusableInput(
                    f"the way to {shell.title} was cut for {PATIENCE_S:.0f} s. See that it is on, and try again."
                ) from None
            time.sleep(PAUSE_S)


def ask(shell: Shell, script: str, given: bytes = b"", *, seconds: float = 60, failed: str = "a command failed") -> str:
    """What a script prints that may be run twice.

    Raises:
        UnusableInput: it ends with another code than 0; `failed` says what that means.
    """
    code, out, said = patiently(shell, lambda: shell.run(script, given, seconds=seconds))
    if code:
        last = last_line(said)
        raise UnusableInput(
            f"{shell.title}: {failed}. {f'It said last: {last}' if last else f'Its exit code was {code}.'}"
        )
    return out.decode("utf-8", "replace").strip()


def last_line(said: str) -> str:
    """The last line of what a machine said, fit for a terminal."""
    lines = [line for line in said.splitlines() if line.strip()]
    return printable(lines[-1])[:300] if lines else ""


def printable(text: str) -> str:
    """A text of another machine without control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()


def is_number(text: str | bytes, digits: int = 18) -> bool:
    """Whether another machine's word is a whole number of so many digits at most."""
    word = text if isinstance(text, str) else text.decode("ascii", "replace")
    return re.fullmatch(rf"[0-9]{{1,{digits}}}", word) is not None


def nonsense(title: str) -> UnusableInput:
    """The error for an answer that no agent or shell of edgec's gives."""
    return UnusableInput(f"{title} answers nonsense: what it says is too long or of another form than edgec asked for.")
