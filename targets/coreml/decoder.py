"""The stage that lowers a language model to Core ML: prefill and decode on one set of weights, in parts where it is large."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, types

from compiler.lineage import write_lineage
from compiler.networks.configs import DecoderConfig, Part
from compiler.networks.decoder import Decoder, Tables, cache_shapes
from compiler.networks.decoder_families import decoder_sources, describe_decoder, rotary_tables
from compiler.networks.parts import Layout
from compiler.quantize.plan import copy_tables
from compiler.stages.worker import report_progress
from targets.coreml.cache import CACHES
from targets.coreml.encoder import ARTIFACT, SPECIFICATIONS, lowered, opset_of, weights_of
from targets.coreml.graph import lower_function
from targets.coreml.package import read_spec, write_mlpackage
from targets.coreml.weights import Stored, Weights

_PREFILL = 64


def lower_decoder(
    model: str,
    inputs: list[str],
    out: str,
    layout: Layout,
    ios: int,
    context_length: int,
    part_bytes: int,
    bits: float,
    greedy: bool,
    origin: dict[str, str],
    placed_by: str = "",
) -> dict[str, Any]:
    """Write `model.mlpackage`, or `part-N.mlpackage` of at most about `part_bytes` each.

    Since iOS 18 a package has the functions `prefill` (64 tokens at a time) and `decode` (one), and the cache is a state.
    Before, it has one function, for one token, and the cache goes in and out.
    """
    folder = Path(out)
    source = write_lineage(Path(model), origin, folder, processor=True)
    for name in ("generation_config.json", "chat_template.jinja"):
        if (Path(model) / name).is_file():
            shutil.copyfile(Path(model) / name, folder / name)
    config = describe_decoder(source, context_length)
    tables = rotary_tables(source, config)
    parts = plan_parts(config, bits, part_bytes)
    stored: dict[str, Stored] = {}
    for number, part in enumerate(parts):
        weights = weights_of(source, decoder_sources(source, config, part), inputs, ios)
        functions = _functions(config, part, tables, layout, ios, greedy, weights)
        name = ARTIFACT if len(parts) == 1 else f"part-{number}.mlpackage"
        write_mlpackage(folder / name, functions, weights.blobs, SPECIFICATIONS[ios], origin["source"])
        stored |= weights.stored
        report_progress(number + 1, len(parts))
    for each in inputs:
        copy_tables(Path(each), folder)
    told = {"context_length": context_length, "vocabulary": config.vocabulary, "parts": len(parts)}
    told["prefill_tokens"] = _prefill_tokens(config) if ios >= 18 else 1
    (folder / "coreml.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    first, last = (_description(folder / name) for name in _ends(len(parts)))
    artifact = ARTIFACT if len(parts) == 1 else "."
    names = [ARTIFACT] if len(parts) == 1 else [f"part-{number}.mlpackage" for number in range(len(parts))]
    folders = [folder / name for name in names]
    return asdict(lowered(artifact, first.input, last.output, stored.values(), folders))


def _prefill_tokens(config: DecoderConfig) -> int:
    """Tokens at a time, which must divide the context: the last ones would be written beyond its end."""
    return _PREFILL if config.context % _PREFILL == 0 else _PREFILL // 2


def plan_parts(config: DecoderConfig, bits: float, part_bytes: int) -> list[Part]:
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


def _ends(count: int) -> tuple[str, str]:
    return (ARTIFACT, ARTIFACT) if count == 1 else ("part-0.mlpackage", f"part-{count - 1}.mlpackage")


def _description(folder: Path) -> Any:
    """The ports of a package: those of `decode`, or of the one function."""
    description = read_spec(folder).description
    return next((each for each in description.functions if each.name == "decode"), description)
