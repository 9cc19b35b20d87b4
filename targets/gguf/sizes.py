"""Bytes of a GGUF file, told from shapes.

Which type llama.cpp's quantizer gives a tensor follows `llama_tensor_get_type` of its src/llama-quant.cpp: the K mixtures
keep the matrices that matter most in a finer type, and rows that a type's blocks do not divide get another.
"""

from __future__ import annotations

import re

from compiler.formats.gguf import GGML_TYPES
from compiler.model import Model
from compiler.recipe import Recipe
from compiler.size import Matrix, code_bits, is_tied, matrices_of, tokenizer_size, vector_weights
from targets.gguf.codes import CONTAINERS

_BY_NAME = {name: (block, size) for name, block, size in GGML_TYPES.values()}
# Where a type's blocks of 256 do not divide the rows: one with blocks of 32 (IQ4_NL has the size of Q4_0).
_FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FLOAT = ("F32", "F16", "BF16")
# Of a token and of a merge in the metadata, beside its text: a length, and a token's type and score.
_BYTES_BESIDE_TEXT = 12
_MANY_HEADS_SHARE = 4
_MANY_EXPERTS = 8
_VALUE = re.compile(r"v_proj|attention\.self\.value|v_lin")
_KEY = re.compile(r"k_proj|attention\.self\.key|k_lin")
_FUSED = re.compile(r"qkv|c_attn|query_key_value")
_ATTENTION_OUTPUT = re.compile(r"o_proj|attention\.output\.dense|out_lin|attn\.c_proj|self_attn\.dense|attn\.out_proj")
_DOWN = re.compile(r"down_proj|mlp\.c_proj|\.w2\.|(?<!attention\.)output\.dense|lin2|fc2|dense_4h_to_h")


def nbytes(model: Model, recipe: Recipe) -> int | None:
    """Bytes of the file by the recipe; None for a scheme whose bits follow a budget."""
    if recipe.scheme.mixed:
        return None
    weights = sum(_bytes(matrix, type_of(model, recipe, matrix)) for matrix in matrices_of(model))
    tokenizer = tokenizer_size(model.folder)
    text = tokenizer.text_bytes + _BYTES_BESIDE_TEXT * tokenizer.strings
    return weights + 4 * vector_weights(model) + text


def _bytes(matrix: Matrix, kind: str) -> int:
    block, size = _BY_NAME[kind]
    return matrix.elements // block * size


def type_of(model: Model, recipe: Recipe, matrix: Matrix) -> str:
    """The type that a matrix is stored in by the recipe, whose scheme is not mixed."""
    scheme = recipe.scheme
    # Positions and token types are read a row at a time, and kept.
    if matrix.place == "elsewhere":
        return "F32"
    if scheme.name in _FLOAT:
        return scheme.name
    if scheme.method:
        codes = code_bits(model, recipe, matrix)
        return _kept(model) if codes is None else CONTAINERS[codes[0], codes[2]][0]
    wanted = _wanted(model, scheme.name, matrix)
    if matrix.row % _BY_NAME[wanted][0]:
        wanted = _FALLBACK.get(wanted, "F16")
    return "F16" if matrix.row % _BY_NAME[wanted][0] else wanted


def _kept(model: Model) -> str:
    """The float type that the converter gives a matrix without codes."""
    dtypes = {tensor.dtype for tensor in model.tensors if len(tensor.shape) > 1}
    return next(iter(dtypes)) if dtypes in ({"F16"}, {"BF16"}) else "F32"


def _wanted(model: Model, scheme: str, matrix: Matrix) -> str:
    """The type that a scheme has for a matrix whose rows its blocks divide."""
    base = re.sub(r"_[SML]$", "", scheme)
    as_head = matrix.place == "head" or (matrix.place == "embedding" and (is_tied(model) or not model.is_decoder))
    if as_head:
        return base if base == "Q8_0" else "Q6_K"
    if matrix.place == "embedding" or not base.endswith("_K"):
        return base
    return _of_mixture(model, scheme, base, matrix)


def _of_mixture(model: Model, scheme: str, base: str, matrix: Matrix) -> str:
    geometry, name, block = model.geometry, matrix.name, matrix.block
    layers = geometry.layers
    many_experts = model.config.get("num_local_experts") == _MANY_EXPERTS
    shared = (geometry.heads or 1) >= _MANY_HEADS_SHARE * (geometry.kv_heads or geometry.heads or 1)
    more = block < layers // 8 or block >= 7 * layers // 8 or (block - layers // 8) % 3 == 2
    if _FUSED.search(name):
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(scheme, base)
    if many_experts and (_VALUE.search(name) or _KEY.search(name)):
        return "Q8_0"
    if _VALUE.search(name):
        if scheme in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if more else base
        return {
            "Q2_K": "Q4_K" if shared else "Q3_K",
            "Q2_K_S": "Q4_K" if shared else base,
            "Q3_K_M": "Q5_K" if block < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if block < 4 else base,
        }.get(scheme, base)
    if _ATTENTION_OUTPUT.search(name):
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(scheme, base)
    if _DOWN.search(name):
        if scheme in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if more else base
        return {
            "Q2_K": "Q3_K",
            "Q2_K_S": "Q4_K" if block < layers // 8 else base,
            "Q3_K_M": "Q5_K" if block < layers // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if block < layers // 8 else base,
        }.get(scheme, base)
    return base
