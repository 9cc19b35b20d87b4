"""adb:SERIAL: an Android phone by the system's own adb program, and in it Termux, whose Python runs the agent.

A phone's own shell has no Python. Termux has (`pkg install python python-numpy python-psutil`), and a build of it that can be
debugged, such as those that its authors publish on GitHub, may be entered by adb (`run-as`). What a runtime needs is taken
from Termux where it has it, since wheels for Linux do not install on Android. This was tested against adb's protocol; on a
phone it was not run. EDGEC_ADB is the command where it is not `adb`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from compiler.errors import UnusableInput
from runtimes.devices.board.board import Board
from runtimes.devices.board.client import BEGIN, Reason, follow_client, run_client, user_client
from runtimes.devices.board.shell import ConnectionLostError, is_number, nonsense
from runtimes.devices.device import Device

_SERIAL = re.compile(r"[A-Za-z0-9_][\w.:-]{0,127}")
_APP = "com.termux"
_HOME, _PREFIX = f"/data/data/{_APP}/files/home", f"/data/data/{_APP}/files/usr"
# The last line of what a script complains of, with its exit code: adb's own says not whether the way was cut.
_END = "edgec-ends-here"


_REASONS = (
    Reason("unauthorized", "it has not allowed this computer. Unlock it, and accept its question about USB debugging"),
    Reason(
        "insufficient permissions",
        "this user may not use its USB device. Install Android's udev rules: apt install android-sdk-platform-tools-common",
    ),
    Reason("offline", "adb has lost it. See that it is on, or connect it again", passing=True),
    Reason(
        "unknown package",
        "it has no Termux. Install it from github.com/termux/termux-app/releases, and in it: pkg install python "
        "python-numpy python-psutil",
    ),
    Reason(
        "not debuggable",
        "its Termux cannot be entered through adb. Install the one that its authors publish on GitHub, or start an SSH "
        "server in it (pkg install openssh; sshd) and name it ssh://HOST:8022",
    ),
    Reason("exec failed for", "its Termux was never started. Open it once"),
    Reason("not found", "adb knows no such device; `adb devices` lists those that there are", passing=True),
    Reason("cannot connect to daemon", "adb's server does not start here. `adb start-server` says why"),
)


@dataclass(frozen=True)
class AdbShell:
    """Termux's shell on a phone.

    Attributes:
        title: as the user named it.
        command: the client, up to the command there.
        done: what ran there has its exit code here; empty until then.
    """

    title: str
    command: tuple[str, ...]
    done: list[int] = field(default_factory=list)

    def run(self, script: str, given: bytes | tuple[Path, int] = b"", *, seconds: float = 60) -> tuple[int, bytes, str]:
        ended = f"({script}\n); printf '\\n%s %s\\n' {_END} $? >&2"
        code, out, said = run_client(self.title, self._line(ended), given, seconds)
        told, found, number = said.rpartition(f"{_END} ")
        before, begun, out = out.partition(f"{BEGIN}\n".encode())
        if not begun:
            # Nothing ran: what was said is adb's own, or of what should have let us into Termux.
            self._refuse(said + before.decode("utf-8", "replace"))
        if not found or code < 0:
            raise ConnectionLostError
        if not begun or not is_number(number.strip(), 3):
            raise nonsense(self.title)
        self.done[:] = [int(number)]
        return int(number), out, told

    def follow(self, script: str) -> subprocess.Popen[bytes]:
        return follow_client(self._line(script))

    def _line(self, script: str) -> list[str]:
        names = {"HOME": _HOME, "PREFIX": _PREFIX, "PATH": f"{_PREFIX}/bin", "TMPDIR": f"{_PREFIX}/tmp"}
        words = ["run-as", _APP, f"{_PREFIX}/bin/env", *(f"{name}={value}" for name, value in names.items())]
        return [*self.command, shlex.join([*words, f"{_PREFIX}/bin/sh", "-c", f"echo {BEGIN}; {script}"])]

    def _refuse(self, said: str) -> None:
        """Raise where adb or the phone says that nothing ran."""
        for reason in _REASONS:
            if reason.said in said and not (reason.passing and self.done):
                raise UnusableInput(f"{self.title} cannot be used: {reason.means}.")


def open_device(address: str) -> Device:
    """The phone of that serial, as `adb devices` lists it.

    Raises:
        UnusableInput: that is no serial, or there is no adb here.
    """
    if _SERIAL.fullmatch(address) is None:
        raise UnusableInput(f"adb:{address} is no phone. Write adb:SERIAL, as `adb devices` lists it.")
    client = user_client("EDGEC_ADB", "adb", "There is no adb here. Install it: apt install adb.")
    return Board(AdbShell(f"adb:{address}", (*client, "-s", address, "shell", "-T")))
