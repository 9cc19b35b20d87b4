"""A package on another machine: copied once, each file from where the last try ended, and hashed there before it is used."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.package import MANIFEST, FileRecord, Package, check_files
from runtimes.devices.board.shell import (
    PATIENCE_S,
    PAUSE_S,
    ConnectionLostError,
    Shell,
    ask,
    is_number,
    last_line,
    nonsense,
)

_BYTES_PER_S = 50_000  # slower than any network that a package is sent over
_ROOM = 1.05
_HASH_S = 1800.0  # of a package of some gigabytes on a slow card
Files = Mapping[str, FileRecord]


def copy_package(package: Package, shell: Shell, root: str) -> str:
    """Bring a package into the folder `root` there; where it lies. One that is there already is not sent again.

    Raises:
        CheckFailed: a file here is not the package's.
        UnusableInput: there is no room, or the way is cut for too long.
    """
    final = f"{root}/packages/{package.digest}"
    place = shlex.quote(final)
    if ask(shell, f"[ -f {place}.whole ] && [ -f {place}/{MANIFEST} ] && echo whole; true") == "whole":
        return final
    # What is sent is what was hashed: no link, and nothing that changed since.
    check_files(package)
    manifest = package.folder / MANIFEST
    files = dict(
        sorted({**package.files, MANIFEST: FileRecord(digest_file(manifest), manifest.stat().st_size)}.items())
    )
    folders = sorted({PurePosixPath(name).parent.as_posix() for name in files})
    ask(shell, f"umask 077; mkdir -p {' '.join(f'{place}.part/{shlex.quote(folder)}' for folder in folders)}")
    _require_room(shell, root, f"{place}.part", sum(record.nbytes for record in files.values()))
    for last in (False, True):
        _send_files(package, files, f"{place}.part", shell)
        digests = ask(shell, f"cd {place}.part && sha256sum {_listed(files)}", seconds=_HASH_S).splitlines()
        if len(digests) != len(files):
            raise nonsense(shell.title)
        damaged = [name for name, line in zip(files, digests, strict=True) if line.split(" ")[0] != files[name].sha256]
        if not damaged:
            break
        if last:
            raise UnusableInput(
                f"{damaged[0]} of {package.title} arrives damaged on {shell.title} twice. Look at its disk."
            )
        ask(shell, f"cd {place}.part && rm -f {_listed(damaged)}")
    # It may be run twice: what is there under the package's name and not whole was left by a try that did not end.
    ask(
        shell,
        f"if [ -d {place}.part ]; then rm -rf {place} && mv {place}.part {place}; fi && [ -f {place}/{MANIFEST} ] && "
        f": > {place}.whole",
    )
    return final


def _listed(names: Iterable[str]) -> str:
    return " ".join(shlex.quote(f"./{name}") for name in names)


def _send_files(package: Package, files: Files, there: str, shell: Shell) -> None:
    """Send what each file still lacks there, as often as the way is cut, as long as more arrives now and then."""
    known, since, lost = -1, time.monotonic(), None
    while True:
        try:
            sizes = _sizes(files, there, shell)
            lost = None
            if all(sizes[name] == record.nbytes for name, record in files.items()):
                return
            # Bytes that arrived before a cut are seen only now, however long they took.
            if sum(sizes.values()) != known:
                known, since = sum(sizes.values()), time.monotonic()
            elif time.monotonic() > since + PATIENCE_S:
                raise _stuck(package, shell)
            for name, record in files.items():
                if sizes[name] < record.nbytes:
                    _append(package, name, sizes[name], record.nbytes, there, shell)
        except ConnectionLostError:
            lost = lost or time.monotonic()
            if time.monotonic() > lost + PATIENCE_S:
                raise _stuck(package, shell) from None
            time.sleep(PAUSE_S)


def _stuck(package: Package, shell: Shell) -> UnusableInput:
    return UnusableInput(
        f"Nothing more of {package.title} arrived on {shell.title} for {PATIENCE_S:.0f} s. See that it is on and that its "
        "disk takes files, and try again: what is there stays."
    )


def _sizes(files: Files, there: str, shell: Shell) -> dict[str, int]:
    """Bytes of each file there; one that is longer than it should be begins anew."""
    each = '"$each"'
    script = f"cd {there} && for each in {_listed(files)}; do [ -f {each} ] || : > {each}; wc -c < {each}; done"
    code, out, said = shell.run(script)
    if code:
        raise UnusableInput(f"Nothing can be written on {shell.title}: {last_line(said)}.")
    told = out.split()
    if len(told) != len(files) or not all(map(is_number, told)):
        raise nonsense(shell.title)
    sizes = dict(zip(files, map(int, told), strict=True))
    if longer := [name for name, size in sizes.items() if size > files[name].nbytes]:
        shell.run(f"cd {there} && rm -f {_listed(longer)}")
        return {**sizes, **dict.fromkeys(longer, 0)}
    return sizes


def _append(package: Package, name: str, size: int, nbytes: int, there: str, shell: Shell) -> None:
    seconds = 60 + (nbytes - size) / _BYTES_PER_S
    code, _, said = shell.run(f"cd {there} && cat >> {_listed([name])}", (package.folder / name, size), seconds=seconds)
    if code:
        raise UnusableInput(f"{name} of {package.title} cannot be written on {shell.title}: {last_line(said)}.")


def _require_room(shell: Shell, root: str, part: str, nbytes: int) -> None:
    """Refuse to fill the disk there.

    Raises:
        UnusableInput: there is no room.
    """
    told = ask(shell, f"df -Pk {shlex.quote(root)} | tail -n 1; du -sk {part} 2>/dev/null || echo 0").splitlines()
    free, have = (line.split() for line in told) if len(told) == 2 else ([], [])
    if len(free) < 4 or not is_number(free[3]) or not have or not is_number(have[0]):
        return  # no such system tells its room otherwise; a full disk is told when it is written
    room, lacking = int(free[3]) * 1024, nbytes * _ROOM - int(have[0]) * 1024
    if room < lacking:
        raise UnusableInput(
            f"{shell.title} has {room / 1e6:,.0f} MB free, and {lacking / 1e6:,.0f} MB of the package are still to come. Free "
            f"some there: what is edgec's own is in {root}."
        )
