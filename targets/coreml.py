"""coreml: Apple's Core ML, an .mlpackage for the Neural Engine, written on any machine."""

from __future__ import annotations

from typing import Any

from compiler.lineage import origin_of
from compiler.model import ENCODER_TASKS, TEXT_GENERATION, Model
from compiler.networks.families import refuse_network
from compiler.quantize.plan import plan_codes, refuse_rows
from compiler.recipe import Recipe
from compiler.target import Stage

NAME = "coreml"
EXTRA = "coreml"
_CODES = tuple(
    f"int{bits}-{method}-g{group}" for method in ("rtn", "gptq") for bits in (4, 8) for group in (32, 64, 128)
)
SCHEMES = ("fp16", *_CODES)
OPTIONS: tuple[str, ...] = ("plain",)
VARIANTS = ("ios16", "ios17", "ios18")
_NEWEST = "ios18"


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: a family that no re-authored network covers, shapes beyond the model's, an iOS too old for the scheme."""
    if model.task not in (TEXT_GENERATION, *ENCODER_TASKS):
        return f"the task {model.task} is not one of {', '.join((TEXT_GENERATION, *ENCODER_TASKS))}."
    variant = recipe.variant or _NEWEST
    if recipe.scheme.method and variant != "ios18":
        return f"block-wise codes need iOS 18, and @{variant} is older; leave the variant out, or use fp16."
    longest = model.geometry.context_length
    asked = recipe.shapes.context_length if model.is_decoder else recipe.shapes.sequence_length
    if longest and asked and asked > longest and model.task != "image-classification":
        return f"the model takes at most {longest} tokens, the recipe asks for {asked}."
    if reason := refuse_network(model):
        return reason
    if recipe.scheme.method == "gptq" and model.task == "image-classification":
        return "there is no calibration text for images; use a round-to-nearest scheme such as int8-rtn-g32."
    return refuse_rows(model, recipe)


def plan(model: Model, recipe: Recipe) -> Stage:
    """Codes where the scheme has them, then one stage that lowers."""
    arguments: dict[str, Any] = {
        "scheme": recipe.scheme.name,
        "layout": "plain" if "plain" in recipe.options else "ane",
        "ios": int((recipe.variant or _NEWEST).removeprefix("ios")),
        "origin": origin_of(model, recipe),
    }
    if model.is_decoder:
        arguments["context_length"] = recipe.shapes.context_length
        function = "targets.coreml_lower:lower_decoder"
    else:
        arguments |= {"sequence_length": recipe.shapes.sequence_length, "batch": recipe.shapes.batch}
        function = "targets.coreml_lower:lower_encoder"
    inputs = (plan_codes(model, recipe),) if recipe.scheme.method else ()
    return Stage("lower to Core ML", function, arguments, ("coremltools", "torch", "numpy"), inputs)
