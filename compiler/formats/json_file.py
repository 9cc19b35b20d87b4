"""The one place where JSON from outside is read: a regular file, of a size, a depth and a form that are known.

Python's own reader waits for ever on a pipe, fills the memory from a device and dies of deep nesting; a model, a package or a
result file can bring each of them.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput

# The largest that are known are tokenizer.json files of 35 MB.
LIMIT_BYTES = 256 * 1024 * 1024
LIMIT_DEPTH = 100


def read_json(path: Path, where: str | None = None) -> Any:
    """What a JSON file holds.

    Args:
        path: the file; a link to a regular file is one too.
        where: what it is called in messages; its name and its folder's when that is not given.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        UnusableInput: it is no regular file, too large, not JSON, or nested too deep.
    """
    where = where or f"{path.name} of {path.parent.name}"
    return parse_json(read_regular(path, where, LIMIT_BYTES), where)


def read_regular(path: Path, where: str, limit_bytes: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        UnusableInput: it is no regular file, or larger than the limit.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnusableInput(f"{where} is no regular file. Put the file itself there.")
        if found.st_size > limit_bytes:
            raise UnusableInput(f"{where} has {found.st_size:,} bytes, and at most {limit_bytes:,} are read.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UnusableInput(f"{where} cannot be read: {error.strerror}.") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text holds.

    Raises:
        UnusableInput: it is not JSON, or nested too deep.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except _TwiceError as error:
        raise UnusableInput(
            f"{where} has {error.args[0]!r:.60} twice in one object, of which readers take one or the other. Refused."
        ) from None
    except RecursionError:
        raise UnusableInput(_too_deep(where)) from None
    except ValueError as error:
        at = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UnusableInput(f"{where} cannot be read as JSON{at}. Make or download it again.") from error
    if _is_deeper(value, LIMIT_DEPTH):
        raise UnusableInput(_too_deep(where))
    return value


class _TwiceError(Exception):
    """A name that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def read_object(path: Path, where: str | None = None) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        UnusableInput: as `read_json`, or it is no object.
    """
    value = read_json(path, where)
    if not isinstance(value, dict):
        raise UnusableInput(f"{where or f'{path.name} of {path.parent.name}'} is not a JSON object.")
    return value


def _too_deep(where: str) -> str:
    return f"{where} is nested deeper than {LIMIT_DEPTH} levels. Refused."


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return False
    return True


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
