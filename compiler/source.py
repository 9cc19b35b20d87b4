"""From what the user typed (a folder, a hub id, a .gguf file) to a Model and its digest."""

from __future__ import annotations

import json
import re
from pathlib import Path

from compiler.cache import (
    cache_root,
    find_entry,
    new_entry_folder,
    remembered_digest,
    store_entry,
    write_atomically,
)
from compiler.digest import digest_json, tool_version
from compiler.errors import UnusableInput
from compiler.hub import fetch_from_hub, is_hub_id
from compiler.model import Model, model_files, read_model
from compiler.package import ModelIdentity
from compiler.worker import Progress, run_in_child


def open_model(
    text: str,
    task: str | None = None,
    on_progress: Progress | None = None,
    debug: bool = False,
    name: str | None = None,
) -> Model:
    """Read the Model that `text` names; `name` replaces the name that its folder or file gives it.

    Raises:
        UnusableInput: nothing usable is there.
    """
    path = Path(text).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        return _import_gguf(path, task, on_progress, debug, name)
    if path.is_dir():
        return read_model(path, name=name, task=task)
    if path.exists():
        raise UnusableInput(
            f"{text} is neither a folder nor a .gguf file. Give a Hugging Face model folder or a hub id."
        )
    if not is_hub_id(text):
        raise UnusableInput(f"There is no model {text!r}: no such folder, and it is not of the form of a hub id.")
    folder, source = fetch_from_hub(text)
    return read_model(folder, name=name or source.split("@")[0].split("/")[-1], source=source, task=task)


def digest_model(model: Model) -> str:
    """The model's identity: SHA-256 over the names and contents of its files."""
    return digest_json([[file.name, remembered_digest(file)] for file in model_files(model.folder)])


def identify(model: Model) -> ModelIdentity:
    """The model's identity as packages carry it, remembered so that `verify` finds the model again on this machine."""
    digest = digest_model(model)
    memo = {"folder": str(model.folder.resolve()), "name": model.name, "source": model.source, "task": model.task}
    write_atomically(cache_root() / "models" / f"{digest}.json", json.dumps(memo))
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
    model = read_model(folder, memo["name"], memo["source"], memo["task"])
    check_identity(model, identity)
    return model


def check_identity(model: Model, identity: ModelIdentity) -> None:
    """Raise UnusableInput unless `model` is, byte for byte, the one that the package was made from."""
    if digest_model(model) != identity.digest:
        raise UnusableInput(
            f"The model in {model.folder.name} is not the one that this package was made from ({identity.name}, digest "
            f"{identity.digest[:12]}). Name the right one with --model, or build the package again."
        )


def _import_gguf(path: Path, task: str | None, on_progress: Progress | None, debug: bool, name: str | None) -> Model:
    if not path.is_file():
        raise UnusableInput(f"There is no file {path}.")
    tools = {name: tool_version(name) for name in ("transformers", "gguf", "torch")}
    key = digest_json({"gguf": remembered_digest(path), "tools": tools, "form": 2})
    entry = find_entry(key)
    if entry is None:
        with new_entry_folder() as folder:
            run_in_child(
                "compiler.gguf_import:import_gguf",
                {"file": str(path.resolve()), "out": str(folder / "files")},
                label=f"import {path.name}",
                on_progress=on_progress,
                debug=debug,
            )
            entry = store_entry(folder, key, None)
    name = name or re.sub(r"[.-](I?Q\d\w*|TQ\d\w*|B?F16|F32)$", "", path.stem, flags=re.IGNORECASE)
    return read_model(entry.files, name=name, source=path.name, task=task)
