"""Plan: what to ship to a device. For every recipe its bytes, memory, speed and quality, told before anything is built."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from benchmarks.history import Seen, settings_of
from benchmarks.prediction import (
    COSTS,
    Range,
    bound_tok_per_s,
    cache_bytes,
    predict_memory,
    predict_seconds,
    predict_tok_per_s,
    read_bytes_of,
    runtime_for,
)
from compiler.errors import EdgecError, UnusableInput
from compiler.model import Model
from compiler.needs import Need, build_need
from compiler.pace import pace
from compiler.quality import is_at_least
from compiler.quantization import Quantization
from compiler.recipe import Recipe, Shapes
from compiler.scheme import CODE_SCHEMES, find_scheme
from compiler.size import matrices_of, vector_weights
from compiler.target import Target, longest_context, reason_against
from runtimes.context import DEFAULT_CONTEXT
from runtimes.devices.profile import DeviceProfile
from runtimes.kinds import kind_of_task
from runtimes.verify.verify import quality_of

_EXPECTED = Path(__file__).with_name("expected_quality.toml")
_BUDGETS = (5.5, 4.5)
PROMPT_TOKENS = 128
_OF_MEMORY = 0.8  # what a system leaves to one program
Known = Literal["measured", "expected", "unknown"]


@dataclass(frozen=True)
class Wishes:
    """What a package must hold.

    Attributes:
        context: tokens of a language model's cache; None for 2048, or what the model takes.
        max_memory_bytes: at most; None for four fifths of the device's.
        min_tok_per_s, max_kl: limits; None for none.
        min_quality: the least word.
        batch: texts at the same time, each with a cache of its own.
    """

    context: int | None = None
    max_memory_bytes: int | None = None
    min_tok_per_s: float | None = None
    max_kl: float | None = None
    min_quality: str = "good"
    batch: int = 1


@dataclass(frozen=True)
class Option:
    """A recipe on a device.

    Attributes:
        recipe: its short form.
        flags: options of `build` that belong to it.
        package_bytes: told from shapes.
        memory: the largest resident set in bytes; None where nothing is known of its runtime.
        bound_tok_per_s: what the device's memory allows at most, of all texts together.
        tok_per_s: of decode; None for encoders, of several texts, or where nothing is known.
        first_s: seconds of 128 tokens at once: a prompt up to the first token, or an encoder's input; None where too little is
            known.
        quality: a word; None where nothing is known.
        figures: what it follows from.
        known: whether that was measured of this model, or is what others had by this recipe.
        decodes: whether it is a language model.
        cores: of an accelerator, that share it.
        build: what building it takes of this machine, after what it learned from its own builds; None where that is unknown.
        misses: which wishes it fails, as sentences.
        notes: what else is to be known of it, as sentences.
    """

    recipe: str
    flags: tuple[str, ...]
    package_bytes: int
    memory: Range | None
    bound_tok_per_s: float | None
    tok_per_s: Range | None
    first_s: Range | None
    quality: str | None
    figures: dict[str, float]
    known: Known
    decodes: bool = False
    cores: int = 1
    build: Need | None = None
    misses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def distance(self) -> float | None:
        """How far it is from the fp32 model, by the first figure that is known."""
        return next((self.figures[name] for name in ("mean_kl", "relative_error") if name in self.figures), None)


@dataclass(frozen=True)
class Plan:
    """What suits a device.

    Attributes:
        options: every recipe whose runtime exists there, the smallest first.
        front: those that no other beats in memory, speed and quality at once.
        chosen: the fastest that holds every wish; None where none does.
        refused: a sentence for each target that makes nothing for it, or whose runtime does not exist there.
        unfit: a sentence for each other recipe that the model cannot have.
        context: tokens of the cache that memory was told for; None for encoders.
    """

    options: tuple[Option, ...]
    front: tuple[Option, ...]
    chosen: Option | None
    refused: tuple[str, ...]
    unfit: tuple[str, ...]
    context: int | None


def plan(
    model: Model,
    digest: str,
    profile: DeviceProfile,
    wishes: Wishes,
    load_target: Callable[[str], Target],
    history: Sequence[Seen],
    others: Sequence[str] = (),
) -> Plan:
    """Every recipe of the targets that a device runs, held to the wishes; `others` are all targets that there are.

    Raises:
        UnusableInput: a longer context is wished for than the model takes, or a batch of an encoder.
    """
    context = _context(model, wishes.context, wishes.batch)
    history = [each for each in history if each.machine == profile.title]
    options, refused, unfit = [], list[str](), list[str]()
    for name in profile.targets:
        if others and name not in others:
            refused.append(f"{name}: edgec makes no packages for it.")
            continue
        target = load_target(name)
        made, against = _options(target, model, digest, profile, wishes, context, history)
        options += made
        if made:
            unfit += [f"{recipe}: {reason}" for recipe, reason in against]
        else:
            refused.append(f"{name}: {against[-1][1] if against else 'nothing is known of its bytes.'}")
    refused += [f"{name}: there is no runtime of it for this device." for name in others if name not in profile.targets]
    options.sort(key=lambda each: (each.package_bytes, each.recipe))
    held = [each for each in options if not each.misses]
    chosen = max(held, key=_worth, default=None)
    return Plan(
        tuple(options),
        tuple(_front(options)),
        chosen,
        tuple(refused),
        tuple(unfit),
        context if model.is_decoder else None,
    )


def _context(model: Model, asked: int | None, batch: int) -> int:
    longest = longest_context(model)
    if not model.is_decoder and batch > 1:
        raise UnusableInput(f"--batch is for language models, each of whose texts has a cache; {model.name} is none.")
    if model.is_decoder and longest is not None and asked is not None and asked > longest:
        raise UnusableInput(f"{model.name} takes {longest} tokens at most, and {asked} are asked for.")
    return asked or min(longest or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _worth(option: Option) -> tuple[float, float]:
    """The fastest, and of equal ones the smallest in memory."""
    return _speed(option), -(option.memory.middle if option.memory is not None else float(option.package_bytes))


def _speed(option: Option) -> float:
    """Tokens a second of what decodes, else inputs a second; 0 where it is not known."""
    if option.tok_per_s is not None:
        return option.tok_per_s.middle
    return 1 / option.first_s.middle if option.first_s is not None and not option.decodes else 0.0


def _options(
    target: Target,
    model: Model,
    digest: str,
    profile: DeviceProfile,
    wishes: Wishes,
    context: int,
    history: Sequence[Seen],
) -> tuple[list[Option], list[tuple[str, str]]]:
    """Recipes that can be had, and why others cannot."""
    made, refused, rate = [], list[tuple[str, str]](), pace()
    for name in target.schemes:
        for recipe, cores in _recipes(target, name, model, profile, context):
            budget = recipe.quantization.target_bpw
            try:
                against = reason_against(target, model, recipe)
                forced = 0 if against else len(target.foresee(model, recipe))
                nbytes = None if against else _nbytes(target, model, recipe)
                build = None if nbytes is None else _needed(target, model, recipe, rate)
            except EdgecError as error:
                against, nbytes = str(error), None
            if nbytes is None:
                refused.append((str(recipe), against or "nothing is known of its bytes."))
                continue
            flags = ("--target-bpw", f"{budget:g}") if budget else ()
            stored = 8 * nbytes / _weights(model) if forced else None
            option = _option(
                model, digest, profile, recipe, flags, nbytes, context, history, wishes.batch, stored, cores
            )
            other = [f"stores {forced} tensors in another type"] if forced else []
            notes = _one_at_a_time(target, model, recipe, wishes.batch)
            made.append(replace(option, build=build, misses=(*other, *_misses(option, profile, wishes)), notes=notes))
    return made, refused


def _recipes(
    target: Target, scheme_name: str, model: Model, profile: DeviceProfile, context: int
) -> list[tuple[Recipe, int]]:
    """The recipes of a scheme, of each budget, and shared by an accelerator's cores; how many cores each takes."""
    scheme = find_scheme(scheme_name)
    assert scheme is not None
    shapes = Shapes(context_length=context) if model.is_decoder else Shapes()
    given = Recipe(target.name, scheme, shapes=shapes)
    found = [
        (replace(given, quantization=Quantization(target_bpw=budget)), 1)
        for budget in (_BUDGETS if scheme.mixed else (None,))
    ]
    spread = target.spread.items() if model.is_decoder else ()
    return [
        *found,
        *((replace(given, options=(name,)), cores) for name, cores in spread if cores <= (profile.engine_cores or 1)),
    ]


def _one_at_a_time(target: Target, model: Model, recipe: Recipe, batch: int) -> tuple[str, ...]:
    """That a package does not take so many texts at once, whatever memory there is for them."""
    if batch == 1:
        return ()
    batched = replace(recipe, shapes=replace(recipe.shapes, batch=batch))
    against = reason_against(target, model, batched)
    return ("counted, not built: packages take one text at a time",) if against else ()


def _needed(target: Target, model: Model, recipe: Recipe, rate: float) -> Need | None:
    """What building takes where this machine's pace is `rate`."""
    try:
        need = build_need(target.plan(model, recipe), model)
    except EdgecError:
        return None
    return None if need is None else replace(need, seconds=rate * need.seconds)


def _weights(model: Model) -> int:
    return sum(each.elements for each in matrices_of(model)) + vector_weights(model)


def _nbytes(target: Target, model: Model, recipe: Recipe) -> int | None:
    """Bytes of the package; of a budget's, its bits for all weights and what else is in a package of floats."""
    budget = recipe.quantization.target_bpw
    halves = next(
        (scheme for name in ("F16", "fp16") if name in target.schemes and (scheme := find_scheme(name))), None
    )
    if budget is None or halves is None:
        return target.nbytes(model, recipe)
    matrices, vectors = sum(each.elements for each in matrices_of(model)), vector_weights(model)
    whole = target.nbytes(model, replace(recipe, scheme=halves, quantization=Quantization()))
    return None if whole is None else int(whole - 2 * matrices - 4 * vectors + budget * (matrices + vectors) / 8)


def _option(
    model: Model,
    digest: str,
    profile: DeviceProfile,
    recipe: Recipe,
    flags: tuple[str, ...],
    nbytes: int,
    context: int,
    history: Sequence[Seen],
    batch: int,
    stored: float | None,
    cores: int,
) -> Option:
    runtime = runtime_for(recipe.target, model)
    bound = speed = None
    read = read_bytes_of(model, recipe, nbytes)
    if model.is_decoder:
        reads = runtime is not None and COSTS[runtime].reads_cache
        cached = cache_bytes(model, recipe, runtime, context * batch, cores) if reads else 0
        bound = bound_tok_per_s(profile, model, read, batch, cached)
        # How a runtime shares its weights' reads among texts was not measured.
        speed = predict_tok_per_s(profile, model, recipe, read, runtime, history, stored) if batch == 1 else None
    # How many cores share it says nothing of its quality.
    plain = replace(recipe, options=())
    figures, known = _figures(model, digest, " ".join((str(plain), *flags)), plain, history)
    return Option(
        str(recipe),
        flags,
        nbytes,
        predict_memory(model, digest, recipe, (read, nbytes), runtime, context * batch, history, stored, cores),
        bound,
        speed,
        _times(batch, predict_seconds(profile, model, recipe, PROMPT_TOKENS, runtime, history, stored)),
        quality_of(dict(figures), kind_of_task(model.task)) if figures else None,
        figures,
        known,
        model.is_decoder,
        cores,
    )


def _times(count: int, each: Range | None) -> Range | None:
    """So many prompts one after the other."""
    return None if each is None else Range(count * each.low, count * each.middle, count * each.high)


def _figures(
    model: Model, digest: str, name: str, recipe: Recipe, history: Sequence[Seen]
) -> tuple[dict[str, float], Known]:
    """What verify found of this model by this recipe here, or else what the recipe cost a model that was measured for that."""
    settings = settings_of(recipe.full())
    own = [each.figures for each in history if (each.model, each.settings) == (digest, settings) and each.figures]
    if own:
        return own[-1], "measured"
    table = expected_quality().get("language" if model.is_decoder else "encoders", {})
    expected = table.get(name) or (_of_same_codes(table, name) if recipe.scheme in CODE_SCHEMES else {})
    return expected, "expected" if expected else "unknown"


def _of_same_codes(table: Mapping[str, dict[str, float]], name: str) -> dict[str, float]:
    """What another container cost that carries the same codes; the worst of several."""
    alike = [figures for other, figures in table.items() if other.partition(":")[2] == name.partition(":")[2]]
    return max(alike, key=lambda each: each.get("mean_kl", each.get("relative_error", 0.0)), default={})


@cache
def expected_quality() -> dict[str, dict[str, dict[str, float]]]:
    """What recipes cost the models that `python -m benchmarks.peers.expected_quality` measured: by kind, recipe and figure."""
    document: dict[str, dict[str, dict[str, float]]] = tomllib.loads(_EXPECTED.read_text(encoding="utf-8"))
    return document


def _misses(option: Option, profile: DeviceProfile, wishes: Wishes) -> tuple[str, ...]:
    found = []
    room = wishes.max_memory_bytes
    if room is None and profile.memory is not None:
        # Nothing else is in an accelerator's memory, of which each core has its part.
        part = option.cores / profile.engine_cores if profile.engine_cores else _OF_MEMORY
        room = int(profile.memory.amount * part)
    least = option.memory.high if option.memory is not None else float(option.package_bytes)
    if room is not None and least > room:
        lacking = f"{(least - room) / 1e6:,.0f} MB more than it may take"
        found.append(f"needs up to {least / 1e6:,.0f} MB of memory, {lacking}")
    if wishes.min_tok_per_s is not None and (
        option.tok_per_s is None or option.tok_per_s.middle < wishes.min_tok_per_s
    ):
        found.append("is too slow" if option.tok_per_s is not None else "its speed is not known")
    if option.quality is None:
        found.append("its quality is not known")
    elif not is_at_least(option.quality, wishes.min_quality):
        found.append(f"is {option.quality}")
    distance = option.figures.get("mean_kl")
    if wishes.max_kl is not None and (distance is None or distance > wishes.max_kl):
        found.append("its KL is not known" if distance is None else f"has a KL of {distance:.2g}")
    return tuple(found)


def _front(options: Sequence[Option]) -> list[Option]:
    """Options that no other is as good as in memory, speed and distance, and better in one of them."""
    known = [each for each in options if each.distance is not None]

    def marks(each: Option) -> tuple[float, float, float]:
        memory = each.memory.middle if each.memory is not None else float(each.package_bytes)
        assert each.distance is not None
        return memory, -_speed(each), each.distance

    def beaten(each: Option) -> bool:
        own = marks(each)
        others = [marks(other) for other in known if other is not each]
        return any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in others)

    return [each for each in known if not beaten(each)]
