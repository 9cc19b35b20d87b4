"""Kit: a folder around a package that a developer puts into an app, or onto a board. What it holds is the target's matter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.package import Package
from compiler.stages.cache import new_folder


@dataclass(frozen=True)
class Kit:
    """What a kit is for, the runtimes whose packages it takes, and the module that has `fill_kit(package, folder)`."""

    system: str
    runtimes: tuple[str, ...]
    module: str


def write_kit(package: Package, out: Path, fill: Callable[[Package, Path], None]) -> list[str]:
    """Write a kit to `out`, whole or not at all; the names of its files.

    Raises:
        UnusableInput: `out` exists, or the package is of a form that the kit does not know.
    """
    if out.exists():
        raise UnusableInput(f"The output folder {out} exists already. Remove it, or choose another with -o.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out.parent) as temporary:
        root = temporary / "kit"
        root.mkdir()
        fill(package, root)
        root.rename(out)
    return [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]


def type_name(model: str) -> str:
    """A type's name in Swift and Kotlin for a model: `all-MiniLM-L6-v2` is `AllMiniLML6V2`."""
    words = re.findall(r"[A-Za-z0-9]+", model)
    name = "".join(word[0].upper() + word[1:] for word in words)
    return name if name and not name[0].isdigit() else f"Model{name}"


def camel_case(name: str) -> str:
    """`input_ids` as `inputIds`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
