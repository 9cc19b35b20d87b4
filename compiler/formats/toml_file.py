"""Reads TOML that people write: its size is limited, and an error tells the place and never a library's own words."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_regular

_LIMIT_BYTES = 1 << 20
_PLACE = re.compile(r"at line \d+, column \d+|at end of document")


def read_toml(path: Path, name: str) -> tuple[dict[str, Any], str]:
    """The document, and its text.

    Args:
        path: the file.
        name: what it is called in sentences, such as `Recipe file recipes.toml`.

    Raises:
        UnusableInput: it is not there, too large, or not TOML in UTF-8.
    """
    try:
        text = read_regular(path, name, _LIMIT_BYTES).decode("utf-8")
        return tomllib.loads(text), text
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableInput(f"{name} is not there. Look for a slip in its path.") from None
    except RecursionError:
        raise UnusableInput(f"{name} cannot be read: it is nested too deep.") from None
    except ValueError as error:
        place = _PLACE.search(str(error))
        raise UnusableInput(
            f"{name} cannot be read: it is not TOML in UTF-8. The error is {place[0] if place else 'in its bytes'}."
        ) from error
