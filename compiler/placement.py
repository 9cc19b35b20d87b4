"""Holding a package to the share of its operators that must run on an engine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import CheckFailed, UnusableInput
from compiler.package import Placement
from compiler.quiet import quiet_imports
from compiler.target import Target

PLACEMENT = "placement"


@dataclass(frozen=True)
class Requirement:
    """At least that share (0 to 1) of a package's operators must run on the engine."""

    engine: str
    share: float


def check_account(engines: Sequence[str], title: str, require: Sequence[Requirement]) -> None:
    """Refuse, before any work where it can be, requirements of engines that `title` has no account of.

    Raises:
        UnusableInput: nothing is known of that engine.
    """
    for wanted in require:
        if wanted.engine not in engines:
            raise UnusableInput(
                f"{title} has no account of what runs on {wanted.engine}, so --require cannot be held to it. "
                "Leave --require out for it."
            )


def place(target: Target, files: Sequence[Path], engine: str) -> Placement:
    """The account of a package's files on one of the target's engines."""
    module, _, function = target.place.partition(":")
    with quiet_imports():
        made: Placement = getattr(importlib.import_module(module), function)(files, engine)
    return made


def check_placement(
    known: Placement | None,
    place_on: Callable[[str], Placement],
    title: str,
    require: Sequence[Requirement],
    allow: Sequence[str] = (),
) -> tuple[str, ...]:
    """Hold the package that `title` names to the shares that are asked for; the checks that were only passed by `allow`.

    Args:
        known: the placement that was made already.
        place_on: gives the placement on another engine.
        title: of the package.
        require: of engines that there is an account of.
        allow: names of checks that may fail.

    Raises:
        CheckFailed: too many operators leave an engine.
    """
    for wanted in require:
        placement = known if known is not None and known.engine == wanted.engine else place_on(wanted.engine)
        if placement.share >= wanted.share:
            continue
        if PLACEMENT in allow:
            return (PLACEMENT,)
        first = placement.unsupported[0]
        raise CheckFailed(
            PLACEMENT,
            f"{title}: {placement.share:.2%} of {placement.operators} operators stay on {wanted.engine}, and "
            f"{wanted.share:.2%} are required. The first of {len(placement.unsupported)} that leave is {first.operator} "
            f"({first.name}): {first.reason}. Ask for less, or build with --allow {PLACEMENT}, which accepts this.",
        )
    return ()
