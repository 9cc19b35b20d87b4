"""A cache that machines share: results of stages are looked for there, and brought there, beside the machine's own cache.

`EDGEC_SHARED_CACHE` names it: a folder that all see, or what fsspec opens, such as s3://bucket/cache; with
`EDGEC_SHARED_CACHE_READONLY` nothing is written there. An entry's files lie in `data/PLACE`, a folder of whoever made it, and
its record, `records/KEY.json`, which is written last, names that place: of two machines that make the same at the same time
one is found, whole. What is brought is held to its SHA-256.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from typing import Any

from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json
from compiler.relative_name import stays_inside
from compiler.shared_folder import SharedFolder
from compiler.stages.cache import Entry, cache_root, new_entry_folder, store_entry

VARIABLE, READ_ONLY = "EDGEC_SHARED_CACHE", "EDGEC_SHARED_CACHE_READONLY"


@dataclass(frozen=True)
class _Record:
    place: str
    digests: dict[str, str]
    sizes: dict[str, int]
    value: Any
    sources: tuple[str, ...]


def shared_cache() -> SharedFolder | None:
    """The cache that is shared; None where there is none."""
    address = os.environ.get(VARIABLE)
    return SharedFolder(address) if address else None


def is_read_only() -> bool:
    """Whether nothing is to be written to the shared cache."""
    return os.environ.get(READ_ONLY, "") not in ("", "0")


def require_shared() -> None:
    """Raise UnusableInput, before any work, where the shared cache cannot be used, or is this machine's own."""
    shared = shared_cache()
    if shared is None:
        return
    here = shared.here
    if here is not None and (
        here.resolve().is_relative_to(own := cache_root().resolve()) or own.is_relative_to(here.resolve())
    ):
        raise UnusableInput(
            f"{VARIABLE} is {shared.title}, and this machine's own cache is {own}. Name two places apart."
        )
    if is_read_only():
        shared.exists("records")
        return
    probe = f"probe-{secrets.token_hex(4)}"
    try:
        shared.write(probe, b"")
    except UnusableInput as error:
        raise UnusableInput(
            f"The shared cache: {error} Unset {VARIABLE}, or set {READ_ONLY}=1 to read alone."
        ) from error
    shared.remove(probe)


def is_shared(key: str) -> bool:
    """Whether the shared cache has a record of a result."""
    shared = shared_cache()
    return shared is not None and _record(shared, key) is not None


def bring_entry(key: str) -> Entry | None:
    """A result of the shared cache, copied into this machine's; None where it is not there whole.

    Raises:
        UnusableInput: the shared cache cannot be used, or the result has no room here.
    """
    shared = shared_cache()
    if shared is None or (found := _record(shared, key)) is None:
        return None
    with new_entry_folder() as folder:
        nbytes, free = sum(found.sizes.values()), shutil.disk_usage(folder).free
        if nbytes > free:
            raise UnusableInput(
                f"A result of {nbytes / 1e9:.1f} GB is in the shared cache, and {free / 1e9:.1f} GB are free in "
                f"{cache_root()}. Free some room, or point EDGEC_CACHE to another disk."
            )
        for name, digest in found.digests.items():
            file = folder / "files" / name
            try:
                shared.bring(f"data/{found.place}/{name}", file)
            except FileNotFoundError:
                return None
            if file.stat().st_size != found.sizes[name] or digest_file(file) != digest:
                return None
        return store_entry(folder, key, found.value, found.sources)


def share_entry(entry: Entry, sources: tuple[str, ...], *, replace: bool = False) -> None:
    """Bring a result of this machine into the shared cache, where it is not there; with `replace` in any case.

    Raises:
        UnusableInput: the shared cache cannot be used.
    """
    shared = shared_cache()
    if shared is None or is_read_only() or (not replace and _record(shared, entry.key) is not None):
        return
    place, sizes = secrets.token_hex(16), {}
    for name in entry.digests:
        sizes[name] = (entry.files / name).stat().st_size
        shared.write(f"data/{place}/{name}", entry.files / name)
    record = {"place": place, "digests": entry.digests, "sizes": sizes, "value": entry.value, "sources": list(sources)}
    shared.write(_record_name(entry.key), json.dumps(record).encode())


def _record_name(key: str) -> str:
    return f"records/{key}.json"


def _record(shared: SharedFolder, key: str) -> _Record | None:
    """A record whose names stay inside the entry's folder; None where it is missing or damaged."""
    try:
        text = shared.read(_record_name(key))
        told = None if text is None else parse_json(text, "a record of the shared cache")
    except UnusableInput:
        return None
    if not isinstance(told, dict) or set(told) != {"place", "digests", "sizes", "value", "sources"}:
        return None
    place, digests, sizes, sources = (told[name] for name in ("place", "digests", "sizes", "sources"))
    if not (
        isinstance(digests, dict) and isinstance(sizes, dict) and isinstance(sources, list) and isinstance(place, str)
    ):
        return None
    named = digests.keys() == sizes.keys() and all(stays_inside(name) for name in digests)
    # No name may be a folder of another.
    apart = not any(other.startswith(f"{name}/") for name in digests for other in digests)
    counted = all(type(size) is int and size >= 0 for size in sizes.values())
    texts = all(isinstance(each, str) for each in (*digests.values(), *sources))
    if not (named and apart and counted and texts and place.isalnum()):
        return None
    return _Record(place, digests, sizes, told["value"], tuple(sources))
