"""Bytes of a Core ML package, told from shapes."""

from __future__ import annotations

from compiler.model import Model
from compiler.recipe import Recipe
from compiler.size import Matrix, bytes_of_codes, code_bits, matrices_of, packed_bytes, processor_bytes, vector_weights

_FLOAT_BYTES = 2
_TABLE_BITS = 8
# Rows that share a palette: in a layer, in an embedding or a head (compiler/quantize).
_PALETTE_ROWS = 8
_TABLE_PALETTE_ROWS = 64
# Operators and names of a block in the program.
_PROGRAM_BYTES_OF_BLOCK = 25_000


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package by the recipe."""
    weights = sum(_bytes(model, recipe, matrix) for matrix in matrices_of(model))
    program = _PROGRAM_BYTES_OF_BLOCK * model.geometry.layers
    return weights + _FLOAT_BYTES * vector_weights(model) + program + processor_bytes(model)


def _bytes(model: Model, recipe: Recipe, matrix: Matrix) -> int:
    scheme = recipe.scheme
    if scheme.family == "float" or matrix.place == "elsewhere":
        return _FLOAT_BYTES * matrix.elements
    rows = matrix.elements // matrix.row
    if scheme.method == "lut":
        in_block = matrix.place == "block"
        bits, together = (scheme.code_bits, _PALETTE_ROWS) if in_block else (_TABLE_BITS, _TABLE_PALETTE_ROWS)
        return packed_bytes(matrix.elements, bits) + rows // together * 2**bits * _FLOAT_BYTES
    if not scheme.block:
        return matrix.elements + _FLOAT_BYTES * rows
    codes = code_bits(model, recipe, matrix)
    return _FLOAT_BYTES * matrix.elements if codes is None else bytes_of_codes(matrix, *codes, _FLOAT_BYTES)
