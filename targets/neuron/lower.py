"""The stages that lower a model to HLO modules for Neuron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compiler.formats.hlo import parse_module, results_of
from compiler.lineage import copy_chat_files, model_of, write_lineage
from compiler.networks.configs import DecoderConfig, Part
from compiler.networks.decoder import Decoder
from compiler.networks.decoder_family import decoder_sources, describe_decoder, rotary_tables
from compiler.networks.encoder import build_encoder
from compiler.networks.encoder_family import describe_encoder, encoder_sources
from compiler.networks.families import decoder_family, encoder_family
from compiler.networks.ranks import Cut, cut_of, of_rank
from compiler.networks.sentence import with_sentence
from compiler.package import FixedShapes, Graph, Lowered, Port, StoredWeights, Unfinished
from compiler.stages.worker import report_progress
from targets.neuron.command import COMPILER, SCRIPT, module_name, script
from targets.neuron.lint import require_accepted
from targets.neuron.network import Argument, Signature, lower_network
from targets.neuron.weights import parameters, write_weights

MAIN, PREFILL, DECODE = "main", "prefill", "decode"
_BITS = {"float32": 32, "bfloat16": 16}
_PLAIN = {"float32": "fp32", "bfloat16": "bf16"}


def lower_encoder(
    model: str, out: str, dtype: str, device: str, sequence_lengths: list[int], batch: int, lineage: dict[str, str]
) -> dict[str, Any]:
    """Write a module for each length, and the weights that all of them take."""
    folder, source = Path(out), model_of(Path(model), lineage)
    write_lineage(source, lineage, folder, processor=True)
    family = encoder_family(source)
    config = describe_encoder(source, family)
    with torch.device("meta"):
        network = build_encoder(config, "plain").eval()
    held = parameters(network, dtype, Cut())
    shapes = {MAIN: (batch, *config.image[0])} if config.image else _by_length(sequence_lengths, batch)
    kind = "float32" if config.image else "int32"
    graphs = []
    for name, shape in shapes.items():
        inputs = tuple(Argument(each, kind, shape) for each in network.input_names)
        signature = Signature(inputs, (), held, tuple(source.outputs), dtype)
        graphs.append(_write_graph(folder, name, network, signature, device))
    infos, sources = with_sentence(source, encoder_sources(source, family, config))
    files = write_weights(folder, network, infos, sources, held, Cut())
    lengths = () if config.image else tuple(sequence_lengths)
    fixed = FixedShapes(sequence_lengths=lengths, longest_sequence=max(lengths, default=None), batch=batch)
    return _lowered(folder, graphs, held, files, fixed, device)


def _by_length(lengths: Sequence[int], batch: int) -> dict[str, tuple[int, ...]]:
    return {MAIN if len(lengths) == 1 else f"{MAIN}_{length}": (batch, length) for length in lengths}


def lower_decoder(
    model: str,
    out: str,
    dtype: str,
    device: str,
    context_length: int,
    prefills: list[int],
    ranks: int,
    lineage: dict[str, str],
) -> dict[str, Any]:
    """Write the modules `prefill` (of several lengths `prefill_LENGTH`) and `decode`, and the weights of each rank."""
    folder, source = Path(out), model_of(Path(model), lineage)
    write_lineage(source, lineage, folder, processor=True)
    copy_chat_files(source, folder)
    family = decoder_family(source)
    config = describe_decoder(source, family, context_length)
    tables, part, cut = rotary_tables(source, family, config), Part(0, config.layers, True, True), cut_of(config, ranks)
    with torch.device("meta"):
        whole = Decoder(config, part, 1, tables, "plain").eval()
    held = parameters(whole, dtype, cut)
    own = of_rank(config, cut)
    graphs = []
    names = [PREFILL] if len(prefills) == 1 else [f"{PREFILL}_{length}" for length in prefills]
    for name, length in (*zip(names, prefills, strict=True), (DECODE, 1)):
        with torch.device("meta"):
            network = Decoder(own, part, length, tables, "plain").eval()
        inputs = (Argument("input_ids", "int32", (1, length)), Argument("position", "int32", (1,)))
        signature = Signature(inputs, _caches(own, dtype), held, ("logits",), dtype)
        graphs.append(_write_graph(folder, name, network, signature, device, cut))
        report_progress(len(graphs), len(prefills) + 2)
    infos = {info.name: info for info in source.tensors}
    files = write_weights(folder, whole, infos, decoder_sources(source, family, config), held, cut)
    fixed = FixedShapes(context_length=context_length, batch=1, vocabulary=config.vocabulary)
    return _lowered(folder, graphs, held, files, fixed, device)


def _caches(config: DecoderConfig, dtype: str) -> tuple[Argument, ...]:
    shape = (1, config.kv_heads, config.context, config.head_dim)
    return tuple(Argument(f"{name}_{n}", dtype, shape) for name in ("keys", "values") for n in range(config.layers))


def _write_graph(
    folder: Path, name: str, network: nn.Module, signature: Signature, device: str, cut: Cut | None = None
) -> Graph:
    """Write and check a module."""
    cut = cut or Cut()
    data = lower_network(network, signature, cut.ranks, cut.head, name)
    decodes = bool(signature.states)
    advice = (
        "Share it among more cores, or build for a shorter context." if decodes else "Build for shorter texts at once."
    )
    require_accepted(parse_module(data, module_name(name)), name, device, advice)
    (folder / module_name(name)).write_bytes(data)
    results = _results(data, signature)
    files = (module_name(name),)
    return Graph(name, files, _ports(signature.inputs), results, _ports(signature.states))


def _results(data: bytes, signature: Signature) -> tuple[Port, ...]:
    found = results_of(parse_module(data, "the module"))[: len(signature.outputs)]
    return tuple(Port(each.name, "float32", each.shape) for each in found)


def _ports(arguments: Sequence[Argument]) -> tuple[Port, ...]:
    return tuple(Port(each.name, each.dtype, each.shape) for each in arguments)


def _lowered(
    folder: Path,
    graphs: list[Graph],
    held: Sequence[Argument],
    weights: tuple[str, ...],
    shapes: FixedShapes,
    device: str,
) -> dict[str, Any]:
    """What was written, and what an AWS machine has still to do."""
    (folder / SCRIPT).write_text(script([each.name for each in graphs], device))
    types: dict[str, int] = {}
    bits = 0
    for each in held:
        count = 1
        for size in each.shape:
            count *= size
        types[_PLAIN[each.dtype]] = types.get(_PLAIN[each.dtype], 0) + count
        bits += _BITS[each.dtype] * count
    account = StoredWeights(bits / sum(types.values()), types)
    left = Unfinished(f"compiling with {COMPILER}", "a machine with AWS's Neuron SDK", provable=True)
    return asdict(Lowered("xla", tuple(graphs), account, shapes, unfinished=left))
