"""A network of which one block at a time has weights: transformers' own modules, parameters on the meta device.

Blocks are the longest run of equal layers; everything before them is the front, everything after them the tail. Weights
are read from the model's files when a part is filled, as float32, and dropped when it is emptied.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.conversion_mapping import WeightRenaming, get_model_conversion_mapping
from transformers.pytorch_utils import Conv1D

from compiler.errors import UnusableInput
from compiler.formats.safetensors import TensorInfo
from compiler.model import Model
from compiler.task import find_task

_TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Stop(Exception):
    """Raised by a hook that has what it wants, to end a forward pass."""


@dataclass(frozen=True)
class Layer:
    """A matrix that is multiplied with activations.

    Attributes:
        name: the name of its weight in the network, e.g. `model.layers.0.mlp.up_proj.weight`.
        module: the Linear or Conv1D.
        transposed: its weight is stored (inputs, outputs), as GPT-2's Conv1D does.
    """

    name: str
    module: nn.Module
    transposed: bool

    def weight(self) -> Tensor:
        """The weight as (outputs, inputs), float32."""
        weight = weight_of(self.module)
        return weight.t().contiguous() if self.transposed else weight.clone()

    def set_weight(self, weight: Tensor) -> None:
        """Put a weight of (outputs, inputs) in place."""
        with torch.no_grad():
            weight_of(self.module).copy_(weight.t() if self.transposed else weight)


@dataclass(frozen=True)
class Network:
    """The skeleton and where its weights lie.

    Attributes:
        module: transformers' model in eval mode.
        blocks: its blocks, in order.
        block_names: their names in `module`.
        tensors: the file position of every parameter and persistent buffer, by its name in `module`.
    """

    module: transformers.PreTrainedModel
    blocks: nn.ModuleList
    block_names: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]

    def fill(self, name: str) -> None:
        """Read the weights of the submodule `name` from the model's files."""
        for key, parameter in self.module.get_submodule(name).named_parameters(recurse=True):
            full = f"{name}.{key}" if name else key
            if parameter.is_meta:
                self._set(full, nn.Parameter(read_tensor(self.tensors[full]), requires_grad=False))

    def empty(self, name: str) -> None:
        """Drop the weights of the submodule `name`."""
        for key, parameter in list(self.module.get_submodule(name).named_parameters(recurse=True)):
            full = f"{name}.{key}" if name else key
            self._set(full, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))

    def stored_name(self, name: str) -> str:
        """The name that a parameter of `module` has in the model's files."""
        return self.tensors[name].name

    def outside_blocks(self) -> tuple[str, ...]:
        """Names of the modules that own parameters and lie outside the blocks."""
        inside = tuple(f"{name}." for name in self.block_names)
        return tuple(
            name
            for name, module in self.module.named_modules()
            if not f"{name}.".startswith(inside) and any(True for _ in module.parameters(recurse=False))
        )

    def _set(self, full: str, parameter: nn.Parameter) -> None:
        owner, _, leaf = full.rpartition(".")
        setattr(self.module.get_submodule(owner), leaf, parameter)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a module that has one, detached."""
    return cast(Tensor, module.weight).detach()


def layers_of(network: Network, block: str) -> list[Layer]:
    """The Linear and Conv1D modules of a block, in the order in which the block names them."""
    found = []
    for name, module in network.module.get_submodule(block).named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            found.append(Layer(f"{block}.{name}.weight", module, isinstance(module, Conv1D)))
    return found


def read_tensor(info: TensorInfo) -> Tensor:
    """One tensor from its file; floats as float32."""
    raw = np.memmap(info.file, np.uint8, "r", info.offset, (info.nbytes,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the map cannot be written; nothing writes to it
        stored = torch.from_numpy(raw).view(_TORCH_DTYPES[info.dtype]).reshape(info.shape)
    if not stored.is_floating_point():
        return stored.clone()
    return stored.to(torch.float32, copy=True)


def open_network(model: Model) -> Network:
    """The skeleton of a model; no weight is read.

    Raises:
        UnusableInput: transformers does not know the architecture, it has no run of equal blocks, or a weight is missing.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
        auto = getattr(transformers, find_task(model.task).auto_class)
        with _parameters_on_meta():
            try:
                module = auto.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
            except ValueError:  # soft caps of attention have no fused form
                module = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
    except (ValueError, OSError, KeyError) as error:
        raise UnusableInput(
            f"transformers cannot lay out {model.name} for {model.task}: config.json has a setting that it does not take. "
            "Compare it with the file in the model's repository."
        ) from error
    module.eval()
    prefix, blocks = _find_blocks(module, model.geometry.layers)
    names = tuple(f"{prefix}.{number}" for number in range(len(blocks)))
    return Network(module, blocks, names, _match_tensors(module, model))


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside have parameters without data; buffers are real."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _find_blocks(module: nn.Module, layers: int) -> tuple[str, nn.ModuleList]:
    for name, candidate in module.named_modules():
        if isinstance(candidate, nn.ModuleList) and len(candidate) == layers:
            kinds = {type(block) for block in candidate}
            if len(kinds) == 1 and any(True for _ in candidate[0].parameters()):
                return name, candidate
    raise UnusableInput(
        f"{type(module).__name__} has no run of {layers} equal blocks, so it cannot be quantized block by block."
    )


def _match_tensors(module: transformers.PreTrainedModel, model: Model) -> dict[str, TensorInfo]:
    """Tensors by the names of the module; the base model's prefix may be there or not, and LayerNorm may have old names."""
    stored = {info.name: info for info in model.tensors}
    # transformers has given the layers of some families other names than the files of their models have.
    renamings = [each for each in get_model_conversion_mapping(module) if isinstance(each, WeightRenaming)]
    for tensor in model.tensors:
        renamed = functools.reduce(lambda name, each: each.rename_source_key(name)[0], renamings, tensor.name)
        stored.setdefault(renamed, tensor)
    prefix = f"{module.base_model_prefix}."
    found: dict[str, TensorInfo] = {}
    absent: dict[str, nn.Parameter] = {}
    by_parameter: dict[int, TensorInfo] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tried = [key for each in (name, old) for key in (each, each.removeprefix(prefix), prefix + each)]
        info = next((stored[key] for key in tried if key in stored), None)
        if info is None:
            absent[name] = parameter
            continue
        if tuple(info.shape) != tuple(parameter.shape):
            raise UnusableInput(
                f"Tensor {info.name} of {model.name} is {list(info.shape)}; config.json asks for {list(parameter.shape)}."
            )
        found[name] = info
        by_parameter[id(parameter)] = info
    for name, parameter in absent.items():
        if id(parameter) in by_parameter:
            found[name] = by_parameter[id(parameter)]
        elif "pooler" not in name:
            raise UnusableInput(f"{model.name} has no tensor {name}, which its architecture needs. Download it again.")
    return found
