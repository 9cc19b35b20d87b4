"""Archives with the same bytes for the same files (no times, no owners, nothing executable); a limit for reading others."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from compiler.errors import UnusableInput

_MODE = 0o644
_AT_ONCE, _MOST_HEADER = 1 << 22, 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
Members = Sequence[tuple[str, Path]]


def members_of(folder: Path) -> list[tuple[str, Path]]:
    """The files in a folder by name, in order."""
    found = ((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return sorted(found)


def write_tar(file: Path, members: Members) -> None:
    """A .tar.gz of files (name, file)."""
    with (
        file.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, path in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = path.stat().st_size, _MODE
            with path.open("rb") as data:
                archive.addfile(member, data)


def write_zip(file: Path, members: Members) -> None:
    """A .zip of files (name, file)."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in members:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr, entry.compress_type = _MODE << 16, zipfile.ZIP_DEFLATED
            with path.open("rb") as data, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(data, target, _AT_ONCE)


class BoundedHeader(tarfile.TarInfo):
    """A member's header. One that tells only of the next, such as a long name, is read as a whole: it has a limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> BoundedHeader:
        header = super().frombuf(buf, encoding, errors)
        plain = header.isfile() or header.isdir() or header.issym() or header.islnk() or header.isdev()
        if not plain and header.size > _MOST_HEADER:
            raise UnusableInput(f"A member of the archive has a header of {header.size} bytes. Refused.")
        return header
