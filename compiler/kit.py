"""Kit: a folder around a package that a developer puts into an app, or onto a board. What it holds is the target's matter."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from compiler.errors import UnusableInput
from compiler.output_file import require_outside_packages
from compiler.package import Package, Port
from compiler.stages.cache import new_folder

_T = TypeVar("_T")
_SIGNS = "space . + : @ ( ) / _ -"
_PLAIN_TEXT = re.compile(r"[\w .+:@()/-]+")


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
    _require_plain(package)
    require_outside_packages(out)
    with new_folder(out.parent) as temporary:
        root = temporary / "kit"
        root.mkdir()
        fill(package, root)
        for file in sorted(package.folder.glob("LICEN[CS]E*")):
            shutil.copyfile(file, root / file.name)
        root.rename(out)
    return [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]


def _require_plain(package: Package) -> None:
    """Refuse what could end a comment or a string of the kit's source: a package is data, also in what is written of it."""
    for text in (package.model.name, package.recipe):
        if not _PLAIN_TEXT.fullmatch(text):
            raise UnusableInput(
                f"{text!r:.80} would stand in the kit's source, and has other signs than letters, digits and {_SIGNS}. "
                "Build the package again with a plain --name."
            )
    for graph in package.lowered.graphs:
        for port in (*graph.inputs, *graph.outputs):
            if not (port.name.isidentifier() and port.name.isascii()):
                raise UnusableInput(
                    f"{package.title} has a port {port.name!r:.60}, and edgec writes no such name. Build it again."
                )
            if not all(isinstance(size, int) or (size.isidentifier() and size.isascii()) for size in port.shape):
                raise UnusableInput(
                    f"{package.title} has a size of {port.name} that edgec does not write. Build it again."
                )


def known_type(port: Port, types: Mapping[str, _T]) -> _T:
    """What a kit's language calls the type of a port.

    Raises:
        UnusableInput: it is a type that edgec does not write.
    """
    if port.dtype not in types:
        raise UnusableInput(
            f"The port {port.name} has the type {port.dtype!r:.20}, and kits of this kind take {', '.join(types)}."
        )
    return types[port.dtype]


def type_name(model: str) -> str:
    """A type's name in Swift and Kotlin for a model: `all-MiniLM-L6-v2` is `AllMiniLML6V2`."""
    words = re.findall(r"[A-Za-z0-9]+", model)
    name = "".join(word[0].upper() + word[1:] for word in words)
    return name if name and not name[0].isdigit() else f"Model{name}"


def image_name(model: str) -> str:
    """A name that Docker and Ollama take for a model: `all-MiniLM-L6-v2` is `all-minilm-l6-v2`."""
    return "-".join(re.findall(r"[a-z0-9]+", model.lower())) or "model"


def camel_case(name: str) -> str:
    """`input_ids` as `inputIds`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
