"""A LoRA adapter (peft) merged into its base model, as a plain Hugging Face folder. Merging runs in a child process.

peft computes the sum, in float32, and the folder keeps it in float32: rounding to the base model's 16 bits would lose the
smaller half of what the adapter has learned, and what quantizes afterwards rounds once only.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from compiler.digest import digest_json
from compiler.errors import UnusableInput, missing_extra
from compiler.formats.json_file import read_object
from compiler.formats.safetensors import list_tensors, require_finite
from compiler.inputs.hub import is_hub_id
from compiler.model import MODEL_FILES, Model
from compiler.pretrained import load_pretrained
from compiler.stages.cache import remembered_digest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = re.compile(r"(tokenizer|special_tokens|added_tokens|vocab|merges|chat_template)[\w.]*")


def check_adapter(adapter: Path, model: Model) -> None:
    """Refuse what is no LoRA adapter of `model`, as far as can be told without reading weights.

    Raises:
        UnusableInput: a file is missing, it is of another kind, or it names another base model.
    """
    if not adapter.is_dir():
        raise UnusableInput(f"There is no adapter folder {adapter}.")
    if not (adapter / CONFIG).is_file():
        raise UnusableInput(f"{adapter} has no {CONFIG}, so it is no peft adapter. Point to the folder that holds it.")
    if not (adapter / WEIGHTS).is_file():
        raise UnusableInput(
            f"The adapter {adapter.name} has no {WEIGHTS}. Weights in adapter_model.bin are a pickle, which can run code and "
            "is never opened; load and save the adapter again with a current peft."
        )
    config = read_object(adapter / CONFIG, f"{CONFIG} of the adapter {adapter.name}")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnusableInput(f"The adapter {adapter.name} is of the kind {kind!r}; only LoRA adapters can be merged.")
    if config.get("megatron_config"):
        raise UnusableInput(f"The adapter {adapter.name} is for Megatron's layers, which Hugging Face models lack.")
    wanted, own = str(config.get("base_model_name_or_path") or ""), model.source.split("@")[0]
    both_known = is_hub_id(wanted) and "/" in wanted and is_hub_id(own) and "/" in own
    if both_known and wanted.lower() != own.lower():
        raise UnusableInput(
            f"The adapter {adapter.name} was trained on {wanted}, and the model is {own}. Give {wanted}; if both are the same "
            "weights under two names, give a local folder with them."
        )


def digest_adapter(adapter: Path) -> str:
    """SHA-256 over the names and contents of the files that a merge reads."""
    files = sorted(file for file in adapter.iterdir() if file.is_file() and _is_read(file.name))
    return digest_json([[file.name, remembered_digest(file)] for file in files])


def _is_read(name: str) -> bool:
    return name in (CONFIG, WEIGHTS) or bool(_TOKENIZER_FILES.fullmatch(name))


def merge_adapter(model: str, adapter: str, out: str, task: str) -> None:
    """Write the merged model into `out`; a tokenizer beside the adapter takes the place of the base model's.

    Args:
        model: the base model.
        adapter: the adapter, which `check_adapter` has passed.
        out: an empty folder.
        task: the base model's.

    Raises:
        UnusableInput: the adapter's tensors are not those that this model's layers ask for, or are not finite.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise missing_extra("peft", "adapter") from error
    from safetensors.torch import load_file

    base_folder, adapter_folder, target = Path(model), Path(adapter), Path(out)
    base = load_pretrained(base_folder, task)
    try:
        adapted = peft.get_peft_model(base, peft.PeftConfig.from_pretrained(str(adapter_folder)))
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableInput(
            f"The adapter {adapter_folder.name} does not suit this model: {_misfit(adapter_folder, base)}. Give the base "
            "model that it was trained on."
        ) from error
    expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    _check_tensors(adapter_folder, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    require_finite(list_tensors(adapter_folder / WEIGHTS))
    peft.set_peft_model_state_dict(adapted, load_file(adapter_folder / WEIGHTS))
    merged: Any = adapted.merge_and_unload()
    merged.save_pretrained(target)
    _copy_files(base_folder, adapter_folder, target)


def _misfit(adapter: Path, base: Any) -> str:
    """Why peft finds no place for the adapter, by the layers that it asks for."""
    wanted = read_object(adapter / CONFIG, f"{CONFIG} of the adapter {adapter.name}").get("target_modules")
    own = {part for name, _ in base.named_modules() for part in (name, name.rpartition(".")[2])}
    missing = [str(name) for name in wanted if name not in own] if isinstance(wanted, list) else []
    if missing:
        return f"its target_modules name {', '.join(missing):.200}, and this model has no such layer"
    return f"its target_modules are {wanted!r:.200}, and peft finds no layer there that it can adapt"


def _check_tensors(adapter: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """The file's tensors must be those that the model's layers ask for, no more, no fewer, of their shapes."""
    stored = {info.name: tuple(info.shape) for info in list_tensors(adapter / WEIGHTS)}
    hint = "It was trained on another model; give that one."
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            raise UnusableInput(f"The adapter {adapter.name} has no tensor {name}, which this model asks for. {hint}")
        if name not in expected:
            raise UnusableInput(
                f"The adapter {adapter.name} has the tensor {name}, and this model has no place for it. {hint}"
            )
        if stored[name] != expected[name] and ("embed" in name or "lm_head" in name):
            raise UnusableInput(
                f"The adapter {adapter.name} brings {name} with {stored[name][0]:,} rows, and the model's vocabulary has "
                f"{expected[name][0]:,}: tokens were added when it was trained. Resize the model's embedding to "
                f"{stored[name][0]:,} rows with transformers, save it with the adapter's tokenizer, and give that model."
            )
        if stored[name] != expected[name]:
            raise UnusableInput(
                f"Tensor {name} of the adapter {adapter.name} is {list(stored[name])}, and this model asks for "
                f"{list(expected[name])}. {hint}"
            )


def _copy_files(base: Path, adapter: Path, target: Path) -> None:
    """What belongs to a model beside config and weights: from the base model, the tokenizer from the adapter if there."""
    own = [file for file in adapter.iterdir() if file.is_file() and _TOKENIZER_FILES.fullmatch(file.name)]
    complete = any(file.name in ("tokenizer.json", "tokenizer.model", "vocab.txt") for file in own)
    for file in base.iterdir():
        wanted = MODEL_FILES.fullmatch(file.name) and ".safetensors" not in file.name
        replaced = (complete and _TOKENIZER_FILES.fullmatch(file.name)) or (target / file.name).exists()
        if file.is_file() and wanted and not replaced:
            shutil.copyfile(file, target / file.name)
    for file in own if complete else ():
        shutil.copyfile(file, target / file.name)
