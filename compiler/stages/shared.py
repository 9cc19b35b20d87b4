"""A cache that machines share: results of stages are looked for there, and brought there, beside the machine's own cache.

`EDGEC_SHARED_CACHE` names it: a folder that all see, or what fsspec opens, such as s3://bucket/cache. An entry's files lie in
a folder of whoever made it, and its record, which is written last, names that folder: of two machines that make the same at
the same time one is found, whole. What is brought is held to its SHA-256.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import Any

from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json
from compiler.relative_name import stays_inside
from compiler.shared_folder import SharedFolder
from compiler.stages.cache import Entry, new_entry_folder, store_entry

VARIABLE = "EDGEC_SHARED_CACHE"


def shared_cache() -> SharedFolder | None:
    """The cache that is shared; None where there is none."""
    address = os.environ.get(VARIABLE)
    return SharedFolder(address) if address else None


def is_shared(key: str) -> bool:
    """Whether the shared cache has a result."""
    shared = shared_cache()
    return shared is not None and shared.exists(_record(key))


def bring_entry(key: str) -> Entry | None:
    """A result of the shared cache, copied into this machine's; None where it is not there whole.

    Raises:
        UnusableInput: the shared cache cannot be used.
    """
    shared = shared_cache()
    if shared is None or (text := shared.read(_record(key))) is None:
        return None
    told = _told(text)
    if told is None:
        return None
    with new_entry_folder() as folder:
        for name, digest in told["digests"].items():
            file = folder / "files" / name
            try:
                shared.bring(f"{key}/{told['place']}/{name}", file)
            except FileNotFoundError:
                return None
            if digest_file(file) != digest:
                return None
        return store_entry(folder, key, told["value"], told["sources"])


def share_entry(entry: Entry, sources: list[str]) -> None:
    """Bring a result of this machine into the shared cache, where it is not there.

    Raises:
        UnusableInput: the shared cache cannot be used.
    """
    shared = shared_cache()
    if shared is None or shared.exists(_record(entry.key)):
        return
    place = secrets.token_hex(8)
    for name in entry.digests:
        shared.write(f"{entry.key}/{place}/{name}", entry.files / name)
    record = {"place": place, "digests": entry.digests, "value": entry.value, "sources": sources}
    shared.write(_record(entry.key), json.dumps(record).encode())


def _record(key: str) -> str:
    return f"{key}/entry.json"


def _told(text: bytes) -> dict[str, Any] | None:
    """A record whose names stay inside the entry's folder; None where it is damaged."""
    try:
        told = parse_json(text, "entry.json")
    except UnusableInput:
        return None
    if not isinstance(told, dict) or set(told) != {"place", "digests", "value", "sources"}:
        return None
    digests, sources, place = told["digests"], told["sources"], told["place"]
    whole = isinstance(digests, dict) and all(stays_inside(name) for name in digests)
    whole = whole and isinstance(sources, list) and all(isinstance(each, str) for each in sources)
    return told if whole and isinstance(place, str) and place.isalnum() else None
