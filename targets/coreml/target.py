"""coreml: Apple's Core ML, an .mlpackage for the Neural Engine, written on any machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler.lineage import lineage_of
from compiler.model import Model
from compiler.networks.families import refuse_network
from compiler.quantize.plan import CODES, PALETTE_ROWS, SAMPLES, plan_codes, plan_samples, refuse_rows
from compiler.recipe import Recipe, lengths_up_to
from compiler.scheme import find_scheme
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, GENERATION, tasks_of
from targets.coreml.sizes import nbytes

NAME = "coreml"
_CODES = tuple(
    f"int{bits}-{method}-g{group}" for method in ("rtn", "gptq") for bits in (4, 8) for group in (32, 64, 128)
)
SCHEMES = ("fp16", "int8", "w8a8", "lut4", "lut6", *_CODES)
# What the stage that measures activations writes.
RANGES = "ranges.json"
# Core ML's own words mean: int8, a scale for each row; lut, a palette for 8 rows, or before iOS 18 for the whole matrix.
_INT8 = "int8-rtn-pc"
_ROW_SCHEMES = ("int8", "w8a8")
_NEWEST = "ios18"
# iOS maps no file of more than a gigabyte; a package ends well below.
_PART_BYTES = 950_000_000
_LONGEST_CONTEXT = 1024
_CONTEXT_STEP = 32


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: a family that no re-authored network covers, shapes beyond the model's, an iOS too old for the scheme."""
    variant = recipe.variant or _NEWEST
    if recipe.scheme.rounds_activations and model.is_decoder:
        return "activations in 8 bits are for encoders; use int8."
    if recipe.scheme.rounds_activations and variant == "ios16":
        return "activations in 8 bits need iOS 17, and @ios16 is older; leave the variant out, or use int8."
    if recipe.scheme.block and variant != "ios18":
        return (
            f"block-wise codes need iOS 18, and @{variant} is older; leave the variant out, or use int8, lut4 or lut6."
        )
    longest = model.geometry.context_length
    asked = recipe.shapes.context_length if model.is_decoder else recipe.shapes.sequence_length
    if longest and asked and asked > longest and "lengths" not in recipe.options and model.takes == "text":
        return f"the model takes at most {longest} tokens, the recipe asks for {asked}."
    if model.is_decoder and _context(model, recipe) % _CONTEXT_STEP:
        return (
            f"the Neural Engine takes caches whose length is a multiple of {_CONTEXT_STEP}, and {_context(model, recipe)} is "
            "none; choose another --context-length."
        )
    if "argmax" in recipe.options and not model.is_decoder:
        return "+argmax is for language models."
    if "lengths" in recipe.options and (model.is_decoder or model.takes != "text"):
        return "+lengths is for text encoders."
    if reason := refuse_network(model):
        return reason
    return refuse_rows(model, _by_row(recipe) if recipe.scheme.name in _ROW_SCHEMES else recipe)


def _by_row(recipe: Recipe) -> Recipe:
    """The recipe with our own scheme for what Core ML's word int8 means."""
    by_row = find_scheme(_INT8)
    assert by_row is not None
    return replace(recipe, scheme=by_row)


def _context(model: Model, recipe: Recipe) -> int:
    """Positions of the cache: what is asked for, else what the model was trained for up to a limit."""
    trained = model.geometry.context_length or _LONGEST_CONTEXT
    return recipe.shapes.context_length or min(trained, _LONGEST_CONTEXT)


def plan(model: Model, recipe: Recipe) -> Stage:
    """Codes where the scheme has them, then one stage that lowers."""
    arguments: dict[str, Any] = {
        "layout": "plain" if "plain" in recipe.options else "ane",
        "ios": int((recipe.variant or _NEWEST).removeprefix("ios")),
        "lineage": lineage_of(model, recipe),
    }
    if model.is_decoder:
        arguments |= {"context_length": _context(model, recipe), "part_bytes": _PART_BYTES}
        arguments |= {"bits": recipe.scheme.bits_per_weight, "greedy": "argmax" in recipe.options}
        function = "targets.coreml.decoder:lower_decoder"
    else:
        lengths = [recipe.shapes.sequence_length]
        if "lengths" in recipe.options:
            lengths = list(lengths_up_to(model.geometry.context_length))
        arguments |= {"sequence_lengths": lengths, "batch": recipe.shapes.batch}
        function = "targets.coreml.encoder:lower_encoder"
    inputs = _codes(model, recipe)
    requires = {name: {"codes": (CODES,), "ranges": (RANGES,)}[name] for name in inputs}
    tools = ("coremltools", "torch", "numpy", "transformers")
    ensures = ("*.mlpackage/*",)
    # On macOS the system itself says where operators run.
    return Stage("lower to Core ML", function, arguments, tools, inputs, requires, ensures, machine_dependent=True)


def _codes(model: Model, recipe: Recipe) -> dict[str, Stage]:
    if recipe.scheme.name in _ROW_SCHEMES:
        codes = plan_codes(model, _by_row(recipe))
        if not recipe.scheme.rounds_activations:
            return {"codes": codes}
        return {"codes": codes, "ranges": _plan_ranges(model, recipe)}
    if recipe.scheme.method == "lut":
        rows = PALETTE_ROWS if (recipe.variant or _NEWEST) == _NEWEST else 0
        return {"codes": plan_codes(model, recipe, rows_per_palette=rows)}
    return {"codes": plan_codes(model, recipe)} if recipe.scheme.method else {}


def _plan_ranges(model: Model, recipe: Recipe) -> Stage:
    return Stage(
        "measure activations",
        "targets.coreml.activations:measure_ranges",
        {"task": model.task},
        ("torch", "numpy"),
        {"samples": plan_samples(model, recipe.quantization)},
        {"samples": (SAMPLES,)},
        (RANGES,),
    )


TARGET = Target(
    name=NAME,
    extra="coreml",
    schemes=SCHEMES,
    tasks=(*tasks_of(GENERATION), *tasks_of(ENCODING)),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
    # +plain: batch, sequence, channels, in place of the engine's layout. +argmax: a language model gives the token, not
    # logits. +lengths: an encoder takes texts of several lengths, not of one.
    options=("plain", "argmax", "lengths"),
    variants=("ios16", "ios17", "ios18"),
    engines=("ane",),
    place="targets.coreml.compute_plan:place_packages",
)
