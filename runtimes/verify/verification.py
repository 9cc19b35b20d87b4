"""Verification: what verify found of a package, in `verification.json` beside the manifest and bound to its digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_json
from compiler.package import VERIFICATION, Package
from compiler.quality import QUALITIES
from compiler.records import from_json
from compiler.stages.cache import write_atomically

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Failure:
    """A limit that does not hold: the check that `--allow` names, and a sentence."""

    check: str
    sentence: str


@dataclass(frozen=True)
class Lowering:
    """How far a package is from what its stored weights compute in torch.

    Attributes:
        figure: which distance that is.
        distance: it; None where it could not be taken.
        explained: how far the runtime's own rounding of activations takes it, done in torch on this very model.
        limit: the most that is taken for that rounding.
        weight_error: what rounding changed of the weights, over them (norms).
    """

    figure: str
    distance: float | None
    explained: float
    limit: float
    weight_error: float


@dataclass(frozen=True)
class Verification:
    """What verify found: whether the package was lowered right, and what quality it has.

    Attributes:
        package: the digest of the package.
        passed: no failure is left that was not accepted.
        lowered_right: it computes what its stored weights say, and reads and writes text as the model does.
        quality: how near it is to the fp32 model, a word of compiler/quality.py.
        asked: the least quality that passes.
        limits: what its figures must hold for the quality that is asked, and the recipe's own limits.
        text: what it was held to: the name of the user's text, or edgec's own passages.
        figures: distances from the Reference, by name.
        lowering: the distance from its stored weights; None where it could not be opened, or its kind has none.
        failures: all of them, accepted or not.
        accepted: the checks whose failure was accepted by name.
        evaluated_by: what computed the package, in words, where it was not the engine that it is for; else empty.
    """

    package: str
    passed: bool
    lowered_right: bool
    quality: str
    asked: str
    limits: dict[str, float]
    text: str
    figures: dict[str, float | int | str | None]
    lowering: Lowering | None = None
    failures: tuple[Failure, ...] = ()
    accepted: tuple[str, ...] = ()
    evaluated_by: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Raise ValueError for a word that is no quality: files are read into this."""
        if wrong := {self.quality, self.asked} - set(QUALITIES):
            raise ValueError(f"quality is one of {', '.join(QUALITIES)}, not {min(wrong)!r}")

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
            f"{VERIFICATION} of {package.title} cannot be read: {error}. Run `edgec verify` on it again."
        ) from error
