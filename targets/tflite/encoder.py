"""An encoder as a TFLite file: our own network written operator by operator, a signature for each length of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compiler.formats.codes import list_quantized
from compiler.formats.tflite import write_tflite
from compiler.lineage import model_of, write_lineage
from compiler.model import Model
from compiler.networks.configs import EncoderConfig
from compiler.networks.encoder import build_encoder
from compiler.networks.encoder_family import describe_encoder, encoder_sources
from compiler.networks.families import encoder_family
from compiler.networks.sentence import with_sentence
from compiler.package import FixedShapes, Graph, Lowered, Port
from compiler.quantize.plan import copy_tables
from targets.tflite.account import stored_weights
from targets.tflite.graph import Document, Function, Value
from targets.tflite.lower import lower_network
from targets.tflite.placement import place_files
from targets.tflite.ranges import ProductRange, read_ranges
from targets.tflite.target import FILE, MAIN
from targets.tflite.weights import Weights

# With whole rows the mean cosine of MiniLM in int8 falls from 0.9996 to 0.9991.
_WIDEST, _MOST_PIECES = 96, 4


def lower_encoder(
    model: str,
    out: str,
    scheme: str,
    sequence_lengths: list[int],
    batch: int,
    lineage: dict[str, str],
    codes: str | None = None,
    ranges: str | None = None,
) -> dict[str, Any]:
    """Write `model.tflite`: a stage.

    Token ids are int32 (batch, length), pictures float32 (batch, channels, height, width), outputs float32. One length has
    the signature `main`, of several each has its own, `main_64` for one.

    Args:
        model: the model's folder.
        out: where the package grows.
        scheme: the recipe's.
        sequence_lengths: tokens of an input, in rising order; a picture has none.
        batch: inputs at once.
        lineage: of the model and the recipe.
        codes: the folder with `codes-*.safetensors`; None for a float scheme.
        ranges: the folder with the ranges of products in whole numbers; None where inputs are rounded as they come.
    """
    folder, source = Path(out), model_of(Path(model), lineage)
    family = encoder_family(source)
    config = describe_encoder(source, family)
    infos, sources = with_sentence(source, encoder_sources(source, family, config))
    known = list_quantized(Path(codes)) if codes else {}
    weights = Weights(infos, sources, known, halves=scheme == "fp16", widest=_WIDEST, most_pieces=_MOST_PIECES)
    document, measured = Document(), read_ranges(Path(ranges)) if ranges else {}
    graphs = tuple(
        _add_function(document, name, shape, source, config, weights, max(sequence_lengths), measured)
        for name, shape in _functions(config, sequence_lengths, batch)
    )
    write_tflite(document.model, folder / FILE)
    write_lineage(source, lineage, folder, processor=True)
    if codes is not None:
        copy_tables(Path(codes), folder)
    lengths = () if config.image else tuple(sequence_lengths)
    shapes = FixedShapes(sequence_lengths=lengths, longest_sequence=max(lengths, default=None), batch=batch)
    account, placement = stored_weights(document.model), place_files([folder / FILE])
    return asdict(Lowered("litert", graphs, account, shapes, placement))


def _functions(
    config: EncoderConfig, sequence_lengths: Sequence[int], batch: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name of each signature and the shape of its inputs."""
    if config.image:
        yield MAIN, (batch, *config.image[0])
        return
    for length in sequence_lengths:
        yield MAIN if len(sequence_lengths) == 1 else f"{MAIN}_{length}", (batch, length)


def _add_function(
    document: Document,
    name: str,
    shape: tuple[int, ...],
    model: Model,
    config: EncoderConfig,
    weights: Weights,
    longest: int,
    ranges: Mapping[str, ProductRange],
) -> Graph:
    """Add a signature; what package.json says of it."""
    with torch.device("meta"):
        network = build_encoder(config, "plain").eval()
    function = Function(document, name)
    dtype: Any = np.float32 if config.image else np.int32
    given = {each: function.input(each, shape, dtype) for each in network.input_names}
    found = lower_network(network, function, weights, given, longest, ranges)
    outputs = dict(zip(model.outputs, _flat(found), strict=True))
    function.finish(outputs)
    inputs = tuple(Port(each, np.dtype(dtype).name, shape) for each in given)
    ports = tuple(Port(each, "float32", value.shape) for each, value in outputs.items())
    return Graph(name, (FILE,), inputs, ports, function=name)


def _flat(found: Any) -> list[Value]:
    """The values of nested tuples, in their order."""
    return [found] if isinstance(found, Value) else [value for each in found for value in _flat(each)]
