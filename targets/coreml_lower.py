"""The stages that lower a model to Core ML."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import coremltools
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types

from compiler.encoder_wrap import OUTPUT_NAMES
from compiler.lineage import write_lineage
from compiler.model import Model
from compiler.networks.encoder import build_encoder
from compiler.networks.encoder_families import describe_encoder, encoder_sources
from compiler.networks.parts import Layout
from compiler.networks.weights import Source
from compiler.package import Lowered, Port
from compiler.package import Weights as Account
from compiler.quantize.plan import copy_tables
from compiler.quantize.quantized import list_quantized
from targets.coreml_graph import lower_function
from targets.coreml_package import read_spec, write_mlpackage
from targets.coreml_placement import join_placements, predict_placement
from targets.coreml_plan import plan_placement
from targets.coreml_weights import Stored, Weights

ARTIFACT = "model.mlpackage"
SPECIFICATIONS = {16: 7, 17: 8, 18: 9}


def lower_encoder(
    model: str,
    inputs: list[str],
    out: str,
    layout: Layout,
    ios: int,
    sequence_length: int,
    batch: int,
    origin: dict[str, str],
) -> dict[str, Any]:
    """Write `model.mlpackage` with one function, int32 inputs (batch, sequence_length), float16 outputs."""
    folder = Path(out)
    source = write_lineage(Path(model), origin, folder, processor=True)
    config = describe_encoder(source)
    with torch.device("meta"):
        network = build_encoder(config, layout).eval()
    weights = weights_of(source, encoder_sources(source, config), inputs, ios)
    if config.image:
        placeholders = {"pixel_values": mb.placeholder((batch, *config.image[0]), types.fp16)}
    else:
        placeholders = {name: mb.placeholder((batch, sequence_length), types.int32) for name in network.input_names}
    names = {name: name for name in placeholders}
    function = lower_function(network, placeholders, names, weights, OUTPUT_NAMES[source.task], opset_of(ios))
    write_mlpackage(folder / ARTIFACT, {"main": function}, weights.blobs, SPECIFICATIONS[ios], origin["source"])
    for each in inputs:
        copy_tables(Path(each), folder)
    description = read_spec(folder / ARTIFACT).description
    return asdict(
        lowered(ARTIFACT, description.input, description.output, weights.stored.values(), [folder / ARTIFACT])
    )


def weights_of(model: Model, sources: Mapping[str, Source], inputs: Sequence[str], ios: int) -> Weights:
    codes = list_quantized(Path(inputs[0])) if inputs else {}
    return Weights({info.name: info for info in model.tensors}, sources, codes, ios >= 18)


def opset_of(ios: int) -> Any:
    """coremltools' name of an iOS."""
    return getattr(coremltools.target, f"iOS{ios}")


def lowered(
    artifact: str, inputs: Iterable[Any], outputs: Iterable[Any], stored: Iterable[Stored], folders: Sequence[Path]
) -> Lowered:
    """The account of a package: its ports from what was written, its weights from what was asked for."""
    kinds: dict[str, int] = {}
    total = 0.0
    for each in stored:
        kinds[each.type] = kinds.get(each.type, 0) + each.elements
        total += each.bits * each.elements
    taken, given = (tuple(_port(feature) for feature in features) for features in (inputs, outputs))
    place = plan_placement if sys.platform == "darwin" else predict_placement
    placement = join_placements([place(folder) for folder in folders])
    return Lowered("coreml", artifact, taken, given, Account(total / sum(kinds.values()), kinds), placement)


_PORT_DTYPES = {65552: "float16", 65568: "float32", 131104: "int32"}


def _port(feature: Any) -> Port:
    array = feature.type.multiArrayType
    return Port(feature.name, _PORT_DTYPES[array.dataType], tuple(int(size) for size in array.shape))
