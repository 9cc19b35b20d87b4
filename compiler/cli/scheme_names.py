"""Many scheme names in few words, for tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

_CODES = re.compile(r"(int\d)-(\w+)-(g\d+|pc)(-asym)?")


def shorten(names: Sequence[str]) -> str:
    """The names in their order; those of our codes folded: `int4-rtn-{g32,g64}[-asym]`, where each form exists.

    >>> shorten(["fp16", "int4-rtn-g32", "int4-rtn-g32-asym", "int4-rtn-g64", "int4-rtn-g64-asym"])
    'fp16, int4-rtn-{g32,g64}[-asym]'
    """
    words: list[str] = []
    for kind, group in groupby(names, key=_kind):
        together = list(group)
        words += _fold(kind, together) if kind else together
    return ", ".join(words)


def _kind(name: str) -> str:
    found = _CODES.fullmatch(name)
    return f"{found[1]}-{found[2]}" if found else ""


def _fold(kind: str, names: list[str]) -> list[str]:
    """`names` of one kind, by which of the two forms, symmetric or not, each group has."""
    forms: dict[str, list[str]] = {}
    for name in names:
        found = _CODES.fullmatch(name)
        assert found is not None
        forms.setdefault(found[3], []).append(found[4] or "")
    folded = []
    for suffix, both in (("[-asym]", ["", "-asym"]), ("", [""]), ("-asym", ["-asym"])):
        groups = [group for group, has in forms.items() if has == both]
        if groups:
            listed = groups[0] if len(groups) == 1 else "{" + ",".join(groups) + "}"
            folded.append(f"{kind}-{listed}{suffix}")
    return folded
