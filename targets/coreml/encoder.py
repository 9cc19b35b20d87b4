"""The stages that lower a model to Core ML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol, types

from compiler.formats.codes import list_quantized
from compiler.formats.json_file import read_object
from compiler.lineage import about, model_of, write_lineage
from compiler.model import Model
from compiler.networks.encoder import build_encoder
from compiler.networks.encoder_family import describe_encoder, encoder_sources
from compiler.networks.families import encoder_family
from compiler.networks.parts import Layout
from compiler.networks.sentence import with_sentence
from compiler.networks.weights import Source
from compiler.package import Deviation, FixedShapes, Graph, Lowered, Port, StoredWeights
from compiler.quantize.plan import copy_tables
from targets.coreml.compute_plan import place_packages
from targets.coreml.graph import lower_function
from targets.coreml.package import read_spec, write_mlpackage
from targets.coreml.target import RANGES
from targets.coreml.weights import Stored, Weights

ARTIFACT = "model.mlpackage"
SPECIFICATIONS = {16: 7, 17: 8, 18: 9}


def lower_encoder(
    model: str,
    out: str,
    layout: Layout,
    ios: int,
    sequence_lengths: list[int],
    batch: int,
    lineage: dict[str, str],
    codes: str | None = None,
    ranges: str | None = None,
) -> dict[str, Any]:
    """Write `model.mlpackage` with one function, int32 inputs (batch, one of the lengths), float16 outputs."""
    folder = Path(out)
    source = model_of(Path(model), lineage)
    write_lineage(source, lineage, folder, processor=True)
    family = encoder_family(source)
    config = describe_encoder(source, family)
    with torch.device("meta"):
        network = build_encoder(config, layout).eval()
    weights = weights_of(source, encoder_sources(source, family, config), codes, ios, _ranges(ranges))
    if config.image:
        placeholders = {"pixel_values": mb.placeholder((batch, *config.image[0]), types.fp16)}
    else:
        length = sequence_lengths[0] if len(sequence_lengths) == 1 else get_new_symbol()
        placeholders = {name: mb.placeholder((batch, length), types.int32) for name in network.input_names}
    names = {name: name for name in placeholders}
    function = lower_function(network, placeholders, names, weights, source.outputs, opset_of(ios))
    if len(sequence_lengths) > 1:
        # All inputs have the same length, which Core ML cannot say: it is told each one's.
        shapes = coremltools.EnumeratedShapes([(batch, each) for each in sequence_lengths])
        function.set_input_types(
            tuple(coremltools.TensorType(name=name, shape=shapes, dtype=np.int32) for name in placeholders)
        )
    write_mlpackage(
        folder / ARTIFACT, {"main": function}, weights.blobs, SPECIFICATIONS[ios], about(source, lineage["recipe"])
    )
    if codes is not None:
        copy_tables(Path(codes), folder)
    lengths = () if config.image else tuple(sequence_lengths)
    shapes = FixedShapes(sequence_lengths=lengths, longest_sequence=max(lengths, default=None), batch=batch)
    account = lowered(folder, (ARTIFACT,), shapes, weights.stored.values())
    floats = tuple(
        Deviation(f"input of {name}", "fp16", "a few channels are too large for 8 bits to do for the others", False)
        for name in _ranges(ranges).get("float_errors", {})
    )
    return asdict(replace(account, weights=replace(account.weights, deviations=floats)))


def _ranges(folder: str | None) -> dict[str, dict[str, float]]:
    """What `targets.coreml.activations` wrote; empty where activations stay floats."""
    if folder is None:
        return {}
    found: dict[str, dict[str, float]] = read_object(Path(folder) / RANGES)
    return found


def weights_of(
    model: Model,
    sources: Mapping[str, Source],
    codes: str | None,
    ios: int,
    ranges: Mapping[str, Mapping[str, float]] | None = None,
) -> Weights:
    """The parameters, with the codes in a folder and the scales of activations where there are any."""
    known = list_quantized(Path(codes)) if codes else {}
    scales = (ranges or {}).get("scales", {})
    infos, found = with_sentence(model, sources)
    return Weights(infos, found, known, ios >= 18, scales)


def opset_of(ios: int) -> Any:
    """coremltools' name of an iOS."""
    return getattr(coremltools.target, f"iOS{ios}")


def lowered(folder: Path, files: tuple[str, ...], shapes: FixedShapes, stored: Iterable[Stored]) -> Lowered:
    """The account of a package: its graphs from what was written, its weights from what was asked for."""
    kinds: dict[str, int] = {}
    total = 0.0
    for each in stored:
        kinds[each.type] = kinds.get(each.type, 0) + each.elements
        total += each.bits * each.elements
    account = StoredWeights(total / sum(kinds.values()), kinds)
    places = place_packages([folder / name for name in files])
    return Lowered("coreml", _graphs(folder, files), account, shapes, places)


def _graphs(folder: Path, files: tuple[str, ...]) -> tuple[Graph, ...]:
    """A graph for each function: what goes into the first file and comes out of the last one."""
    first, last = (read_spec(folder / name).description for name in (files[0], files[-1]))
    if not first.functions:
        return (Graph("main", files, _ports(first.input), _ports(last.output), _ports(first.state)),)
    ends = {each.name: each for each in last.functions}
    return tuple(
        Graph(each.name, files, _ports(each.input), _ports(ends[each.name].output), _ports(each.state), each.name)
        for each in first.functions
    )


def _ports(features: Iterable[Any]) -> tuple[Port, ...]:
    return tuple(_port(feature) for feature in features)


_PORT_DTYPES = {65552: "float16", 65568: "float32", 131104: "int32"}


def _port(feature: Any) -> Port:
    """Sizes that are one of several have a name."""
    kind = feature.type
    array = kind.stateType.arrayType if kind.HasField("stateType") else kind.multiArrayType
    every = [tuple(int(size) for size in each.shape) for each in array.enumeratedShapes.shapes]
    sizes: tuple[int | str, ...] = tuple(int(size) for size in array.shape)
    if every:
        sizes = tuple(
            size if len({each[axis] for each in every}) == 1 else "sequence" for axis, size in enumerate(sizes)
        )
    return Port(feature.name, _PORT_DTYPES[array.dataType], sizes)
