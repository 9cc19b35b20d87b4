"""What a model's files must hold before anything is made of them: the weights that its architecture and task need, and text
that its vocabulary can number.

It runs once a model, in the child process of the first stage that reads it, where torch is imported anyway. transformers
builds the architecture without memory for its weights and tells which names of the files it knows, by its own rules of
renaming, so that what is missing would not be filled with random numbers, nor what is left over be dropped, by any
converter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from compiler.config_types import image_shape
from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.formats.safetensors import TensorInfo, find_tensors, read_bytes
from compiler.image_processor import CONFIG, pixel_values
from compiler.pretrained import from_pretrained
from compiler.stages.cache import cache_folder, write_atomically
from compiler.task import GENERATION, find_task

_NUMBERED = re.compile(r"(^|\.)\d+\.")
# What tools put before every name, and how it gets there.
_WRAPPED = {"_orig_mod.": "torch.compile", "module.": "DataParallel", "base_model.model.": "peft"}
_SHOWN = 3
_PICTURE = (60, 80, 3)  # of a size that no model takes


def check_model(model: str, task: str, memo: str) -> None:
    """Hold the files of a model to its architecture; `memo` names what was found right before.

    Raises:
        UnusableInput: weights are missing or left over, or a token has an id beyond the embedding.
    """
    done = cache_folder("models") / f"{memo}.checked"
    if done.is_file():
        return
    folder = Path(model)
    infos = find_tensors(folder)
    if find_task(task).auto_class:
        _check_weights(folder, task, infos)
        if find_task(task).takes == "text":
            _check_tokens(folder)
        elif (folder / CONFIG).is_file():
            _check_pictures(folder)
    write_atomically(done, "")


def _check_weights(folder: Path, task: str, infos: tuple[TensorInfo, ...]) -> None:
    for prefix, tool in _WRAPPED.items():
        if wrapped := [info.name for info in infos if info.name.startswith(prefix)]:
            raise UnusableInput(
                f"The tensors of {folder.name} are named as {tool} saves them ({wrapped[0]}), and no converter knows these "
                f"names. Save the model without {prefix[:-1]}: load it and call save_pretrained on the model itself."
            )
    network, told = from_pretrained(folder, task, device_map="meta", ignore_mismatched_sizes=True)
    needed = [name for name in told["missing_keys"] if _is_needed(name, task)]
    if needed:
        raise UnusableInput(
            f"{folder.name} lacks {_listed(needed)}, which {task} needs; they would be random numbers. Choose the task that "
            "it was trained for with --task, or give the whole model."
        )
    if told["mismatched_keys"]:
        name, found, wanted = next(iter(told["mismatched_keys"]))
        raise UnusableInput(
            f"Tensor {name} of {folder.name} is {list(found)}, and config.json makes it {list(wanted)}. The config is not "
            "that of these weights."
        )
    body = f"{network.base_model_prefix}."
    names = {info.name for info in infos}
    over = [
        name for name in told["unexpected_keys"] if name in names and (name.startswith(body) or _NUMBERED.search(name))
    ]
    if left := sorted(name for name in over if "pooler" not in name):
        raise UnusableInput(
            f"{folder.name} has weights that its architecture does not know: {_listed(left)}. config.json is not that of "
            "these weights, or they need something that edgec does not have."
        )
    if find_task(task).kind == GENERATION:
        own = set(network.state_dict())
        if not any(name in own for name in names):
            raise UnusableInput(
                f"The tensors of {folder.name} are named without the prefix {body[:-1]} ({min(names)}), which converters "
                "need. Load the model with transformers and call save_pretrained."
            )
        _check_heads(folder, network, infos)


def _is_needed(name: str, task: str) -> bool:
    """Whether the task's outputs depend on a weight: the last hidden states do not on the pooler behind them."""
    return "position_ids" not in name and not ("pooler" in name and task == "feature-extraction")


def _check_heads(folder: Path, network: Any, infos: tuple[TensorInfo, ...]) -> None:
    """Refuse a head that lies in the file beside the embedding that config.json takes for it, and differs."""
    if not getattr(network.config, "tie_word_embeddings", False):
        return
    tied = {info.name: info for info in infos if info.name in ("lm_head.weight", "model.embed_tokens.weight")}
    if len(tied) == 2:
        first, second = tied.values()
        if (first.dtype, first.shape) != (second.dtype, second.shape) or read_bytes(first) != read_bytes(second):
            raise UnusableInput(
                f"{folder.name} has two heads: config.json ties it to the embedding (tie_word_embeddings), and the file has "
                "another one, lm_head.weight. Correct config.json, or remove that tensor."
            )


def _check_tokens(folder: Path) -> None:
    """Refuse a token whose id lies beyond the embedding's last row: a runtime fails at it, or reads what lies behind."""
    from compiler.tokenizer import load_tokenizer

    config = read_object(folder / "config.json")
    rows = config.get("vocab_size")
    if not isinstance(rows, int):
        return
    tokenizer = load_tokenizer(folder)
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise UnusableInput(
            f"{folder.name} has chat templates under the names {', '.join(sorted(templates))} and none called default, so "
            "that nothing tells which one a conversation takes. Rename one of them in tokenizer_config.json to default."
        )
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise UnusableInput(
            f"The token {token!r} of {folder.name} has the id {number}, and the embedding has {rows:,} rows, so that the "
            "model has no vector for it. Resize the embedding to the tokenizer, or remove the token."
        )


def _check_pictures(folder: Path) -> None:
    """Refuse an image processor that makes pictures of another size, or of other channels, than the model takes."""
    config = read_object(folder / "config.json")
    if "image_size" not in config and "depths" in config:
        # A convolutional network takes pictures of any size.
        return
    wanted = image_shape(config)
    made = pixel_values(folder, np.zeros(_PICTURE, np.uint8)).shape[1:]
    if made != wanted:
        raise UnusableInput(
            f"{CONFIG} of {folder.name} makes pictures of {list(made)}, and the model takes {list(wanted)} by its config.json "
            "(channels, height, width), so that no picture could be given to the package. Correct size or crop_size there."
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
