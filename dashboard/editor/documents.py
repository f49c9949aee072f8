"""A definition as its author writes it: JSON data with paths into it. Pure.

The editor holds one object, the document, and sets paths in it, so that nothing which a form does
not show is ever lost.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT

from experiments import paths
from experiments.model import Experiment

MISSING: Final = msgspec.UNSET
"""What stands at a path where nothing does."""


def sparse(definition: Experiment) -> dict[str, Any]:
    """A definition as JSON data without what is so by default; `parse_definition` reads it back."""
    data = _sparse(definition)
    assert isinstance(data, dict)  # noqa: S101 - a Struct becomes one
    return data


def _sparse(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        data: dict[str, Any] = {}
        if config.tag_field is not None:
            data[config.tag_field] = config.tag
        for info in msgspec.structs.fields(type(value)):
            held = getattr(value, info.name)
            default = info.default if info.default_factory is NODEFAULT else info.default_factory()
            if default is NODEFAULT or not same(held, default):
                data[info.encode_name] = held if info.type is Any else _sparse(held)
        return data
    if isinstance(value, tuple):
        return [_sparse(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)  # as people write it; a field for numbers takes both
    return msgspec.to_builtins(value)


_EXACT: Final = 2.0**53


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 is neither true nor 1.0."""
    return _written(one) == _written(other)


def _written(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def steps_of(path: str) -> tuple[str | int, ...]:
    """The names and indices of a path, as one looks them up in data."""
    return tuple(_step(step) for step in paths.steps(path))


def _step(step: str) -> str | int:
    if step.startswith('["'):
        name: str = json.loads(step[1:-1])
        return name
    if step.startswith("[") and step[1:-1].isdecimal():
        return int(step[1:-1])
    return step


def get(document: Any, path: str) -> Any:
    """What stands at a path, or MISSING."""
    at = document
    for step in steps_of(path):
        fits = (isinstance(at, dict) and step in at) or (
            isinstance(at, list) and isinstance(step, int) and step < len(at)
        )
        if not fits:
            return MISSING
        at = at[step]
    return at


def put(document: Any, path: str, value: Any) -> Any:
    """The document with a value at a path; what is in the way of an object gives way to it."""
    return _put(document, steps_of(path), value)


def _put(at: Any, steps: tuple[str | int, ...], value: Any) -> Any:
    if not steps:
        return value
    step, *rest = steps
    if isinstance(step, int):
        items = list(at) if isinstance(at, list) else []
        if step >= len(items):
            return at if isinstance(at, list) else items
        items[step] = _put(items[step], tuple(rest), value)
        return items
    fields = dict(at) if isinstance(at, dict) else {}
    fields[step] = _put(fields.get(step), tuple(rest), value)
    return fields


def drop(document: Any, path: str) -> Any:
    """The document without what stands at a path; an object that this leaves empty goes, too,
    unless it is an item of a list."""
    return _drop(document, steps_of(path))


def _drop(at: Any, steps: tuple[str | int, ...]) -> Any:
    step, *rest = steps
    if isinstance(step, int):
        if not isinstance(at, list) or step >= len(at):
            return at
        if not rest:
            return [*at[:step], *at[step + 1 :]]
        return [*at[:step], _drop(at[step], tuple(rest)), *at[step + 1 :]]
    if not isinstance(at, dict) or step not in at:
        return at
    if rest:
        left = _drop(at[step], tuple(rest))
        if left != {} or at[step] == {}:
            return {**at, step: left}
    return {name: value for name, value in at.items() if name != step}


def onto(before: Mapping[str, Any], after: Mapping[str, Any], theirs: Any) -> dict[str, Any]:
    """The changes from `before` to `after`, made to another version. A list is one value, but for
    those of the same length, which are gone through item by item."""
    made: dict[str, Any] = _onto(before, after, theirs)
    return made


def _onto(before: Any, after: Any, theirs: Any) -> Any:
    if same_or_missing(before, after):
        return theirs
    if isinstance(before, dict) and isinstance(after, dict) and isinstance(theirs, dict):
        result = {}
        for name in [*theirs, *(name for name in after if name not in theirs)]:
            value = _onto(
                before.get(name, MISSING), after.get(name, MISSING), theirs.get(name, MISSING)
            )
            if value is not MISSING:
                result[name] = value
        return result
    lists = (before, after, theirs)
    if all(isinstance(value, list) and len(value) == len(before) for value in lists):
        return [_onto(*items) for items in zip(*lists, strict=True)]
    return after


def same_or_missing(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON, or both are missing."""
    if one is MISSING or other is MISSING:
        return one is other
    return same(one, other)


def differing(one: Any, other: Any, path: str = paths.ROOT) -> list[str]:
    """The paths at which two documents differ, as deep as objects and lists of one length go."""
    if same_or_missing(one, other):
        return []
    if isinstance(one, dict) and isinstance(other, dict) and path != "targeting":
        names = [*one, *(name for name in other if name not in one)]
        return [
            place
            for name in names
            for place in differing(
                one.get(name, MISSING), other.get(name, MISSING), paths.field(path, name)
            )
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            place
            for index, pair in enumerate(zip(one, other, strict=True))
            for place in differing(*pair, paths.item(path, index))
        ]
    return [path]
