"""A shell on another machine by the system's own OpenSSH client, and what it means when it does not let us in."""

from __future__ import annotations

import atexit
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from compiler.errors import UnusableInput
from runtimes.devices.board.client import BEGIN, Reason, follow_client, run_client
from runtimes.devices.board.shell import ConnectionLostError, TimeUpError, nonsense, printable

_OPTIONS = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3",
    "ControlMaster=auto", "ControlPersist=60", "LogLevel=ERROR",
)  # fmt: skip
_LOST = 255
_PATIENCE_S = 5.0


_REASONS = (
    Reason(
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its key is not the one that known_hosts has, so it may be another machine. Where you know why (a board that was set "
        "up anew), remove the old one with `ssh-keygen -R {known}` and trust the new one as below: connect once with `{ssh}`, "
        "compare the fingerprint that it shows with the board's own, and answer yes",
    ),
    Reason(
        "Host key verification failed",
        "its key is not known here. Connect once with `{ssh}`, compare the fingerprint that it shows with the board's own "
        "(`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), and answer yes",
    ),
    Reason(
        "Permission denied",
        "it does not let you in, and edgec asks for no password. Give it your key with `ssh-copy-id`, or load your key into "
        "ssh-agent",
    ),
    Reason("Could not resolve hostname", "there is no such host. Look for a slip in its name", passing=True),
    Reason(
        "Connection refused",
        "nothing listens there. Start its SSH server, or name its port: ssh://user@host:2222",
        passing=True,
    ),
    Reason("No route to host", "it cannot be reached. See that it is on and in the same network", passing=True),
    Reason("Network is unreachable", "it cannot be reached. See that this machine has a network", passing=True),
    Reason("timed out", "it does not answer. See that it is on and in the same network", passing=True),
    Reason(
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
        code, out, said = run_client(self.title, self._line(script), given, seconds)
        if code == _LOST or code < 0:
            self._refuse(said)
            raise TimeUpError if code < 0 else ConnectionLostError
        self.done[:] = [code]
        _, begun, out = out.partition(f"{BEGIN}\n".encode())
        if not begun and not code:
            raise nonsense(self.title)
        return code, out, printable(said) if "\n" not in said else said

    def follow(self, script: str) -> subprocess.Popen[bytes]:
        return follow_client(self._line(script))

    def _line(self, script: str) -> list[str]:
        # The user's shell over there may be any; it is given one word to run.
        return [*self.command, "--", self.host, f"exec sh -c {shlex.quote(f'echo {BEGIN}; {script}')}"]

    @property
    def _known_name(self) -> str:
        """The host as known_hosts names it."""
        told = subprocess.run(
            [*self.command, "-G", "--", self.host], capture_output=True, text=True, check=False
        ).stdout
        said = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
        host = said.get("hostkeyalias", said.get("hostname", self.host.rpartition("@")[2]))
        port = said.get("port", "22")
        return printable(host if port == "22" or "hostkeyalias" in said else shlex.quote(f"[{host}]:{port}"))

    def _refuse(self, said: str) -> None:
        """Raise where the client says that it never got in."""
        for reason in _REASONS:
            if reason.said in said and not (reason.passing and self.done):
                by_hand = shlex.join([word for word in self.command if "=" not in word and word != "-o"] + [self.host])
                means = reason.means.format(known=self._known_name, ssh=by_hand)
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
