"""A board for tests: Debian's OpenSSH server with keys and a home of its own, in a network namespace where it is asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SERVER = "/usr/sbin/sshd"
_PORT = 2222
_OWN, _THERE = "10.213.77.1", "10.213.77.2"


_LOSS = (
    "add table inet lossy",
    "add chain inet lossy incoming { type filter hook input priority 0 ; }",
    "add rule inet lossy incoming numgen random mod 100 < 1 drop",
)
_SLOW = Path(__file__).with_name("slow_pipe.py")


@dataclass(frozen=True)
class SshBoard:
    """A running server.

    Attributes:
        folder: its keys, and `cache`, where edgec's things lie there.
        address: what `--device` takes.
        client: the value of EDGEC_SSH that knows its key.
        link: the network device on this side; None on loopback.
    """

    folder: Path
    address: str
    client: str
    link: str | None = None

    @property
    def cache(self) -> Path:
        """edgec's folder there."""
        return self.folder / "cache" / "edgec" / "board"

    def client_with(self, known_hosts: Path | None = None, key: Path | None = None) -> str:
        """A client that knows other hosts, or has another key."""
        config = self.folder / f"client-{time.monotonic_ns()}"
        config.write_text(
            f"Host *\n  IdentityFile {key or self.folder / 'key'}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {known_hosts or self.folder / 'known'}\n  GlobalKnownHostsFile /dev/null\n"
        )
        return f"ssh -F {config}"

    def cut(self) -> None:
        """Pull the plug of the network."""
        _run("ip", "link", "set", str(self.link), "down")

    def mend(self) -> None:
        """Put it back."""
        _run("ip", "link", "set", str(self.link), "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def can_serve() -> bool:
    """Whether the server is installed and may run."""
    return Path(SERVER).is_file() and os.getuid() == 0


def can_make_networks() -> bool:
    """Whether network namespaces can be made here."""
    if not can_serve() or not all(shutil.which(name) for name in ("ip", "tc", "nft")):
        return False
    made = (
        subprocess.run(["ip", "netns", "add", f"edgec-try-{os.getpid()}"], capture_output=True, check=False).returncode
        == 0
    )
    subprocess.run(["ip", "netns", "del", f"edgec-try-{os.getpid()}"], capture_output=True, check=False)
    return made


@contextmanager
def serve(
    folder: Path, variables: Mapping[str, str], *, host: str = "127.0.0.1", inside: tuple[str, ...] = ()
) -> Iterator[SshBoard]:
    """Run a server whose sessions have these variables; `inside` is a command that runs it elsewhere."""
    for name in ("host", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    shutil.copyfile(folder / "key.pub", folder / "authorized")
    port = _PORT if inside else _free_port()
    known = f"[{host}]:{port} " + (folder / "host.pub").read_text()
    (folder / "known").write_text(known)
    settings = {"XDG_CACHE_HOME": str(folder / "cache"), **variables}
    (folder / "config").write_text(
        f"Port {port}\nListenAddress {host}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nSetEnv {' '.join(f'{name}={value}' for name, value in settings.items())}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([*inside, SERVER, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    board = SshBoard(folder, f"ssh://root@{host}:{port}", "")
    try:
        board = SshBoard(folder, board.address, board.client_with())
        for _ in range(50):
            command = [*board.client.split(), "-o", "BatchMode=yes", "-p", str(port), f"root@{host}", "true"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        yield board
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _remove_orphans() -> None:
    """Remove the namespaces of test runs that were killed, whose links have the same addresses."""
    told = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"^(edgec-\d+)\b", told, re.M):
        if not Path(f"/proc/{name.rpartition('-')[2]}").exists():
            _run("ip", "netns", "del", name)


@contextmanager
def serve_far_away(folder: Path, variables: Mapping[str, str]) -> Iterator[SshBoard]:
    """A server in a network namespace of its own, behind a link of 40 Mbit/s that loses 1 % of packets and takes 20 ms."""
    _remove_orphans()
    space, own, there = f"edgec-{os.getpid()}", f"ed{os.getpid()}a", f"ed{os.getpid()}b"
    _run("ip", "netns", "add", space)
    try:
        _run("ip", "link", "add", own, "type", "veth", "peer", "name", there, "netns", space)
        _run("ip", "addr", "add", f"{_OWN}/30", "dev", own)
        _run("ip", "link", "set", own, "up")
        inside = ("ip", "netns", "exec", space)
        _run(*inside, "ip", "addr", "add", f"{_THERE}/30", "dev", there)
        _run(*inside, "ip", "link", "set", there, "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        _run("tc", "qdisc", "add", "dev", own, "root", "tbf", "rate", "40mbit", "burst", "32k", "latency", "50ms")
        for rule in _LOSS:
            _run(*inside, "nft", *rule.split())
        with serve(folder, variables, host=_THERE, inside=inside) as board:
            config = Path(board.client.split()[-1])
            # The kernels of many machines here have no netem, which would delay packets.
            config.write_text(f"{config.read_text()}  ProxyCommand {sys.executable} {_SLOW} %h %p\n")
            yield SshBoard(folder, board.address, board.client, own)
    finally:
        with suppress(subprocess.CalledProcessError):
            _run("ip", "netns", "del", space)
