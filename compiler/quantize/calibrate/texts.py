"""Calibration texts: from a file or from a dataset on the hub, kept in the cache under their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json
from compiler.inputs.hub import fetch_dataset_file
from compiler.stages.cache import cache_folder, write_atomically

_HUB = "hf:"


def keep_text(source: str) -> tuple[str, str]:
    """(SHA-256, name for people) of the text that `source` names: a file, or `hf:org/dataset[@revision][/path]`.

    Raises:
        UnusableInput: it is missing, empty, or not text.
    """
    if source.startswith(_HUB):
        path, name = fetch_dataset_file(source.removeprefix(_HUB))
        name = _HUB + name
    else:
        path = Path(source).expanduser()
        name = path.name
    text = _read(path, name)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(_place(digest), text)
    return digest, name


def kept_text(digest: str) -> str:
    """The text of that SHA-256.

    Raises:
        UnusableInput: the cache has lost it.
    """
    try:
        return _place(digest).read_text(encoding="utf-8")
    except OSError:
        raise UnusableInput(
            "The calibration text is no longer in edgec's cache. Name it again with --calibration."
        ) from None


def _place(digest: str) -> Path:
    return cache_folder("texts") / f"{digest}.txt"


def _read(path: Path, name: str) -> str:
    if not path.is_file():
        raise UnusableInput(f"There is no calibration file {name}.")
    if path.suffix == ".parquet":
        return _read_parquet(path, name)
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UnusableInput(
            f"The calibration file {name} is binary. Give UTF-8 text, .jsonl with a field text, or .parquet."
        )
    if path.suffix in (".jsonl", ".ndjson"):
        text = _join_lines(text, name)
    if not text.strip():
        raise UnusableInput(f"The calibration file {name} is empty.")
    return text


def _join_lines(text: str, name: str) -> str:
    try:
        return "\n\n".join(str(parse_json(line, name)["text"]) for line in text.splitlines() if line.strip())
    except (UnusableInput, KeyError, TypeError) as error:
        raise UnusableInput(
            f"The calibration file {name} has a line that is no JSON object with a field text."
        ) from error


def _read_parquet(path: Path, name: str) -> str:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UnusableInput(f"{name} is a parquet file; `pip install pyarrow` brings what reads it.") from None
    try:
        column = parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    except Exception as error:
        raise UnusableInput(
            f"The calibration file {name} has no column text that can be read: it is no Parquet file, or has other columns."
        ) from error
    return "\n\n".join(str(value) for value in column if value)
