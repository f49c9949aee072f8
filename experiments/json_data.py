"""What JSON can carry: YAML and Python's own JSON reader let through more than that."""

import math
from collections.abc import Iterator
from types import NoneType
from typing import Any, Final, NamedTuple

from experiments import paths
from experiments.problems import FieldProblem

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 50_000

_LARGEST_INT = 2**63 - 1

_KINDS: Final[dict[type, str]] = {
    NoneType: "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


class _Unreadable:
    """The type of `UNREADABLE`."""

    def __repr__(self) -> str:
        return "UNREADABLE"


UNREADABLE: Final = _Unreadable()
"""Stands in the data where something was that JSON cannot carry."""


class Cleaned(NamedTuple):
    """Data that JSON can carry, but for what is `UNREADABLE`; each such place has its problem."""

    data: Any
    problems: list[FieldProblem]


def clean(data: object) -> Cleaned:
    """The data with whatever JSON cannot carry taken out and named. It never fails."""
    if is_too_much(data):
        detail = f"must hold at most {MAX_VALUES} values"
        return _unreadable(paths.ROOT, "value", detail)
    return _clean(data, paths.ROOT, 0)


def kind_of(data: object) -> str:
    """What a value is, in words that fit JSON and YAML."""
    return _KINDS.get(type(data), f"a {type(data).__name__}")


def is_too_much(data: object) -> bool:
    """Whether data has more values than a definition can need."""
    # YAML's aliases make cycles, and exponentially many values out of a few lines: so this counts
    # what a reader would visit, and stops in time.
    waiting: list[Iterator[object]] = [iter((data,))]
    count = 0
    while waiting:
        value = next(waiting[-1], UNREADABLE)
        if value is UNREADABLE:
            waiting.pop()
            continue
        count += 1
        if count > MAX_VALUES:
            return True
        if len(waiting) <= MAX_DEPTH:
            if isinstance(value, dict):
                waiting.append(iter(value.values()))
            elif isinstance(value, list | tuple):
                waiting.append(iter(value))
    return False


def _clean(data: object, path: str, depth: int) -> Cleaned:
    if isinstance(data, dict | list | tuple):
        if depth == MAX_DEPTH:
            return _unreadable(path, "value", f"must be nested at most {MAX_DEPTH} deep")
        if isinstance(data, dict):
            return _clean_object(data, path, depth)
        items = [_clean(value, paths.item(path, i), depth + 1) for i, value in enumerate(data)]
        return Cleaned(
            [item.data for item in items], [problem for item in items for problem in item.problems]
        )
    flaw = _flaw(data)
    return Cleaned(data, []) if flaw is None else _unreadable(path, *flaw)


def _clean_object(data: dict[Any, Any], path: str, depth: int) -> Cleaned:
    kept: dict[str, Any] = {}
    problems: list[FieldProblem] = []
    for key, value in data.items():
        if not isinstance(key, str):
            detail = f"a name must be text, this one is read as {kind_of(key)}: put it in quotes"
            problems.append(FieldProblem(paths.field(path, str(key)), "type", detail))
        elif (flaw := _flaw(key)) is not None:
            name = key.encode(errors="backslashreplace").decode()
            problems.append(FieldProblem(paths.field(path, name), *flaw))
        else:
            kept[key], found = _clean(value, paths.field(path, key), depth + 1)
            problems += found
    return Cleaned(kept, problems)


def _flaw(scalar: object) -> tuple[str, str] | None:
    """The type and detail of the problem with a scalar, if any."""
    match scalar:
        case None | bool():
            return None
        case int():
            fits = abs(scalar) <= _LARGEST_INT
            return None if fits else ("value", "must fit in 64 bits; write it as text or as 1e30")
        case float():
            return None if math.isfinite(scalar) else ("value", "must be a finite number")
        case str():
            return (
                None if _is_storable(scalar) else ("value", "must be Unicode text without U+0000")
            )
    return ("type", f"must be JSON, this is read as {kind_of(scalar)}: put it in quotes")


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _unreadable(path: str, kind: str, detail: str) -> Cleaned:
    return Cleaned(UNREADABLE, [FieldProblem(path, kind, detail)])
