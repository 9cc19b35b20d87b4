"""What the agent needs on a board: edgec's own source, and a virtual environment with one runtime's pinned wheels."""

from __future__ import annotations

import gzip
import hashlib
import io
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from compiler.digest import digest_json
from compiler.errors import UnusableInput
from runtimes.devices.board.copying import ask
from runtimes.devices.board.shell import ConnectionLostError, Shell

_ROOMS = ("benchmarks", "compiler", "runtimes")
# What the agent needs beside a runtime.
_ALWAYS = ("numpy", "psutil")
# A runtime that is compiled on a small board takes the better part of an hour.
_INSTALL_S = 3600.0
_TRIES = 3
# What pip takes wheels for, the newest C library first.
_LIBRARIES = ("2_35", "2_34", "2_31", "2_28", "2_27", "2_17")


def install_code(shell: Shell, root: str) -> str:
    """Bring edgec's own source there, where it is not there yet; its folder."""
    folder = Path(__file__).parents[3]
    files = sorted(file for room in _ROOMS for file in (folder / room).rglob("*.py"))
    packed = gzip.compress(_packed([(file, file.relative_to(folder).as_posix()) for file in files]), mtime=0)
    place = f"{root}/code/{hashlib.sha256(packed).hexdigest()[:16]}"
    there = shlex.quote(place)
    if ask(shell, f"test -d {there} && echo whole; true") != "whole":
        part = f"{there}.part"
        unpack = f"umask 077; rm -rf {part} && mkdir {part} && tar -xzf - -C {part} && mv {part} {there}"
        _run(shell, unpack, packed, "edgec's own source cannot be unpacked")
    return place


def install_environment(
    shell: Shell, root: str, python: str, version: tuple[int, int], machine: str, distributions: Sequence[str]
) -> str:
    """Make a virtual environment there with distributions as they are pinned here, where there is none; its Python.

    The board's own network is used, or else wheels are brought from here.

    Raises:
        UnusableInput: it cannot be made.
    """
    pinned = [f"{name}=={metadata.version(name)}" for name in sorted({*_ALWAYS, *distributions})]
    place = f"{root}/environments/{digest_json([pinned, python, list(version), machine])[:16]}"
    there = shlex.quote(place)
    if ask(shell, f"test -f {there}/whole && echo whole; true") == "whole":
        return f"{place}/bin/python"
    made = f"umask 077; rm -rf {there} && {shlex.quote(python)} -m venv {there}"
    _run(shell, made, b"", "Python makes no virtual environment there. Install what it lacks: apt install python3-venv")
    pip = f"{there}/bin/python -m pip --disable-pip-version-check --no-input install --quiet"
    names = " ".join(shlex.quote(each) for each in pinned)
    try:
        _run(shell, f"{pip} --retries 1 --timeout 10 {names} && : > {there}/whole", b"", "pip failed", _INSTALL_S)
    except UnusableInput:
        with tempfile.TemporaryDirectory(prefix="edgec-wheels-") as folder:
            if not _fetch_wheels(pinned, machine, version, Path(folder)):
                raise
            packed = _packed([(file, file.name) for file in sorted(Path(folder).iterdir())])
        _run(shell, f"mkdir -p {there}/wheels && tar -xf - -C {there}/wheels", packed, "wheels cannot be brought there")
        offline = f"{pip} --no-index --find-links {there}/wheels {names} && rm -rf {there}/wheels && : > {there}/whole"
        _run(shell, offline, b"", "the wheels that were brought there cannot be installed", _INSTALL_S)
    return f"{place}/bin/python"


def _fetch_wheels(pinned: Sequence[str], machine: str, version: tuple[int, int], out: Path) -> bool:
    """Fetch wheels for another machine and Python, and what they need; whether all are there as wheels."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary", ":all:", "--dest", str(out), "--python-version", f"{version[0]}.{version[1]}"]
    for library in _LIBRARIES:
        command += ["--platform", f"manylinux_{library}_{machine}"]
    return subprocess.run([*command, *pinned], capture_output=True, check=False).returncode == 0


def _run(shell: Shell, script: str, given: bytes, failed: str, seconds: float = 600) -> None:
    """Run a step that can be run again when the way was cut.

    Raises:
        UnusableInput: it failed, or the way is cut again and again.
    """
    for _ in range(_TRIES):
        try:
            code, _, said = shell.run(script, given, seconds=seconds)
        except ConnectionLostError:
            continue
        if code:
            lines = [line for line in said.splitlines() if line.strip()]
            last = f" It said last: {lines[-1][:200]}" if lines else ""
            raise UnusableInput(f"{shell.title} cannot be made ready: {failed}.{last}")
        return
    raise UnusableInput(f"The way to {shell.title} is cut again and again. See that it is on, and try again.")


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
