"""Target: what lowers a Model by a Recipe into a package, as data; its functions say what it takes and plan the stages.

A target is one module, or one folder with a module `target`, that has a `TARGET`. Its functions import nothing heavy: what a
stage does stands in the function that the stage names, which runs in a process of its own. The last stage of a plan returns
`asdict(Lowered)`. Stages with equal keys are one stage: two GGUF recipes share their conversion, and a target that must be
finished elsewhere (a compiler on another machine) says in `Lowered.unfinished` what is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.package import Deviation
from compiler.recipe import Recipe
from compiler.scheme import find_scheme
from compiler.stages.stage import Stage


def _takes_all(model: Model, recipe: Recipe) -> str | None:
    return None


def _tells_no_bytes(model: Model, recipe: Recipe) -> int | None:
    return None


def _forces_nothing(model: Model, recipe: Recipe) -> tuple[Deviation, ...]:
    return ()


@dataclass(frozen=True)
class Target:
    """A container and what makes it.

    Attributes:
        name: as in a recipe.
        extra: the pip extra that brings its tools.
        schemes: the schemes that it takes.
        tasks: the tasks that it takes.
        plan: the last stage of a package, which names the earlier ones that it needs.
        refuse: why not, as a sentence; None when it takes the model by the recipe.
        foresee: the tensors that the container will force into another type than the scheme's, told from shapes alone.
        nbytes: bytes of the package, told from shapes alone; None where they cannot be told.
        options: the `+option` names that it takes.
        variants: the `@variant` names that it takes.
        engines: those of which there is an account of its packages (compiler/placement.py); package.json has the first's.
        place: `module:function` that makes such an account of a package's files and an engine; empty without one.
        finishes_here: `module:function` that tells whether this machine has what finishes them, so that a build does it; empty
            where a build never does.
        instead: other targets, each with a scheme, to name to who asks for a task that this one does not take.
        spread: `+option` names that share a package among so many of an accelerator's cores.
        finish: `module:function` that does on another machine what its packages lack (compiler/finish.py); empty without one.
    """

    name: str
    extra: str
    schemes: tuple[str, ...]
    tasks: tuple[str, ...]
    plan: Callable[[Model, Recipe], Stage]
    refuse: Callable[[Model, Recipe], str | None] = _takes_all
    foresee: Callable[[Model, Recipe], tuple[Deviation, ...]] = _forces_nothing
    nbytes: Callable[[Model, Recipe], int | None] = _tells_no_bytes
    options: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    place: str = ""
    finish: str = ""
    finishes_here: str = ""
    instead: tuple[tuple[str, str], ...] = ()
    spread: Mapping[str, int] = field(default_factory=dict)


def check_taken(target: Target, model: Model, recipe: Recipe, load_target: Callable[[str], Target]) -> None:
    """Refuse, before any work, what the target does not take.

    Raises:
        UnusableInput: with the reason and what would be taken.
    """
    if reason := reason_against(target, model, recipe):
        instead = _suggestion(target, model, recipe) or _of_others(target, model, load_target)
        raise UnusableInput(f"{recipe} cannot be made of {model.name}: {reason}{instead}")


def _of_others(target: Target, model: Model, load_target: Callable[[str], Target]) -> str:
    """What others make of this model, where the target does not take its task."""
    if model.task in target.tasks:
        return ""
    named = [(name, find_scheme(scheme)) for name, scheme in target.instead]
    recipes = [Recipe(name, scheme) for name, scheme in named if scheme is not None]
    taken = [str(each) for each in recipes if reason_against(load_target(each.target), model, each) is None]
    return f" {' and '.join(taken)} can be made of it." if taken else ""


def _suggestion(target: Target, model: Model, recipe: Recipe) -> str:
    """The scheme of nearest bits that the target makes of this model, where it has not the one that is asked for."""
    if recipe.scheme.name in target.schemes:
        return ""
    schemes = [scheme for scheme in map(find_scheme, target.schemes) if scheme is not None]
    known = [replace(recipe, scheme=scheme, options=()) for scheme in schemes]
    known.sort(key=lambda each: abs(each.scheme.bits_per_weight - recipe.scheme.bits_per_weight))
    nearest = next((each for each in known if reason_against(target, model, each) is None), None)
    return "" if nearest is None else f" Nearest in bits is {nearest}."


def reason_against(target: Target, model: Model, recipe: Recipe) -> str | None:
    """Why `target` does not take `model` by `recipe`; None when it does."""
    if recipe.scheme.name not in target.schemes:
        return f"the target {target.name} has no scheme {recipe.scheme.name}; `edgec targets` lists those that it has."
    for option in recipe.options:
        if option not in target.options:
            known = ", ".join(target.options) or "none"
            return f"the target {target.name} has no option +{option}; it has: {known}."
    if recipe.variant is not None and recipe.variant not in target.variants:
        known = ", ".join(f"@{name}" for name in target.variants) or "none"
        return f"the target {target.name} has no variant @{recipe.variant}; it has: {known}."
    if model.task not in target.tasks:
        taken = ", ".join(target.tasks)
        return f"the target {target.name} takes {taken}, not {model.task}. `edgec inspect` tells which targets take it."
    return target.refuse(model, recipe)


def longest_context(model: Model, same_up_to: int | None = None) -> int | None:
    """Tokens that a runtime can be given: as many as the model was trained for, and as its windows are the model's own."""
    return min((length for length in (model.geometry.context_length, same_up_to) if length), default=None)


def refuse_window(model: Model, recipe: Recipe, runtime: str, same_up_to: int | None) -> str | None:
    """Why not, where a context is asked for in which the runtime's attention has other windows than the model's."""
    asked = recipe.shapes.context_length
    if same_up_to is None or asked is None or asked <= same_up_to:
        return None
    return (
        f"layers of {model.name} that look back {same_up_to} tokens would see others in {runtime}, whose windows are "
        f"others or none. Ask for --context-length {same_up_to} or less."
    )
