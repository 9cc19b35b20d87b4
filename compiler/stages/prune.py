"""What the cache holds, by model and age, and making it smaller: what was not used for longest goes first."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.byte_count import parse_bytes
from compiler.errors import UnusableInput
from compiler.stages.cache import cache_root, exchange, has_mark

LIMIT_VARIABLE = "EDGEC_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 50 * 10**9
# What was used so lately may be in use.
_IN_USE_S = 3600
# A SHA-256.
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Held:
    """A result in the cache.

    Attributes:
        key: its name.
        nbytes: what it takes.
        used_s: when it was last made or used, in seconds of the epoch.
        sources: digests of the models and packages that it was made of.
    """

    key: str
    nbytes: int
    used_s: float
    sources: tuple[str, ...]


def held() -> list[Held]:
    """All results in the cache, those that were not used for longest first."""
    stages, found = cache_root() / "stages", []
    # Where the folder is another's, nothing in it is edgec's to remove.
    ours = has_mark(stages) and not stages.is_symlink()
    for folder in stages.iterdir() if ours else ():
        if not _KEY.fullmatch(folder.name) or folder.is_symlink():
            continue
        record = folder / "entry.json"
        try:
            used, told = record.stat().st_mtime, json.loads(record.read_text(encoding="utf-8"))
            nbytes = sum(told["sizes"].values())
            sources = tuple(str(each) for each in told.get("sources", ()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        found.append(Held(folder.name, nbytes, used, sources))
    return sorted(found, key=lambda each: each.used_s)


def known_models() -> dict[str, tuple[str, str]]:
    """Name and source of the models that this machine has seen, by digest."""
    found = {}
    for memo in (cache_root() / "models").glob("*.json"):
        try:
            told = json.loads(memo.read_text(encoding="utf-8"))
            found[memo.stem] = (str(told["name"]), str(told["source"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def models_named(name: str) -> set[str]:
    """Digests of the models that this machine has seen under a name.

    Raises:
        UnusableInput: there is none.
    """
    found = {digest for digest, names in known_models().items() if name in names}
    if not found:
        raise UnusableInput(f"The cache knows no model {name!r}. `edgec cache` lists those that it knows.")
    return found


def remove(entries: Sequence[Held]) -> int:
    """Remove results; the bytes that became free."""
    freed = 0
    for each in entries:
        with exchange():
            shutil.rmtree(cache_root() / "stages" / each.key, ignore_errors=True)
        freed += each.nbytes
    return freed


def over_limit(entries: Sequence[Held], limit_bytes: int, keep: Collection[str] = ()) -> list[Held]:
    """The results, not used for longest, without which the others take no more than the limit."""
    total, out = sum(each.nbytes for each in entries), []
    for each in entries:
        if total <= limit_bytes:
            break
        if each.key not in keep:
            out.append(each)
            total -= each.nbytes
    return out


def limit_bytes() -> int | None:
    """The cache's limit; None for none.

    Raises:
        UnusableInput: EDGEC_CACHE_LIMIT is no number of bytes.
    """
    said = os.environ.get(LIMIT_VARIABLE)
    if said is None:
        return DEFAULT_LIMIT_BYTES
    limit = parse_bytes(said)
    if limit is None:
        raise UnusableInput(
            f"{LIMIT_VARIABLE} is {said!r:.40}, which is no number of bytes. Write 20GB, or 0 for no limit."
        )
    return limit or None


def keep_limit() -> None:
    """Remove what was not used for longest where the cache is over its limit, but nothing that may be in use."""
    limit = limit_bytes()
    if limit is not None:
        lately = time.time() - _IN_USE_S
        entries = held()
        remove(over_limit(entries, limit, {each.key for each in entries if each.used_s > lately}))


def touch(folder: Path) -> None:
    """Note that a result was used."""
    try:
        os.utime(folder / "entry.json")
    except OSError:
        # A cache that cannot be written is used all the same.
        return
