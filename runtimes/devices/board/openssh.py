"""A shell on another machine by the system's own OpenSSH client, and what it means when it does not let us in."""

from __future__ import annotations

import atexit
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from compiler.errors import UnusableInput
from runtimes.devices.board.shell import ConnectionLostError, nonsense, printable

_OPTIONS = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3",
    "ControlMaster=auto", "ControlPersist=60", "LogLevel=ERROR",
)  # fmt: skip
_LOST = 255
_MOST_BYTES = 1 << 20
_PATIENCE_S = 5.0
# Before what a script prints: a login shell may print something of its own.
_BEGIN = "edgec-begins-here"


@dataclass(frozen=True)
class _Reason:
    """What OpenSSH's client says, and what it means; what is `passing` counts only where nothing ever ran there."""

    said: str
    means: str
    passing: bool = False


_REASONS = (
    _Reason(
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its key is not the one that known_hosts has, so it may be another machine. Where you know why (a board that was set "
        "up anew), remove the old one with `ssh-keygen -R {host}` and trust the new one as below: connect once with `{ssh}`, "
        "compare the fingerprint that it shows with the board's own, and answer yes",
    ),
    _Reason(
        "Host key verification failed",
        "its key is not known here. Connect once with `{ssh}`, compare the fingerprint that it shows with the board's own "
        "(`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), and answer yes",
    ),
    _Reason(
        "Permission denied",
        "it does not let you in, and edgec asks for no password. Give it your key with `ssh-copy-id`, or load your key into "
        "ssh-agent",
    ),
    _Reason("Could not resolve hostname", "there is no such host. Look for a slip in its name", passing=True),
    _Reason(
        "Connection refused",
        "nothing listens there. Start its SSH server, or name its port: ssh://user@host:2222",
        passing=True,
    ),
    _Reason("No route to host", "it cannot be reached. See that it is on and in the same network", passing=True),
    _Reason("Network is unreachable", "it cannot be reached. See that this machine has a network", passing=True),
    _Reason("timed out", "it does not answer. See that it is on and in the same network", passing=True),
    _Reason(
        "Bad configuration option", "OpenSSH's configuration here has a line that it does not take. `{ssh}` says which"
    ),
)


@dataclass(frozen=True)
class SshShell:
    """A shell on a host.

    Attributes:
        title: as the user named it.
        command: the client with its options, up to the host.
        host: the host, with the user where one is named.
        done: what ran there has its exit code here; empty until then.
    """

    title: str
    command: tuple[str, ...]
    host: str
    done: list[int] = field(default_factory=list)

    def run(self, script: str, given: bytes | tuple[Path, int] = b"", *, seconds: float = 60) -> tuple[int, bytes, str]:
        with tempfile.TemporaryFile() as complaint, tempfile.TemporaryFile() as kept:
            source = kept
            if isinstance(given, tuple):
                source = given[0].open("rb")  # type: ignore[assignment]
                source.seek(given[1])
            else:
                kept.write(given)
                kept.seek(0)
            process = subprocess.Popen(self._line(script), stdin=source, stdout=subprocess.PIPE, stderr=complaint)
            source.close()
            late = threading.Timer(seconds, process.kill)
            late.start()
            try:
                assert process.stdout is not None
                out = process.stdout.read(_MOST_BYTES + 1)
                if len(out) > _MOST_BYTES:
                    raise nonsense(self.title)
                code = process.wait()
            finally:
                late.cancel()
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
            complaint.seek(0)
            said = complaint.read(_MOST_BYTES).decode("utf-8", "replace")
        if code == _LOST or code < 0:
            self._refuse(said)
            raise ConnectionLostError
        self.done[:] = [code]
        _, begun, out = out.partition(f"{_BEGIN}\n".encode())
        if not begun and not code:
            raise nonsense(self.title)
        return code, out, printable(said) if "\n" not in said else said

    def follow(self, script: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._line(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        while (line := process.stdout.readline(_MOST_BYTES)) and line != f"{_BEGIN}\n".encode():
            pass
        return process

    def _line(self, script: str) -> list[str]:
        # The user's shell over there may be any; it is given one word to run.
        return [*self.command, "--", self.host, f"exec sh -c {shlex.quote(f'echo {_BEGIN}; {script}')}"]

    def _refuse(self, said: str) -> None:
        """Raise where the client says that it never got in."""
        for reason in _REASONS:
            if reason.said in said and not (reason.passing and self.done):
                by_hand = shlex.join([word for word in self.command if "=" not in word and word != "-o"] + [self.host])
                means = reason.means.format(host=self.host.rpartition("@")[2], ssh=by_hand)
                raise UnusableInput(f"{self.title} cannot be used: {means}.")


def shell_to(title: str, client: Sequence[str], host: str, port: int | None) -> SshShell:
    """A shell on a host, over one connection for all that is asked, which ends with this process."""
    # The path of its socket must be short, and macOS's folder for such things is long.
    sockets = tempfile.mkdtemp(prefix="edgec-ssh-", dir="/tmp" if Path("/tmp").is_dir() else None)
    options = [word for option in (*_OPTIONS, f"ControlPath={sockets}/s") for word in ("-o", option)]
    shell = SshShell(title, (*client, *options, *(["-p", str(port)] if port else [])), host)
    atexit.register(_end, shell, Path(sockets))
    return shell


def _end(shell: SshShell, sockets: Path) -> None:
    """Close the connection."""
    with suppress(OSError, subprocess.TimeoutExpired):
        if any(sockets.iterdir()):
            command = [*shell.command, "-O", "exit", "--", shell.host]
            subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE_S)
    shutil.rmtree(sockets, ignore_errors=True)
