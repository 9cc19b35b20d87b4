"""Processes that have torch and transformers loaded and fork a child for each stage that needs them: Linux only.

Importing the two takes several seconds of processor time, most of what a stage of a small model takes. A server imports them
once, touches nothing else, and answers one request at a time: the child that it forks is as new as one that was started, and
nothing that a stage leaves behind reaches the next. A server without work for `IDLE_SECONDS` ends, and one whose parent is
gone ends with its child.

The protocol, over a socket pair: the length of a JSON request (8 bytes), with the child's log and progress pipe as file
descriptors; the request; then from the server one byte when the child is there, and `_ENDED` when it has ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IDLE_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 5.0
_MODULES = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
_LENGTH = struct.Struct("<Q")
# Wait status and peak resident set in KiB, as wait4 gives them.
_ENDED = struct.Struct("<qq")
# What a stage may ask for of a child that is forked: all other variables may be read when a process or a library starts.
_LATE = re.compile(r"EDGEC_\w+|PYTHONPATH|GIT_DIR")
# What may change in this process without making a server useless.
_OWN = re.compile(r"EDGEC_\w+|TMPDIR|PWD|OLDPWD|PYTEST_CURRENT_TEST")


class NotStartedError(Exception):
    """The server ended before it had forked."""


@dataclass(eq=False)
class ForkServer:
    """A running server.

    Attributes:
        process: itself.
        socket: how it is asked.
        environment: what it was started with, variables of edgec's own aside.
        busy: it has a child.
    """

    process: subprocess.Popen[bytes]
    socket: socket.socket
    environment: dict[str, str]
    busy: bool = False

    def run(self, call: Sequence[Any], environment: Mapping[str, str], log: int, progress: int) -> tuple[int, int]:
        """Fork a child, let it call, and wait for its end.

        Args:
            call: a function, `module:name`, and its JSON arguments.
            environment: all variables of the child.
            log: a descriptor for what it prints.
            progress: a descriptor that the child gets under the number in its variable `EDGEC_PROGRESS_FD`.

        Returns:
            The exit code, negative for a signal, and the peak resident set in KiB.

        Raises:
            NotStartedError: the server has ended meanwhile.
        """
        request = json.dumps({"call": call, "environment": dict(environment), "folder": str(Path.cwd())}).encode()
        try:
            socket.send_fds(self.socket, [_LENGTH.pack(len(request))], [log, progress])
            self.socket.sendall(request)
            begun = self.socket.recv(1)
        except OSError as error:
            raise NotStartedError from error
        if not begun:
            raise NotStartedError
        self.busy = True
        told = _receive(self.socket, _ENDED.size)
        if len(told) < _ENDED.size:
            return -signal.SIGKILL, 0
        self.busy = False
        status, peak_kib = _ENDED.unpack(told)
        return os.waitstatus_to_exitcode(status), peak_kib

    def kill(self) -> None:
        """Make the server end, its child first."""
        if self.busy:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        else:
            self.process.kill()

    def end(self) -> None:
        """Kill the server and wait for its end."""
        self.kill()
        try:
            self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.socket.close()


_idle: list[ForkServer] = []
_lock = threading.RLock()


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a child with these additional variables may be forked: on Linux, when none is read as a process starts."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and all(map(_LATE.fullmatch, environment))


def take_server(environment: Mapping[str, str]) -> ForkServer:
    """An idle server for the environment of now, or a new one with these variables besides; to be given back."""
    wanted = {name: value for name, value in {**os.environ, **environment}.items() if not _OWN.fullmatch(name)}
    with _lock:
        while _idle:
            server = _idle.pop()
            if server.process.poll() is None and server.environment == wanted:
                return server
            server.end()
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "compiler.stages.fork_server", str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, **environment},
        )
    return ForkServer(process, ours, wanted)


def give_back(server: ForkServer) -> None:
    """Keep a server for the next stage."""
    with _lock:
        _idle.append(server)


def end_idle_servers() -> None:
    """End the servers that wait for work."""
    with _lock:
        while _idle:
            _idle.pop().end()


def _receive(connection: socket.socket, nbytes: int) -> bytes:
    received = b""
    while len(received) < nbytes and (part := connection.recv(nbytes - len(received))):
        received += part
    return received


def _serve(connection: socket.socket, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Loading takes seconds; a parent that ends meanwhile, or has ended already, is not to leave a server behind.
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1) if os.getppid() != parent else None)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    for name in _MODULES:
        # A stage that needs what is missing says so itself.
        with suppress(ImportError):
            importlib.import_module(name)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # What is loaded stays shared with the children: the collector writes into what it looks at.
    gc.collect()
    gc.freeze()
    while select.select([connection], [], [], IDLE_SECONDS)[0]:
        header, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
        if len(header) < _LENGTH.size:
            return
        request = json.loads(_receive(connection, _LENGTH.unpack(header)[0]))
        server = os.getpid()
        child = os.fork()
        if not child:
            connection.close()
            _become_child(request, server, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(b"\1")
        if not _follow(connection, child):
            return


def _follow(connection: socket.socket, child: int) -> bool:
    """Wait for the child's end and tell it; False when the parent has gone, and the child was killed for it."""
    ended = os.pidfd_open(child)
    try:
        ready, _, _ = select.select([ended, connection.fileno()], [], [])
        if ended not in ready:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        if ended not in ready:
            return False
        connection.sendall(_ENDED.pack(status, usage.ru_maxrss))
        return True
    finally:
        os.close(ended)


def _become_child(request: Mapping[str, Any], server: int, log: int, progress: int) -> None:
    """Take the place of a process that was started with this request; does not return."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (1, 2):
            os.dup2(log, number)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.environ.update({"EDGEC_PARENT": str(server), "EDGEC_PROGRESS_FD": str(progress)})
        # What torch asked for while it was loaded.
        tempfile.tempdir = None
        os.chdir(request["folder"])
        sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
        function, arguments = request["call"]
        module, name = function.split(":")
        getattr(importlib.import_module(module), name)(**arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with suppress(OSError):
        _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
