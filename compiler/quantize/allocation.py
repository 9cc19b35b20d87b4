"""Bits for each layer under a budget of bytes: the choice with the smallest predicted KL.

The KL that each layer's rounding alone costs is measured (calibrate/sensitivity.py); costs of layers are taken to
add up. Among choices on the lower convex hull of (bits, KL), upgrades are bought in the order of KL saved per bit, which is
optimal up to the last upgrade (Lagrangian relaxation of the multiple-choice knapsack; Shoham and Gersho 1988). Imports no
torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput

TABLE = "allocation.json"
SENSITIVITY = "sensitivity.json"
# The package's own tables, card, licence and padding; the build holds the finished package to its budget.
_TABLES_BYTES = 200_000


@dataclass(frozen=True)
class Choice:
    """A grid that a container can hold.

    Attributes:
        bits, symmetric: of the grid.
        bits_per_weight: that the container stores, scales included.
    """

    bits: int
    symmetric: bool
    bits_per_weight: float


@dataclass(frozen=True)
class Budget:
    """What a package may weigh.

    Attributes:
        parameters: weights of the model in all.
        fixed_bytes: bytes of the container beside the matrices.
        other_bytes: those of them that are weights.
        target_bpw: bits per weight, over all weights.
        max_bytes: bytes of the package.
    """

    parameters: int
    fixed_bytes: int
    other_bytes: int
    target_bpw: float | None
    max_bytes: int | None

    @property
    def matrix_bits(self) -> float:
        """Bits that the matrices may have in all; the tighter of the two budgets counts."""
        limits = []
        if self.target_bpw is not None:
            limits.append(self.target_bpw * self.parameters - 8 * self.other_bytes)
        if self.max_bytes is not None:
            limits.append(8.0 * (self.max_bytes - self.fixed_bytes - _TABLES_BYTES))
        return min(limits)


@dataclass(frozen=True)
class Sensitivity:
    """What rounding layers that share an input costs.

    Attributes:
        layers: names of their weights; they get one grid.
        weights: how many in all.
        measured_kl: mean KL divergence, in nats, when only these layers are rounded, to 4 bits symmetric.
        kl: (bits, symmetric, KL): for each grid, the measured KL scaled by the squared error of the layers' outputs.
    """

    layers: tuple[str, ...]
    weights: int
    measured_kl: float
    kl: tuple[tuple[int, bool, float], ...]


def write_sensitivities(folder: Path, found: Sequence[Sensitivity]) -> None:
    """Write `sensitivity.json`."""
    text = json.dumps([asdict(each) for each in found], indent=1) + "\n"
    (folder / SENSITIVITY).write_text(text, encoding="utf-8")


def read_sensitivities(folder: Path) -> list[Sensitivity]:
    """The inverse of `write_sensitivities`."""
    rows = json.loads((folder / SENSITIVITY).read_text(encoding="utf-8"))
    return [
        Sensitivity(
            tuple(row["layers"]), row["weights"], row["measured_kl"], tuple((b, s, kl) for b, s, kl in row["kl"])
        )
        for row in rows
    ]


def write_allocation(sensitivity: Path, out: Path, choices: Sequence[Choice], budget: Budget) -> dict[str, Any]:
    """Allocate `choices` from `sensitivity.json` of one folder, and write `allocation.json` into another."""
    found = read_sensitivities(sensitivity)
    chosen = allocate(found, choices, budget.matrix_bits)
    rows = [
        {
            "layers": list(row.layers),
            "weights": row.weights,
            "measured_kl": row.measured_kl,
            "predicted_kl": [{"bits": b, "symmetric": s, "kl": kl} for b, s, kl in row.kl],
            "bits": choice.bits,
            "symmetric": choice.symmetric,
            "bits_per_weight": choice.bits_per_weight,
        }
        for row, choice in zip(found, chosen, strict=True)
    ]
    spent = sum(row.weights * choice.bits_per_weight for row, choice in zip(found, chosen, strict=True))
    predicted = sum(_kl(row, choice) for row, choice in zip(found, chosen, strict=True))
    document = {
        "target_bpw": budget.target_bpw,
        "max_bytes": budget.max_bytes,
        "matrix_bits_per_weight": spent / max(1, sum(row.weights for row in found)),
        "predicted_kl_of_rounding": predicted,
        "groups": rows,
    }
    (out / TABLE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return {"predicted_kl": predicted}


def read_allocation(folder: Path) -> dict[str, tuple[int, bool]]:
    """(bits, symmetric) of every layer, by the name of its weight."""
    document = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    return {name: (row["bits"], row["symmetric"]) for row in document["groups"] for name in row["layers"]}


def allocate(found: Sequence[Sensitivity], choices: Sequence[Choice], budget_bits: float) -> list[Choice]:
    """A choice for each row, of least predicted KL in no more than `budget_bits` bits.

    Raises:
        UnusableInput: the smallest choices need more.
    """
    ladders = [_ladder(row, choices) for row in found]
    at = [0] * len(found)
    left = budget_bits - sum(
        row.weights * ladder[0].bits_per_weight for row, ladder in zip(found, ladders, strict=True)
    )
    if left < 0:
        raise UnusableInput(
            f"The budget is too small: the matrices alone need {-left / 8e6:.1f} MB more at the fewest bits that this "
            f"container holds ({min(choice.bits_per_weight for choice in choices):g} per weight). Raise it."
        )
    while True:
        steps = []
        for number, (row, ladder) in enumerate(zip(found, ladders, strict=True)):
            if at[number] + 1 == len(ladder):
                continue
            now, after = ladder[at[number]], ladder[at[number] + 1]
            cost = row.weights * (after.bits_per_weight - now.bits_per_weight)
            if cost <= left:
                steps.append(((_kl(row, now) - _kl(row, after)) / cost, cost, number))
        if not steps:
            return [ladder[place] for ladder, place in zip(ladders, at, strict=True)]
        _, cost, number = max(steps)
        at[number] += 1
        left -= cost


def _ladder(row: Sensitivity, choices: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, by bits."""
    known = {(bits, symmetric) for bits, symmetric, _ in row.kl}
    usable = [choice for choice in choices if (choice.bits, choice.symmetric) in known]
    hull: list[Choice] = []
    for choice in sorted(usable, key=lambda each: (each.bits_per_weight, _kl(row, each))):
        if hull and _kl(row, choice) >= _kl(row, hull[-1]):
            continue
        while len(hull) > 1 and _slope(row, hull[-2], hull[-1]) <= _slope(row, hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(row: Sensitivity, one: Choice, other: Choice) -> float:
    return (_kl(row, one) - _kl(row, other)) / (other.bits_per_weight - one.bits_per_weight)


def _kl(row: Sensitivity, choice: Choice) -> float:
    return next(kl for bits, symmetric, kl in row.kl if (bits, symmetric) == (choice.bits, choice.symmetric))
