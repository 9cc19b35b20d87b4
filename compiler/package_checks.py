"""What must hold of a package before it is used: its files are those that were built, and this machine can use it."""

from __future__ import annotations

import platform
import stat

from compiler.digest import digest_file
from compiler.errors import CheckFailed, UnusableInput
from compiler.package import CARD, MANIFEST, VERIFICATION, Package


def check_files(package: Package) -> None:
    """Hold every file to its SHA-256.

    Raises:
        CheckFailed: a file is missing, changed, or not in the manifest.
    """
    _require_plain(package)
    for name, record in package.files.items():
        path = package.folder / name
        if not path.is_file():
            raise CheckFailed("files", f"{package.title}: the file {name} is missing. Build the package again.")
        if path.stat().st_size != record.nbytes or digest_file(path) != record.sha256:
            raise CheckFailed(
                "files",
                f"{package.title}: the file {name} is not the one that was built (SHA-256 differs). Build it again.",
            )
    if extra := foreign_files(package):
        raise CheckFailed("files", f"{package.title}: the file {extra[0]} does not belong to the package. Remove it.")


def foreign_files(package: Package) -> list[str]:
    """Files in its folder that are neither the package's nor what verify leaves there."""
    present = {p.relative_to(package.folder).as_posix() for p in package.folder.rglob("*") if not p.is_dir()}
    # Another verify may be writing what it found.
    present = {name for name in present if not name.startswith((f".{VERIFICATION}-", f".{CARD}-"))}
    return sorted(present - set(package.files) - {MANIFEST, VERIFICATION, CARD})


def _require_plain(package: Package) -> None:
    """Refuse a package in which something is a link, a pipe or a device: what is opened would not be what was hashed."""
    for path in package.folder.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no regular file"
            raise CheckFailed(
                "files",
                f"{package.title}: {path.relative_to(package.folder)} is {what}, which no package holds. Remove it.",
            )


def require_finished(package: Package) -> None:
    """Refuse a package of which another machine must still do a part.

    Raises:
        UnusableInput: it is unfinished.
    """
    unfinished = package.lowered.unfinished
    if unfinished is not None:
        raise UnusableInput(
            f"{package.title} is unfinished: {unfinished.step} is still to be done on {unfinished.where}. Finish it there; "
            "until then it cannot be run."
        )


def require_usable(package: Package) -> None:
    """Refuse a package that this machine cannot use.

    Raises:
        UnusableInput: it is unfinished, or made for another machine.
    """
    require_finished(package)
    needs = package.lowered.platform
    if needs is not None and (needs.system, needs.machine) != (platform.system(), platform.machine()):
        raise UnusableInput(
            f"{package.title} is for {needs.machine} on {needs.system}, and this machine is {platform.machine()} on "
            f"{platform.system()}. Use it there, or build it anew for this machine."
        )
