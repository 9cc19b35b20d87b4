"""How much an error of a weight matters: the sum of squares of each input of each layer over the calibration samples.

llama.cpp's quantizers take the same figures as an importance matrix (tools/imatrix/README.md).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from compiler.formats.safetensors import TensorInfo
from compiler.model import Model
from compiler.quantization import Quantization
from compiler.quantize.blocks.activations import Activations
from compiler.quantize.blocks.network import layers_of, open_network
from compiler.quantize.blocks.passes import batches, record_calls, run_block, run_front
from compiler.quantize.blocks.tables import find_tables, front_inputs
from compiler.quantize.solve.grid import Grid
from compiler.stages.worker import report_progress

_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Importance:
    """What a layer was given.

    Attributes:
        weight: where the layer's weight lies.
        transposed: it is stored (inputs, outputs).
        squares: float64 (inputs,), the sum of squares of each input over all tokens.
    """

    weight: TensorInfo
    transposed: bool
    squares: Tensor


def measure_importance(model: Model, samples: Tensor, out: Path) -> list[Importance]:
    """Run the samples, int64 (samples, tokens), through the model, one block in memory at a time.

    Activations lie in a folder beside `out`, which goes with the stage when it is killed.
    """
    network = open_network(model)
    count, length = samples.shape
    batch = max(1, _TOKENS_AT_ONCE // length)
    tables = find_tables(network, model, Quantization(), Grid(8, 32, True))
    front = [name for name in network.outside_blocks() if name != tables.head or tables.tied]
    found = []
    with tempfile.TemporaryDirectory(prefix="stream-", dir=out.parent) as work:
        stream = Activations(Path(work) / "stream", count, length, model.geometry.hidden_size)
        stream.create()
        for name in front:
            network.fill(name)
        calls = record_calls(network, front_inputs(model, samples[:1]))
        for start in range(0, count, batch):
            stream.write(start, run_front(network, front_inputs(model, samples[start : start + batch])))
        for name in front:
            network.empty(name)
        for number, block in enumerate(network.block_names):
            report_progress(number, len(network.block_names))
            network.fill(block)
            layers = layers_of(network, block)
            sums = {layer.name: torch.zeros(layer.weight().shape[1], dtype=torch.float64) for layer in layers}
            watch = [(layer, partial(_add_squares, sums[layer.name])) for layer in layers]
            for start, hidden in batches(stream, batch):
                after = run_block(network, block, calls[number], hidden, watch=watch)
                assert after is not None
                stream.write(start, after)
            found += [Importance(network.tensors[layer.name], layer.transposed, sums[layer.name]) for layer in layers]
            network.empty(block)
    return found


def _add_squares(to: Tensor, given: Tensor) -> None:
    to += given.square().sum(0)
