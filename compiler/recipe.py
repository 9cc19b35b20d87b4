"""Recipe: target + scheme + shapes + task, written `target:scheme[@variant][+option...]`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from compiler.errors import UnusableInput
from compiler.quality import LEAST, QUALITIES
from compiler.quantization import Quantization, quantization_from_full
from compiler.scheme import ALIASES, SCHEMES, Scheme, find_scheme

IMATRIX = "imatrix"

# Of tokens, samples, rounds and threads: more than anything here has, and few enough for every runtime's own numbers.
LARGEST = 1 << 24
# Runtimes make as many as they are told, and end where the system has no more.
MOST_THREADS = 1024

_GRAMMAR = re.compile(
    r"(?P<target>[a-z][a-z0-9]*):(?P<scheme>[A-Za-z][A-Za-z0-9_-]*)"
    r"(?:@(?P<variant>[a-z0-9][a-z0-9_.-]*))?(?P<options>(?:\+[a-z][a-z0-9_-]*)*)"
)


@dataclass(frozen=True)
class Shapes:
    """The shapes that a package is made for.

    Attributes:
        context_length: tokens a language model must be able to hold; None means what the model was trained for.
        sequence_length: tokens of one encoder input where the container's shapes are fixed.
        batch: inputs at once where the container's shapes are fixed.
    """

    context_length: int | None = None
    sequence_length: int = 128
    batch: int = 1


# Of `+lengths`: texts are padded to the next of these.
_LENGTHS = (64, 128, 256, 512)


def lengths_up_to(longest: int | None) -> tuple[int, ...]:
    """The lengths of an encoder that takes several, in rising order; the last is the longest text that it takes, up to 512."""
    last = min(longest or _LENGTHS[-1], _LENGTHS[-1])
    return (*(length for length in _LENGTHS if length < last), last)


@dataclass(frozen=True)
class Recipe:
    """How one package is to be made. `str(recipe)` is the short form; `full()` has every default resolved.

    Attributes:
        thresholds: limits of its own that `verify` holds the package to beside its quality, `max_FIGURE` or `min_FIGURE`
            (each kind in runtimes/kinds/ has its figures).
        min_quality: the least quality that `verify` lets pass, a word of compiler/quality.py.
    """

    target: str
    scheme: Scheme
    variant: str | None = None
    options: tuple[str, ...] = ()
    shapes: Shapes = Shapes()
    task: str | None = None
    thresholds: tuple[tuple[str, float], ...] = ()
    quantization: Quantization = field(default_factory=Quantization)
    min_quality: str = LEAST

    def __str__(self) -> str:
        variant = f"@{self.variant}" if self.variant else ""
        return f"{self.target}:{self.scheme.name}{variant}" + "".join(f"+{option}" for option in self.options)

    @property
    def folder_name(self) -> str:
        """The package's folder name: the short form with characters that every file system takes."""
        return folder_name_of(str(self))

    @property
    def uses_quantization(self) -> bool:
        """Whether `quantization` has a say: the codes are ours, or something else is measured on calibration samples."""
        return bool(self.scheme.method) or IMATRIX in self.options or self.scheme.rounds_activations

    def full(self) -> dict[str, object]:
        """The recipe as JSON, defaults resolved; `recipe_from_full` reads it back."""
        return {
            "target": self.target,
            "scheme": self.scheme.name,
            "variant": self.variant,
            "options": list(self.options),
            "shapes": asdict(self.shapes),
            "task": self.task,
            "thresholds": dict(self.thresholds),
            "quantization": self.quantization.full() if self.uses_quantization else None,
            "min_quality": self.min_quality,
        }


def folder_name_of(recipe: str) -> str:
    """A recipe's short form with characters that every file system takes."""
    return re.sub("[:@+]", "-", recipe)


def title_of(recipe: str, folder: str) -> str:
    """A package for people: its recipe, and its folder's name where that says more."""
    return recipe if folder == folder_name_of(recipe) else f"{recipe} ({folder})"


_SHAPE_WORDS = {"context_length": "context", "sequence_length": "sequence", "batch": "batch"}


def folder_names(recipes: Sequence[Recipe]) -> list[str]:
    """The folder name of each recipe's package; recipes that differ in nothing but shapes have these in their names.

    Raises:
        UnusableInput: two recipes are equal, or differ in what no name tells.
    """
    names = []
    for recipe in recipes:
        alike = [asdict(each.shapes) for each in recipes if each.folder_name == recipe.folder_name]
        own = asdict(recipe.shapes)
        apart = [key for key in _SHAPE_WORDS if own[key] is not None and len({each[key] for each in alike}) > 1]
        told = [f"-{_SHAPE_WORDS[key]}{own[key]}" for key in apart]
        names.append("".join([recipe.folder_name, *told]))
    if twice := [name for name in names if names.count(name) > 1]:
        raise UnusableInput(
            f"Two recipes would make the package {twice[0]}: they are equal, or differ only in settings that its name does "
            "not tell. Build one of them into another folder."
        )
    return names


def recipe_from_full(full: dict) -> Recipe:
    """The inverse of `Recipe.full`.

    Raises:
        UnusableInput: a field is missing or unknown.
    """
    try:
        scheme = find_scheme(full["scheme"])
        if scheme is None:
            raise UnusableInput(f"Scheme {full['scheme']!r} is not known to this version of edgec.")
        return Recipe(
            full["target"],
            scheme,
            full["variant"],
            tuple(full["options"]),
            Shapes(**full["shapes"]),
            full["task"],
            tuple(sorted((str(name), float(limit)) for name, limit in full["thresholds"].items())),
            quantization_from_full(full["quantization"]) if full.get("quantization") else Quantization(),
            QUALITIES[QUALITIES.index(full["min_quality"])],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnusableInput(
            "The full recipe is not of the form that this version of edgec writes. Build it again."
        ) from error


def parse_recipe(
    text: str, targets: Sequence[str], schemes_of: Callable[[str], Sequence[str]] = lambda target: ()
) -> Recipe:
    """Parse `target:scheme[@variant][+option...]`.

    Args:
        text: the short form.
        targets: those that there are.
        schemes_of: the schemes that a target takes; what is suggested exists there.

    Raises:
        UnusableInput: the text is not of that form, or names a target or scheme that does not exist; the message
            suggests the nearest that does.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise UnusableInput(
            f"Recipe {text!r} is not of the form target:scheme[@variant][+option], as in gguf:Q4_K_M or "
            f"onnx:int4-rtn-g32.{_suggest(text, targets, schemes_of)}"
        )
    target, options = match["target"], tuple(match["options"].split("+")[1:])
    if target not in targets:
        raise UnusableInput(f"Recipe {text!r}: there is no target {target!r}.{_suggest(text, targets, schemes_of)}")
    scheme = find_scheme(match["scheme"])
    if scheme is None:
        raise UnusableInput(
            f"Recipe {text!r}: there is no scheme {match['scheme']!r}.{_suggest(text, (target,), schemes_of)} "
            "`edgec targets` lists them all."
        )
    if len(set(options)) != len(options):
        raise UnusableInput(f"Recipe {text!r} names an option twice.")
    return Recipe(target, scheme, match["variant"], options)


def _suggest(text: str, targets: Sequence[str], schemes_of: Callable[[str], Sequence[str]]) -> str:
    every = [scheme.name for scheme in SCHEMES]
    pairs = [(target, name) for target in targets for name in schemes_of(target) or every]
    pairs += [(target, alias) for target, name in pairs for alias, full in ALIASES if full == name]
    known = {f"{target}:{name}".lower(): f"{target}:{name}" for target, name in pairs}
    nearest = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {known[nearest[0]]}?" if nearest else f" Targets are: {', '.join(targets)}."
