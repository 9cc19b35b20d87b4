"""The parameters of a network for each rank, and the files of them.

Files are called as AWS's own libraries call them (NxD: weights/tp0_sharded_checkpoint.safetensors, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from torch import nn

from compiler.formats.safetensors import TensorInfo, write_tensors
from compiler.networks import kv_cache, parts
from compiler.networks.ranks import Cut
from compiler.networks.weights import Source, read_source
from targets.neuron.network import Argument

FOLDER = "weights"
_SAFETENSORS = {"float32": "F32", "bfloat16": "BF16"}


def parameters(network: nn.Module, dtype: str, cut: Cut) -> tuple[Argument, ...]:
    """What a rank's module takes of parameters and tables, in the network's order; matrices in `dtype`."""
    found = []
    for name, values in _named(network):
        shape = cut.part(np.broadcast_to(np.float32(0), tuple(values.shape)), name, 0).shape
        module = network.get_submodule(name.rpartition(".")[0])
        matrix = isinstance(module, parts.Projection | parts.Embedding | parts.Patches) and name.endswith("weight")
        found.append(Argument(name, dtype if matrix else "float32", tuple(shape)))
    return tuple(found)


def _named(network: nn.Module) -> Iterator[tuple[str, nn.Parameter | nn.Buffer]]:
    yield from network.named_parameters()
    for name, module in network.named_modules():
        if isinstance(module, kv_cache.Rotary):
            yield f"{name}.cos", module.cos
            yield f"{name}.sin", module.sin


def file_name(rank: int) -> str:
    """Of a rank's parameters."""
    return f"{FOLDER}/tp{rank}_sharded_checkpoint.safetensors"


def write_weights(
    folder: Path,
    network: nn.Module,
    infos: Mapping[str, TensorInfo],
    sources: Mapping[str, Source],
    arguments: Sequence[Argument],
    cut: Cut,
) -> tuple[str, ...]:
    """Write the file of each rank, a tensor at a time; their names."""
    (folder / FOLDER).mkdir(exist_ok=True)
    own = dict(_named(network))
    names = tuple(map(file_name, range(cut.ranks)))
    tensors = [(each.name, _SAFETENSORS[each.dtype], each.shape) for each in arguments]
    for rank, name in enumerate(names):

        def data(rank: int = rank) -> Iterator[bytes]:
            for each in arguments:
                if each.name in sources:
                    values = read_source(infos, sources[each.name], tuple(own[each.name].shape))
                else:
                    values = own[each.name].numpy()
                stored = ml_dtypes.bfloat16 if each.dtype == "bfloat16" else np.float32
                yield np.ascontiguousarray(cut.part(values, each.name, rank), stored).tobytes()

        write_tensors(folder / name, tensors, data())
    return names
