"""GPTQ through a network, one block in memory at a time.

Two streams of activations run through the network: one through the blocks as they came, one through the quantized
blocks. Within a block, layers that share their input form a group; the groups are quantized in the order in which they
run, each from inputs that the groups before it, quantized, have left (true-sequential). A group's target is the output of
the original layer on the original inputs: the part of the error so far that it can take back is added to its weights
before they are rounded (Li et al. 2025, GPTAQ, arXiv:2504.02692; Arai and Ichikawa 2025, QEP, arXiv:2504.09629).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compiler.memory import give_back_memory
from compiler.quantize.blocks.activations import Activations
from compiler.quantize.blocks.network import Layer, Network
from compiler.quantize.blocks.passes import Call, Group, batches, find_groups, run_block
from compiler.quantize.solve.gptq import GptqSettings, damp_hessian
from compiler.quantize.solve.grid import Grid, Grids, Scales, require_rows
from compiler.quantize.solve.matrix import QuantizationParameters, restore, solve_matrix

_GRAM_TILE = 512


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer's codes and what they mean, as soon as they are found."""

    layer: Layer
    grid: Grid
    codes: Tensor
    parameters: QuantizationParameters


@dataclass(frozen=True)
class Streams:
    """The activations before a block: through the original blocks and through the quantized ones.

    The original stream may have fewer samples, the first ones, or be None; what it tells is the mean error, for which
    fewer samples do.
    """

    original: Activations | None
    quantized: Activations


def quantize_block(
    network: Network,
    block: str,
    call: Call,
    before: Streams,
    after: Streams,
    grids: Grids,
    settings: GptqSettings,
    feedback: float,
    batch: int,
    work: Path,
) -> Iterator[QuantizedLayer]:
    """Quantize the layers of a block and take both streams through it.

    Args:
        network: the network; the block is filled here and left empty.
        block: its name.
        call: how the network calls it.
        before: activations before it.
        after: activations after it; their files are written.
        grids: what codes mean, the same for layers that share their input.
        settings: how codes are looked for.
        feedback: how much of the error so far a layer takes back, 0 to 1.
        batch: samples at once.
        work: a folder for activations within the block.
    """
    network.fill(block)
    groups = find_groups(network, block, call, before.quantized.read(0, 1))
    originals = _run_original(network, block, call, before, after, groups, batch, work)
    known: list[tuple[Group, Activations]] = []
    for number, group in enumerate(groups):
        original = originals[number] if originals else None
        keep = None
        if number and groups[number - 1].feeds_only_next:
            keep = _kept(group, before.quantized, work / f"quantized-inputs-{number}")
            keep.create()
        hessian, cross = _sum_hessian(
            network, block, call, before.quantized, groups, number, original, keep, known, batch
        )
        if keep:
            known.append((group, keep))
        yield from _quantize_layers(group.layers, hessian, cross, grids.of(group.layers[0].name), settings, feedback)
        give_back_memory()
        if original is not None:
            original.remove()
    after.quantized.create()
    for start, hidden in batches(before.quantized, batch):
        result = run_block(network, block, call, hidden, **_shortcut(groups, known, start, len(hidden)))
        assert result is not None
        after.quantized.write(start, result)
    for _, inputs in known:
        inputs.remove()
    network.empty(block)


def _kept(group: Group, stream: Activations, path: Path) -> Activations:
    return Activations(path, stream.samples, stream.positions, group.layers[0].weight().shape[1])


def _shortcut(
    groups: tuple[Group, ...], known: list[tuple[Group, Activations]], start: int, count: int
) -> dict[str, Any]:
    """What a pass need not run, since the inputs of the groups after it are known."""
    skip = [groups[groups.index(group) - 1] for group, _ in known]
    given = [(group, inputs.read(start, start + count).reshape(-1, inputs.size)) for group, inputs in known]
    return {"skip": skip, "given": given}


def _run_original(
    network: Network,
    block: str,
    call: Call,
    before: Streams,
    after: Streams,
    groups: tuple[Group, ...],
    batch: int,
    work: Path,
) -> list[Activations] | None:
    """Take the original stream through the block as it came, and keep each group's inputs."""
    if before.original is None or after.original is None:
        return None
    stream = before.original
    kept: list[Activations] = []
    for number, group in enumerate(groups):
        size = group.layers[0].weight().shape[1]
        kept.append(Activations(work / f"inputs-{number}", stream.samples, stream.positions, size))
        kept[-1].create()
    after.original.create()
    for start, hidden in batches(stream, batch):
        watch = [
            (group.layers[0], partial(_store, own, start, len(hidden))) for group, own in zip(groups, kept, strict=True)
        ]
        result = run_block(network, block, call, hidden, watch=watch)
        assert result is not None
        after.original.write(start, result)
    return kept


def _store(own: Activations, start: int, count: int, given: Tensor) -> None:
    own.write(start, given.reshape(count, own.positions, own.size))


def _sum_hessian(
    network: Network,
    block: str,
    call: Call,
    stream: Activations,
    groups: tuple[Group, ...],
    number: int,
    original: Activations | None,
    keep: Activations | None,
    known: list[tuple[Group, Activations]],
    batch: int,
) -> tuple[Tensor, Tensor | None]:
    """Sum of x x^T over a group's inputs x, and of (y - x) x^T where y are the original network's inputs."""
    first = groups[number].layers[0]
    size = first.weight().shape[1]
    hessian = torch.zeros(size, size)
    cross = torch.zeros(size, size) if original is not None else None
    for start, hidden in batches(stream, batch):

        def add(given: Tensor, start: int = start, count: int = len(hidden)) -> None:
            add_gram(hessian, given)
            if keep is not None:
                keep.write(start, given.reshape(count, keep.positions, size))
            if original is not None and cross is not None and start < original.samples:
                wanted = original.read(start, start + count).reshape(-1, size)
                cross.addmm_(wanted.sub_(given).t(), given)

        shortcut = _shortcut(groups, known, start, len(hidden))
        run_block(network, block, call, hidden, watch=[(first, add)], stop_at=first, **shortcut)
    fill_lower(hessian)
    if original is not None and cross is not None:
        cross *= stream.samples / original.samples
    return hessian, cross


def add_gram(total: Tensor, given: Tensor) -> None:
    """Add x^T x of `given` (tokens, size) to the upper tiles of `total`; `fill_lower` mirrors them in the end."""
    size = given.shape[1]
    for start in range(0, size, _GRAM_TILE):
        end = min(start + _GRAM_TILE, size)
        total[start:end, start:].addmm_(given[:, start:end].t(), given[:, start:])


def fill_lower(total: Tensor) -> None:
    """Make a matrix symmetric from its upper triangle."""
    upper = total.triu(1)
    total.tril_(0).copy_(total.diagonal().diag() + upper + upper.t())


def _quantize_layers(
    layers: Sequence[Layer],
    hessian: Tensor,
    cross: Tensor | None,
    grid: Grid,
    settings: GptqSettings,
    feedback: float,
) -> Iterator[QuantizedLayer]:
    """Quantize layers with the same inputs: as one matrix where rows do not interact, one by one where rows share palettes."""
    damped = damp_hessian(hessian, settings, layers[0].name)
    weights = [layer.weight() for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        require_rows(layer.name, weight, grid)
    target = torch.cat(weights)
    if cross is not None and feedback:
        target += feedback * damped.times_inverse(target @ cross)
    together = None if grid.rows_per_palette is not None else solve_matrix(target, damped, grid, settings)
    start = 0
    for layer, weight in zip(layers, weights, strict=True):
        end = start + len(weight)
        if together is None:
            part, own = solve_matrix(target[start:end], damped, grid, settings)
        else:
            codes, scales = together
            assert isinstance(scales, Scales)
            own = Scales(scales.scale[start:end].clone(), scales.zero_point[start:end].clone())
            part = codes[start:end].clone()
        layer.set_weight(restore(part, own))
        yield QuantizedLayer(layer, grid, part, own)
        start = end
