"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_COUNT = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]i?B)?", re.IGNORECASE)


def parse_bytes(text: str) -> int | None:
    """`90MB`, `1.5GiB` or plain bytes; None for anything else."""
    found = _COUNT.fullmatch(text.strip())
    return None if found is None else int(float(found[1]) * _UNITS[(found[2] or "").upper()])
