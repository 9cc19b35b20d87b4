"""Bytes of a Core ML package, told from shapes."""

from __future__ import annotations

from compiler.model import Model
from compiler.recipe import Recipe
from compiler.size import (
    Matrix,
    bytes_of_codes,
    code_bits,
    matrices_of,
    own_table_bits,
    packed_bytes,
    processor_bytes,
    vector_weights,
)

_FLOAT_BYTES = 2
# Rows that share a palette at most: in a layer, in an embedding or a head (compiler/quantize).
_PALETTE_ROWS = 8
_TABLE_PALETTE_ROWS = 64
# Operators and names of a block in the program.
_PROGRAM_BYTES_OF_ENCODER_BLOCK, _PROGRAM_BYTES_OF_DECODER_BLOCK = 28_000, 61_000


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package by the recipe."""
    weights = sum(_bytes(model, recipe, matrix) for matrix in matrices_of(model))
    block = _PROGRAM_BYTES_OF_DECODER_BLOCK if model.is_decoder else _PROGRAM_BYTES_OF_ENCODER_BLOCK
    program = block * model.geometry.layers
    return weights + _FLOAT_BYTES * vector_weights(model) + program + processor_bytes(model)


def _bytes(model: Model, recipe: Recipe, matrix: Matrix) -> int:
    scheme = recipe.scheme
    if scheme.family == "float" or matrix.place == "elsewhere":
        return _FLOAT_BYTES * matrix.elements
    rows = matrix.elements // matrix.row
    if scheme.method == "lut":
        bits = scheme.code_bits if matrix.place == "block" else own_table_bits(model, recipe, matrix)
        if bits is None:
            return _FLOAT_BYTES * matrix.elements
        most = _PALETTE_ROWS if matrix.place == "block" else _TABLE_PALETTE_ROWS
        together = max(count for count in range(1, most + 1) if rows % count == 0)
        return packed_bytes(matrix.elements, bits) + rows // together * 2**bits * _FLOAT_BYTES
    if not scheme.block:
        return matrix.elements + _FLOAT_BYTES * rows
    codes = code_bits(model, recipe, matrix)
    return _FLOAT_BYTES * matrix.elements if codes is None else bytes_of_codes(matrix, *codes, _FLOAT_BYTES)
