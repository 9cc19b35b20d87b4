"""ssh://[user@]host[:port]: a board with Linux, by the system's own OpenSSH client.

The client is the user's: keys, agents, jump hosts, names of hosts and their keys are as `~/.ssh` has them. Hosts whose key is
not known are refused, and nothing is ever asked for. EDGEC_SSH is the command where it is not `ssh`, such as
`ssh -F other_config`.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from compiler.errors import UnusableInput
from runtimes.devices.board.board import Board
from runtimes.devices.board.shell import ConnectionLostError
from runtimes.devices.device import Device

_ADDRESS = re.compile(
    r"//(?:(?P<user>[\w.][\w.-]*)@)?(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(?::(?P<port>\d{1,5}))?"
)
_OPTIONS = (
    "BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3",
    "ControlMaster=auto", "ControlPersist=60", "LogLevel=ERROR",
)  # fmt: skip
_LOST = 255
_PIECE_BYTES = 1 << 20


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
    _Reason("Could not resolve hostname", "there is no such host. Look for a slip in its name"),
    _Reason(
        "Connection refused",
        "nothing listens there. Start its SSH server, or name its port: ssh://user@host:2222",
        passing=True,
    ),
    _Reason("No route to host", "it cannot be reached. See that it is on and in the same network", passing=True),
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
        process = subprocess.Popen(
            self._line(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            if isinstance(given, tuple):
                _send(process, *given)
                given = b""
            out, complaint = process.communicate(given or None, timeout=seconds)
        except (subprocess.TimeoutExpired, BrokenPipeError) as error:
            process.kill()
            process.communicate()
            raise ConnectionLostError from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said = complaint.decode("utf-8", "replace")
        if process.returncode == _LOST:
            self._refuse(said)
            raise ConnectionLostError
        self.done[:] = [process.returncode]
        return process.returncode, out, said

    def follow(self, script: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._line(script), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def _line(self, script: str) -> list[str]:
        # The user's shell over there may be any; it is given one word to run.
        return [*self.command, "--", self.host, f"exec sh -c {shlex.quote(script)}"]

    def _refuse(self, said: str) -> None:
        """Raise where the client says that it never got in."""
        for reason in _REASONS:
            if reason.said in said and not (reason.passing and self.done):
                by_hand = shlex.join([word for word in self.command if "=" not in word and word != "-o"] + [self.host])
                means = reason.means.format(host=self.host.rpartition("@")[2], ssh=by_hand)
                raise UnusableInput(f"{self.title} cannot be used: {means}.")


def _send(process: subprocess.Popen[bytes], file: Path, start: int) -> None:
    """Give a process a file from a byte on."""
    assert process.stdin is not None
    with file.open("rb") as source:
        source.seek(start)
        shutil.copyfileobj(source, process.stdin, _PIECE_BYTES)
    process.stdin.flush()


def open_device(address: str) -> Device:
    """The board at `//[user@]host[:port]`.

    Raises:
        UnusableInput: the address is not of that form, or there is no OpenSSH client here.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"] or 22) < 65536:
        raise UnusableInput(f"ssh:{address} is no address of a board. Write ssh://user@host or ssh://user@host:port.")
    client = shlex.split(os.environ.get("EDGEC_SSH") or "ssh")
    if not client or shutil.which(client[0]) is None:
        raise UnusableInput("There is no OpenSSH client here. Install it: apt install openssh-client.")
    # One connection for all that is asked; its socket's path must be short.
    sockets = tempfile.mkdtemp(prefix="edgec-ssh-")
    options = [word for option in (*_OPTIONS, f"ControlPath={sockets}/%C") for word in ("-o", option)]
    port = ["-p", match["port"]] if match["port"] else []
    host = match["host"].strip("[]")
    named = f"{match['user']}@{host}" if match["user"] else host
    shell = SshShell(f"ssh:{address}", (*client, *options, *port), named)
    atexit.register(_end, shell, Path(sockets))
    return Board(shell)


def _end(shell: SshShell, sockets: Path) -> None:
    """Close the connection."""
    if any(sockets.iterdir()):
        subprocess.run([*shell.command, "-O", "exit", "--", shell.host], capture_output=True, check=False)
    shutil.rmtree(sockets, ignore_errors=True)
