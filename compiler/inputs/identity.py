"""Which Model it is: the digest of its files, and where this machine last saw it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from compiler.digest import digest_json
from compiler.errors import UnusableInput
from compiler.formats.safetensors import require_finite
from compiler.model import Model, model_files, read_model
from compiler.package import ModelIdentity
from compiler.stages.cache import cache_folder, cache_root, remembered_digest, write_atomically
from compiler.stages.worker import Progress


def digest_model(model: Model, on_file: Callable[[int], None] = lambda number: None) -> str:
    """The model's identity: SHA-256 over the names and contents of its files; `on_file` is told of each before it is read."""
    digests = []
    for number, file in enumerate(model_files(model.folder)):
        on_file(number)
        digests.append([file.relative_to(model.folder).as_posix(), remembered_digest(file)])
    return digest_json(digests)


def identify(model: Model, on_progress: Progress | None = None) -> ModelIdentity:
    """The model's identity as packages carry it; all weights are read the first time."""
    total = len(model_files(model.folder))
    digest = digest_model(model, lambda number: on_progress(number, total) if on_progress else None)
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


def remember_model(model: Model, digest: str, on_progress: Progress | None = None) -> None:
    """Note where the model lies, so that `find_identified` finds it again on this machine, once it is known to be finite.

    Raises:
        UnusableInput: a weight is not finite.
    """
    path = cache_folder("models") / f"{digest}.json"
    if not _is_known_finite(path):
        for number, tensor in enumerate(model.tensors):
            if on_progress is not None:
                on_progress(number, len(model.tensors))
            require_finite([tensor])
    here = str(model.folder.resolve())
    folders = [here, *(folder for folder in _known_folders(path) if folder != here)][:_MOST_FOLDERS]
    memo = {"folders": folders, "name": model.name, "source": model.source, "task": model.task}
    write_atomically(path, json.dumps({**memo, "finite": True}))
    if on_progress is not None:
        on_progress(1, 1)


def _is_known_finite(memo: Path) -> bool:
    try:
        return bool(json.loads(memo.read_text(encoding="utf-8")).get("finite"))
    except (OSError, ValueError, AttributeError):
        return False


# Copies of a model come and go; whichever is still there will do.
_MOST_FOLDERS = 8


def _known_folders(memo: Path) -> list[str]:
    """Where copies of a model were seen, the latest first."""
    try:
        told = json.loads(memo.read_text(encoding="utf-8"))
        # An earlier edgec noted one.
        return [str(folder) for folder in told.get("folders") or [told["folder"]]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def find_identified(identity: ModelIdentity) -> Model:
    """The Model that a package was made from, where `remember_model` noted it on this machine.

    Raises:
        UnusableInput: it was never here, is gone, or has changed since.
    """
    hint = "Name its folder or hub id with --model."
    path = cache_root() / "models" / f"{identity.digest}.json"
    known = [Path(folder) for folder in _known_folders(path)]
    if not known:
        raise UnusableInput(f"The model {identity.name} of this package is not known on this machine. {hint}")
    there = [folder for folder in known if folder.is_dir()]
    if not there:
        raise UnusableInput(f"The model {identity.name} is no longer where it was when the package was built. {hint}")
    models = [read_model(folder, identity.name, identity.source, identity.task) for folder in there]
    model = next((each for each in models if digest_model(each) == identity.digest), models[0])
    check_identity(model, identity)
    return model


def check_identity(model: Model, identity: ModelIdentity) -> None:
    """Raise UnusableInput unless `model` is, byte for byte, the one that the package was made from."""
    if digest_model(model) != identity.digest:
        raise UnusableInput(
            f"The model in {model.folder.name} is not the one that this package was made from ({identity.name}, digest "
            f"{identity.digest[:12]}). Name the right one with --model, or build the package again."
        )
