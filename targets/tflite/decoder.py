"""A language model as a `.litertlm` bundle: our own network written operator by operator, tokenizer and template as they are.

Signatures are named as LiteRT-LM's engine looks for them (runtime/executor/litert_compiled_model_executor_utils.cc). The
length of the cache is free, so that the engine lets it grow with the tokens that are there, and attention is over those
alone. `score` is beside what the engine uses: it gives the logits after every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compiler.errors import UnusableInput
from compiler.formats.codes import list_quantized
from compiler.formats.litertlm import METADATA, MODEL, TOKENIZER, NewSection, packed_text, write_litertlm
from compiler.formats.tflite import tflite_pieces
from compiler.lineage import about, model_of, write_lineage
from compiler.memory import give_back_garbage
from compiler.model import Model
from compiler.networks.configs import DecoderConfig, Part
from compiler.networks.decoder import Decoder, Tables
from compiler.networks.decoder_family import decoder_sources, describe_decoder, rotary_tables
from compiler.networks.families import decoder_family
from compiler.package import FixedShapes, Graph, Lowered, Port, StoredWeights
from compiler.quantize.plan import copy_tables
from compiler.stages.worker import report_progress
from targets.tflite import ops
from targets.tflite.account import decode_read_bytes, stored_weights
from targets.tflite.engine import metadata_of
from targets.tflite.graph import FREE, Document, Function, Value
from targets.tflite.kv_cache import Caches, Places
from targets.tflite.lower import lower_network
from targets.tflite.placement import place, write_first
from targets.tflite.target import BUNDLE, FILE
from targets.tflite.weights import Weights

PREFILL, DECODE, SCORE = "prefill", "decode", "score"
_LENGTHS = {PREFILL: FREE, DECODE: 1, SCORE: FREE}
_FIRST = "first.tflite"
# Of a model that does not tell how long its texts were.
_CONTEXT = 2048


def lower_decoder(
    model: str,
    out: str,
    scheme: str,
    context_length: int | None,
    lineage: dict[str, str],
    codes: str | None = None,
    bare: bool = False,
) -> dict[str, Any]:
    """Write `model.litertlm`: a stage.

    Args:
        model: the model's folder.
        out: where the package grows.
        scheme: the recipe's.
        context_length: what the engine is told to hold at most where an app asks nothing; None for all that the model takes.
        lineage: of the model and the recipe.
        codes: the folder with `codes-*.safetensors`; None for a float scheme.
        bare: write the graph as `model.tflite` too, for the interpreter alone.

    Raises:
        UnusableInput: the model has no tokenizer.json, which the engine reads.
    """
    folder, source = Path(out), model_of(Path(model), lineage)
    tokenizer = source.folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise UnusableInput(f"{source.name} has no tokenizer.json, and LiteRT-LM's engine reads no other tokenizer.")
    family = decoder_family(source)
    longest = source.geometry.context_length or context_length or _CONTEXT
    if _turns_by_length(source):
        # Its frequencies are those of one length: what is asked for, else the longest.
        longest = context_length or longest
    config = describe_decoder(source, family, longest)
    weights = Weights(
        {info.name: info for info in source.tensors},
        decoder_sources(source, family, config),
        list_quantized(Path(codes)) if codes else {},
        halves=scheme == "fp16",
    )
    tables = rotary_tables(source, family, config)
    before = (
        NewSection(METADATA, [metadata_of(source, context_length or longest)]),
        NewSection(TOKENIZER, [packed_text(tokenizer.read_bytes())]),
    )
    # What is written is gone from memory before LiteRT, which plans by a file, packs the weights in its own way.
    graphs, account = _write(folder, config, tables, weights, before, about(source, lineage["recipe"]), bare)
    write_lineage(source, lineage, folder)
    if codes is not None:
        copy_tables(Path(codes), folder)
    give_back_garbage()
    placement = place(folder / _FIRST, BUNDLE)
    (folder / _FIRST).unlink()
    shapes = FixedShapes(context_length, longest_sequence=longest, batch=1, vocabulary=config.vocabulary)
    return asdict(Lowered("litertlm", graphs, account, shapes, placement))


def _write(
    folder: Path,
    config: DecoderConfig,
    tables: Tables,
    weights: Weights,
    before: tuple[NewSection, ...],
    told: Mapping[str, str],
    bare: bool,
) -> tuple[tuple[Graph, ...], StoredWeights]:
    """Write the bundle, the graph's section behind those `before` it; what package.json says of the graph and its weights."""
    document, graphs = Document(), []
    for number, (name, length) in enumerate(_LENGTHS.items()):
        graphs.append(_add_function(document, name, length, config, tables, weights))
        report_progress(number + 1, len(_LENGTHS))
    _write_files(folder, document, before, told, bare)
    give_back_garbage()
    write_first(document.model, folder / _FIRST)
    return tuple(graphs), stored_weights(document.model, decode_read_bytes(document.model, DECODE))


def _write_files(
    folder: Path, document: Document, before: tuple[NewSection, ...], told: Mapping[str, str], bare: bool
) -> None:
    """Write the bundle, and the graph alone where that is asked for; their bytes are in memory until then."""
    pieces = list(tflite_pieces(document.model))
    if bare:
        with (folder / FILE).open("wb") as stream:
            stream.writelines(pieces)
    write_litertlm(
        folder / BUNDLE, (*before, NewSection(MODEL, pieces, {"model_type": "tf_lite_prefill_decode"})), told
    )


def _turns_by_length(model: Model) -> bool:
    """Whether the rotary embedding has other frequencies where texts are longer."""
    for key in ("rope_parameters", "rope_scaling"):
        told = model.config.get(key)
        if isinstance(told, dict) and told.get("rope_type", told.get("type")) in ("longrope", "dynamic"):
            return True
    return False


def _add_function(
    document: Document, name: str, length: int, config: DecoderConfig, tables: Tables, weights: Weights
) -> Graph:
    """Add a signature for `length` tokens at a time; what package.json says of it."""
    function = Function(document, name)
    tokens = function.input("tokens", (1, length), np.int32)
    positions = function.input("input_pos", (length,), np.int32)
    hidden = function.input("mask", (1, 1, length, FREE), np.float32)
    shape = (1, config.kv_heads, FREE, config.head_dim)
    keys, values = (
        Caches([function.input(f"kv_cache_{what}_{layer}", shape, np.float32) for layer in range(config.layers)])
        for what in ("k", "v")
    )
    first = positions if length == 1 else ops.first_of(function, positions)
    zero = function.numbers(0)
    start = ops.concatenate(function, [zero, zero, first, zero], 0)
    with torch.device("meta"):
        network = Decoder(config, Part(0, config.layers, True, True), 1, tables, "plain")
    given = {"tokens": tokens, "position": Places(positions, start, hidden), "keys": keys, "values": values}
    logits, keys, values = lower_network(network, function, weights, given)
    outputs: dict[str, Value] = {
        f"kv_cache_{what}_{layer}": value
        for what, caches in (("k", keys), ("v", values))
        for layer, value in enumerate(caches.layers)
    }
    if name != PREFILL:
        outputs["logits"] = logits
    function.finish(outputs)
    caches = tuple(
        Port(each, "float32", (1, config.kv_heads, "context", config.head_dim)) for each in outputs if each != "logits"
    )
    count: int | str = "tokens" if length == FREE else length
    inputs = (
        Port("tokens", "int32", (1, count)),
        Port("input_pos", "int32", (count,)),
        Port("mask", "float32", (1, 1, count, "context")),
        *caches,
    )
    logits_port = (Port("logits", "float32", (1, count, config.vocabulary)),) if "logits" in outputs else ()
    return Graph(name, (BUNDLE,), inputs, (*caches, *logits_port), function=name)
