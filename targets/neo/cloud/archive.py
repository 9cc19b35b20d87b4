"""The archive that Neo is given: a .tar.gz with the model's files, by the rules of AWS's own reader (neo-ai/neo-loader).

That reader leaves out members whose names begin with a dot, finds files by how their names end, in any folder, and wants of
most frameworks exactly one.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from compiler.errors import UnusableInput
from compiler.formats.archive import BoundedHeader
from compiler.relative_name import stays_inside

NAME = "model.tar.gz"
_MOST_MEMBERS, _MOST_BYTES = 10_000, 16 << 30
_MOST_REST = 1 << 22
_MODE, _LONGEST = 0o644, 255


@dataclass(frozen=True)
class Layout:
    """The endings of which a framework wants a file each; alternatives stand behind one another with a bar."""

    endings: tuple[str, ...]


LAYOUTS: dict[str, Layout] = {
    "PYTORCH": Layout((".pth",)),
    "ONNX": Layout((".onnx",)),
    "KERAS": Layout((".h5",)),
    "TFLITE": Layout((".tflite",)),
    "TENSORFLOW": Layout((".pb|.pbtxt",)),
    "MXNET": Layout((".json", ".params")),
    "DARKNET": Layout((".cfg", ".weights")),
    "SKLEARN": Layout((".joblib",)),
    "XGBOOST": Layout(("",)),
}
# Beside the symbol file of an MXNet model.
_NO_SYMBOLS = ("model-shapes.json", "hyperparams.json", "amba_config.json", "model-metadata.json")


def list_members(file: Path) -> dict[str, int]:
    """Regular files of an archive by name, with their bytes.

    Raises:
        UnusableInput: it is no .tar.gz, has a member that leaves its folder or is no plain file, or is beyond the limits.
    """
    found: dict[str, int] = {}
    seen: set[str] = set()
    try:
        with gzip.open(file) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=BoundedHeader) as archive:
            for member in archive:
                _require_plain(member, file)
                name = member.name.removeprefix("./").rstrip("/")
                if name in seen or any(len(part.encode()) > _LONGEST for part in PurePosixPath(name).parts):
                    raise UnusableInput(
                        f"The archive {file.name} has the member {name!r:.80} twice, or with too long a name."
                    )
                seen.add(name)
                if member.isfile():
                    found[name] = member.size
                if len(seen) > _MOST_MEMBERS or len(found) > _MOST_MEMBERS or sum(found.values()) > _MOST_BYTES:
                    raise UnusableInput(
                        f"The archive {file.name} has more than {_MOST_MEMBERS} files or {_MOST_BYTES >> 30} GiB, the "
                        "most that edgec opens. Refused."
                    )
            _read_out(stream, file)
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise UnusableInput(f"{file.name} is no whole .tar.gz archive. Make it again.") from error
    return found


def _read_out(stream: gzip.GzipFile, file: Path) -> None:
    """Read to the end, where a .gz tells the sum of all; tarfile stops before."""
    taken = 0
    while chunk := stream.read(1 << 20):
        taken += len(chunk)
        if taken > _MOST_REST:
            raise UnusableInput(f"The archive {file.name} goes on behind its end. Refused.")


def _require_plain(member: tarfile.TarInfo, file: Path) -> None:
    # The folder itself may be a member, of no other kind.
    itself = member.isdir() and member.name in ("", ".", "./")
    if not itself and not (stays_inside(member.name) and member.name.isprintable()):
        raise UnusableInput(
            f"The archive {file.name} has the member {member.name!r:.80}, which leaves its folder. Refused."
        )
    if not (member.isfile() or member.isdir()):
        raise UnusableInput(
            f"The archive {file.name} has the member {member.name!r:.80}, which is no plain file. Refused."
        )


def read_member(file: Path, name: str, most: int) -> bytes:
    """A member's bytes, of which there may be `most`."""
    with tarfile.open(file, "r:gz") as archive:
        for member in archive:
            if member.name.removeprefix("./") == name and member.isfile():
                if member.size > most:
                    raise UnusableInput(f"{name} in {file.name} has {member.size} bytes, and {most} are read.")
                stream: IO[bytes] | None = archive.extractfile(member)
                return stream.read() if stream is not None else b""
    raise UnusableInput(f"The archive {file.name} has no member {name}.")


def extract(file: Path, folder: Path) -> list[str]:
    """Write the regular files of an archive into a folder, none of them executable; their names."""
    names = list(list_members(file))
    with tarfile.open(file, "r:gz") as archive:
        for member in archive:
            if not member.isfile():
                continue
            out = folder / member.name
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                target = out.open("wb")
            except OSError as error:
                raise UnusableInput(
                    f"The archive {file.name} has the member {member.name!r:.80}, which cannot lie beside the others. Refused."
                ) from error
            stream = archive.extractfile(member)
            with target:
                while stream is not None and (chunk := stream.read(io.DEFAULT_BUFFER_SIZE * 64)):
                    target.write(chunk)
            out.chmod(_MODE)
    return names


def find_layout_faults(framework: str, names: Sequence[str]) -> Iterator[str]:
    """A sentence for each rule of a framework's archives that these members break."""
    seen = [name for name in names if not PurePosixPath(name).name.startswith(".")]
    if not seen:
        yield "The archive has no file that Neo sees."
        return
    layout = LAYOUTS.get(framework)
    if layout is None:
        return
    for ending in layout.endings:
        alternatives = ending.split("|")
        files = [name for name in seen if any(name.endswith(each) for each in alternatives)]
        if framework == "MXNET" and ending == ".json":
            files = [name for name in files if PurePosixPath(name).name not in _NO_SYMBOLS]
        words = " or ".join(alternatives) or "model"
        if not files:
            has = ", ".join(sorted(seen)[:5])
            yield f"The archive has no {words} file, which Neo's reader takes of {framework}; it has: {has}."
        elif len(files) > 1:
            yield f"The archive has {len(files)} {words} files ({', '.join(sorted(files)[:3])}); Neo wants exactly one."
    if framework == "TENSORFLOW" and any(PurePosixPath(name).name == "checkpoint" for name in seen):
        yield "The archive holds a TensorFlow checkpoint, which Neo does not take; save the model as a SavedModel."
