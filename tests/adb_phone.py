"""A phone for tests: a daemon that speaks adb's protocol to Debian's own adb, and runs what it is told in a folder here.

The protocol is that of Android's packages/modules/adb: protocol.txt (connections and streams) and SERVICES.TXT, with version 2
of the shell service (shell_protocol.h). No phone is in it: Termux's folders stand for this machine's own.
"""

from __future__ import annotations

import os
import queue
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_CNXN, _OPEN, _OKAY, _CLSE, _WRTE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
_VERSION, _MOST = 0x01000001, 256 * 1024
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_TERMUX = "/data/data/com.termux/files"
_HEADER = struct.Struct("<6I")


def can_reach() -> bool:
    """Whether Debian's adb is here."""
    return shutil.which("adb") is not None


@dataclass
class Phone:
    """What runs: its address, its own folder, the adb command of a server of its own, and how to cut the way to it."""

    address: str
    home: Path
    client: str
    refusal: str = ""
    connections: list[socket.socket] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def cut(self) -> None:
        """End every connection, as a pulled plug does."""
        for each in self.connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class _Connection:
    """One client of the daemon, and its streams by their number here."""

    def __init__(self, way: socket.socket, phone: Phone) -> None:
        self._way, self._phone = way, phone
        self._lock = threading.Lock()
        self._ready: dict[int, threading.Semaphore] = {}
        self._inputs: dict[int, tuple[subprocess.Popen[bytes], queue.Queue[tuple[int, bytes]]]] = {}
        self._peers: dict[int, int] = {}

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        with self._lock:
            header = _HEADER.pack(command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
            self._way.sendall(header + data)

    def serve(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                command, first, second, length, _, _ = _HEADER.unpack(self._read(_HEADER.size))
                data = self._read(length)
                if command == _CNXN:
                    self.send(_CNXN, _VERSION, _MOST, b"device::ro.product.name=test;features=shell_v2,cmd")
                elif command == _OPEN:
                    self._open(first, data.rstrip(b"\0").decode())
                elif command == _WRTE:
                    self._inputs[second][1].put((first, data))
                elif command == _OKAY and second in self._ready:
                    self._ready[second].release()
                elif command == _CLSE and second in self._inputs:
                    self._inputs[second][0].kill()

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._way.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _open(self, peer: int, service: str) -> None:
        kind, _, command = service.partition(":")
        if not kind.startswith("shell,v2"):
            self.send(_CLSE, 0, peer)
            return
        own = len(self._peers) + 1
        self._peers[own], self._ready[own] = peer, threading.Semaphore(0)
        environment = {**os.environ, "PATH": f"{self._phone.home}/bin:{os.environ['PATH']}"}
        here = command.replace(f"{_TERMUX}/home", f"{self._phone.home}").replace(
            f"{_TERMUX}/usr/tmp", f"{self._phone.home}"
        )
        here = here.replace(f"PATH={_TERMUX}/usr/bin", f"PATH={self._phone.home}/bin:/usr/local/bin:/usr/bin:/bin")
        here = self._phone.refusal or here.replace(f"{_TERMUX}/usr", "/usr")
        process = subprocess.Popen(
            ["/bin/sh", "-c", here],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self._phone.processes.append(process)
        given: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self._inputs[own] = (process, given)
        self.send(_OKAY, own, peer)
        threading.Thread(target=self._feed, args=(own, process, given), daemon=True).start()
        threading.Thread(target=self._answer, args=(own, process), daemon=True).start()

    def _answer(self, own: int, process: subprocess.Popen[bytes]) -> None:
        with suppress(OSError):
            readers = [
                threading.Thread(target=self._pump, args=(own, stream, pipe), daemon=True)
                for stream, pipe in ((_STDOUT, process.stdout), (_STDERR, process.stderr))
            ]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
            self._write(own, bytes([_EXIT]) + struct.pack("<I", 1) + bytes([process.wait() & 0xFF]))
            self.send(_CLSE, own, self._peers[own])

    def _pump(self, own: int, stream: int, pipe: object) -> None:
        with suppress(OSError):
            while data := pipe.read1(32 * 1024):  # type: ignore[attr-defined]
                self._write(own, bytes([stream]) + struct.pack("<I", len(data)) + data)

    def _write(self, own: int, data: bytes) -> None:
        # One at a time: each is answered before the next may come.
        with self._lock_of(own):
            self.send(_WRTE, own, self._peers[own], data)
            self._ready[own].acquire()

    def _lock_of(self, own: int) -> threading.Lock:
        return self.__dict__.setdefault(f"_writing_{own}", threading.Lock())

    def _feed(self, own: int, process: subprocess.Popen[bytes], given: queue.Queue[tuple[int, bytes]]) -> None:
        kept = bytearray()
        assert process.stdin is not None
        with suppress(OSError):
            while True:
                peer, data = given.get()
                kept += data
                while len(kept) >= 5 and len(kept) >= 5 + (length := struct.unpack("<I", kept[1:5])[0]):
                    stream, part = kept[0], bytes(kept[5 : 5 + length])
                    del kept[: 5 + length]
                    with suppress(OSError, ValueError):
                        if stream == _STDIN:
                            process.stdin.write(part)
                            process.stdin.flush()
                        elif stream == _CLOSE_STDIN:
                            process.stdin.close()
                self.send(_OKAY, own, peer)


def _tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@contextmanager
def serve_phone(home: Path) -> Iterator[Phone]:
    """A phone with Termux at an address of adb's, for a server of adb's that is this test's own."""
    tools = home / "bin"
    tools.mkdir(parents=True)
    _tool(tools, "run-as", 'shift; exec "$@"')
    _tool(tools, "uname", 'if [ "$1" = -o ]; then echo Android; else exec /bin/uname "$@"; fi')
    with socket.socket() as listening, socket.socket() as found:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        found.bind(("127.0.0.1", 0))
        own, port = found.getsockname()[1], listening.getsockname()[1]
        found.close()
        phone = Phone(f"adb:127.0.0.1:{port}", home, f"env HOME={home} adb -P {own}")

        def accept() -> None:
            with suppress(OSError):
                while True:
                    way, _ = listening.accept()
                    phone.connections.append(way)
                    threading.Thread(target=_Connection(way, phone).serve, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        connect = [*phone.client.split(), "connect", f"127.0.0.1:{port}"]
        try:
            done = subprocess.run(connect, capture_output=True, text=True, check=True, timeout=60)
            assert "connected to" in done.stdout, done.stdout
            yield phone
        finally:
            subprocess.run([*phone.client.split(), "kill-server"], capture_output=True, check=False, timeout=60)
            phone.cut()
            for process in phone.processes:
                process.kill()
