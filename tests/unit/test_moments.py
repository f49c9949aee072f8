import math
from functools import reduce

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.inference.moments import (
    EMPTY,
    Moments,
    conversions,
    empty,
    merge,
    of_rows,
    scaled_to,
)
from tests.unit.samples import proportion

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, max_size=30)


def assert_close(a: Moments, b: Moments, scale: float = 1e6) -> None:
    assert a.n == b.n
    assert a.mean == pytest.approx(b.mean, rel=1e-9, abs=1e-9 * scale)
    assert a.m2 == pytest.approx(b.m2, rel=1e-9, abs=1e-12 * scale * scale * max(a.n, 1))


@given(samples, samples)
def test_merge_is_numpy_of_all_values(a: list[float], b: list[float]) -> None:
    merged = merge(Moments.of(a), Moments.of(b))
    assert_close(merged, Moments.of(a + b))
    if len(a + b) > 1:
        assert merged.variance == pytest.approx(np.var(a + b, ddof=1), rel=1e-9, abs=1e-3)


@given(samples, samples, samples)
def test_merge_is_associative_and_commutative(
    a: list[float], b: list[float], c: list[float]
) -> None:
    x, y, z = Moments.of(a), Moments.of(b), Moments.of(c)
    assert_close(merge(merge(x, y), z), merge(x, merge(y, z)))
    assert_close(merge(x, y), merge(y, x))
    assert_close(merge(merge(x, y), z), Moments.of(a + b + c))


@given(
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=20),
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=20),
)
def test_rows_of_three_numbers(
    a: list[tuple[float, float, float]], b: list[tuple[float, float, float]]
) -> None:
    merged = merge(of_rows(a), of_rows(b))
    rows = np.array(a + b)
    assert merged.d == 3
    assert len(merged.m2) == 6
    centred = rows - rows.mean(axis=0)
    expected = (centred.T @ centred)[np.triu_indices(3)]
    assert merged.m2 == pytest.approx(expected, rel=1e-6, abs=1e3)


def test_a_tiny_spread_around_1e12_survives() -> None:
    rng = np.random.default_rng(1)
    steps = rng.integers(0, 16, 4_000) / 16.0  # exactly representable beside 1e12
    parts = [Moments.of(1e12 + chunk) for chunk in np.split(steps, 40)]
    total = reduce(merge, parts)
    assert total.variance == pytest.approx(np.var(steps, ddof=1), rel=1e-4)
    raw = 1e12 + steps  # what raw sums of squares would make of it
    naive = (np.sum(raw**2) - np.sum(raw) ** 2 / raw.size) / (raw.size - 1)
    assert not math.isclose(naive, np.var(steps, ddof=1), rel_tol=0.5)


def test_no_units_and_one_unit() -> None:
    assert empty(1) == EMPTY == Moments.of([])
    assert EMPTY.variance is None
    one = Moments.of([3.5])
    assert one == Moments(n=1, mean=(3.5,), m2=(0.0,))
    assert one.variance is None
    assert merge(one, EMPTY) == one == merge(EMPTY, one)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no common moments"):
        merge(EMPTY, empty(2))
    with pytest.raises(ValueError, match="finite"):
        Moments.of([1.0, math.nan])
    with pytest.raises(ValueError, match="shape"):
        of_rows([1.0, 2.0])
    with pytest.raises(ValueError, match="do not go with"):
        Moments(n=1, mean=(1.0, 2.0), m2=(0.0,))
    with pytest.raises(ValueError, match="at least 0"):
        Moments(n=-1, mean=(0.0,), m2=(0.0,))


def test_forgetting_keeps_mean_and_spread_per_unit() -> None:
    seen = Moments.of([1.0, 2.0, 3.0, 6.0])
    faded = scaled_to(seen, 2)
    assert faded.n == 2
    assert faded.mean == seen.mean
    assert faded.m2[0] / 2 == pytest.approx(seen.m2[0] / 4)
    with pytest.raises(ValueError, match="no rows"):
        scaled_to(EMPTY, 2)


@given(st.integers(0, 10**9), st.floats(0.0, 1.0))
def test_conversions_are_whole(n: int, share: float) -> None:
    converted = round(n * share)
    assert conversions(proportion(n, converted)) == converted


def test_conversions_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        conversions(Moments.of([0.5]))
    with pytest.raises(ValueError, match="not a proportion"):
        conversions(Moments.of([2.0]))


def test_json_keeps_every_bit() -> None:
    cell = Moments.of(np.random.default_rng(2).lognormal(size=100))
    assert msgspec.json.decode(msgspec.json.encode(cell), type=Moments) == cell
