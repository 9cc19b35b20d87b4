"""The folder that a matrix or tune writes to: a new one, or one that it left itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.errors import UnusableInput

# Every run makes it first, and nobody else has it beside the others.
_MARK = "builds"


def require_own(out: Path, names: Sequence[str]) -> None:
    """Raise UnusableInput where a folder has other things than an earlier run left, or is a file."""
    if not out.exists():
        return
    there = {each.name for each in out.iterdir() if not _is_left_over(each.name)} if out.is_dir() else {out.name}
    if there and (not out.is_dir() or _MARK not in there or there - set(names)):
        raise UnusableInput(f"{out} is there and has other things than this command leaves. Name another folder.")


def _is_left_over(name: str) -> bool:
    """What a run that was killed while it wrote may leave."""
    return name.startswith(".") or name.endswith(".part")
