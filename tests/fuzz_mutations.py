"""Damage for valid inputs: of bytes, and of JSON by its tree. The same random numbers do the same damage."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

_WORDS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "a", "..", "../../etc/passwd", "/dev/zero", "a/b", "\x00", "\x1b[31m", "é" * 300, "0", "1e9",
    "null", [], {}, [[]], [0] * 50, {"a": {"a": {"a": 1}}}, ["a", 1, None], {"": 0}, "1" * 400, "<script>", "{{ 1 }}",
    "os.system",
)  # fmt: skip
_CHUNK_BYTES = 64


def damage(seed: bytes, chance: random.Random) -> bytes:
    """Another input: a seed that is JSON is mostly changed by its tree."""
    if chance.random() < 0.7 and (tree := _tree(seed)) is not None:
        with suppress(RecursionError):
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                tree = _damage_tree(tree, chance)
            return json.dumps(tree).encode("utf-8", "surrogatepass")
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 2, 8))):
        _damage_bytes(data, chance)
    return bytes(data)


def _tree(seed: bytes) -> Any:
    try:
        return json.loads(seed)
    except ValueError:
        return None


def _damage_bytes(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data) + 1)
    size = chance.randrange(1, _CHUNK_BYTES)
    kind = chance.randrange(7)
    if kind == 0 and data:
        data[place % len(data)] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place : place + size]
    elif kind == 3:
        data[place:place] = data[place : place + size] or b"\x00"
    elif kind == 4:
        data[place : place + size] = bytes(chance.randrange(256) for _ in range(size))
    elif kind == 5:
        # A number of the sizes that formats have.
        width = chance.choice((1, 2, 4, 8))
        data[place : place + width] = chance.choice((0, 1, 2**31 - 1, 2**63 - 1, 2**64 - 1)).to_bytes(8, "little")[
            :width
        ]
    else:
        data[place:place] = str(chance.choice(_WORDS)).encode("utf-8", "surrogatepass")


def _damage_tree(tree: Any, chance: random.Random) -> Any:
    """The tree with one change at a random place."""
    places = list(_places(tree))
    if not places or chance.random() < 0.02:
        return _copy(chance.choice(_WORDS))
    owner, key = chance.choice(places)
    kind = chance.randrange(8)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[f"{key}{chance.choice(('', '_', '2'))}x"] = owner[key]
    elif kind == 2:
        other, name = chance.choice(places)
        owner[key] = _copy(other[name])
    elif kind == 3:
        owner[key] = [owner[key]] * chance.choice((1, 2, 5))
    elif kind == 4:
        nested: Any = owner[key]
        for _ in range(chance.choice((2, 90, 200))):
            nested = [nested]
        owner[key] = nested
    elif kind == 5 and isinstance(owner[key], int | float):
        owner[key] = owner[key] * chance.choice((-1, 0, 2, 0.5, 1000, 10**9))
    elif kind == 6 and isinstance(owner[key], str):
        text = owner[key]
        place = chance.randrange(len(text) + 1)
        owner[key] = text[:place] + str(chance.choice(_WORDS)) + text[place:]
    else:
        owner[key] = _copy(chance.choice(_WORDS))
    return tree


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _places(tree: Any) -> Any:
    """(owner, key) of every value below the top, of a tree that is not too deep."""
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])
