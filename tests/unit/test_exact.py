"""Sums of floats without rounding, against fractions and against `math.fsum`."""

import math
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.inference.exact import Additive, exact, product, quotient

floats = st.floats(allow_nan=False, allow_infinity=False)
"""All of them, from 5e-324 to 1.8e308."""


class Sums(Additive, frozen=True):
    """One place of each kind that a record may have."""

    count: int = 0
    total: Decimal = Decimal(0)
    pair: tuple[Decimal, ...] = (Decimal(0), Decimal(0))
    by_key: dict[str, "Sums"] = msgspec.field(default_factory=dict)


def term(x: float) -> Sums:
    """A number in all places."""
    return Sums(1, exact(x), (exact(x), exact(-x)), {"x": Sums(1, exact(x))})


def test_a_float_is_kept_as_it_is() -> None:
    assert exact(0.1) == Decimal("0.1000000000000000055511151231257827021181583404541015625")
    assert str(exact(-0.0)) == "0"
    for extreme in (5e-324, 1.7976931348623157e308, -2.2250738585072014e-308):
        assert quotient(exact(extreme)) == extreme


@given(st.lists(floats, max_size=20))
def test_a_sum_is_that_of_fractions_in_any_order(xs: list[float]) -> None:
    expected = sum(map(Fraction, xs), start=Fraction(0))
    there = sum(map(term, xs), start=Sums())
    back = sum(map(term, reversed(xs)), start=Sums())
    assert Fraction(there.total) == expected
    assert there.count == len(xs)
    assert tuple(map(Fraction, there.pair)) == (expected, -expected)
    assert msgspec.json.encode(there) == msgspec.json.encode(back)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_a_sum_is_rounded_once_as_by_fsum(xs: list[float]) -> None:
    assert quotient(sum(map(term, xs), start=Sums()).total) == math.fsum(xs)


@given(st.lists(floats, max_size=10), st.lists(floats, max_size=10))
def test_what_is_taken_away_leaves_no_trace(kept: list[float], gone: list[float]) -> None:
    alone = sum(map(term, kept), start=term(0.0))
    total = sum(map(term, gone), start=alone)
    for x in reversed(gone):
        total -= term(x)
    assert msgspec.json.encode(total) == msgspec.json.encode(alone)
    assert alone - alone == Sums(by_key={"x": Sums()})


@given(floats, st.floats(-1e9, 1e9))
def test_products_are_those_of_fractions(x: float, y: float) -> None:
    assert Fraction(product(x, y)) == Fraction(x) * Fraction(y)
    assert quotient(product(x, 12345), 12345) == x


@given(floats, st.integers(1, 10**40))
def test_a_quotient_is_rounded_once(x: float, divisor: int) -> None:
    assert quotient(exact(x), divisor) == float(Fraction(x) / divisor)


@given(st.lists(floats, max_size=5))
def test_json_keeps_every_digit(xs: list[float]) -> None:
    total = sum(map(term, xs), start=Sums())
    assert msgspec.json.decode(msgspec.json.encode(total), type=Sums) == total


def test_keys_are_united() -> None:
    a, b = Sums(by_key={"a": Sums(1), "b": Sums(2)}), Sums(by_key={"b": Sums(3), "c": Sums(4)})
    assert a + b == Sums(by_key={"a": Sums(1), "b": Sums(5), "c": Sums(4)})
    assert a - b == Sums(by_key={"a": Sums(1), "b": Sums(-1), "c": Sums(-4)})
    assert -a == Sums() - a


@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_refused(x: float) -> None:
    with pytest.raises(OverflowError, match="finite terms only"):
        exact(x)
    with pytest.raises(OverflowError, match="finite terms only"):
        product(1.0, x)


def test_what_does_not_add_is_refused() -> None:
    class Other(Additive, frozen=True):
        name: str = ""

    with pytest.raises(TypeError, match="no sum"):
        Other("a") + Other("b")
    with pytest.raises(TypeError, match="no sum"):
        -Other("a")
    with pytest.raises(TypeError, match="different lengths"):
        Sums() + Sums(pair=(Decimal(0),))
    with pytest.raises(OverflowError):
        quotient(product(1e308, 1e308))
