"""tflite: LiteRT's container, for text encoders with fixed shapes, through litert_torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compiler.lineage import lineage_of
from compiler.model import Model
from compiler.quantize.plan import CODES, plan_codes, refuse_rows
from compiler.recipe import Recipe
from compiler.scheme import find_scheme
from compiler.size import bytes_of_codes, code_bits, matrices_of, packed_bytes, processor_bytes, vector_weights
from compiler.stages.stage import Stage
from compiler.target import Target
from compiler.task import ENCODING, tasks_of

NAME = "tflite"
_BY_ROW = ("int8-rtn-pc", "int8-gptq-pc")
_IN_BLOCKS = tuple(f"int4-{method}-g{group}" for method in ("rtn", "gptq") for group in (32, 64, 128))
SCHEMES = ("fp32", "int8", *_BY_ROW, *_IN_BLOCKS)
# LiteRT's own word int8 means a scale for each row, and inputs that are rounded while they are multiplied.
_INT8 = "int8-rtn-pc"
FILE = "model.tflite"
_FLOAT_BYTES = 4


def refuse(model: Model, recipe: Recipe) -> str | None:
    """Why not: an input that is longer than the model takes, or rows that groups do not divide."""
    longest = model.geometry.context_length
    if longest and recipe.shapes.sequence_length > longest:
        return f"the model takes at most {longest} tokens, the recipe asks for {recipe.shapes.sequence_length}."
    return refuse_rows(model, _in_codes(recipe))


def _in_codes(recipe: Recipe) -> Recipe:
    """The recipe with edgec's own scheme for what LiteRT's word int8 means."""
    by_row = find_scheme(_INT8)
    assert by_row is not None
    return replace(recipe, scheme=by_row) if recipe.scheme.name == "int8" else recipe


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes."""
    total, in_codes = _FLOAT_BYTES * vector_weights(model) + processor_bytes(model), _in_codes(recipe)
    for matrix in matrices_of(model):
        if not in_codes.scheme.method or matrix.place == "elsewhere":
            total += packed_bytes(matrix.elements, 32)
        elif not in_codes.scheme.block:
            total += bytes_of_codes(matrix, in_codes.scheme.code_bits, matrix.row, True, _FLOAT_BYTES)
        else:
            codes = code_bits(model, in_codes, matrix)
            total += packed_bytes(matrix.elements, 32) if codes is None else bytes_of_codes(matrix, *codes, 2)
    return total


def plan(model: Model, recipe: Recipe) -> Stage:
    """Trace and convert (shared by all schemes), then store."""
    shapes = {"sequence_length": recipe.shapes.sequence_length, "batch": recipe.shapes.batch}
    tools = ("litert-torch", "ai-edge-litert", "torch", "transformers", "numpy")
    convert = Stage(
        "convert to LiteRT",
        "targets.tflite.convert:convert",
        {"task": model.task, **shapes},
        tools,
        ensures=(FILE,),
    )
    arguments: dict[str, Any] = {"lineage": lineage_of(model, recipe), **shapes}
    inputs = {"base": convert}
    requires = {"base": (FILE,)}
    if _in_codes(recipe).scheme.method:
        inputs["codes"] = plan_codes(model, _in_codes(recipe), positive_scales=True)
        requires["codes"] = (CODES,)
    function = "targets.tflite.convert:pack"
    label = f"pack LiteRT {recipe.scheme.name}"
    return Stage(label, function, arguments, ("ai-edge-litert", "numpy"), inputs, requires, (FILE,))


TARGET = Target(
    name=NAME,
    extra="tflite",
    schemes=SCHEMES,
    tasks=tasks_of(ENCODING, "text"),
    plan=plan,
    refuse=refuse,
    nbytes=nbytes,
)
