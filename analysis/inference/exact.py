"""Sums of floats without rounding, so that what was added can be taken away again, in any order.

A float is a whole number times a power of 2, hence a finite decimal, so a `Decimal` with digits
enough holds it, and any sum of floats, as it is. A running total of floats would keep the rounding
of every term that ever came and went; this one is always the sum of what stands.

Decimals of a total are never combined by Python's operators, which round to the 28 digits of the
ambient context, only by the functions here. msgspec writes them as JSON strings and Postgres has
them as `numeric`, both without loss.
"""

import math
from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from fractions import Fraction
from functools import reduce
from typing import Any, Self, TypeVar

import msgspec

# From 2^-1074, the smallest float, to the largest there are under 1,400 digits; the others are for
# sums of very many. A sum that had to be rounded all the same would raise.
_EXACTLY = Context(prec=2_500, traps=[Inexact, InvalidOperation])


class Additive(msgspec.Struct, frozen=True):
    """A record of sums, which is added to and subtracted from another place by place, exactly.

    Its fields are whole numbers, Decimals, other additive records, or tuples and dictionaries of
    such; a key that one of two dictionaries lacks counts as nothing there. Equal sums have equal
    digits, whatever came and went on the way.
    """

    def __add__(self, other: Self) -> Self:
        return combined([self, other])

    def __neg__(self) -> Self:
        return combined([], [self])

    def __sub__(self, other: Self) -> Self:
        return combined([self], [other])


Sums = TypeVar("Sums", bound=Additive)


def combined(added: Sequence[Sums], removed: Sequence[Sums] = ()) -> Sums:
    """Σ added - Σ removed, place by place; at least one of both. Many at once cost a fifth.

    Raises:
        TypeError: when they are not of one shape.
    """
    total: Sums = _total(added, removed)
    return total


def exact(x: float) -> Decimal:
    """A float as it is.

    Raises:
        OverflowError: when it is infinite or not a number.
    """
    if not math.isfinite(x):
        raise OverflowError(f"a sum takes finite terms only, not {x}")
    return _plain(Decimal(x))


def product(x: float, y: float) -> Decimal:
    """x y, as it is.

    Raises:
        OverflowError: when one is infinite or not a number.
    """
    return _plain(_EXACTLY.multiply(exact(x), exact(y)))


def quotient(total: Decimal | Fraction, divisor: int = 1) -> float:
    """The float nearest to total / divisor.

    Raises:
        OverflowError: when it is beyond the largest float.
        ZeroDivisionError: when the divisor is 0.
    """
    numerator, denominator = total.as_integer_ratio()
    # Python divides whole numbers of any size with one rounding.
    return numerator / (denominator * divisor)


def _plain(x: Decimal) -> Decimal:
    """The number without trailing zeros, which would stay behind when a small term has gone, and
    without the sign of a zero."""
    return _EXACTLY.normalize(x) if x else Decimal(0)


def _total(added: Sequence[Any], removed: Sequence[Any]) -> Any:
    """Σ added - Σ removed of values of one shape."""
    kind = type((added or removed)[0])
    if any(type(value) is not kind for values in (added, removed) for value in values):
        raise TypeError(f"{kind.__name__} and another type have no sum")
    if kind is Decimal:
        total = reduce(_EXACTLY.add, added, Decimal(0))
        return _plain(reduce(_EXACTLY.subtract, removed, total))
    if kind is int:
        return sum(added) - sum(removed)
    if kind is dict:
        keys = dict.fromkeys(key for values in (added, removed) for each in values for key in each)
        return {
            key: _total([v[key] for v in added if key in v], [v[key] for v in removed if key in v])
            for key in keys
        }
    if kind is tuple:
        return _places(added, removed)
    if not issubclass(kind, Additive):
        raise TypeError(f"{kind.__name__} has no sum")
    astuple = msgspec.structs.astuple
    return kind(*_places([astuple(v) for v in added], [astuple(v) for v in removed]))


def _places(
    added: Sequence[tuple[Any, ...]], removed: Sequence[tuple[Any, ...]]
) -> tuple[Any, ...]:
    size = len((added or removed)[0])
    if any(len(value) != size for values in (added, removed) for value in values):
        raise TypeError("tuples of different lengths have no sum")
    return tuple(_total([v[i] for v in added], [v[i] for v in removed]) for i in range(size))
