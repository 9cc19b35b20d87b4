"""Which codes the schemes of LiteRT stand for, and the bytes of a package, told from shapes."""

from __future__ import annotations

from dataclasses import replace

from compiler.model import Model
from compiler.networks.families import refuse_network
from compiler.quantization import TABLE_GROUP
from compiler.recipe import Recipe, lengths_up_to
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

# The option by which a language model's graph is there as a .tflite file too.
BARE = "bare"
BY_ROW = ("int8-rtn-pc", "int8-gptq-pc")
IN_BLOCKS = tuple(f"int4-{method}-g{group}" for method in ("rtn", "gptq") for group in (32, 64, 128))
# LiteRT has no blocks of 8-bit codes: each group of columns is a product of its own, which a language model has too many of.
IN_GROUPS = tuple(f"int8-{method}-g{group}" for method in ("rtn", "gptq") for group in (32, 64, 128))
# LiteRT's own word int8 means a scale for each row, and inputs that are rounded while they are multiplied.
_INT8 = "int8-rtn-pc"
_ROWS_IN_8_BITS = ("int8", "int8-static")
_FLOAT_BYTES = 4
# Of a block; of a row, a float32 and a zero point, which is 0, in 64 bits.
_SCALE_BYTES, _ROW_BYTES = 2, 12
# Operators and their results of a language model's layer in all signatures, and what a bundle has beside (measured).
_LAYER_BYTES = 20_000
_BUNDLE_BYTES = 40_000


def in_codes(recipe: Recipe) -> Recipe:
    """The recipe with edgec's own scheme for what LiteRT's word int8 means."""
    by_row = find_scheme(_INT8)
    assert by_row is not None
    return replace(recipe, scheme=by_row) if recipe.scheme.name in _ROWS_IN_8_BITS else recipe


def lengths_of(model: Model, recipe: Recipe) -> tuple[int, ...]:
    """Tokens of an encoder's inputs, in rising order."""
    if "lengths" not in recipe.options:
        return (recipe.shapes.sequence_length,)
    return lengths_up_to(model.geometry.context_length)


def nbytes(model: Model, recipe: Recipe) -> int:
    """Bytes of the package, told from shapes."""
    total, coded = _FLOAT_BYTES * vector_weights(model) + _bytes_beside(model), in_codes(recipe)
    scheme = coded.scheme
    for matrix in matrices_of(model):
        if _by_position(model, matrix):
            total += _FLOAT_BYTES * matrix.row * min(lengths_of(model, recipe)[-1], matrix.elements // matrix.row)
        elif not scheme.method or matrix.place == "elsewhere":
            total += packed_bytes(matrix.elements, 16 if scheme.name == "fp16" else 32)
        elif not scheme.block:
            total += bytes_of_codes(matrix, scheme.code_bits, matrix.row, True, _ROW_BYTES)
        elif matrix.place == "block":
            scale = _ROW_BYTES if scheme.name in IN_GROUPS else _SCALE_BYTES
            total += bytes_of_codes(matrix, scheme.code_bits, scheme.block, True, scale)
        else:
            total += _bytes_of_table(model, coded, matrix)
    return 2 * total - packed_tokenizer_bytes(model.folder) if BARE in recipe.options else total


def _by_position(model: Model, matrix: Matrix) -> bool:
    """Whether it is a table of positions, of which a re-authored encoder of texts has those that its lengths reach."""
    named = matrix.name.endswith("position_embeddings.weight")
    return named and not model.is_decoder and model.takes == "text" and refuse_network(model) is None


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
