"""What verify found, for people who get the package: VERIFICATION.md beside the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.package import CARD, VERIFICATION, Package
from compiler.stages.cache import write_atomically
from runtimes.kinds.kind import Column, Kind
from runtimes.verify.verification import Lowering, Verification


def limit_words(column: Column, limits: Mapping[str, float], kind: Kind) -> str:
    """What a figure must hold, `at most 0.1`; empty where nothing is asked of it."""
    names = [name for name, figure in kind.limited.items() if figure == column.key and name in limits]
    return ", ".join(f"at {'most' if name.startswith('max_') else 'least'} {limits[name]:g}" for name in names)


def lowering_line(lowering: Lowering) -> str:
    """How far a package is from its own stored weights, and what is allowed."""
    distance = "not told" if lowering.distance is None else f"{lowering.distance:.2g}"
    return (
        f"{lowering.figure} to what its stored weights compute in torch: {distance}, at most {lowering.limit:.2g} "
        f"(the runtime's own rounding explains {lowering.explained:.2g})"
    )


def write_card(package: Package, found: Verification, kind: Kind) -> None:
    """Write it in the place of an earlier one."""
    write_atomically(package.folder / CARD, verification_card(package, found, kind))


def verification_card(package: Package, found: Verification, kind: Kind) -> str:
    """Lowered right or not, the quality with its figures and limits, and what failed, as Markdown."""
    lines = [
        f"# {package.model.name}, `{package.recipe}`: what verify found",
        "",
        f"- **Lowered right**: {'yes' if found.lowered_right else 'NO'}."
        + (f" {lowering_line(found.lowering)}." if found.lowering else ""),
        f"- **Quality**: {found.quality} (at least {found.asked} was asked for), on {found.text}.",
        f"- **Verified**: {'passed' if found.passed else 'FAILED'}"
        + (f", with these failures accepted: {', '.join(found.accepted)}." if found.accepted else "."),
        "",
        "| distance from the fp32 model | figure | limit |",
        "|---|---:|---|",
    ]
    for column in kind.figures:
        value: Any = found.figures.get(column.key)
        if value is not None:
            lines.append(
                f"| {column.title} | {column.show(value)} | {limit_words(column, found.limits, kind) or '-'} |"
            )
    lines += ["", *(f"- {failure.check}: {failure.sentence}" for failure in found.failures)]
    lines += ["", f"Package {found.package}; {VERIFICATION} has the same for programs.", ""]
    return "\n".join(lines)
