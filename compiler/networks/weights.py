"""Where each parameter of a re-authored network lies in a Hugging Face model, and reading it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.formats.safetensors import TensorInfo
from compiler.model import Model

if TYPE_CHECKING:
    from torch import nn

# Tensors that some checkpoints carry and no network needs: tables that follow from the configuration.
_COMPUTED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|position_ids|masked_bias|attention\.bias)")


@dataclass(frozen=True)
class Source:
    """The Hugging Face tensor that a parameter is made of.

    Attributes:
        tensor: its name.
        rows: the rows of it that are taken (first, last + 1); None for all.
        plus: what is added to every value: 1 for the norms of Gemma, whose files hold the difference to 1.
        added: another tensor whose first row is added to every row: the one token type of RoBERTa.
        times: what the sum is multiplied with.
    """

    tensor: str
    rows: tuple[int, int] | None = None
    plus: float = 0.0
    added: str | None = None
    times: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether the values are the tensor's own, so that codes of it can be carried."""
        return self.plus == 0.0 and self.added is None and self.times == 1.0


def match_sources(model: Model, sources: Mapping[str, Source], prefixes: Iterable[str]) -> dict[str, Source]:
    """The sources with names as the model's files have them.

    Args:
        sources: by parameter; names without the base model's prefix have it or not in the files.
        prefixes: prefixes that may stand before a name.

    Raises:
        UnusableInput: a tensor is missing, or one is left over that no parameter takes.
    """
    stored = {info.name for info in model.tensors}
    tried = ("", *prefixes)

    def find(name: str) -> str:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for each in (name, old):
            for prefix in tried:
                if prefix + each in stored:
                    return prefix + each
                if prefix and each.startswith(prefix) and each.removeprefix(prefix) in stored:
                    return each.removeprefix(prefix)
        raise UnusableInput(
            f"{model.name} has no tensor {name}, and the network that edgec re-authors for {model.architecture} and "
            f"{model.task} has such a {name.rpartition('.')[2]}. It would compute something else, so it is refused."
        )

    found = {
        parameter: replace(source, tensor=find(source.tensor), added=source.added and find(source.added))
        for parameter, source in sources.items()
    }
    used = {source.tensor for source in found.values()} | {source.added for source in found.values() if source.added}
    left = sorted(name for name in stored - used if not _COMPUTED.fullmatch(name) and not _unused(name, model))
    if left:
        raise UnusableInput(
            f"{model.name} has the tensor {left[0]}, which the network for {model.architecture} has no place for "
            f"({len(left)} in all). It would compute something else, so it is refused."
        )
    return found


def _unused(name: str, model: Model) -> bool:
    """Whether the task does without that tensor: a pooler that no parameter takes, heads of pre-training.

    A decoder is the table of words again, unless the model says that it is not. That a pooler which the task needs is there
    has been checked before (compiler/inputs/check.py).
    """
    task = model.task
    if ".pooler." in f".{name}":
        return True
    if name.endswith("decoder.weight") and model.config.get("tie_word_embeddings") is False:
        return False
    if task == "feature-extraction":
        return re.fullmatch(r"(.*\.)?(cls\..*|lm_head\..*|vocab_.*)", name) is not None
    if task == "fill-mask":
        return re.fullmatch(r"(.*\.)?(cls\.seq_relationship\..*|.*decoder\.(weight|bias))", name) is not None
    return False


def read_source(infos: Mapping[str, TensorInfo], source: Source, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A parameter's values, float32 of `shape`.

    Raises:
        UnusableInput: the tensor has another number of values.
    """
    values = read_float(infos[source.tensor])
    if source.rows is not None:
        values = values[source.rows[0] : source.rows[1]]
    if values.size != int(np.prod(shape)):
        raise UnusableInput(
            f"Tensor {source.tensor} is {list(infos[source.tensor].shape)}; config.json asks for {list(shape)}."
        )
    values = values.reshape(shape)
    if source.added is not None:
        values = values + read_float(infos[source.added])[:1]
    values = values + np.float32(source.plus) if source.plus else values
    return values * np.float32(source.times) if source.times != 1.0 else values


_DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def read_float(info: TensorInfo) -> NDArray[np.float32]:
    """One float tensor from its file as float32; float32 itself stays mapped."""
    if info.dtype not in _DTYPES:
        raise UnusableInput(f"Tensor {info.name} in {info.file.name} has the dtype {info.dtype}, not a float one.")
    mapped = np.memmap(info.file, _DTYPES[info.dtype], "r", info.offset, info.shape)
    if info.dtype == "BF16":
        return (mapped.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(mapped, np.float32)


def fill(network: nn.Module, model: Model, sources: Mapping[str, Source]) -> None:
    """Give every parameter of a network its values (float32, copied)."""
    fill_from(network, {info.name: info for info in model.tensors}, sources)


def fill_from(network: nn.Module, infos: Mapping[str, TensorInfo], sources: Mapping[str, Source]) -> None:
    """The same from tensors by name, those of a sentence's head among them."""
    import torch

    for name, parameter in list(network.named_parameters()):
        values = read_source(infos, sources[name], tuple(parameter.shape))
        owner, _, leaf = name.rpartition(".")
        tensor = torch.from_numpy(np.array(values))
        setattr(network.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))
