"""llama-cpp-python for ARM64 boards: PyPI has no wheel of it, so it is compiled here once by a cross compiler, and kept.

On a board itself it takes the better part of an hour.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.stages.cache import cache_folder

NAME = "llama-cpp-python"
_MACHINE, _COMPILER = "aarch64", "aarch64-linux-gnu"
# For instructions that every ARM64 processor has, a Raspberry Pi 3 too.
_OPTIONS = ("GGML_NATIVE=OFF", "GGML_OPENMP=OFF", "LLAMA_CURL=OFF")


def wheels_for(machine: str, library: tuple[int, int], version: str) -> Path | None:
    """A folder with a wheel of that version for that machine; None where it cannot be made here.

    Args:
        machine: as Python's `platform` names it.
        library: version of the board's C library, which must not be older than the compiler's.
        version: of llama-cpp-python.
    """
    own = platform.libc_ver()[1].split(".")
    if machine != _MACHINE or len(own) != 2 or library < (int(own[0]), int(own[1])):
        return None
    folder = cache_folder("tools") / f"{NAME}-{version}-{machine}"
    if any(folder.glob("*.whl")):
        return folder
    if shutil.which(f"{_COMPILER}-gcc") is None or shutil.which(f"{_COMPILER}-g++") is None:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cross-", dir=folder.parent) as work:
        made = _compile(version, Path(work))
        kept = Path(work) / "kept"
        kept.mkdir()
        _retag(made, kept)
        try:
            kept.rename(folder)
        except OSError:
            if not any(folder.glob("*.whl")):
                raise
    return folder


def _compile(version: str, work: Path) -> Path:
    tools = {"C": f"{_COMPILER}-gcc", "CXX": f"{_COMPILER}-g++"}
    system = ("CMAKE_SYSTEM_NAME=Linux", f"CMAKE_SYSTEM_PROCESSOR={_MACHINE}")
    named = [*system, *(f"CMAKE_{name}_COMPILER={tool}" for name, tool in tools.items()), *_OPTIONS]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-cache-dir",
    ]
    command += ["--no-binary", NAME, "--wheel-dir", str(work), f"{NAME}=={version}"]
    environment = {**os.environ, "CMAKE_ARGS": " ".join(f"-D{each}" for each in named)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    found = next(work.glob("*.whl"), None)
    if done.returncode or found is None:
        raise UnusableInput(
            f"{NAME} {version} cannot be compiled here for {_MACHINE}. See that cmake is installed; the same by hand: "
            f"CMAKE_ARGS='{environment['CMAKE_ARGS']}' pip wheel --no-deps --no-binary {NAME} {NAME}=={version}"
        )
    return found


def _retag(wheel: Path, out: Path) -> None:
    """A copy of a wheel that says for which machine it is: pip names it by the machine that compiled."""
    tag = f"py3-none-linux_{_MACHINE}"
    name = "-".join([*wheel.name.split("-")[:2], tag]) + ".whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(out / name, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith(".dist-info/WHEEL"):
                lines = [
                    line for line in data.decode("ascii").splitlines() if line.strip() and not line.startswith("Tag:")
                ]
                data = "\n".join([*lines, f"Tag: {tag}", ""]).encode("ascii")
            if entry.filename.endswith(".dist-info/RECORD"):
                # pip does not ask for a hash of every file; one that is wrong it refuses.
                lines = data.decode("utf-8").splitlines()
                data = "\n".join(_unhashed(line) for line in lines).encode("utf-8")
            target.writestr(entry, data)


def _unhashed(line: str) -> str:
    name = line.split(",")[0]
    return f"{name},," if name.endswith(".dist-info/WHEEL") else line
