"""What a target tells a package's bytes from, before anything is built: the matrices of a model by their place in it."""

from __future__ import annotations

import json
import math
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from compiler.formats.json_file import read_object
from compiler.formats.safetensors import TensorInfo
from compiler.lineage import PROCESSOR_FILES
from compiler.model import Model
from compiler.quantization import TABLE_GROUP, embedding_bits, head_bits
from compiler.quantize.plan import IN_BLOCK
from compiler.recipe import Recipe

Place = Literal["block", "embedding", "head", "elsewhere"]


@dataclass(frozen=True)
class Matrix:
    """A tensor of two dimensions or more.

    Attributes:
        name: the tensor.
        elements: its weights.
        row: how many of them make one output: what groups and blocks divide.
        place: in one of the model's blocks, the token embedding, the output head, or elsewhere (positions, a pooler).
        block: the number of its block; 0 elsewhere.
    """

    name: str
    elements: int
    row: int
    place: Place
    block: int = 0


# Tables that follow from the configuration, which some checkpoints carry.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq|position_ids|masked_bias|attn\.bias$")
# What a task's outputs do not depend on.
_IDLE = {
    "feature-extraction": re.compile(r"pooler\.|^cls\.|lm_head\.|vocab_"),
    "fill-mask": re.compile(r"pooler\.|seq_relationship\.|decoder\.weight"),
}


# Of these, transformers ties the head to the embedding where config.json does not say.
_TIED_BY_DEFAULT = ("gemma", "gpt2", "opt", "bloom")


def needed_tensors(model: Model) -> tuple[TensorInfo, ...]:
    """The tensors that the task's outputs depend on; a head that is the embedding counts once."""
    idle = _IDLE.get(model.task)
    by_default = str(model.config.get("model_type", "")).startswith(_TIED_BY_DEFAULT)
    tied = model.is_decoder and model.config.get("tie_word_embeddings", by_default) is True
    return tuple(
        tensor
        for tensor in model.tensors
        if not _COMPUTED.search(tensor.name)
        and not (idle and idle.search(tensor.name))
        and not (tied and tensor.name == "lm_head.weight")
    )


def matrices_of(model: Model) -> tuple[Matrix, ...]:
    """The model's matrices, in the order of its file."""
    transposed = model.config.get("model_type") == "gpt2"
    found = []
    for tensor in needed_tensors(model):
        if len(tensor.shape) < 2:
            continue
        numbered = re.search(r"\.(\d+)\.", tensor.name)
        # Experts may be fused into one tensor of three dimensions.
        fused = numbered is not None and len(tensor.shape) == 3
        inside = fused or (IN_BLOCK.search(tensor.name) is not None and len(tensor.shape) < 4)
        place: Place = "block" if inside else "elsewhere"
        if not inside and tensor.shape[0] == model.geometry.vocabulary and model.takes == "text":
            place = "embedding" if _is_embedding(tensor.name) else "head"
        row = tensor.shape[0] if transposed and inside else tensor.shape[-1]
        found.append(Matrix(tensor.name, tensor.elements, row, place, int(numbered[1]) if inside and numbered else 0))
    return tuple(found)


def _is_embedding(name: str) -> bool:
    return re.search(r"embed|\bwte\b", name) is not None and "embed_out" not in name


def vector_weights(model: Model) -> int:
    """Weights of norms and biases."""
    return sum(tensor.elements for tensor in needed_tensors(model) if len(tensor.shape) < 2)


def is_tied(model: Model) -> bool:
    """Whether a language model's head is its embedding."""
    return model.is_decoder and not any(matrix.place == "head" for matrix in matrices_of(model))


def code_bits(model: Model, recipe: Recipe, matrix: Matrix) -> tuple[int, int, bool] | None:
    """(bits, group size, symmetric) of a matrix by one of edgec's own schemes with equal bits; None where it stays float."""
    scheme = recipe.scheme
    if matrix.place == "block":
        return scheme.code_bits, scheme.block or matrix.row, scheme.symmetric
    if matrix.place == "elsewhere" or matrix.row % TABLE_GROUP:
        return None
    bits = own_table_bits(model, recipe, matrix)
    return None if bits is None else (bits, TABLE_GROUP, scheme.symmetric or bits == 8)


def own_table_bits(model: Model, recipe: Recipe, table: Matrix) -> int | None:
    """Bits of a code of an embedding or a head; None where it is kept."""
    settings = recipe.quantization
    if table.place == "head":
        return head_bits(settings)
    return embedding_bits(settings, tied=is_tied(model), decoder=model.is_decoder)


def bytes_of_codes(matrix: Matrix, bits: int, group_size: int, symmetric: bool, scale_bytes: int) -> int:
    """Packed codes, a scale for each group, and packed zero points where they are not the middle."""
    groups = matrix.elements // group_size
    zeros = 0 if symmetric else groups * bits / 8
    return int(matrix.elements * bits / 8 + groups * scale_bytes + zeros)


def processor_bytes(model: Model) -> int:
    """Bytes of the files of tokenizer, configuration and image processor that go with a package."""
    files = (model.folder / name for name in PROCESSOR_FILES)
    return sum(file.stat().st_size for file in files if file.is_file())


@dataclass(frozen=True)
class TokenizerSize:
    """Of tokenizer.json: how many tokens and merges it has, their bytes in UTF-8, and its own without white space."""

    strings: int = 0
    text_bytes: int = 0
    compact_bytes: int = 0


def tokenizer_size(folder: Path) -> TokenizerSize:
    """The sizes of a model's tokenizer.json; zeros where there is none."""
    file = folder / "tokenizer.json"
    return _tokenizer_size(file, file.stat().st_mtime_ns) if file.is_file() else TokenizerSize()


@lru_cache(maxsize=4)
def _tokenizer_size(file: Path, changed_ns: int) -> TokenizerSize:
    """Read once for all schemes of a model."""
    document = read_object(file)
    compact = len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())
    model = document.get("model")
    if not isinstance(model, dict):
        return TokenizerSize(compact_bytes=compact)
    vocabulary = model.get("vocab") or {}
    # A Unigram model lists (token, score).
    strings = list(vocabulary) if isinstance(vocabulary, dict) else [each[0] for each in vocabulary]
    # A GGUF file of a SentencePiece model has scores in their place.
    merges = [] if (file.parent / "tokenizer.model").is_file() else model.get("merges") or []
    strings += [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return TokenizerSize(len(strings), sum(len(each.encode()) for each in strings), compact)


def packed_tokenizer_bytes(folder: Path) -> int:
    """Bytes of a model's tokenizer.json by zlib; 0 where there is none."""
    file = folder / "tokenizer.json"
    return _packed_tokenizer_bytes(file, file.stat().st_mtime_ns) if file.is_file() else 0


@lru_cache(maxsize=4)
def _packed_tokenizer_bytes(file: Path, changed_ns: int) -> int:
    return len(zlib.compress(file.read_bytes(), 9))


def packed_bytes(elements: int, bits: float) -> int:
    """Bytes of so many weights of so many bits each."""
    return math.ceil(elements * bits / 8)
