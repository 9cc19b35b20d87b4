"""Frozen dataclasses from JSON, every value held to its declared type."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "an object"}


def from_json(kind: type[T], value: Any, where: str = "it") -> T:
    """`value`, as `dataclasses.asdict` and JSON make it of a dataclass, as that dataclass again.

    Args:
        kind: the dataclass.
        value: what JSON gave.
        where: what it is called in messages.

    Raises:
        ValueError: a field is missing or unknown, or a value is of another type; the sentence names it.
    """
    result: T = _read(kind, value, where)
    return result


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, given = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _record(kind, value, where)
    if origin in (Union, types.UnionType):
        return _one_of(given, value, where)
    if origin is Literal:
        if value not in given:
            raise ValueError(f"{where} is {value!r}, not one of {', '.join(map(str, given))}")
        return value
    if origin is tuple:
        return _sequence(given, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        return {str(key): _read(given[1], each, f"{where}.{key}") for key, each in value.items()}
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where} is too large a number") from None
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r:.60}, not {_WORDS.get(kind, kind)}")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    # A whole number stays one where the type has both.
    ordered = sorted((each for each in kinds if each is not type(None)), key=lambda each: each is float)
    for number, each in enumerate(ordered):
        try:
            return _read(each, value, where)
        except ValueError:
            if number + 1 == len(ordered):
                raise
    raise ValueError(f"{where} is {value!r:.60}, which it cannot be")


def _sequence(given: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} is not a list")
    kinds = given[:1] * len(value) if len(given) == 2 and given[1] is Ellipsis else given
    if len(kinds) != len(value):
        raise ValueError(f"{where} has {len(value)} entries, not {len(kinds)}")
    return tuple(_read(kind, each, f"{where}[{at}]") for at, (kind, each) in enumerate(zip(kinds, value, strict=True)))


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    hints, known = _hints(kind), {field.name: field for field in fields(kind) if field.init}
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}")
    found = {}
    for name, field in known.items():
        if name in value:
            found[name] = _read(hints[name], value[name], f"{where}.{name}" if where != "it" else name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field {name!r}")
    return kind(**found)
