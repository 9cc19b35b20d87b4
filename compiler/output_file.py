"""Files that the user names for results: what is there already is replaced only where it is a file of the same sort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.stages.cache import write_atomically


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


def write_output(path: Path, text: str) -> None:
    """Write a result file, whole or not at all.

    Raises:
        UnusableInput: as `check_output`.
    """
    check_output(path)
    write_atomically(path, text)
