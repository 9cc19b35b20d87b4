"""Verification: what verify found of a package, in `verification.json` beside the manifest and bound to its digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_json
from compiler.package import VERIFICATION, Package
from compiler.records import from_json
from compiler.stages.cache import write_atomically

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Failure:
    """A limit that does not hold: the check that `--allow` names, and a sentence."""

    check: str
    sentence: str


@dataclass(frozen=True)
class Verification:
    """What verify found.

    Attributes:
        package: the digest of the package.
        passed: no failure is left that was not accepted.
        text: what it was held to: the name of the user's text, or edgec's own passages.
        figures: distances from the Reference, by name.
        failures: all of them, accepted or not.
        accepted: the checks whose failure was accepted by name.
    """

    package: str
    passed: bool
    text: str
    figures: dict[str, float | int | str | None]
    failures: tuple[Failure, ...] = ()
    accepted: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def unaccepted(self) -> tuple[Failure, ...]:
        """The failures that count."""
        return tuple(failure for failure in self.failures if failure.check not in self.accepted)


def write_verification(package: Package, verification: Verification) -> None:
    """Write it beside the manifest, in the place of an earlier one."""
    text = json.dumps(asdict(verification), indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(package.folder / VERIFICATION, text + "\n")


def read_verification(package: Package) -> Verification | None:
    """What was found of this very package; None when nothing was, or of another build in this folder.

    Raises:
        UnusableInput: the file is damaged.
    """
    path = package.folder / VERIFICATION
    if not path.is_file():
        return None
    try:
        document: Any = read_json(path)
        told = document if isinstance(document, dict) else {}
        if (told.get("schema_version"), told.get("package")) != (SCHEMA_VERSION, package.digest):
            return None
        return from_json(Verification, document)
    except (OSError, ValueError) as error:
        raise UnusableInput(
            f"{VERIFICATION} of {package.name} cannot be read: {error}. Run `edgec verify` on it again."
        ) from error
