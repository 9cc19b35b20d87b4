"""Doing on another machine what a package still lacks: a copy of it with the files that only that machine can make."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from compiler import __version__
from compiler.build import copy_hashed, move_packages, refuse_existing
from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.package import MANIFEST, FileRecord, Lowered, Package, check_files, write_manifest
from compiler.stages.cache import new_folder
from compiler.stages.worker import Progress
from compiler.target import Target


@dataclass(frozen=True)
class Finished:
    """What a target's `finish` gives back.

    Attributes:
        tools: versions of the tools that made what was missing.
        lowered: what the package is then.
        when_kept: called when the finished package is in its place.
    """

    tools: dict[str, str]
    lowered: Lowered
    when_kept: Callable[[], None] = lambda: None


# It is called with a folder with the package's files, the package, and who is told of progress, and writes files there.
Finisher = Callable[[Path, Package, Progress], Finished]


def finish(
    package: Package, load_target: Callable[[str], Target], out: Path, *, force: bool = False, on_progress: Progress
) -> Package:
    """Write the finished package to `out`, under the folder name of the unfinished one, which stays as it is.

    Raises:
        UnusableInput: it is finished, the output exists, or this machine lacks what finishing needs.
        CheckFailed: a file of it is not the one that was built, or the other machine's tool failed.
    """
    if package.lowered.unfinished is None:
        raise UnusableInput(f"{package.title} is finished already: nothing of it is left to do.")
    name = package.recipe.partition(":")[0]
    try:
        target = load_target(name)
    except KeyError:
        raise UnusableInput(
            f"{package.title} is of the target {name!r:.40}, which this edgec has not. Refused."
        ) from None
    variant = package.recipe_full.get("variant")
    if variant is not None and variant not in target.variants:
        raise UnusableInput(
            f"{package.title} names a variant that {target.name} has not. It was changed, and is refused."
        )
    if not target.finish:
        raise UnusableInput(
            f"{package.title} says that it is unfinished, and the target {target.name} finishes nothing."
        )
    # The folder may have been named by a dot.
    package = replace(package, folder=package.folder.resolve())
    refuse_existing(out, [package.name], force)
    check_files(package)
    with new_folder(out) as temporary:
        folder = temporary / package.name
        for name in package.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy_hashed(package.folder / name, folder / name)
        finished, when_kept = finish_in_place(replace(package, folder=folder), target, on_progress)
        move_packages([finished], out, temporary if force else None)
    when_kept()
    return replace(finished, folder=out / package.name)


def finishes_here(target: Target) -> bool:
    """Whether this machine has what finishes a target's packages, so that a build finishes them at once."""
    if not target.finishes_here:
        return False
    module, _, function = target.finishes_here.partition(":")
    return bool(getattr(importlib.import_module(module), function)())


def finish_in_place(package: Package, target: Target, on_progress: Progress) -> tuple[Package, Callable[[], None]]:
    """Add what it lacks to a folder with a package's files; the finished package, and what to call when it is kept."""
    module, _, function = target.finish.partition(":")
    finisher: Finisher = getattr(importlib.import_module(module), function)
    made = finisher(package.folder, package, on_progress)
    files = {
        path.relative_to(package.folder).as_posix(): FileRecord(digest_file(path), path.stat().st_size)
        for path in sorted(package.folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    finished = replace(
        package,
        lowered=replace(made.lowered, unfinished=None),
        tools={**package.tools, "edgec": __version__, **made.tools},
        files=files,
    )
    write_manifest(finished)
    return finished, made.when_kept
