"""What rounding each layer costs, measured: the KL divergence of the network's answers with only that layer rounded.

One stream of activations for each group of layers runs through the network beside the undisturbed one, block by block, so
that one block is in memory at a time. The KL is measured with 4 bits; for other grids it is scaled by the squared error that
they make in the layers' outputs on the same inputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compiler.model import Model, read_model
from compiler.quantization import TABLE_GROUP, Storage, quantization_from_full
from compiler.quantize.allocation import Sensitivity, write_sensitivities
from compiler.quantize.blocks.activations import Activations
from compiler.quantize.blocks.network import Layer, Network, open_network, weight_of
from compiler.quantize.blocks.passes import Group, find_groups, record_calls, run_block, run_front, run_tail
from compiler.quantize.blocks.tables import Tables, find_tables, front_inputs, replaced_weight, round_table
from compiler.quantize.solve.grid import Grid, dequantize, fit_scales, require_rows, round_to_codes
from compiler.stages.worker import report_progress

GRIDS: tuple[tuple[int, bool], ...] = ((4, True), (4, False), (5, True), (5, False), (8, True))
_MEASURED = (4, True)
_TOKENS = 1024
_POSITIONS_AT_ONCE = 256


@dataclass(frozen=True)
class _Disturbed:
    """A stream in which some layers are rounded; `errors` are the squared errors of their outputs for each grid."""

    layers: tuple[str, ...]
    weights: int
    errors: dict[tuple[int, bool], float]
    stream: Activations | None


def measure(
    model: str, samples: str, out: str, task: str, group_size: int, quantization: dict[str, Any]
) -> dict[str, Any]:
    """Write `sensitivity.json`: a stage. `samples` is the folder with `samples.npy`."""
    source = read_model(Path(model), task=task)
    settings = quantization_from_full(quantization)
    network = open_network(source)
    given = torch.from_numpy(np.load(Path(samples) / "samples.npy"))
    count = max(1, min(len(given), _TOKENS // given.shape[1]))
    given = given[torch.linspace(0, len(given) - 1, count).long()]
    tables = find_tables(network, source, settings, Grid(4, TABLE_GROUP, True))
    with tempfile.TemporaryDirectory(dir=Path(out).parent, prefix="streams-") as work:
        found = _measure(network, source, given, tables, group_size, Path(work))
        kl = _tail_kl(network, source, given, tables, found)
    rows = [_row(each, measured, tables, settings.embedding, settings.head) for each, measured in kl]
    write_sensitivities(Path(out), rows)
    return {"groups": len(rows)}


def _measure(
    network: Network, model: Model, samples: Tensor, tables: Tables, group_size: int, work: Path
) -> list[_Disturbed]:
    """Run all streams through the blocks. The first has nothing rounded."""
    count, length = samples.shape
    size = model.geometry.hidden_size
    total = len(network.block_names) + 2
    inputs = front_inputs(model, samples)
    numbers = iter(range(10**6))

    def new_stream(hidden: Tensor) -> Activations:
        stream = Activations(work / f"stream-{next(numbers)}", count, length, size)
        stream.create()
        stream.write(0, hidden)
        return stream

    front = [name for name in network.outside_blocks() if name != tables.head or tables.tied]
    for name in front:
        network.fill(name)
    calls = record_calls(network, inputs)
    reference = _Disturbed((), 0, {}, new_stream(run_front(network, inputs)))
    streams = [reference]
    if tables.embedding and tables.embedding_grid:
        table = network.module.get_submodule(tables.embedding)
        with _rounded_table(table) as errors:
            hidden = run_front(network, inputs)
        streams.append(
            _Disturbed((f"{tables.embedding}.weight",), weight_of(table).numel(), errors, new_stream(hidden))
        )
    for name in front:
        network.empty(name)
    for number, block in enumerate(network.block_names):
        report_progress(number + 1, total)
        network.fill(block)
        call = calls[number]
        assert reference.stream is not None
        own = reference.stream.read(0, count)
        groups = find_groups(network, block, call, own[:1])
        seen: dict[str, Tensor] = {}
        watch = [(group.layers[0], partial(seen.__setitem__, group.layers[0].name)) for group in groups]
        after = run_block(network, block, call, own, watch=watch)
        for each in streams[1:]:
            assert each.stream is not None
            moved = run_block(network, block, call, each.stream.read(0, count))
            assert moved is not None
            each.stream.write(0, moved)
        for group in groups:
            names = tuple(layer.name for layer in group.layers)
            with _rounded_group(group, seen[group.layers[0].name], group_size) as errors:
                moved = run_block(network, block, call, own)
            assert moved is not None
            weights = sum(weight_of(layer.module).numel() for layer in group.layers)
            streams.append(_Disturbed(names, weights, errors, new_stream(moved)))
        assert after is not None
        reference.stream.write(0, after)
        network.empty(block)
    return streams


@contextmanager
def _rounded_group(group: Group, given: Tensor, group_size: int) -> Iterator[dict[tuple[int, bool], float]]:
    """The group's layers rounded for a while; gives the squared errors of their outputs for each grid."""
    errors = dict.fromkeys(GRIDS, 0.0)
    with ExitStack() as stack:
        for layer in group.layers:
            weight = layer.weight()
            stack.callback(layer.set_weight, weight)
            for bits, symmetric in GRIDS:
                grid = Grid(bits, group_size, symmetric)
                rounded = _rounded(layer, weight, grid)
                errors[bits, symmetric] += float((given @ (rounded - weight).t()).double().square().sum())
                if (bits, symmetric) == _MEASURED:
                    layer.set_weight(rounded)
        yield errors


def _rounded(layer: Layer, weight: Tensor, grid: Grid) -> Tensor:
    require_rows(layer.name, weight, grid)
    scales = fit_scales(weight, grid)
    return dequantize(round_to_codes(weight, scales, grid), scales)


@contextmanager
def _rounded_table(module: nn.Module) -> Iterator[dict[tuple[int, bool], float]]:
    """An embedding or a head rounded for a while; gives the squared errors of its weights for each grid."""
    weight = weight_of(module)
    errors = {}
    measured = weight
    for bits, symmetric in GRIDS:
        rounded = weight.clone()
        round_table(rounded, Grid(bits, TABLE_GROUP, symmetric))
        errors[bits, symmetric] = float((rounded - weight).square().sum(dtype=torch.float64))
        if (bits, symmetric) == _MEASURED:
            measured = rounded
    with replaced_weight(module, measured):
        yield errors


def _tail_kl(
    network: Network, model: Model, samples: Tensor, tables: Tables, streams: Sequence[_Disturbed]
) -> list[tuple[_Disturbed, float]]:
    """Mean KL of every stream's answers from the first one's, and of the head rounded alone."""
    embedding = network.module.get_submodule(tables.embedding) if tables.embedding else None
    for name in network.outside_blocks():
        if name != tables.embedding:
            network.fill(name)
    if embedding is not None:
        # What the blocks leave is given, so the embedding may give anything, here zeros that take no memory.
        embedding.weight = nn.Parameter(torch.zeros(1, 1).expand(weight_of(embedding).shape), requires_grad=False)
    reference, others = streams[0], list(streams[1:])
    head = network.module.get_submodule(tables.head) if tables.head else None
    rounds_head = head is not None and tables.head_grid is not None
    if rounds_head and not tables.tied:
        assert head is not None
        with _rounded_table(head) as errors:
            rounded = weight_of(head)
        own = _Disturbed((f"{tables.head}.weight",), rounded.numel(), errors, reference.stream)
        others.append(own)
    elif rounds_head:
        assert head is not None
        rounded = weight_of(head).clone()
        round_table(rounded, Grid(_MEASURED[0], TABLE_GROUP, _MEASURED[1]))
    sums = [0.0] * len(others)
    count, length = samples.shape
    for sample in range(count):
        for start in range(0, length, _POSITIONS_AT_ONCE):
            end = min(start + _POSITIONS_AT_ONCE, length)
            inputs = front_inputs(model, samples[sample : sample + 1, start:end])
            expected = _log_probabilities(network, inputs, reference, sample, start, end)
            weighs = expected.exp()
            for number, each in enumerate(others):
                disturbs_head = rounds_head and (
                    f"{tables.head}.weight" in each.layers or (tables.tied and number == 0)
                )
                with ExitStack() as stack:
                    if disturbs_head:
                        assert head is not None
                        stack.enter_context(replaced_weight(head, rounded))
                    found = _log_probabilities(network, inputs, each, sample, start, end)
                sums[number] += float(expected.sub(found).mul_(weighs).sum(dtype=torch.float64))
        report_progress(len(network.block_names) + 1, len(network.block_names) + 2)
    return [(each, max(0.0, total / samples.numel())) for each, total in zip(others, sums, strict=True)]


def _log_probabilities(
    network: Network, inputs: dict[str, Tensor], each: _Disturbed, sample: int, start: int, end: int
) -> Tensor:
    assert each.stream is not None
    hidden = each.stream.read(sample, sample + 1)[:, start:end]
    logits: Tensor = run_tail(network, inputs, hidden).logits[0].float()
    return logits.log_softmax(-1)


def _row(each: _Disturbed, measured: float, tables: Tables, embedding: Storage, head: Storage) -> Sensitivity:
    """The measured KL and what follows for the other grids; tables that are asked for in some bits have only those."""
    base = max(each.errors[_MEASURED], 1e-30)
    kl = [(bits, symmetric, measured * error / base) for (bits, symmetric), error in each.errors.items()]
    asked: Storage = "auto"
    if each.layers == (f"{tables.embedding}.weight",):
        asked = embedding
    elif each.layers == (f"{tables.head}.weight",):
        asked = head
    if asked != "auto":
        kl = [row for row in kl if row[:2] == ((4, True) if asked == "int4" else (8, True))]
    return Sensitivity(each.layers, each.weights, measured, tuple(kl))
