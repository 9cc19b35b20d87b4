"""What edgec can make of a model: every target with its schemes, and why not where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import EdgecError
from compiler.estimate import Estimate, estimate
from compiler.model import Model
from compiler.quantization import Quantization
from compiler.recipe import Recipe
from compiler.scheme import find_scheme
from compiler.target import Target, reason_against


@dataclass(frozen=True)
class Capability:
    """Whether a target takes a model.

    Attributes:
        target: its name.
        schemes: those that it takes.
        nbytes: bytes of the package in each of them; None where they follow a budget.
        falling_back: those of them whose container forces tensors into another type (`--allow type-fallback`).
        why_not: the reason where it takes none.
    """

    target: str
    schemes: tuple[str, ...]
    nbytes: tuple[int | None, ...]
    falling_back: tuple[str, ...]
    why_not: str | None


@dataclass(frozen=True)
class Inspection:
    """What a model is, what it takes, and which targets take it."""

    model: Model
    estimate: Estimate
    targets: tuple[Capability, ...]


def inspect(model: Model, targets: Sequence[Target]) -> Inspection:
    """Tell what a model is, its bytes at each scheme, and which of the targets take it; no weight is read."""
    return Inspection(model, estimate(model), tuple(_capability(target, model) for target in targets))


def _capability(target: Target, model: Model) -> Capability:
    """Ask a target about each of its schemes."""
    taken, nbytes, reasons, falling_back = [], [], [], []
    for name in target.schemes:
        scheme = find_scheme(name)
        assert scheme is not None
        # A mixed scheme asks for a budget; that there is a budget which fits is not told here.
        recipe = Recipe(target.name, scheme, quantization=Quantization(target_bpw=8.0 if scheme.mixed else None))
        try:
            reason = reason_against(target, model, recipe)
        except EdgecError as error:
            return Capability(target.name, (), (), (), str(error))
        if reason is not None:
            reasons.append(reason)
            continue
        taken.append(name)
        nbytes.append(target.nbytes(model, recipe))
        if target.foresee(model, recipe):
            falling_back.append(name)
    why_not = None if taken else reasons[0]
    return Capability(target.name, tuple(taken), tuple(nbytes), tuple(falling_back), why_not)
