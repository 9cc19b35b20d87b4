"""qemu:aarch64: an emulated ARM64 board, for what a package computes there and never for how fast.

QEMU emulates every instruction; the board is reached as any other, by OpenSSH's client over a port of the loopback that
only its own key opens. It lives as long as this process, and one process at a time has it; what was installed on its disk
stays.
"""

from __future__ import annotations

import atexit
import fcntl
import socket
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

from compiler.errors import UnusableInput
from runtimes.devices.board.board import Board
from runtimes.devices.board.openssh import SshShell, shell_to
from runtimes.devices.board.shell import ConnectionLostError, last_line
from runtimes.devices.device import Device
from runtimes.devices.emulated.image import USER, Image, image

_ARCHITECTURE = "aarch64"
_MEMORY_MIB, _CORES = 2560, 2
_START_S = 300.0
_STOP_S = 60.0


def open_device(address: str) -> Device:
    """The emulated board; `address` names its processor.

    Raises:
        UnusableInput: it is not aarch64, another process has the board, or it does not start.
    """
    if address != _ARCHITECTURE:
        raise UnusableInput(f"There is no emulated board qemu:{address}; there is qemu:{_ARCHITECTURE}.")
    return _board()


@cache
def _board() -> Device:
    """The one that this process has."""
    made = image()
    held = made.file("lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UnusableInput("Another run of edgec has the emulated board. Wait for it to end.") from None
    port = _free_port()
    machine = _start(made, port, held)
    options = (f'UserKnownHostsFile="{made.file("hosts")}"', "HostKeyAlias=edgec-arm64", "IdentitiesOnly=yes")
    client = ("ssh", "-F", "none", "-i", str(made.file("key")), *(word for each in options for word in ("-o", each)))
    shell = shell_to(f"qemu:{_ARCHITECTURE}", client, f"{USER}@127.0.0.1", port)
    atexit.register(_stop, machine, shell, held)
    _await(machine, shell, made.file("log"))
    return Board(shell)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _start(made: Image, port: int, held: IO[str]) -> subprocess.Popen[bytes]:
    # A comma ends a value, two are one.
    disk = str(made.file("disk")).replace(",", ",,")
    command = [
        "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a76", "-smp", str(_CORES), "-m", str(_MEMORY_MIB),
        "-accel", "tcg,thread=multi", "-display", "none", "-monitor", "none", "-serial", f"file:{made.file('log')}",
        "-kernel", str(made.file("kernel")), "-initrd", str(made.file("initial")), "-append", "console=ttyAMA0 quiet",
        "-drive", f"file={disk},if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk",
        "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip
    # A group of its own, so that an interrupt in the terminal does not end it before its disk is whole.
    with made.file("said").open("wb") as said:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            # The lock lives as long as the machine, whatever becomes of this process.
            pass_fds=(held.fileno(),),
        )


def _await(machine: subprocess.Popen[bytes], shell: SshShell, log: Path) -> None:
    """Wait until its server answers."""
    ends = time.monotonic() + _START_S
    while machine.poll() is None and time.monotonic() < ends:
        with suppress(ConnectionLostError, UnusableInput):
            if shell.run("true", seconds=30)[0] == 0:
                return
        time.sleep(2)
    if machine.poll() is not None:
        said = last_line(log.with_name("said").read_text("utf-8", "replace"))
        raise UnusableInput(f"QEMU does not start the emulated board. It said last: {said or 'nothing'}")
    raise UnusableInput(
        f"The emulated board does not answer; what it said is in {log}. Remove that folder, and the board is made anew."
    )


def _stop(machine: subprocess.Popen[bytes], shell: SshShell, held: IO[str]) -> None:
    """Write what is in its memory to its disk, and end it."""
    try:
        # Power goes off before the connection ends.
        with suppress(ConnectionLostError, UnusableInput):
            shell.run("sync; echo o > /proc/sysrq-trigger", seconds=_STOP_S)
        with suppress(subprocess.TimeoutExpired):
            machine.wait(_STOP_S)
    finally:
        machine.kill()
        machine.wait()
        held.close()
