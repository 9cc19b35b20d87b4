"""Files that the user names for results: what is there already is replaced only where it is a file of the same sort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.package import MANIFEST
from compiler.stages.cache import write_atomically

_HEAD = 1 << 20
# Of a row of a result file, and of a matrix.
_KEYS = (b'"recipe"', b'"device"')


def check_output(path: Path, reads: Sequence[Path] = ()) -> None:
    """Refuse, before any work, a result file that would take the place of something else.

    Args:
        path: the file that will be written.
        reads: files that the same command reads.

    Raises:
        UnusableInput: it is a folder, a link, a device or a pipe, or one of the files that are read.
    """
    if path.is_symlink():
        raise UnusableInput(f"The output {path} is a link, which would be replaced by a file. Name the file itself.")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise UnusableInput(f"The output {path} is {what}. Name a file.")
    for read in reads:
        if path.exists() and read.exists() and path.samefile(read):
            raise UnusableInput(f"The output {path} is the file that is read. Name another.")
    if path.is_file() and not _is_result(path):
        raise UnusableInput(
            f"The output {path} is there, and no file of results that edgec wrote. Name another, or remove it."
        )
    require_outside_packages(path)


def _is_result(path: Path) -> bool:
    """Whether a file begins as edgec's reports or result files do, or is empty."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    line = head.lstrip().partition(b"\n")[0]
    page = line.lower().startswith(b"<!doctype html>") and b"<title>edgec report</title>" in head
    return not head.strip() or page or (line.startswith(b"{") and all(key in line for key in _KEYS))


def require_outside_packages(path: Path) -> None:
    """Refuse a place in a package: its files are those that its manifest names.

    Raises:
        UnusableInput: one of the folders that it lies in is a package.
    """
    for folder in path.absolute().parents:
        try:
            with (folder / MANIFEST).open("rb") as stream:
                inside = b'"recipe_full"' in stream.read(_HEAD)
        except OSError:
            continue
        if inside:
            raise UnusableInput(
                f"The output {path} would lie in the package {folder.name}, which then is no longer what was built."
            )


def write_output(path: Path, text: str) -> None:
    """Write a result file, whole or not at all.

    Raises:
        UnusableInput: as `check_output`.
    """
    check_output(path)
    write_atomically(path, text)
