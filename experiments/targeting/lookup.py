"""`var`, `missing` and `missing_some`: what an expression reads."""

import re
from math import isnan
from typing import Any, Final, NamedTuple

from experiments.targeting.budget import Budget, TargetingError
from experiments.targeting.values import to_number, to_text

RESERVED: Final = "$flagd"
"""How the names begin that flagd fills in: a clock among them."""

_INDEX = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


class Step(NamedTuple):
    """A part of a dotted name: a field of an object, or an index into a list or text."""

    name: str
    position: int | None


def parse_name(name: str) -> tuple[Step, ...]:
    """The steps of a dotted name such as `cart.items.0.sku`."""
    return tuple(
        Step(part, int(part) if _INDEX.fullmatch(part) else None) for part in name.split(".")
    )


def walk(data: Any, steps: tuple[Step, ...], default: Any) -> Any:
    """What lies at the end of the steps; the default where there is nothing, or null."""
    for name, position in steps:
        if data is None or isinstance(data, int | float):
            return default
        if isinstance(data, list | str):
            if name == "length":
                return len(data)
            if position is None or position >= len(data):
                return default
            data = data[position]
        else:
            data = data.get(name)
    return default if data is None else data


def look_up(budget: Budget, data: Any, key: Any, default: Any = None) -> Any:
    """`var` with a name that is made at run time: null and empty text name the data itself, a
    number an item of a list.

    Raises:
        TargetingError: if the name is one that flagd fills in.
    """
    if key is None or key == "":
        return data
    if isinstance(key, int | float):
        return _at(data, key, default)
    name = to_text(key, budget)
    if name.startswith(RESERVED):
        raise TargetingError(f"{RESERVED} cannot be read: targeting has no clock")
    budget.spend(len(name) // 8)  # it is taken to pieces
    return walk(data, parse_name(name), default)


def _at(data: Any, key: float, default: Any) -> Any:
    if not isinstance(data, list | str) or isnan(key):
        return default
    index = int(key)
    return data[index] if index == key and 0 <= index < len(data) else default


def missing(budget: Budget, data: Any, *names: Any) -> list[Any]:
    """Those of the names (or of the list that is the first) that are null or empty text."""
    wanted = names[0] if names and isinstance(names[0], list) else names
    budget.spend(len(wanted))
    absent = []
    for name in wanted:
        value = look_up(budget, data, name)
        if value is None or value == "":
            absent.append(name)
    return absent


def missing_some(budget: Budget, data: Any, needed: Any, names: Any) -> list[Any]:
    """None if at least so many of the names are there, else those that are missing."""
    if not isinstance(names, list):
        return []
    least = to_number(needed, budget)
    absent = missing(budget, data, names)
    return [] if len(names) - len(absent) >= least else absent
