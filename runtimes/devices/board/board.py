"""A board: another machine with Linux and Python, reached by a shell. Packages are copied there, and the agent runs there.

Everything of edgec's lies in one folder there, `~/.cache/edgec/board`: `packages/`, `code/` (edgec's own source),
`environments/` (a virtual environment for each set of a runtime's pinned wheels), `runs/` and `busy`, which names the run
that has the board.
"""

from __future__ import annotations

import atexit
import re
import secrets
import shlex
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.devices.board.agent import RemoteAgent
from runtimes.devices.board.copying import copy_package
from runtimes.devices.board.environment import (
    install_code,
    install_environment,
    install_on_android,
    require_here,
)
from runtimes.devices.board.shell import ConnectionLostError, Shell, ask, is_number, nonsense
from runtimes.devices.device import Agent
from runtimes.registry import runtime_of

_LEAST_PYTHON, _BITS = (3, 11), 64
# What `uname` calls systems and processors.
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3", "python3.14")
# A sign of life is left this often. Whoever left none for so many minutes, which is longer than a way may be cut, has the
# board no more.
_SIGN_S = 20.0
_STALE_MIN = 4
# Android's kernel is Linux, but what is made for Linux does not run on it.
ANDROID = "Android"
_SYSTEM = f"uname -o 2>/dev/null | grep -x {ANDROID} || uname -s"
_BOOT = "cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo -"


@dataclass(frozen=True)
class Machine:
    """What a board is: `system` and `machine` as Python's `platform` names them, the Python that is used, and which boot."""

    system: str
    machine: str
    python: str
    version: tuple[int, int]
    boot: str


class Board:
    """The device that a shell reaches. One run at a time has it, from its first copy to its last agent's end."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._session = secrets.token_hex(8)
        self._pythons: dict[str, str] = {}
        self._running: list[RemoteAgent] = []
        self._started = 0
        self._released: threading.Event | None = None

    @property
    def name(self) -> str:
        return self._shell.title

    @cached_property
    def root(self) -> str:
        """The folder of edgec's own things there."""
        place = '"${XDG_CACHE_HOME:-$HOME/.cache}/edgec/board"'
        folders = " ".join(f"{place}/{name}" for name in ("packages", "code", "environments", "runs"))
        root = ask(self._shell, f"umask 077; mkdir -p {folders} && cd {place} && pwd", failed="nothing can be written")
        if not root.startswith("/") or not root.isprintable():
            raise nonsense(self.name)
        return root

    @cached_property
    def machine(self) -> Machine:
        """The machine, and the newest Python on it that edgec knows.

        Raises:
            UnusableInput: there is none of 3.11 or newer.
        """
        tell = shlex.quote("import struct, sys; print(sys.executable, *sys.version_info[:2], 8 * struct.calcsize('P'))")
        pythons = "".join(f"command -v {each} >/dev/null && {each} -c {tell}\n" for each in _PYTHONS)
        told = ask(self._shell, f"{_SYSTEM}\nuname -m\n{_BOOT}\n{pythons}true").splitlines()
        if len(told) < 3:
            raise nonsense(self.name)
        system, machine, boot, *found = told
        if not _WORD.fullmatch(system) or not _WORD.fullmatch(machine):
            raise nonsense(self.name)
        versions = []
        for line in found:
            python, *numbers = line.rsplit(" ", 3)
            if len(numbers) != 3 or not all(is_number(number, 4) for number in numbers):
                raise nonsense(self.name)
            version, bits = (int(numbers[0]), int(numbers[1])), int(numbers[2])
            if bits != _BITS:
                raise UnusableInput(
                    f"{self.name} has a system of {bits} bits, for which the runtimes have no wheels. Install the 64-bit one: "
                    "Raspberry Pi OS has both."
                )
            if version >= _LEAST_PYTHON:
                return Machine(system, machine, python, version, boot)
            versions.append(".".join(numbers[:2]))
        raise UnusableInput(
            f"{self.name} has no Python of 3.11 or newer (found: {', '.join(versions) or 'none'}), which the agent needs. "
            "Install one there: Raspberry Pi OS 12 and newer have it, apt install python3 python3-venv."
        )

    def put(self, package: Package) -> str:
        """Copy a package, and make ready what runs it."""
        needs, machine, runtime = package.lowered.platform, self.machine, runtime_of(package)
        if needs is not None and (needs.system, needs.machine) != (machine.system, machine.machine):
            raise UnusableInput(
                f"{package.title} is for {needs.machine} on {needs.system}, and {self.name} is {machine.machine} on "
                f"{machine.system}. Build it anew for that machine."
            )
        if runtime.name == "coreml" and machine.system != "Darwin":
            raise UnusableInput(f"{package.title} runs on Apple's systems alone, and {self.name} is {machine.system}.")
        self._claim()
        place = copy_package(package, self._shell, self.root)
        self._pythons[place] = self._environment(runtime.distributions, runtime.extra)
        return place

    def _environment(self, distributions: Sequence[str], extra: str) -> str:
        machine = self.machine
        if machine.system == ANDROID:
            require_here(distributions, extra)
            return install_on_android(self._shell, self.root, machine.python, machine.version, distributions)
        return install_environment(
            self._shell, self.root, machine.python, machine.version, machine.machine, distributions, extra
        )

    def start(self, module: str, arguments: Sequence[str], threads: int, distributions: Sequence[str] = ()) -> Agent:
        """Run a module there, with the runtime of the package whose place is the first argument, or with `distributions`."""
        self._claim()
        variables = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": self._code, "PYTHONDONTWRITEBYTECODE": "1"}
        named = [f"{name}={value}" for name, value in variables.items()]
        python = self._pythons.get(arguments[0]) or self._environment(distributions, "reference")
        words = ["env", *named, python, "-P", "-m", module, *arguments]
        self._started += 1
        folder = f"{self._runs}/{self._started}"
        sign, owned = f"{self._runs}/alive", f'[ "$(readlink {self._busy})" = {self._session} ]'
        agent = RemoteAgent(self._shell, folder, sign, owned, words, self._is_restarted, self._ended)
        self._running.append(agent)
        return agent

    @cached_property
    def _code(self) -> str:
        return install_code(self._shell, self.root)

    @property
    def _runs(self) -> str:
        return f"{self.root}/runs/{self._session}"

    @property
    def _busy(self) -> str:
        return shlex.quote(f"{self.root}/busy")

    def _is_restarted(self) -> bool:
        return ask(self._shell, _BOOT) != self.machine.boot

    def _claim(self) -> None:
        """Take the board for this run, where it has not got it.

        Raises:
            UnusableInput: another run has it.
        """
        if self._released is not None:
            return
        own, root = shlex.quote(self._runs), shlex.quote(self.root)
        # Under a lock, so that of two that come at once one gets it. What a run left behind that is gone is ended.
        script = f"""umask 077; exec 8>{root}/lock && flock 8 && mkdir -p {own} && : > {own}/alive || exit 1
owner=$(readlink {self._busy})
if [ -n "$owner" ] && [ "$owner" != {self._session} ]; then
    if [ -n "$(find {root}/runs/"$owner"/alive -mmin -{_STALE_MIN} 2>/dev/null)" ]; then rm -rf {own}; exit 0; fi
    for run in {root}/runs/"$owner"/*/; do
        agent=$(cat "$run/pid" 2>/dev/null)
        [ -n "$agent" ] && [ "/proc/$agent/cwd" -ef "$run" ] && kill -9 "$agent"
    done
    rm -rf {root}/runs/"$owner"
fi
ln -sfn {self._session} {self._busy} && echo ours"""
        if ask(self._shell, script, failed="it cannot be taken for this run") != "ours":
            raise UnusableInput(
                f"Another run of edgec has {self.name}, and two at once would both measure wrong. Wait for it to end; one "
                f"that was cut off is forgotten after {_STALE_MIN} minutes."
            )
        self._released = threading.Event()
        threading.Thread(target=self._stay, args=(self._released,), daemon=True).start()
        atexit.register(self._release)

    def _stay(self, released: threading.Event) -> None:
        """Leave a sign of life until the board is given back."""
        while not released.wait(_SIGN_S):
            with suppress(ConnectionLostError, UnusableInput):
                self._shell.run(f": > {shlex.quote(self._runs)}/alive")

    def _ended(self, agent: RemoteAgent) -> None:
        self._running.remove(agent)
        if not self._running:
            self._release()

    def _release(self) -> None:
        """Give the board back."""
        if self._released is None:
            return
        self._released.set()
        self._released = None
        atexit.unregister(self._release)
        for agent in list(self._running):
            agent.close()
        with suppress(ConnectionLostError, UnusableInput):
            own = f'[ "$(readlink {self._busy})" = {self._session} ] && rm -f {self._busy}'
            self._shell.run(f"{own}; rm -rf {shlex.quote(self._runs)}")
