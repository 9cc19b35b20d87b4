"""tflite: LiteRT. Encoders become a file with fixed shapes, language models a bundle for LiteRT-LM's engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler.lineage import lineage_of
from compiler.model import Model
from compiler.networks.families import refuse_network
from compiler.quantization import TABLE_GROUP
from compiler.quantize.plan import CODES, own_codes, plan_codes, refuse_rows
from compiler.recipe import Recipe, parse_recipe
from compiler.scheme import find_scheme
from compiler.size import (
    Matrix,
    bytes_of_codes,
    matrices_of,
    own_table_bits,
    packed_bytes,
    packed_tokenizer_bytes,
    processor_bytes,
    vector_weights,
)
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, GENERATION, tasks_of
from compiler.tokenizer import end_of_text_ids

NAME = "tflite"
_BY_ROW = ("int8-rtn-pc", "int8-gptq-pc")
_IN_BLOCKS = tuple(f"int4-{method}-g{group}" for method in ("rtn", "gptq") for group in (32, 64, 128))
SCHEMES = ("fp32", "fp16", "int8", *_BY_ROW, *_IN_BLOCKS)
# LiteRT's own word int8 means a scale for each row, and inputs that are rounded while they are multiplied.
_INT8 = "int8-rtn-pc"
FILE = "model.tflite"
BUNDLE = "model.litertlm"
# Offsets within a flatbuffer are signed and have 32 bits; operators and scales take room beside the weights.
LARGEST_BYTES = 2**31 - 2**27
_FLOAT_BYTES = 4
# Of a block; of a row, a float32 and a zero point, which is 0, in 64 bits.
_SCALE_BYTES, _ROW_BYTES = 2, 12
# Operators and their results of a language model's layer in all signatures, and what a bundle has beside (measured).
_LAYER_BYTES = 20_000
_BUNDLE_BYTES = 40_000


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an input that is longer than the model takes, or rows that groups do not divide."""
    longest = model.geometry.context_length
    asked = recipe.shapes.context_length if model.is_decoder else recipe.shapes.sequence_length
    if longest and asked and model.takes == "text" and asked > longest:
        return f"the model takes at most {longest} tokens, the recipe asks for {asked}."
    if model.is_decoder and (reason := refuse_network(model)):
        return reason
    if model.is_decoder and not end_of_text_ids(model.folder):
        return "it names no token that ends a text (eos_token_id), and LiteRT-LM's engine needs one."
    if (size := nbytes(model, recipe)) > LARGEST_BYTES:
        ends = f"{LARGEST_BYTES / 1e9:.1f} GB"
        return f"the file would have {size / 1e9:.1f} GB, and one of edgec's ends at {ends}. {_smaller(model)}"
    if _in_codes(recipe).scheme.method and own_codes(model):
        return "it comes with codes of its own, whose scales XNNPACK may not take; use tflite:fp32 or tflite:fp16."
    return refuse_rows(model, _in_codes(recipe))


def _smaller(model: Model) -> str:
    """The largest scheme that suits the model and whose file is small enough."""
    recipes = [parse_recipe(f"{NAME}:{name}", (NAME,)) for name in SCHEMES]
    sizes = {str(each): nbytes(model, each) for each in recipes if refuse_rows(model, _in_codes(each)) is None}
    fitting = [recipe for recipe, size in sizes.items() if size <= LARGEST_BYTES]
    if not fitting:
        return f"No scheme of {NAME} makes it small enough; `edgec inspect` tells what other targets take."
    return f"Use {max(fitting, key=sizes.__getitem__)}."


def _in_codes(recipe: Recipe) -> Recipe:
    """The recipe with edgec's own scheme for what LiteRT's word int8 means."""
    by_row = find_scheme(_INT8)
    assert by_row is not None
    return replace(recipe, scheme=by_row) if recipe.scheme.name == "int8" else recipe


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes."""
    total, in_codes = _FLOAT_BYTES * vector_weights(model) + _bytes_beside(model), _in_codes(recipe)
    for matrix in matrices_of(model):
        if not in_codes.scheme.method or matrix.place == "elsewhere":
            total += packed_bytes(matrix.elements, 16 if recipe.scheme.name == "fp16" else 32)
        elif not in_codes.scheme.block:
            total += bytes_of_codes(matrix, in_codes.scheme.code_bits, matrix.row, True, _ROW_BYTES)
        elif matrix.place == "block":
            total += bytes_of_codes(matrix, in_codes.scheme.code_bits, in_codes.scheme.block, True, _SCALE_BYTES)
        else:
            total += _bytes_of_table(model, in_codes, matrix)
    return total


def _bytes_beside(model: Model) -> int:
    """What is in a package beside weights."""
    if not model.is_decoder:
        return processor_bytes(model)
    return packed_tokenizer_bytes(model.folder) + _LAYER_BYTES * model.geometry.layers + _BUNDLE_BYTES


def _bytes_of_table(model: Model, recipe: Recipe, table: Matrix) -> int:
    bits = own_table_bits(model, recipe, table)
    if bits is None:
        return packed_bytes(table.elements, 32)
    group, scale = (table.row, _ROW_BYTES) if bits == 8 else (TABLE_GROUP, _SCALE_BYTES)
    return bytes_of_codes(table, bits, group, True, scale)


def plan(model: Model, recipe: Recipe) -> Stage:
    """A decoder in one stage; an encoder traced and converted (shared by all schemes), then stored."""
    if model.is_decoder:
        return _plan_decoder(model, recipe)
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
    if _in_codes(recipe).scheme.method:
        inputs["codes"] = plan_codes(model, _in_codes(recipe), positive_scales=True, tables_by_row=True)
        requires["codes"] = (CODES,)
    function = "targets.tflite.convert:pack"
    label = f"pack LiteRT {recipe.scheme.name}"
    return Stage(label, function, arguments, ("ai-edge-litert", "numpy"), inputs, requires, (FILE,))


def _plan_decoder(model: Model, recipe: Recipe) -> Stage:
    arguments: dict[str, Any] = {
        "scheme": recipe.scheme.name,
        "context_length": recipe.shapes.context_length,
        "lineage": lineage_of(model, recipe),
    }
    coded = _in_codes(recipe)
    codes = plan_codes(model, coded, positive_scales=True, tables_by_row=True) if coded.scheme.method else None
    return Stage(
        "lower to LiteRT",
        "targets.tflite.decoder:lower_decoder",
        arguments,
        ("ai-edge-litert", "litert-lm-builder", "torch", "transformers", "numpy"),
        {"codes": codes} if codes else {},
        {"codes": (CODES,)} if codes else {},
        (BUNDLE,),
    )


TARGET = Target(
    name=NAME,
    extra="tflite",
    schemes=SCHEMES,
    tasks=(*tasks_of(GENERATION), *tasks_of(ENCODING)),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
    engines=("xnnpack",),
    place="targets.tflite.placement:place_files",
)
