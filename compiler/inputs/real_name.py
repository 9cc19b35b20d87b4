"""What a model is called whose folder has no name of its own, as `model`, `checkpoint-500` or a snapshot of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from compiler.formats.json_file import read_object

_NO_NAME = re.compile(
    r"(hf|my|final|best|merged|trained|output)?[-_.]?(model|models|weights|output|outputs|checkpoint|export|out|hf|final|best"
    r"|merged)([-_.]?\d+)?|checkpoint[-_.]?\d+|[0-9a-f]{40}",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{1,78}[A-Za-z0-9]")
_HUB = re.compile(r"models--[^/]+--(.+)")
_CARD_BYTES = 1 << 20


def real_name(folder: Path) -> str | None:
    """The name that the hub's cache, the model's card or its configuration gives; None where the folder has one itself."""
    own = folder.absolute().name or folder.resolve().name
    if not _NO_NAME.fullmatch(own):
        return None
    cached = [_HUB.fullmatch(part.name) for part in folder.absolute().parents]
    candidates = [found[1] for found in cached if found] + [_title(folder), _original(folder)]
    usable = (name.replace(" ", "-") for name in candidates if name and _NAME.fullmatch(name))
    return next((name for name in usable if not _NO_NAME.fullmatch(name)), None)


def _title(folder: Path) -> str:
    """The first heading of the card, where it is a name and no sentence."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open("rb") as stream:
        text = stream.read(_CARD_BYTES).decode("utf-8", "replace")
    found = re.search(
        r"^#\s+(.+?)\s*$", re.sub(r"\A---\s*\n.*?\n---", "", text, count=1, flags=re.DOTALL), re.MULTILINE
    )
    title = found[1].strip("`*_ ") if found else ""
    return title if len(title.split()) <= 4 and title.lower() not in ("model card", "model description") else ""


def _original(folder: Path) -> str:
    """The last part of what config.json says that it was loaded from."""
    file = folder / "config.json"
    said = read_object(file).get("_name_or_path") if file.is_file() else None
    return said.rstrip("/").split("/")[-1] if isinstance(said, str) else ""
