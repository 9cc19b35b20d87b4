"""What the agent needs on a board: edgec's own source, and a virtual environment with one runtime's pinned wheels."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from compiler.digest import digest_json, tool_version
from compiler.errors import UnusableInput, missing_extra
from runtimes.devices.board import crossing
from runtimes.devices.board.shell import Shell, ask

_ROOMS = ("benchmarks", "compiler", "runtimes")
# What the agent needs beside a runtime.
_ALWAYS = ("numpy", "psutil")
# A runtime that is compiled on a small board takes the better part of an hour.
_INSTALL_S = 3600.0
# What wheels are made for, the newest C library first.
_LIBRARIES = ((2, 35), (2, 34), (2, 31), (2, 28), (2, 27), (2, 24), (2, 17))


def install_code(shell: Shell, root: str) -> str:
    """Bring edgec's own source there, where it is not there yet; its folder."""
    folder = Path(__file__).parents[3]
    files = sorted(file for room in _ROOMS for file in (folder / room).rglob("*.py"))
    packed = gzip.compress(_packed([(file, file.relative_to(folder).as_posix()) for file in files]), mtime=0)
    place = f"{root}/code/{hashlib.sha256(packed).hexdigest()[:16]}"
    there = shlex.quote(place)
    if ask(shell, f"test -d {there} && echo whole; true") != "whole":
        part = f"{there}.$$"
        unpack = f"umask 077; mkdir {part} && tar -xzf - -C {part} && {{ mv -T {part} {there} 2>/dev/null || rm -rf {part}; }}"
        ask(shell, unpack, packed, seconds=600, failed="edgec's own source cannot be unpacked there")
    return place


def require_here(distributions: Sequence[str], extra: str) -> None:
    """Raise UnusableInput where a distribution is not installed here, so that nothing says which release is wanted."""
    for name in distributions:
        if tool_version(name) is None:
            raise missing_extra(name, extra)


def install_environment(
    shell: Shell,
    root: str,
    python: str,
    version: tuple[int, int],
    machine: str,
    distributions: Sequence[str],
    extra: str,
) -> str:
    """Make a virtual environment there with distributions as they are pinned here, where there is none; its Python.

    The board's own network is used, or else wheels are brought from here.

    Raises:
        UnusableInput: it cannot be made, or a distribution is not installed here.
    """
    require_here(distributions, extra)
    pinned = [f"{name}=={metadata.version(name)}" for name in sorted({*_ALWAYS, *distributions})]
    place = f"{root}/environments/{digest_json([pinned, python, list(version), machine])[:16]}"
    there, names = shlex.quote(place), " ".join(shlex.quote(each) for each in pinned)
    pip = f"{there}/bin/python -m pip --disable-pip-version-check --no-input install --quiet"
    # A step that is sent again, since the way was cut, waits until the first has ended.
    alone = f"umask 077; exec 8>{there}.lock && flock 8; [ -f {there}/whole ] ||"
    made = f"rm -rf {there} && {shlex.quote(python)} -m venv {there}"
    ask(
        shell,
        f"{alone} {{ {made}; }}",
        seconds=600,
        failed="Python makes no virtual environment there. Install what it lacks: apt install python3-venv",
    )
    installed = f"{names} && sync && : > {there}/whole"
    try:
        ask(
            shell, f"{alone} {{ {pip} --retries 1 --timeout 10 {installed}; }}", seconds=_INSTALL_S, failed="pip failed"
        )
    except UnusableInput:
        with tempfile.TemporaryDirectory(prefix="edgec-wheels-") as folder:
            if not _fetch_wheels(pinned, machine, version, _library_of(shell), Path(folder)):
                raise
            packed = _packed([(file, file.name) for file in sorted(Path(folder).iterdir())])
        wheels = f"{there}/wheels"
        unpack = f"{alone} {{ rm -rf {wheels} && mkdir {wheels} && tar -xf - -C {wheels}; }}"
        ask(shell, unpack, packed, seconds=_INSTALL_S, failed="wheels cannot be brought there")
        offline = f"{alone} {{ {pip} --no-index --find-links {wheels} {installed} && rm -rf {wheels}; }}"
        ask(shell, offline, seconds=_INSTALL_S, failed="the wheels that were brought there cannot be installed")
    return f"{place}/bin/python"


def install_on_android(
    shell: Shell, root: str, python: str, version: tuple[int, int], distributions: Sequence[str]
) -> str:
    """Make a virtual environment in Termux with what Termux has of the distributions, and what pip can add; its Python.

    Wheels for Linux do not install on Android, so versions may be Termux's own; measurements name them.

    Raises:
        UnusableInput: one is neither there nor can be installed.
    """
    # What pip cannot compile there comes first, so that nothing is compiled in vain.
    names = [*_ALWAYS, *sorted({*distributions} - {*_ALWAYS})]
    place = f"{root}/environments/{digest_json([names, python, list(version)])[:16]}"
    there = shlex.quote(place)
    alone = f"umask 077; exec 8>{there}.lock && flock 8;"
    venv = f"{shlex.quote(python)} -m venv --system-site-packages {there}"
    made = f"[ -x {there}/bin/python ] || {{ rm -rf {there} && {venv}; }}"
    ask(shell, f"{alone} {made}", seconds=600, failed="Python makes no virtual environment there")
    for name in names:
        has = f"{there}/bin/python -c {shlex.quote(f'import importlib.metadata as m; m.version({name!r})')} 2>/dev/null"
        pinned = shlex.quote(f"{name}=={metadata.version(name)}")
        pip = f"{there}/bin/python -m pip --disable-pip-version-check --no-input install --quiet {pinned}"
        failed = f"{name} is not there, and pip cannot install it. Termux may have it: pkg install python-{name}"
        ask(shell, f"{alone} {has} || {pip}", seconds=_INSTALL_S, failed=failed)
    return f"{place}/bin/python"


def _library_of(shell: Shell) -> tuple[int, int]:
    """The version of the C library there; the oldest where it does not tell."""
    found = re.search(r"(\d+)\.(\d+)\s*$", ask(shell, "ldd --version 2>/dev/null | head -n 1; true"))
    return (int(found[1]), int(found[2])) if found else _LIBRARIES[-1]


def _fetch_wheels(
    pinned: Sequence[str], machine: str, version: tuple[int, int], library: tuple[int, int], out: Path
) -> bool:
    """Fetch wheels for another machine and Python, and what they need; whether all are there as wheels."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary", ":all:", "--dest", str(out), "--python-version", f"{version[0]}.{version[1]}"]
    names = [f"manylinux_{major}_{minor}" for major, minor in _LIBRARIES if (major, minor) <= library]
    for name in (*names, "manylinux2014"):
        command += ["--platform", f"{name}_{machine}"]
    if subprocess.run([*command, *pinned], capture_output=True, check=False).returncode == 0:
        return True
    own = next((each for each in pinned if each.startswith(f"{crossing.NAME}==")), None)
    folder = crossing.wheels_for(machine, library, own.partition("==")[2]) if own else None
    if folder is None:
        return False
    command += ["--platform", f"linux_{machine}", "--find-links", str(folder)]
    return subprocess.run([*command, *pinned], capture_output=True, check=False).returncode == 0


def _packed(files: Sequence[tuple[Path, str]]) -> bytes:
    """A tar archive of files under names, without dates and owners."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file, name in files:
            entry = tarfile.TarInfo(name)
            entry.size = file.stat().st_size
            with file.open("rb") as stream:
                archive.addfile(entry, stream)
    return packed.getvalue()
