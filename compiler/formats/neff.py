"""NEFF files, which AWS's Neuron compiler makes: whether a file is one.

The form: a header of 1024 bytes, then a tarball, packed or not, with a folder for each part of the graph, whose first file is
`def.json` (aws-neuron/aws-neuron-sdk 81ce03ae, neuron-runtime/explore/work-with-neff-files.rst).
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from pathlib import Path
from typing import IO

from compiler.errors import UnusableInput
from compiler.formats.archive import BoundedHeader

_HEADER, _SIZES = 1024, struct.Struct("<5Q")
_FIRST = "sg00/def.json"
_MOST_MEMBERS, _MOST_BYTES = 100_000, 64 << 30


def require_neff(file: Path) -> None:
    """Refuse what is no NEFF file.

    Raises:
        UnusableInput: its header, its length or what lies behind it is another.
    """
    whole = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_HEADER)
        if len(head) < _HEADER:
            raise UnusableInput(f"{file.name} has {whole} bytes and is no NEFF file: the header alone has {_HEADER}.")
        _, header, data, _, _ = _SIZES.unpack(head[: _SIZES.size])
        if header != _HEADER or not 0 < data <= whole - _HEADER:
            raise UnusableInput(
                f"{file.name} is no NEFF file, or is cut: its header tells of {header} and {data} bytes, and it has {whole}."
            )
        if not _has_first(stream):
            raise UnusableInput(
                f"{file.name} is no NEFF file: what lies behind its header is no archive with {_FIRST}."
            )


def _has_first(stream: IO[bytes]) -> bool:
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=BoundedHeader) as archive:
            taken = 0
            for number, member in enumerate(archive):
                taken += member.size
                if member.name.removeprefix("./") == _FIRST and member.isfile():
                    return True
                if number > _MOST_MEMBERS or taken > _MOST_BYTES:
                    return False
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError):
        return False
    return False
