"""From what the user typed (a folder, a hub id, a .gguf file) to a Model and its digest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.digest import digest_json, tool_version
from compiler.errors import UnusableInput
from compiler.formats.safetensors import require_finite
from compiler.inputs.adapter import adapter_key, check_adapter
from compiler.inputs.hub import fetch_from_hub, is_hub_id
from compiler.model import Model, model_files, read_model
from compiler.package import ModelIdentity
from compiler.stages.cache import (
    cache_root,
    find_entry,
    new_entry_folder,
    remembered_digest,
    store_entry,
    write_atomically,
)
from compiler.stages.worker import Progress, run_in_child


def open_model(
    text: str,
    task: str | None = None,
    on_progress: Progress | None = None,
    debug: bool = False,
    name: str | None = None,
    adapter: Path | None = None,
) -> Model:
    """Read the Model that `text` names; `name` replaces the name that its folder or file gives it.

    With `adapter`, a folder as peft writes it, the Model is the one that its LoRA layers make of it.

    Raises:
        UnusableInput: nothing usable is there.
    """
    if name is not None and (re.search(r"[/\\\x00-\x1f]", name) or name in ("", ".", "..")):
        raise UnusableInput(f"The name {name!r} cannot be a file's. Give --name without slashes.")
    if adapter is not None:
        return _with_adapter(_open_base(text, task, on_progress, debug, None), adapter, on_progress, debug, name)
    return _open_base(text, task, on_progress, debug, name)


def _open_base(text: str, task: str | None, on_progress: Progress | None, debug: bool, name: str | None) -> Model:
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        return _import_gguf(path, task, on_progress, debug, name)
    if path.is_dir():
        return _with_codes_apart(read_model(path, name=name, task=task), on_progress, debug)
    if path.exists():
        raise UnusableInput(
            f"{text} is neither a folder nor a .gguf file. Give a Hugging Face model folder or a hub id."
        )
    if not is_hub_id(text):
        raise UnusableInput(f"There is no model {text!r}: no such folder, and it is not of the form of a hub id.")
    folder, source = fetch_from_hub(text)
    model = read_model(folder, name=name or source.split("@")[0].split("/")[-1], source=source, task=task)
    return _with_codes_apart(model, on_progress, debug)


def digest_model(model: Model, on_file: Callable[[int], None] = lambda number: None) -> str:
    """The model's identity: SHA-256 over the names and contents of its files; `on_file` is told of each before it is read."""
    digests = []
    for number, file in enumerate(model_files(model.folder)):
        on_file(number)
        digests.append([file.relative_to(model.folder).as_posix(), remembered_digest(file)])
    return digest_json(digests)


def identify(model: Model, on_progress: Progress | None = None) -> ModelIdentity:
    """The model's identity as packages carry it, remembered so that `verify` finds the model again on this machine.

    Both the hash and the look for values that are not finite read all weights the first time.

    Raises:
        UnusableInput: a weight is not finite.
    """
    files = len(model_files(model.folder))
    total = files + len(model.tensors)

    def tell(done: int) -> None:
        if on_progress is not None:
            on_progress(done, total)

    digest = digest_model(model, tell)
    path = cache_root() / "models" / f"{digest}.json"
    if not _is_known_finite(path):
        for number, tensor in enumerate(model.tensors):
            tell(files + number)
            require_finite([tensor])
    tell(total)
    memo = {"folder": str(model.folder.resolve()), "name": model.name, "source": model.source, "task": model.task}
    write_atomically(path, json.dumps({**memo, "finite": True}))
    return ModelIdentity(
        name=model.name,
        source=model.source,
        digest=digest,
        architecture=model.architecture,
        task=model.task,
        parameters=model.parameters,
        licence=model.licence,
        base_model=model.base_model,
    )


def _is_known_finite(memo: Path) -> bool:
    try:
        return bool(json.loads(memo.read_text(encoding="utf-8")).get("finite"))
    except (OSError, ValueError, AttributeError):
        return False


def find_identified(identity: ModelIdentity) -> Model:
    """The Model that a package was made from, where `identify` saw it on this machine.

    Raises:
        UnusableInput: it was never here, is gone, or has changed since.
    """
    hint = "Name its folder or hub id with --model."
    try:
        memo = json.loads((cache_root() / "models" / f"{identity.digest}.json").read_text(encoding="utf-8"))
        folder = Path(memo["folder"])
    except (OSError, ValueError, KeyError):
        raise UnusableInput(f"The model {identity.name} of this package is not known on this machine. {hint}") from None
    if not folder.is_dir():
        raise UnusableInput(f"The model {identity.name} is no longer where it was when the package was built. {hint}")
    model = read_model(folder, memo["name"], memo["source"], identity.task)
    check_identity(model, identity)
    return model


def check_identity(model: Model, identity: ModelIdentity) -> None:
    """Raise UnusableInput unless `model` is, byte for byte, the one that the package was made from."""
    if digest_model(model) != identity.digest:
        raise UnusableInput(
            f"The model in {model.folder.name} is not the one that this package was made from ({identity.name}, digest "
            f"{identity.digest[:12]}). Name the right one with --model, or build the package again."
        )


def _with_adapter(model: Model, adapter: Path, on_progress: Progress | None, debug: bool, name: str | None) -> Model:
    """What compiler/inputs/adapter.py makes of the model."""
    check_adapter(adapter, model)
    arguments = {
        "folder": str(model.folder.resolve()),
        "adapter": str(adapter.resolve()),
        "task": model.task,
    }
    key = adapter_key(adapter, digest_model(model), model.task)
    folder = _imported(key, "compiler.inputs.adapter:merge_adapter", arguments, adapter.name, on_progress, debug)
    together = f"{model.name}-{adapter.absolute().name}"
    source = f"{model.source}+{adapter.absolute().name}"
    return read_model(folder, name=name or together, source=source, task=model.task)


def _with_codes_apart(model: Model, on_progress: Progress | None, debug: bool) -> Model:
    """The model, or where it is a GPTQ checkpoint, what compiler/inputs/gptq.py makes of it."""
    said = model.config.get("quantization_config")
    if said is None:
        return model
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method != "gptq":
        raise UnusableInput(
            f"{model.name} is already quantized by {method!r}, which edgec does not read. Give the model "
            "that it was made from, or a GPTQ checkpoint."
        )
    key = digest_json({"gptq": digest_model(model), "form": 1})
    arguments = {"folder": str(model.folder.resolve())}
    function = "compiler.inputs.gptq:import_gptq"
    folder = _imported(key, function, arguments, model.name, on_progress, debug)
    return read_model(folder, name=model.name, source=model.source, task=model.task)


def _imported(
    key: str, function: str, arguments: dict[str, Any], name: str, on_progress: Progress | None, debug: bool
) -> Path:
    """The cached folder that `function` writes, made when it is not there."""
    entry = find_entry(key)
    if entry is None:
        with new_entry_folder() as folder:
            arguments = {**arguments, "out": str(folder / "files")}
            run_in_child(function, arguments, label=f"import {name}", on_progress=on_progress, debug=debug)
            entry = store_entry(folder, key, None)
    return entry.files


def _import_gguf(path: Path, task: str | None, on_progress: Progress | None, debug: bool, name: str | None) -> Model:
    if not path.is_file():
        raise UnusableInput(f"There is no file {path}.")
    tools = {name: tool_version(name) for name in ("transformers", "gguf", "torch")}
    key = digest_json({"gguf": remembered_digest(path), "tools": tools, "form": 2})
    arguments = {"file": str(path.resolve())}
    folder = _imported(key, "compiler.inputs.gguf:import_gguf", arguments, path.name, on_progress, debug)
    name = name or re.sub(r"[.-](I?Q\d\w*|TQ\d\w*|B?F16|F32)$", "", path.stem, flags=re.IGNORECASE)
    return read_model(folder, name=name, source=path.name, task=task)
