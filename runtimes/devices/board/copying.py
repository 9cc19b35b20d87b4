"""A package on another machine: copied once, each file from where the last try ended, and hashed there before it is used."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.package import MANIFEST, FileRecord, Package
from runtimes.devices.board.shell import ConnectionLostError, Shell

# Tries in a row that brought nothing more there.
_PATIENCE = 5
_PAUSE_S = 2.0
_BYTES_PER_S = 50_000  # slower than any network that a package is sent over
_ROOM = 1.05
_HASH_S = 1800.0  # of a package of some gigabytes on a slow card


def copy_package(
    package: Package, shell: Shell, root: str, on_bytes: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """Bring a package into the folder `root` there; where it lies. One that is there already is not sent again.

    Raises:
        UnusableInput: there is no room, or the way is cut again and again.
    """
    final = f"{root}/packages/{package.digest}"
    place = shlex.quote(final)
    if ask(shell, f"test -f {place}.whole && echo whole; true") == "whole":
        return final
    manifest = package.folder / MANIFEST
    files = dict(
        sorted({**package.files, MANIFEST: FileRecord(digest_file(manifest), manifest.stat().st_size)}.items())
    )
    _require_room(shell, root, sum(record.nbytes for record in files.values()))
    folders = sorted({PurePosixPath(name).parent.as_posix() for name in files})
    ask(shell, f"umask 077; mkdir -p {' '.join(f'{place}.part/{shlex.quote(folder)}' for folder in folders)}")
    for last in (False, True):
        _send_files(package, files, f"{place}.part", shell, on_bytes)
        digests = ask(shell, f"cd {place}.part && sha256sum {_listed(files)}", _HASH_S).splitlines()
        damaged = [name for name, line in zip(files, digests, strict=True) if line.split(" ")[0] != files[name].sha256]
        if not damaged:
            break
        if last:
            raise UnusableInput(
                f"{damaged[0]} of {package.title} arrives damaged on {shell.title} twice. Look at its disk."
            )
        ask(shell, f"cd {place}.part && rm -f {_listed(damaged)}")
    # Whatever is there under the package's name was left by a try that did not end.
    ask(shell, f"rm -rf {place} && mv {place}.part {place} && : > {place}.whole")
    return final


def _listed(names: Iterable[str]) -> str:
    return " ".join(shlex.quote(f"./{name}") for name in names)


def _send_files(
    package: Package, files: Mapping[str, FileRecord], there: str, shell: Shell, on_bytes: Callable[[int, int], None]
) -> None:
    """Send what each file still lacks there, as often as the way is cut."""
    failed, known = 0, -1
    total = sum(record.nbytes for record in files.values())
    while failed < _PATIENCE:
        try:
            sizes = _sizes(files, there, shell)
            have = sum(sizes.values())
            failed, known = (failed + 1 if have == known else 0), have
            for name, record in files.items():
                size = sizes[name]
                if size < record.nbytes:
                    _append(package, name, size, record.nbytes, there, shell)
                on_bytes(sum(sizes.values()) - size + record.nbytes, total)
                sizes[name] = record.nbytes
        except ConnectionLostError:
            time.sleep(_PAUSE_S)
        else:
            if _sizes_patiently(files, there, shell) == {name: record.nbytes for name, record in files.items()}:
                return
    raise UnusableInput(
        f"The way to {shell.title} was cut again and again while {package.title} was copied. Try again: what is there stays."
    )


def _sizes_patiently(files: Mapping[str, FileRecord], there: str, shell: Shell) -> dict[str, int]:
    try:
        return _sizes(files, there, shell)
    except ConnectionLostError:
        return {}


def _sizes(files: Mapping[str, FileRecord], there: str, shell: Shell) -> dict[str, int]:
    """Bytes of each file there; one that is longer than it should be begins anew."""
    script = f'cd {there} && for each in {_listed(files)}; do [ -f "$each" ] || : > "$each"; wc -c < "$each"; done'
    code, out, said = shell.run(script)
    if code:
        raise UnusableInput(f"Nothing can be written on {shell.title}: {said.strip()[:200]}.")
    sizes = dict(zip(files, map(int, out.split()), strict=True))
    longer = [name for name, size in sizes.items() if size > files[name].nbytes]
    if longer:
        shell.run(f"cd {there} && rm -f {_listed(longer)}")
        return _sizes(files, there, shell)
    return sizes


def _append(package: Package, name: str, size: int, nbytes: int, there: str, shell: Shell) -> None:
    seconds = 60 + (nbytes - size) / _BYTES_PER_S
    code, _, said = shell.run(f"cd {there} && cat >> {_listed([name])}", (package.folder / name, size), seconds=seconds)
    if code:
        raise UnusableInput(f"{name} of {package.title} cannot be written on {shell.title}: {said.strip()[:200]}.")


def ask(shell: Shell, script: str, seconds: float = 60) -> str:
    """What a short script prints; tried again when the way is cut."""
    for _ in range(_PATIENCE):
        try:
            code, out, said = shell.run(script, seconds=seconds)
        except ConnectionLostError:
            time.sleep(_PAUSE_S)
            continue
        if code:
            raise UnusableInput(f"A command failed on {shell.title}: {said.strip()[:300] or f'exit code {code}'}.")
        return out.decode("utf-8", "replace").strip()
    raise UnusableInput(
        f"The way to {shell.title} was cut {_PATIENCE} times in a row. See that it is on, and try again."
    )


def _require_room(shell: Shell, root: str, nbytes: int) -> None:
    """Refuse to fill the disk there.

    Raises:
        UnusableInput: there is no room.
    """
    told = ask(shell, f"df -Pk {shlex.quote(root)} | tail -n 1").split()
    free = int(told[3]) * 1024 if len(told) > 3 and told[3].isdigit() else None
    if free is not None and free < nbytes * _ROOM:
        raise UnusableInput(
            f"{shell.title} has {free / 1e6:,.0f} MB free, and the package has {nbytes / 1e6:,.0f} MB. Free some there: what "
            f"is edgec's own is in {root}."
        )
