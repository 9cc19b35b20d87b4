"""A board: another machine with Linux and Python, reached by a shell. Packages are copied there, and the agent runs there.

Everything of edgec's lies in one folder there, `~/.cache/edgec/board`: `packages/`, `code/` (edgec's own source),
`environments/` (a virtual environment for each set of a runtime's pinned wheels), `runs/` and `busy`, which names the run
that has the board.
"""

from __future__ import annotations

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
from runtimes.devices.board.copying import ask, copy_package
from runtimes.devices.board.environment import install_code, install_environment
from runtimes.devices.board.shell import ConnectionLostError, Shell
from runtimes.devices.device import Agent
from runtimes.registry import runtime_of

_LEAST_PYTHON = (3, 11)
_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3", "python3.14")
# A sign of life is left this often; whoever left none for so many minutes has the board no more.
_SIGN_S = 20.0
_STALE_MIN = 2


@dataclass(frozen=True)
class Machine:
    """What a board is: `system` and `machine` as Python's `platform` names them, the Python that is used, and which boot."""

    system: str
    machine: str
    python: str
    version: tuple[int, int]
    boot: str


class Board:
    """The device that a shell reaches."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._session = secrets.token_hex(8)
        self._pythons: dict[str, str] = {}
        self._running: list[RemoteAgent] = []
        self._started = 0

    @property
    def name(self) -> str:
        return self._shell.title

    @cached_property
    def root(self) -> str:
        """The folder of edgec's own things there."""
        place = '"${XDG_CACHE_HOME:-$HOME/.cache}/edgec/board"'
        folders = " ".join(f"{place}/{name}" for name in ("packages", "code", "environments", "runs"))
        return ask(self._shell, f"umask 077; mkdir -p {folders} && cd {place} && pwd")

    @cached_property
    def machine(self) -> Machine:
        """The machine, and the newest Python on it that edgec knows.

        Raises:
            UnusableInput: there is none of 3.11 or newer.
        """
        tell = shlex.quote("import sys; print(sys.executable, *sys.version_info[:2])")
        pythons = "".join(f"command -v {each} >/dev/null && {each} -c {tell}\n" for each in _PYTHONS)
        system, machine, boot, *found = ask(self._shell, f"uname -s\nuname -m\n{_BOOT}\n{pythons}true").splitlines()
        versions = []
        for line in found:
            python, major, minor = line.rsplit(" ", 2)
            if (int(major), int(minor)) >= _LEAST_PYTHON:
                return Machine(system, machine, python, (int(major), int(minor)), boot)
            versions.append(f"{major}.{minor}")
        raise UnusableInput(
            f"{self.name} has no Python of 3.11 or newer (found: {', '.join(versions) or 'none'}), which the agent needs. "
            "Install one there: Raspberry Pi OS 12 and newer have it, apt install python3 python3-venv."
        )

    def put(self, package: Package) -> str:
        """Copy a package, and make ready what runs it."""
        needs, machine = package.lowered.platform, self.machine
        if needs is not None and (needs.system, needs.machine) != (machine.system, machine.machine):
            raise UnusableInput(
                f"{package.title} is for {needs.machine} on {needs.system}, and {self.name} is {machine.machine} on "
                f"{machine.system}. Build it anew for that machine."
            )
        place = copy_package(package, self._shell, self.root)
        self._pythons[place] = self._environment(runtime_of(package).distributions)
        return place

    def _environment(self, distributions: Sequence[str]) -> str:
        machine = self.machine
        return install_environment(
            self._shell, self.root, machine.python, machine.version, machine.machine, distributions
        )

    def start(self, module: str, arguments: Sequence[str], threads: int) -> Agent:
        """Run a module of edgec's there, with the runtime of the package whose place is the first argument, or with none."""
        if not self._running:
            self._claim()
        variables = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": self._code, "PYTHONDONTWRITEBYTECODE": "1"}
        named = [f"{name}={value}" for name, value in variables.items()]
        python = self._pythons.get(arguments[0]) or self._environment(())
        words = ["env", *named, python, "-P", "-m", module, *arguments]
        self._started += 1
        folder = f"{self.root}/runs/{self._session}/{self._started}"
        agent = RemoteAgent(self._shell, folder, self._sign, words, self._is_restarted, self._ended)
        self._running.append(agent)
        return agent

    @cached_property
    def _code(self) -> str:
        return install_code(self._shell, self.root)

    @property
    def _sign(self) -> str:
        return f"{self.root}/runs/{self._session}/alive"

    def _is_restarted(self) -> bool:
        return ask(self._shell, _BOOT) != self.machine.boot

    def _claim(self) -> None:
        """Take the board for this run.

        Raises:
            UnusableInput: another run has it.
        """
        sign, busy, runs = (shlex.quote(f"{self.root}/{name}") for name in (f"runs/{self._session}", "busy", "runs"))
        # Of two that come at once, one makes the link. A run that leaves no sign of life any more has lost its claim.
        script = f"""umask 077; mkdir -p {sign} && : > {sign}/alive
owner=$(readlink {busy})
if [ -n "$owner" ] && [ "$owner" != {self._session} ]; then
    if [ -z "$(find {runs}/"$owner"/alive -mmin -{_STALE_MIN} 2>/dev/null)" ]; then rm -f {busy}; fi
fi
ln -s {self._session} {busy} 2>/dev/null
[ "$(readlink {busy})" = {self._session} ] && echo ours; true"""
        if ask(self._shell, script) != "ours":
            ask(self._shell, f"rm -rf {sign}")
            raise UnusableInput(
                f"Another run of edgec measures on {self.name}, and two at once would both be wrong. Wait for it to end; one "
                f"that was cut off is forgotten after {_STALE_MIN} minutes."
            )
        threading.Thread(target=self._stay, daemon=True).start()

    def _stay(self) -> None:
        """Leave a sign of life as long as an agent runs."""
        pause = threading.Event()
        while not pause.wait(_SIGN_S):
            if not self._running:
                return
            with suppress(ConnectionLostError, UnusableInput):
                self._shell.run(f": > {shlex.quote(self._sign)}")

    def _ended(self, agent: RemoteAgent) -> None:
        self._running.remove(agent)
        if not self._running:
            busy, folder = (shlex.quote(f"{self.root}/{name}") for name in ("busy", f"runs/{self._session}"))
            with suppress(ConnectionLostError, UnusableInput):
                self._shell.run(f'[ "$(readlink {busy})" = {self._session} ] && rm -f {busy}; rm -rf {folder}')


_BOOT = "cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo -"
