"""The quantization of a model as a stage of a build: `codes-*.safetensors` and `layers.json`.

The work is done in a folder of its own under the stage's key, one file of codes for each block that is done. A run that was
killed goes on at the block that it had reached; the activations there are kept for that.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compiler.formats.codes import list_quantized, write_quantized
from compiler.memory import give_back_memory
from compiler.model import Model, read_model
from compiler.quantization import Quantization, quantization_from_full
from compiler.quantize.allocation import TABLE, read_allocation
from compiler.quantize.blocks.activations import Activations
from compiler.quantize.blocks.network import Network, layers_of, open_network, weight_of
from compiler.quantize.blocks.passes import Call, batches, head_inputs, record_calls, run_front
from compiler.quantize.blocks.stream import Streams, add_gram, fill_lower, quantize_block
from compiler.quantize.blocks.tables import (
    Tables,
    allocated_tables,
    find_tables,
    front_inputs,
    replaced_weight,
    round_table,
)
from compiler.quantize.solve.gptq import GptqSettings, damp_hessian
from compiler.quantize.solve.grid import Grid, Grids, fitting_group, require_rows
from compiler.quantize.solve.matrix import as_quantized, round_matrix, solve_matrix
from compiler.stages.cache import partial_folder, write_atomically
from compiler.stages.worker import report_progress

_TOKENS_AT_ONCE = 2048


def quantize(
    model: str,
    out: str,
    task: str,
    method: str,
    bits: int,
    group_size: int,
    symmetric: bool,
    quantization: dict[str, Any],
    rows_per_palette: int | None = None,
    samples: str | None = None,
    allocation: str | None = None,
    positive_scales: bool = False,
    tables_by_row: bool = False,
) -> dict[str, Any]:
    """Find the codes of every matrix of a model: a stage.

    GPTQ reads `samples.npy` in the folder `samples`; where `bits` is 0, each layer has its own by the table in `allocation`.
    """
    source = read_model(Path(model), task=task)
    settings = quantization_from_full(quantization)
    network = open_network(source)
    grids = Grids(Grid(bits, group_size, symmetric, rows_per_palette, positive_scales))
    if settings.smaller_groups:
        grids = replace(grids, own=_fitting(network, grids.default))
    tables = find_tables(network, source, settings, grids.default, by_row=tables_by_row)
    if allocation is not None:
        shutil.copyfile(Path(allocation) / TABLE, Path(out) / TABLE)
        own = {name: Grid(own, group_size, even) for name, (own, even) in read_allocation(Path(allocation)).items()}
        grids = replace(grids, own=own)
        tables = allocated_tables(tables, own)
    with partial_folder() as work:
        if method == "gptq":
            assert samples is not None
            given = torch.from_numpy(np.load(Path(samples) / "samples.npy"))
            _gptq(network, source, given, grids, tables, settings, work)
        else:
            _rtn(network, grids, tables, work)
        table = _collect(work, Path(out))
    return {"layers": len(table)}


def _fitting(network: Network, grid: Grid) -> dict[str, Grid]:
    """The grid of every layer, with groups that divide its rows."""
    found = {}
    for block in network.block_names:
        for layer in layers_of(network, block):
            columns = weight_of(layer.module).shape[0 if layer.transposed else 1]
            found[layer.name] = replace(grid, group_size=fitting_group(columns, grid.group_size))
    return found


def take_over(model: str, out: str, task: str, quantization: dict[str, Any]) -> dict[str, Any]:
    """The codes that a model came with, as they are; embedding and head, which it has none for, rounded as is asked."""
    folder, source, settings = Path(out), read_model(Path(model), task=task), quantization_from_full(quantization)
    for file in sorted(Path(model).glob("codes-*.safetensors")):
        shutil.copyfile(file, folder / file.name)
    own = list_quantized(folder)
    first = next(iter(own.values()))
    network = open_network(source)
    tables = find_tables(network, source, settings, Grid(first.bits, first.group_size, first.symmetric))
    for module, grid, part in (
        (tables.embedding, tables.embedding_grid, "front"),
        (None if tables.tied else tables.head, tables.head_grid, "tail"),
    ):
        if module and grid and network.stored_name(f"{module}.weight") not in own:
            _round_table(network, module, grid, folder / f"codes-{part}.safetensors")
    return {"layers": len(_table(folder))}


def _rtn(network: Network, grids: Grids, tables: Tables, work: Path) -> None:
    total = len(network.block_names) + 1
    if tables.embedding and tables.embedding_grid:
        _round_table(network, tables.embedding, tables.embedding_grid, work / "codes-front.safetensors")
    for number, block in enumerate(network.block_names):
        network.fill(block)
        found = []
        for layer in layers_of(network, block):
            weight = layer.weight()
            grid = grids.of(layer.name)
            require_rows(layer.name, weight, grid)
            name = network.stored_name(layer.name)
            found.append(as_quantized(name, *round_matrix(weight, grid), grid, layer.transposed))
        network.empty(block)
        write_quantized(_block_file(work, number), found)
        report_progress(number + 1, total)
    if tables.head and tables.head_grid and not tables.tied:
        _round_table(network, tables.head, tables.head_grid, work / "codes-tail.safetensors")
    report_progress(total, total)


def _round_table(network: Network, module: str, grid: Grid, file: Path) -> Tensor:
    """Round an embedding or a head to the nearest codes, write them, and return what they stand for."""
    network.fill(module)
    weight = weight_of(network.module.get_submodule(module))
    write_quantized(file, [as_quantized(network.stored_name(f"{module}.weight"), *round_table(weight, grid), grid)])
    network.empty(module)
    return weight


def _gptq(
    network: Network,
    model: Model,
    samples: Tensor,
    grids: Grids,
    tables: Tables,
    settings: Quantization,
    work: Path,
) -> None:
    """Through the network block by block; `state.json` tells a later run how far this one came."""
    count = len(samples)
    length, calls = _open_front(network, model, tables, samples[:1])
    batch = max(1, _TOKENS_AT_ONCE // length)
    total = len(network.block_names) + 2
    state = work / "state.json"
    done = json.loads(state.read_text(encoding="utf-8"))["done"] if state.is_file() else -1
    size = model.geometry.hidden_size

    samples = torch.cat([samples[::2], samples[1::2]])
    followed = min(count, -(-count // (2 * batch)) * batch)  # half, in whole batches

    def streams(number: int) -> Streams:
        original = Activations(work / f"original-{number}", followed, length, size) if settings.feedback else None
        return Streams(original, Activations(work / f"quantized-{number}", count, length, size))

    inputs = front_inputs(model, samples[:1])
    if done < 0:
        _run_front(network, model, samples, tables, streams(0), batch, work)
    for name in _front_of(network, tables):
        network.empty(name)
    gptq = GptqSettings(settings.damping, settings.activation_order, settings.refinements)
    for number, block in enumerate(network.block_names):
        if number < done:
            continue
        if number > done:
            write_atomically(state, json.dumps({"done": number}))
        report_progress(number + 1, total)
        before, after = streams(number), streams(number + 1)
        found = []
        for done_layer in quantize_block(
            network, block, calls[number], before, after, grids, gptq, settings.feedback, batch, work
        ):
            name = network.stored_name(done_layer.layer.name)
            found.append(
                as_quantized(
                    name, done_layer.codes, done_layer.parameters, done_layer.grid, done_layer.layer.transposed
                )
            )
        write_quantized(_block_file(work, number), found)
        write_atomically(state, json.dumps({"done": number + 1}))
        for each in (before.original, before.quantized):
            if each is not None:
                each.remove()
        give_back_memory()
    report_progress(total - 1, total)
    if tables.head and tables.head_grid and not tables.tied:
        final = streams(len(network.block_names)).quantized
        _solve_head(network, tables.head, tables.head_grid, inputs, final, gptq, batch, work)
    report_progress(total, total)


def _open_front(network: Network, model: Model, tables: Tables, sample: Tensor) -> tuple[int, list[Call]]:
    """Read the weights before the blocks; the positions that they make of a sample, (1, ...), and how they call each block."""
    for name in _front_of(network, tables):
        network.fill(name)
    inputs = front_inputs(model, sample)
    return run_front(network, inputs).shape[1], record_calls(network, inputs)


def _front_of(network: Network, tables: Tables) -> list[str]:
    return [name for name in network.outside_blocks() if name != tables.head]


def _run_front(
    network: Network, model: Model, samples: Tensor, tables: Tables, to: Streams, batch: int, work: Path
) -> None:
    """Run the front on all samples into `to`, with the embedding as it was and as it is stored."""
    quantized = None
    if tables.embedding and tables.embedding_grid:
        quantized = _round_table(network, tables.embedding, tables.embedding_grid, work / "codes-front.safetensors")
        network.fill(tables.embedding)
    table = network.module.get_submodule(tables.embedding) if tables.embedding else None
    for each in (to.original, to.quantized):
        if each is not None:
            each.create()
    for start in range(0, len(samples), batch):
        inputs = front_inputs(model, samples[start : start + batch])
        hidden = run_front(network, inputs)
        if to.original is not None and start < to.original.samples:
            to.original.write(start, hidden)
        if table is not None and quantized is not None:
            with replaced_weight(table, quantized):
                hidden = run_front(network, inputs)
        to.quantized.write(start, hidden)


def _solve_head(
    network: Network,
    head: str,
    grid: Grid,
    inputs: dict[str, Tensor],
    final: Activations,
    gptq: GptqSettings,
    batch: int,
    work: Path,
) -> None:
    """GPTQ of the head from what the quantized blocks leave."""
    table = network.module.get_input_embeddings()
    for name in network.outside_blocks():
        if name != head and network.module.get_submodule(name) is not table:
            network.fill(name)
    # Only what comes after the blocks matters: the embedding may give anything, here zeros that take no memory.
    table.weight = nn.Parameter(torch.zeros(1, 1).expand(weight_of(table).shape), requires_grad=False)
    module = network.module.get_submodule(head)
    hessian = torch.zeros(final.size, final.size)
    for _, hidden in batches(final, batch):
        ids = inputs["input_ids"].expand(len(hidden), -1)
        add_gram(hessian, head_inputs(network, {**inputs, "input_ids": ids}, hidden, module).reshape(-1, final.size))
    fill_lower(hessian)
    for name in network.outside_blocks():
        network.empty(name)
    network.fill(head)
    damped = damp_hessian(hessian, gptq, f"{head}.weight")
    weight = weight_of(network.module.get_submodule(head))
    codes, parameters = solve_matrix(weight, damped, grid, gptq)
    write_quantized(
        work / "codes-tail.safetensors", [as_quantized(network.stored_name(f"{head}.weight"), codes, parameters, grid)]
    )


def _block_file(work: Path, number: int) -> Path:
    return work / f"codes-{number:04}.safetensors"


def _collect(work: Path, out: Path) -> list[dict[str, Any]]:
    """Put the codes into `out` and write the table of layers. They stay in `work` too, which a run cut off here needs."""
    for file in sorted(work.glob("codes-*.safetensors")):
        try:
            (out / file.name).hardlink_to(file)
        except OSError:  # another file system
            shutil.copyfile(file, out / file.name)
    return _table(out)


def _table(out: Path) -> list[dict[str, Any]]:
    """Write `layers.json`: what every quantized tensor is."""
    table = [
        {
            "tensor": entry.name,
            "rows": entry.rows,
            "columns": entry.columns,
            "bits": entry.bits,
            "group_size": entry.group_size,
            "symmetric": entry.symmetric,
            "palettes": entry.tables,
        }
        for entry in list_quantized(out).values()
    ]
    (out / "layers.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return table
