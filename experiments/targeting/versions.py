"""`sem_ver`: semantic versions (semver.org 2.0.0) as flagd reads them: a `v` before them is left
away, and what is missing after the major or minor number is 0."""

import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from experiments.targeting.budget import Budget

_IDENTIFIER: Final = r"(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_VERSION: Final = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_LONGEST_KEPT: Final = 64

Identifier: TypeAlias = tuple[int, int, str]


class Version(NamedTuple):
    """A version, in the order of precedence (semver.org, 11): build metadata is not part of it.

    `stability` is (1, ()) for a release and (0, identifiers) before it.
    """

    major: int
    minor: int
    patch: int
    stability: tuple[int, tuple[Identifier, ...]]


def _same_major(a: Version, b: Version) -> bool:
    return a.major == b.major


def _same_minor(a: Version, b: Version) -> bool:
    return a[:2] == b[:2]


COMPARISONS: Final[dict[str, Callable[[Version, Version], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "^": _same_major,
    "~": _same_minor,
}
"""What may stand between two versions."""


def sem_ver(budget: Budget, left: Any, comparison: Any, right: Any) -> bool | None:
    """Whether two versions compare so; None where one of the three cannot be read."""
    compare = COMPARISONS.get(comparison) if isinstance(comparison, str) else None
    a, b = read_version(left, budget), read_version(right, budget)
    return None if compare is None or a is None or b is None else compare(a, b)


def read_version(value: Any, budget: Budget) -> Version | None:
    """The version that a value is, if it is one. Numbers are read as they are written."""
    if not isinstance(value, str | int | float):
        return None
    text = str(value)
    budget.spend_on_text(len(text))
    return _known_version(text) if len(text) <= _LONGEST_KEPT else parse_version(text)


def parse_version(text: str) -> Version | None:
    """The version that a text is, if it is one."""
    text = text[1:] if text.startswith(("v", "V")) else text
    numbers = text.split("-")[0].split("+")[0]
    padding = ".0" * (2 - numbers.count("."))
    found = _VERSION.fullmatch(numbers + padding + text[len(numbers) :])
    if found is None:
        return None
    major, minor, patch, before = found.groups()
    stability = (1, ()) if before is None else (0, tuple(map(_order, before.split("."))))
    try:
        return Version(int(major), int(minor), int(patch), stability)
    except ValueError:  # more digits than Python takes for a number
        return None


@lru_cache(maxsize=4096)
def _known_version(text: str) -> Version | None:
    """`parse_version`, once for each of the few versions that are in use."""
    return parse_version(text)


def _order(identifier: str) -> Identifier:
    """Numbers come before words, and are ordered by their value."""
    return (0, len(identifier), identifier) if identifier.isdigit() else (1, 0, identifier)
