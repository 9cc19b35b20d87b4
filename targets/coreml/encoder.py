"""The stages that lower a model to Core ML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import get_new_symbol, types

from compiler.formats.codes import list_quantized
from compiler.lineage import write_lineage
from compiler.model import Model
from compiler.networks.encoder import build_encoder
from compiler.networks.encoder_families import describe_encoder, encoder_sources
from compiler.networks.parts import Layout
from compiler.networks.weights import Source
from compiler.package import Deviation, Lowered, Port
from compiler.package import Weights as Account
from compiler.pretrained import OUTPUT_NAMES
from compiler.quantize.plan import copy_tables
from targets.coreml.activations import RANGES
from targets.coreml.compute_plan import place_packages
from targets.coreml.graph import lower_function
from targets.coreml.package import read_spec, write_mlpackage
from targets.coreml.weights import Stored, Weights

ARTIFACT = "model.mlpackage"
SPECIFICATIONS = {16: 7, 17: 8, 18: 9}


def lower_encoder(
    model: str,
    inputs: list[str],
    out: str,
    layout: Layout,
    ios: int,
    sequence_lengths: list[int],
    batch: int,
    origin: dict[str, str],
    placed_by: str = "",
) -> dict[str, Any]:
    """Write `model.mlpackage` with one function, int32 inputs (batch, one of the lengths), float16 outputs."""
    folder = Path(out)
    source = write_lineage(Path(model), origin, folder, processor=True)
    config = describe_encoder(source)
    with torch.device("meta"):
        network = build_encoder(config, layout).eval()
    weights = weights_of(source, encoder_sources(source, config), inputs, ios)
    if config.image:
        placeholders = {"pixel_values": mb.placeholder((batch, *config.image[0]), types.fp16)}
    else:
        length = sequence_lengths[0] if len(sequence_lengths) == 1 else get_new_symbol()
        placeholders = {name: mb.placeholder((batch, length), types.int32) for name in network.input_names}
    names = {name: name for name in placeholders}
    function = lower_function(network, placeholders, names, weights, OUTPUT_NAMES[source.task], opset_of(ios))
    if len(sequence_lengths) > 1:
        # All inputs have the same length, which Core ML cannot say: it is told each one's.
        shapes = coremltools.EnumeratedShapes([(batch, each) for each in sequence_lengths])
        function.set_input_types(
            tuple(coremltools.TensorType(name=name, shape=shapes, dtype=np.int32) for name in placeholders)
        )
        told = json.dumps({"sequence_lengths": sequence_lengths}, indent=1)
        (folder / "coreml.json").write_text(told + "\n", encoding="utf-8")
    write_mlpackage(folder / ARTIFACT, {"main": function}, weights.blobs, SPECIFICATIONS[ios], origin["source"])
    for each in inputs:
        copy_tables(Path(each), folder)
    description = read_spec(folder / ARTIFACT).description
    account = lowered(ARTIFACT, description.input, description.output, weights.stored.values(), [folder / ARTIFACT])
    floats = tuple(
        Deviation(f"input of {name}", "fp16", "a few channels are too large for 8 bits to do for the others", False)
        for name in _ranges(inputs).get("float_errors", {})
    )
    return asdict(replace(account, weights=replace(account.weights, deviations=floats)))


def _ranges(inputs: Sequence[str]) -> dict[str, dict[str, float]]:
    """What `targets.coreml.activations` wrote; empty where activations stay floats."""
    if len(inputs) < 2:
        return {}
    found: dict[str, dict[str, float]] = json.loads((Path(inputs[1]) / RANGES).read_text(encoding="utf-8"))
    return found


def weights_of(model: Model, sources: Mapping[str, Source], inputs: Sequence[str], ios: int) -> Weights:
    """The parameters; `inputs` are the folders of codes and of ranges, where there are any."""
    codes = list_quantized(Path(inputs[0])) if inputs else {}
    scales = _ranges(inputs).get("scales", {})
    return Weights({info.name: info for info in model.tensors}, sources, codes, ios >= 18, scales)


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
    account = Account(total / sum(kinds.values()), kinds)
    return Lowered("coreml", artifact, taken, given, account, place_packages(folders))


_PORT_DTYPES = {65552: "float16", 65568: "float32", 131104: "int32"}


def _port(feature: Any) -> Port:
    """Sizes that are one of several have a name."""
    array = feature.type.multiArrayType
    every = [tuple(int(size) for size in each.shape) for each in array.enumeratedShapes.shapes]
    sizes: tuple[int | str, ...] = tuple(int(size) for size in array.shape)
    if every:
        sizes = tuple(
            size if len({each[axis] for each in every}) == 1 else "sequence" for axis, size in enumerate(sizes)
        )
    return Port(feature.name, _PORT_DTYPES[array.dataType], sizes)
