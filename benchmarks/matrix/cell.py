"""A cell of a matrix, and what came of it: one JSON file each, written when it is done and never again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from benchmarks.agreement import Agreement
from benchmarks.measurement import Measurement
from compiler.errors import UnusableInput
from compiler.records import from_json

Status = Literal["measured", "refused", "failed"]


@dataclass(frozen=True)
class Cell:
    """A model in a recipe on a device, by their names in the matrix file."""

    model: str
    recipe: str
    device: str

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.model.rpartition('/')[2]} {self.recipe} on {self.device}"


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    Attributes:
        cell: which.
        status: `refused` where the recipe does not suit the model or the device, `failed` where something went wrong.
        reason: a sentence; empty where it was measured.
        package: the package's digest; None where there is none.
        measurement: what was measured, and what was to be expected.
        agreement: how near an emulated or distant device computes to this machine; None where not asked.
        seconds: that building and measuring took here.
    """

    cell: Cell
    status: Status
    reason: str = ""
    package: str | None = None
    measurement: Measurement | None = None
    agreement: Agreement | None = None
    seconds: float = 0.0


def to_text(result: Result) -> str:
    """As a file holds it."""
    return json.dumps(asdict(result), ensure_ascii=False) + "\n"


def from_text(text: str, name: str) -> Result:
    """The inverse.

    Raises:
        UnusableInput: it is of another form.
    """
    try:
        return from_json(Result, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UnusableInput(f"The result {name} is damaged. Remove it, and the cell is measured again.") from error
