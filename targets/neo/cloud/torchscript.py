"""What is in a TorchScript file, told without opening it by PyTorch, which would run what is in it.

The form: a zip archive with one folder, in which are `data.pkl`, `constants.pkl`, `code/` and `version`
(pytorch/torch/csrc/jit/docs/serialization.md).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

_MOST_MEMBERS = 100_000
# They differ from writer to writer.
_IDLE = ("version", "byteorder", ".data/serialization_id", ".format_version", ".storage_alignment")


def members(file: Path) -> dict[str, tuple[int, int]] | None:
    """Size and checksum of each member by its name in the folder; None where it is no TorchScript file."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None
    if not found or len(found) > _MOST_MEMBERS:
        return None
    told = {each.filename.partition("/")[2]: (each.file_size, each.CRC) for each in found}
    if "constants.pkl" not in told or "data.pkl" not in told or not any(name.startswith("code/") for name in told):
        return None
    return {name: each for name, each in told.items() if name not in _IDLE}


def find_faults(name: str, returned: Path, sent: list[Path]) -> Iterator[str]:
    """A sentence where a file that came back is no TorchScript, or has nothing else in it than one that was sent."""
    found = members(returned)
    if found is None:
        yield f"{name} is no model of PyTorch's: it is no TorchScript file."
    elif any(members(each) == found for each in sent):
        yield f"{name} has in it what was sent, packed anew: Neo did not compile it."
