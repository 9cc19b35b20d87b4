"""The stage that lowers a language model to Core ML: prefill and decode on one set of weights, in parts where it is large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types

from compiler.lineage import about, copy_chat_files, model_of, write_lineage
from compiler.networks.configs import DecoderConfig, Part
from compiler.networks.decoder import Decoder, Tables, cache_shapes
from compiler.networks.decoder_family import decoder_sources, describe_decoder, rotary_tables
from compiler.networks.families import decoder_family
from compiler.networks.parts import Layout
from compiler.package import FixedShapes
from compiler.quantize.plan import copy_tables
from compiler.stages.worker import report_progress
from targets.coreml.encoder import ARTIFACT, SPECIFICATIONS, lowered, opset_of, weights_of
from targets.coreml.graph import lower_function
from targets.coreml.kv_cache import CACHES
from targets.coreml.package import write_mlpackage
from targets.coreml.weights import Stored, Weights

_PREFILL = 64


def lower_decoder(
    model: str,
    out: str,
    layout: Layout,
    ios: int,
    context_length: int,
    part_bytes: int,
    bits: float,
    greedy: bool,
    lineage: dict[str, str],
    codes: str | None = None,
) -> dict[str, Any]:
    """Write `model.mlpackage`, or `part-N.mlpackage` of at most about `part_bytes` each.

    Since iOS 18 a package has the functions `prefill` (64 tokens at a time) and `decode` (one), and the cache is a state.
    Before, it has one function, for one token, and the cache goes in and out.
    """
    folder = Path(out)
    source = model_of(Path(model), lineage)
    write_lineage(source, lineage, folder, processor=True)
    copy_chat_files(source, folder)
    family = decoder_family(source)
    config = describe_decoder(source, family, context_length)
    tables = rotary_tables(source, family, config)
    parts = cut_parts(config, bits, part_bytes)
    files = tuple(f"part-{number}.mlpackage" for number in range(len(parts))) if len(parts) > 1 else (ARTIFACT,)
    stored: dict[str, Stored] = {}
    for number, (part, name) in enumerate(zip(parts, files, strict=True)):
        weights = weights_of(source, decoder_sources(source, family, config, part), codes, ios)
        functions = _functions(config, part, tables, layout, ios, greedy, weights)
        write_mlpackage(folder / name, functions, weights.blobs, SPECIFICATIONS[ios], about(source, lineage["recipe"]))
        stored |= weights.stored
        report_progress(number + 1, len(parts))
    if codes is not None:
        copy_tables(Path(codes), folder)
    shapes = FixedShapes(context_length=context_length, batch=1, vocabulary=config.vocabulary)
    return asdict(lowered(folder, files, shapes, stored.values()))


def _prefill_tokens(config: DecoderConfig) -> int:
    """Tokens at a time, which must divide the context: the last ones would be written beyond its end."""
    return _PREFILL if config.context % _PREFILL == 0 else _PREFILL // 2


def cut_parts(config: DecoderConfig, bits: float, part_bytes: int) -> list[Part]:
    """One part where everything fits `part_bytes`; else the embedding, runs of layers, and the head."""
    width = (config.heads + 2 * config.kv_heads) * config.head_dim + config.heads * config.head_dim
    layer = (config.hidden * (width + 3 * config.intermediate)) * bits / 8
    table = config.vocabulary * config.hidden * max(bits, 8.0) / 8
    if layer * config.layers + 2 * table <= part_bytes:
        return [Part(0, config.layers, True, True)]
    most = max(1, int(part_bytes // layer))
    count = -(-config.layers // most)
    cuts = [config.layers * number // count for number in range(count + 1)]
    runs = [Part(first, last, False, False) for first, last in pairwise(cuts)]
    return [Part(0, 0, True, False), *runs, Part(config.layers, config.layers, False, True)]


def _functions(
    config: DecoderConfig, part: Part, tables: Tables, layout: Layout, ios: int, greedy: bool, weights: Weights
) -> Mapping[str, Function]:
    lengths = {"decode": 1, "prefill": _prefill_tokens(config)} if ios >= 18 else {"main": 1}
    functions = {}
    for name, length in lengths.items():
        with torch.device("meta"):
            network = Decoder(config, part, length, tables, layout, greedy)
        placeholders, names = _placeholders(config, part, length, layout, state=ios >= 18)
        result = ("token" if greedy else "logits") if part.head else "hidden"
        outputs = [result, *((f"new_{each}" for each in CACHES) if part.layers and ios < 18 else ())]
        functions[name] = lower_function(network, placeholders, names, weights, outputs, opset_of(ios))
    return functions


def _placeholders(
    config: DecoderConfig, part: Part, length: int, layout: Layout, state: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Inputs of a function by name, and the name for each argument of `Decoder.forward`."""
    if part.embedding:
        placeholders = {"input_ids": mb.placeholder((1, length), types.int32)}
    else:
        hidden = (1, config.hidden, 1, length) if layout == "ane" else (1, length, config.hidden)
        placeholders = {"hidden": mb.placeholder(hidden, types.fp16)}
    names = {"tokens": next(iter(placeholders))}
    if part.layers:
        placeholders["position"] = mb.placeholder((1,), types.int32)
        make = mb.state_tensor_placeholder if state else mb.placeholder
        for name, shape in zip(CACHES, cache_shapes(config, part, layout), strict=True):
            placeholders[name] = make(shape, types.fp16)
        names |= {"position": "position", **{name: name for name in CACHES}}
    return placeholders, names
