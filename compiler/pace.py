"""How fast this machine builds beside the one that `needs.toml` was measured on, learned from its own builds.

`~/.local/share/edgec/pace.jsonl` has a number a line: the seconds of a stage over those that were expected of it.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_MOST_LINES = 200
# Of shorter stages starting a process is the most.
_LEAST_S = 3.0


def _file() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "edgec" / "pace.jsonl"


def pace() -> float:
    """The median of what was learned; 1.0 where nothing was."""
    try:
        lines = _file().read_text(encoding="utf-8").splitlines()[-_MOST_LINES:]
    except (OSError, UnicodeDecodeError):
        return 1.0
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            ratio = json.loads(line)
            if isinstance(ratio, float) and 0.01 < ratio < 100:
                found.append(ratio)
    return statistics.median(found) if found else 1.0


def remember_pace(pairs: Sequence[tuple[float, float]]) -> None:
    """Add stages as (seconds, those expected where the pace is 1); where the file cannot be written nothing is kept."""
    lines = [f"{seconds / expected:.3f}\n" for seconds, expected in pairs if min(seconds, expected) >= _LEAST_S]
    if not lines:
        return
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
