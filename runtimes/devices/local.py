"""local: this machine. An agent is a child process, driven by its standard streams and held still by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from compiler.errors import UnusableInput
from compiler.package import Package
from compiler.stages.worker import parent_environment
from runtimes.devices.device import Agent, Device

_PATIENCE_S = 5


class LocalAgent:
    """An agent in a child process."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        except BrokenPipeError:
            said = ""
        # A line that breaks off is the last that a process says.
        if not said.endswith("\n"):
            raise UnusableInput(f"its process ended. {self._last_words()}")
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise UnusableInput(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return f"It said last: {lines[-1][:300]}" if lines else "It said nothing."

    def pause(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.resume()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class LocalDevice:
    """This machine, with the interpreter that runs edgec."""

    name = "local"

    def put(self, package: Package) -> str:
        return str(package.folder.resolve())

    def start(self, module: str, arguments: Sequence[str], threads: int, distributions: Sequence[str] = ()) -> Agent:
        command = [sys.executable, "-P", "-m", module, *arguments]
        return LocalAgent(command, {**os.environ, **parent_environment(), "OMP_NUM_THREADS": str(threads)})


def open_device(address: str) -> Device:
    """This machine, which has no address.

    Raises:
        UnusableInput: one is given.
    """
    if address:
        raise UnusableInput(f"The device local is this machine and has no address; leave {address!r} out.")
    return LocalDevice()
