"""How many tokens a language model's cache is made for, where that is a matter of running and not of building."""

from __future__ import annotations

from compiler.errors import UnusableInput
from compiler.package import Package

# Where nothing is asked. A cache for all that models are trained for would not fit most devices.
DEFAULT_CONTEXT = 2048


def choose_context(package: Package, asked: int | None, at_least: int = 0) -> int:
    """The context to open a package with: what is asked, or its own, or the default, and what a workload needs.

    Raises:
        UnusableInput: more is asked than the model was trained for, or looks back.
    """
    own, longest = package.lowered.shapes.context_length, package.lowered.shapes.longest_sequence
    if asked is not None and longest is not None and asked > longest:
        raise UnusableInput(
            f"A context of {asked} tokens is asked for, and {package.model.name} takes {longest} at most. Ask for fewer."
        )
    known = own or min(longest or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    return asked or max(known, min(at_least, longest or at_least))


def require_context(package: Package, asked: int | None) -> None:
    """Refuse another context than the one that a package was built for, where that is fixed.

    Raises:
        UnusableInput: it is asked for.
    """
    own = package.lowered.shapes.context_length
    if asked is not None and asked != own:
        holds = "takes no context" if own is None else f"was built for {own} tokens"
        raise UnusableInput(
            f"{package.title} {holds}. Build it with --context-length {asked}, or leave the option out."
        )
