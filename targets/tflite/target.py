"""tflite: LiteRT. Encoders and TensorFlow functions become a file of fixed shapes, language models a bundle for LiteRT-LM."""

from __future__ import annotations

from typing import Any

from compiler.lineage import lineage_of
from compiler.model import Model
from compiler.networks.families import refuse_network
from compiler.quantize.plan import ARRAYS, CODES, SAMPLES, own_codes, plan_codes, plan_samples, refuse_rows
from compiler.recipe import Recipe
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, FUNCTION, GENERATION, tasks_of
from compiler.tensorflow_function import ENVIRONMENT, TOOLS, read_signature
from compiler.tokenizer import end_of_text_ids
from targets.tflite.sizes import BARE, BY_ROW, IN_BLOCKS, IN_GROUPS, in_codes, lengths_of, nbytes

NAME = "tflite"
SCHEMES = ("fp32", "fp16", "int8", "int8-static", *BY_ROW, *IN_GROUPS, *IN_BLOCKS)
# What TensorFlow's own converter makes of a function.
_OF_FUNCTIONS = ("fp32", "fp16", "int8", "int8-static")
# The signature of an encoder; of several lengths each has its own, with the length behind the name.
MAIN = "main"
FILE = "model.tflite"
BUNDLE = "model.litertlm"
RANGES = "ranges.json"


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an input that is longer than the model takes, or rows that groups do not divide."""
    if model.kind == FUNCTION:
        return _refuse_function(model, recipe)
    if recipe.scheme.rounds_activations and (model.is_decoder or refuse_network(model)):
        return (
            "edgec measures the ranges that int8-static rounds to in encoders of its own, and in TensorFlow functions; "
            "use tflite:int8, which rounds inputs of products as they come."
        )
    longest = model.geometry.context_length
    asked = recipe.shapes.context_length if model.is_decoder else lengths_of(model, recipe)[-1]
    if longest and asked and model.takes == "text" and asked > longest:
        return f"the model takes at most {longest} tokens, the recipe asks for {asked}."
    reason = refuse_network(model)
    if model.is_decoder and reason:
        return reason
    if "lengths" in recipe.options and (model.is_decoder or model.takes != "text"):
        return "+lengths is for text encoders."
    if BARE in recipe.options and not model.is_decoder:
        return "+bare is for language models; a package of this model is a .tflite file already."
    if "lengths" in recipe.options and reason:
        return f"+lengths is for networks that edgec re-authors, and {reason}"
    if model.is_decoder and not end_of_text_ids(model.folder):
        return "it names no token that ends a text (eos_token_id), and LiteRT-LM's engine needs one."
    return _refuse_codes(model, recipe)


def _refuse_function(model: Model, recipe: Recipe) -> str | None:
    """Why not, of a TensorFlow function: edgec's own codes, or ranges without samples to measure them on."""
    if recipe.scheme.name not in _OF_FUNCTIONS:
        return f"it is a TensorFlow function, which edgec makes {', '.join(_OF_FUNCTIONS)} of."
    inputs, _ = read_signature(model.config, model.name)
    if recipe.options:
        return (
            f"+{recipe.options[0]} is for {'text encoders' if recipe.options[0] == 'lengths' else 'language models'}."
        )
    if recipe.shapes.batch != 1 and not any(port.is_batched for port in inputs):
        return f"a batch of {recipe.shapes.batch} is asked for, and no input of it has a batch."
    if recipe.scheme.rounds_activations and recipe.quantization.calibration.arrays is None:
        return (
            "int8-static rounds to ranges that are measured on samples. Give some with --calibration FILE.npz, an array for "
            f"each input: {', '.join(port.name for port in inputs)}."
        )
    return None


def _refuse_codes(model: Model, recipe: Recipe) -> str | None:
    """Why a model cannot have the codes of a scheme; None when it can."""
    if in_codes(recipe).scheme.method and own_codes(model):
        return "it comes with codes of its own, whose scales XNNPACK may not take; use tflite:fp32 or tflite:fp16."
    if recipe.scheme.name in IN_GROUPS and (model.is_decoder or refuse_network(model)):
        return (
            "groups of 8-bit codes are products of their own in LiteRT, and edgec writes those of encoders that it "
            f"re-authors; use {NAME}:{recipe.scheme.name.rpartition('-')[0]}-pc."
        )
    return refuse_rows(model, in_codes(recipe))


def plan(model: Model, recipe: Recipe) -> Stage:
    """A network of edgec's own, or a TensorFlow function, in one stage; another encoder converted once, then stored."""
    if model.kind == FUNCTION:
        return _plan_function(model, recipe)
    if model.is_decoder or refuse_network(model) is None:
        return _plan_own(model, recipe)
    shapes = {"sequence_length": recipe.shapes.sequence_length, "batch": recipe.shapes.batch}
    tools = ("litert-torch", "ai-edge-litert", "torch", "transformers", "numpy")
    convert = Stage(
        "convert to LiteRT",
        "targets.tflite.convert:convert",
        {"task": model.task, **shapes},
        tools,
        ensures=(FILE,),
    )
    arguments: dict[str, Any] = {"scheme": recipe.scheme.name, "lineage": lineage_of(model, recipe), **shapes}
    inputs = {"base": convert}
    requires = {"base": (FILE,)}
    if in_codes(recipe).scheme.method:
        inputs["codes"] = _codes(model, recipe)
        requires["codes"] = (CODES,)
    function = "targets.tflite.convert:pack"
    label = f"pack LiteRT {recipe.scheme.name}"
    return Stage(label, function, arguments, ("ai-edge-litert", "numpy"), inputs, requires, (FILE,))


def _plan_own(model: Model, recipe: Recipe) -> Stage:
    arguments: dict[str, Any] = {"scheme": recipe.scheme.name, "lineage": lineage_of(model, recipe)}
    tools = ["ai-edge-litert", "torch", "transformers", "numpy"]
    if model.is_decoder:
        arguments |= {"context_length": recipe.shapes.context_length, "bare": BARE in recipe.options}
        tools.append("litert-lm-builder")
    else:
        arguments |= {"sequence_lengths": list(lengths_of(model, recipe)), "batch": recipe.shapes.batch}
    coded = in_codes(recipe)
    inputs = {"codes": _codes(model, recipe)} if coded.scheme.method else {}
    if recipe.scheme.rounds_activations:
        inputs["ranges"] = _plan_ranges(model, recipe)
    return Stage(
        "lower to LiteRT",
        "targets.tflite.decoder:lower_decoder" if model.is_decoder else "targets.tflite.encoder:lower_encoder",
        arguments,
        tuple(tools),
        inputs,
        {name: {"codes": (CODES,), "ranges": (RANGES,)}[name] for name in inputs},
        (BUNDLE if model.is_decoder else FILE,),
    )


def _codes(model: Model, recipe: Recipe) -> Stage:
    return plan_codes(model, in_codes(recipe), positive_scales=True, tables_by_row=True)


def _plan_ranges(model: Model, recipe: Recipe) -> Stage:
    return Stage(
        "measure ranges",
        "targets.tflite.ranges:measure_ranges",
        {"task": model.task},
        ("torch", "numpy"),
        {"samples": plan_samples(model, recipe.quantization)},
        {"samples": (SAMPLES,)},
        (RANGES,),
    )


def _plan_function(model: Model, recipe: Recipe) -> Stage:
    measured = recipe.scheme.rounds_activations
    return Stage(
        "convert to LiteRT",
        "targets.tflite.function:convert_function",
        {"scheme": recipe.scheme.name, "batch": recipe.shapes.batch, "lineage": lineage_of(model, recipe)},
        (*TOOLS, "ai-edge-litert"),
        {"samples": plan_samples(model, recipe.quantization)} if measured else {},
        {"samples": (ARRAYS,)} if measured else {},
        (FILE,),
        environment=ENVIRONMENT,
    )


def _nbytes(model: Model, recipe: Recipe) -> int | None:
    return None if model.kind == FUNCTION else nbytes(model, recipe)


TARGET = Target(
    name=NAME,
    extra="tflite",
    schemes=SCHEMES,
    tasks=(*tasks_of(GENERATION), *tasks_of(ENCODING), *tasks_of(FUNCTION)),
    plan=plan,
    refuse=refuse,
    nbytes=_nbytes,
    # +lengths: a text encoder with a signature for each of several lengths, not one length.
    # +bare: a language model's graph as a .tflite file too, beside the bundle that holds it.
    options=("lengths", BARE),
    engines=("xnnpack", "gpu", "nnapi"),
    place="targets.tflite.placement:place_files",
)
