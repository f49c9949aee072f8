"""JSON values as JsonLogic takes them: their truth, number and text, and how they compare.

The rules are JavaScript's as flagd's Python evaluator renders them, deviations included (see
`experiments.targeting`). Whatever may visit a long list or text pays for it from a budget.
"""

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final, TypeAlias

from experiments.targeting.budget import Budget, TargetingError

Number: TypeAlias = int | float

MAX_LIST_DEPTH: Final = 64
"""How deep a value may be nested that is read or compared as a whole."""

NAN: Final = math.nan
_NUMERIC: Final = (int, float)  # and bool, which is a kind of int
_INFINITIES: Final = ("inf", "-inf", "+inf")
_LARGEST_INT: Final = 1 << 1024  # beyond the largest float; squaring in a loop has no end else


def truth(value: Any) -> bool:
    """Whether a value counts as true: all but null, false, 0, NaN, and empty text and lists."""
    kind = type(value)
    if kind is bool:
        return bool(value)
    if value is None:
        return False
    if kind is float:
        return not (value == 0 or math.isnan(value))
    if kind is str or kind is int or kind is list:
        return bool(value)
    return True


def to_number(value: Any, budget: Budget) -> Number:
    """A value as a number; NaN where it is none."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, _NUMERIC):
        return value
    if value is None or value == []:
        return 0
    if not isinstance(value, str):
        return NAN
    budget.spend_on_text(len(value))
    if value.strip().lower() in _INFINITIES:
        return NAN
    try:
        return float(value)
    except ValueError:
        return NAN


def to_text(value: Any, budget: Budget, depth: int = 0) -> str:
    """A value as text; `depth` is how many lists it lies in.

    Raises:
        TargetingError: if lists are nested deeper than `MAX_LIST_DEPTH`.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, int):
        return str(value)
    if value is None:
        return "null"
    if isinstance(value, list):
        budget.spend(len(value))
        _check_depth(depth)
        return joined(",", (to_text(item, budget, depth + 1) for item in value), budget)
    return "[object Object]"


def joined(separator: str, texts: Iterable[str], budget: Budget) -> str:
    """Texts as one, paid for before it is made."""
    parts = list(texts)
    budget.spend_on_text(sum(map(len, parts)))
    return separator.join(parts)


def finite(number: Number) -> Number:
    """A number that arithmetic made.

    Raises:
        TargetingError: if it is whole and beyond the range of floating-point numbers.
    """
    if isinstance(number, int) and abs(number) > _LARGEST_INT:
        raise TargetingError("a number is beyond the floating-point range")
    return number


def loosely_equal(budget: Budget, a: Any, b: Any) -> bool:
    """`==`: values of different types are compared as numbers or as text."""
    kind = type(a)
    if kind is type(b):
        return a is b if kind is list or kind is dict else bool(a == b)
    if isinstance(a, _NUMERIC):
        return a == to_number(b, budget)
    if isinstance(b, _NUMERIC):
        return to_number(a, budget) == b
    if a is None or b is None:
        return False
    if isinstance(a, str):
        return a == to_text(b, budget)
    return isinstance(b, str) and to_text(a, budget) == b


def strictly_equal(budget: Budget, a: Any, b: Any) -> bool:
    """`===`: equality of Python, so by content for lists and objects."""
    if a is b:
        return True
    if isinstance(a, list | dict):
        _visit(a, budget)
    return bool(a == b)


def contains(budget: Budget, needle: Any, haystack: Any) -> bool:
    """`in`: whether a list has an item, or a text another as its part."""
    if isinstance(haystack, list):
        if isinstance(needle, list | dict):
            _visit(haystack, budget)
        else:
            budget.spend(len(haystack))
        return needle in haystack
    if isinstance(haystack, str):
        budget.spend_on_text(len(haystack))
        return to_text(needle, budget) in haystack
    return False


def comparable(budget: Budget, a: Any, b: Any) -> tuple[Any, Any]:
    """What is compared to order two values: numbers if one of them is a number, else text if one of
    them is text, else numbers."""
    if isinstance(a, _NUMERIC):
        return a, to_number(b, budget)
    if isinstance(b, _NUMERIC):
        return to_number(a, budget), b
    if isinstance(a, str) or isinstance(b, str):
        return to_text(a, budget), to_text(b, budget)
    return to_number(a, budget), to_number(b, budget)


def _visit(value: Any, budget: Budget) -> None:
    """Pay for comparing a list or object with another one."""
    level, depth = [value], 0
    while level:
        _check_depth(depth)
        budget.spend(sum(map(len, level)))
        items = chain.from_iterable(
            container.values() if isinstance(container, dict) else container for container in level
        )
        level, depth = [item for item in items if isinstance(item, list | dict)], depth + 1


def _check_depth(depth: int) -> None:
    # Python's own limit depends on who calls, and with it would who is targeted.
    if depth > MAX_LIST_DEPTH:
        raise TargetingError(f"a list is nested more than {MAX_LIST_DEPTH} deep")
