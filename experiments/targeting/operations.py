"""The operators whose arguments are all evaluated first: functions of a budget and the values."""

import operator
from collections.abc import Callable
from math import isnan
from typing import Any, Final, TypeAlias

from experiments.targeting.budget import Budget
from experiments.targeting.values import (
    Number,
    comparable,
    contains,
    finite,
    joined,
    loosely_equal,
    strictly_equal,
    to_number,
    to_text,
)
from experiments.targeting.versions import sem_ver

Operation: TypeAlias = Callable[..., Any]


def _loosely_different(budget: Budget, a: Any, b: Any) -> bool:
    return not loosely_equal(budget, a, b)


def _strictly_different(budget: Budget, a: Any, b: Any) -> bool:
    return not strictly_equal(budget, a, b)


def _ordering(holds: Callable[[Any, Any], bool]) -> Operation:
    """A comparison of two values, or of three in a row; a third that is null is not there."""

    def compare(budget: Budget, a: Any, b: Any, c: Any = None) -> bool:
        if not holds(*comparable(budget, a, b)):
            return False
        return c is None or holds(*comparable(budget, b, c))

    return compare


def _add(budget: Budget, *values: Any) -> Number:
    total: Number = 0
    for value in values:
        total = finite(total + to_number(value, budget))
    return total


def _multiply(budget: Budget, *values: Any) -> Number:
    product: Number = 1
    for value in values:
        product = finite(product * to_number(value, budget))
    return product


def _subtract(budget: Budget, a: Any, b: Any = None) -> Number:
    if b is None:
        return -to_number(a, budget)
    return finite(to_number(a, budget) - to_number(b, budget))


def _divide(budget: Budget, a: Any, b: Any) -> Number:
    return to_number(a, budget) / to_number(b, budget)


def _remainder(budget: Budget, a: Any, b: Any) -> Number:
    return to_number(a, budget) % to_number(b, budget)


def _least(budget: Budget, *values: Any) -> Number:
    return min(to_number(value, budget) for value in values)


def _greatest(budget: Budget, *values: Any) -> Number:
    return max(to_number(value, budget) for value in values)


def _merge(budget: Budget, *values: Any) -> list[Any]:
    items: list[Any] = []
    for value in values:
        part = value if isinstance(value, list) else [value]
        budget.spend(len(part))
        items += part
    return items


def _concatenate(budget: Budget, *values: Any) -> str:
    return joined("", (to_text(value, budget) for value in values), budget)


def _substring(budget: Budget, value: Any, start: Any, length: Any = None) -> str:
    text = to_text(value, budget)
    budget.spend_on_text(len(text))
    first = _first(to_number(start, budget), len(text))
    if length is None:
        return text[first:]
    count = to_number(length, budget)
    if isnan(count):
        return ""
    count = int(count)
    return text[first : first + count] if count >= 0 else text[first : max(len(text) + count, 0)]


def _first(start: Number, length: int) -> int:
    """Where a substring begins: counted from the end if `start` is negative."""
    if isnan(start):
        return 0
    if start < 0:
        return 0 if -start >= length else length - int(-start)
    return min(int(start), length)


def _starts_with(budget: Budget, value: Any, prefix: Any) -> bool | None:
    if not (isinstance(value, str) and isinstance(prefix, str)):
        return None
    return value.startswith(prefix)


def _ends_with(budget: Budget, value: Any, suffix: Any) -> bool | None:
    if not (isinstance(value, str) and isinstance(suffix, str)):
        return None
    return value.endswith(suffix)


OPERATIONS: Final[dict[str, Operation]] = {
    "==": loosely_equal,
    "!=": _loosely_different,
    "===": strictly_equal,
    "!==": _strictly_different,
    "<": _ordering(operator.lt),
    "<=": _ordering(operator.le),
    ">": _ordering(operator.gt),
    ">=": _ordering(operator.ge),
    "+": _add,
    "-": _subtract,
    "*": _multiply,
    "/": _divide,
    "%": _remainder,
    "min": _least,
    "max": _greatest,
    "in": contains,
    "cat": _concatenate,
    "substr": _substring,
    "merge": _merge,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "sem_ver": sem_ver,
}
