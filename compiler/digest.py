"""SHA-256 of files and of JSON values: what cache keys and packages are made of."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: object) -> str:
    """SHA-256 of a JSON value, key order aside, in hex."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@cache
def digest_code() -> str:
    """SHA-256 over edgec's own source that decides what a stage writes: all of it but the command line and benchmarks."""
    root = Path(__file__).parent.parent
    files = [file for room in ("compiler", "targets", "runtimes") for file in (root / room).rglob("*.py")]
    names = sorted(file.relative_to(root).as_posix() for file in files)
    return digest_json([[name, digest_file(root / name)] for name in names if not name.startswith("compiler/cli/")])


@cache
def tool_version(distribution: str) -> str | None:
    """The installed version of a distribution; None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
