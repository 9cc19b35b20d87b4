"""The stages that lower a model to Core ML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from targets.coreml_weights import Stored, Weights

ARTIFACT = "model.mlpackage"
_SPECIFICATION = {16: 7, 17: 8, 18: 9}


def lower_encoder(
    model: str,
    inputs: list[str],
    out: str,
    scheme: str,
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
    weights = _weights(source, encoder_sources(source, config), inputs)
    if config.image:
        placeholders = {"pixel_values": mb.placeholder((batch, *config.image[0]), types.fp16)}
    else:
        placeholders = {name: mb.placeholder((batch, sequence_length), types.int32) for name in network.input_names}
    function = lower_function(network, placeholders, weights, OUTPUT_NAMES[source.task], _opset(ios))
    write_mlpackage(folder / ARTIFACT, {"main": function}, weights.blobs, _SPECIFICATION[ios], origin["source"])
    for each in inputs:
        copy_tables(Path(each), folder)
    return asdict(_lowered(folder, weights.stored, scheme))


def _weights(model: Model, sources: Mapping[str, Source], inputs: Sequence[str]) -> Weights:
    codes = list_quantized(Path(inputs[0])) if inputs else {}
    return Weights({info.name: info for info in model.tensors}, sources, codes)


def _opset(ios: int) -> Any:
    return getattr(coremltools.target, f"iOS{ios}")


def _lowered(folder: Path, stored: Mapping[str, Stored], scheme: str) -> Lowered:
    """The account of a package: its ports from what was written, its weights from what was asked for."""
    description = read_spec(folder / ARTIFACT).description
    asked = description.functions[0] if description.functions else description
    kinds: dict[str, int] = {}
    for each in stored.values():
        kinds[each.type] = kinds.get(each.type, 0) + each.elements
    bits = sum(each.bits * each.elements for each in stored.values()) / sum(each.elements for each in stored.values())
    return Lowered(
        runtime="coreml",
        artifact=ARTIFACT,
        inputs=tuple(_port(feature) for feature in asked.input),
        outputs=tuple(_port(feature) for feature in asked.output),
        weights=Account(bits, kinds, ()),
    )


_PORT_DTYPES = {65552: "float16", 65568: "float32", 131104: "int32"}


def _port(feature: Any) -> Port:
    array = feature.type.multiArrayType
    return Port(feature.name, _PORT_DTYPES[array.dataType], tuple(int(size) for size in array.shape))
