"""Bytes of an ONNX package, told from shapes."""

from __future__ import annotations

from compiler.model import Model
from compiler.recipe import Recipe
from compiler.size import (
    Matrix,
    bytes_of_codes,
    code_bits,
    is_tied,
    matrices_of,
    packed_bytes,
    processor_bytes,
    tokenizer_size,
    vector_weights,
)

_SCALE_BYTES = 4
_FLOAT_BITS = {"fp32": 32, "fp16": 16}
# Operators and names of a block in the graph itself.
_GRAPH_BYTES_OF_BLOCK = 6_000


def nbytes(model: Model, recipe: Recipe) -> int | None:
    """Bytes of the package by the recipe; None for a scheme whose bits follow a budget."""
    if recipe.scheme.mixed:
        return None
    bits = _FLOAT_BITS.get(recipe.scheme.name, 32)
    weights = sum(_bytes(model, recipe, matrix) for matrix in matrices_of(model))
    # GenAI's builder writes the rotary tables as constants.
    others = vector_weights(model) + (_rotary_values(model) if model.is_decoder else 0)
    graph = _GRAPH_BYTES_OF_BLOCK * model.geometry.layers
    # GenAI's builder writes the tokenizer without white space.
    processor = tokenizer_size(model.folder).compact_bytes if model.is_decoder else processor_bytes(model)
    return weights + packed_bytes(others, bits) + graph + processor


def _bytes(model: Model, recipe: Recipe, matrix: Matrix) -> int:
    scheme = recipe.scheme
    if bits := _FLOAT_BITS.get(scheme.name):
        return packed_bytes(matrix.elements, bits)
    if scheme.name == "int8" and not model.is_decoder:
        # A scale and a zero point for each output.
        return matrix.elements + matrix.elements // matrix.row * (_SCALE_BYTES + 1)
    if model.is_decoder and (
        scheme.name == "int8" or (scheme.method == "rtn" and scheme.code_bits == 4 and scheme.symmetric)
    ):
        return _by_builder(model, recipe, matrix)
    codes = code_bits(model, recipe, matrix)
    return packed_bytes(matrix.elements, 32) if codes is None else bytes_of_codes(matrix, *codes, _SCALE_BYTES)


def _by_builder(model: Model, recipe: Recipe, matrix: Matrix) -> int:
    """GenAI's builder rounds every product. An embedding that is the head too shares its codes with 4 bits, not with 8."""
    codes = bytes_of_codes(matrix, recipe.scheme.code_bits or 8, recipe.scheme.block or 32, True, _SCALE_BYTES)
    whole = packed_bytes(matrix.elements, 32)
    if matrix.place == "embedding":
        if not is_tied(model):
            return whole
        return whole + codes if recipe.scheme.name == "int8" else codes
    return whole if matrix.place == "elsewhere" else codes


def _rotary_values(model: Model) -> int:
    """Values of the sines and cosines of every position."""
    share = float(model.config.get("partial_rotary_factor") or 1.0)
    return int((model.geometry.context_length or 0) * model.geometry.head_dim * share)
