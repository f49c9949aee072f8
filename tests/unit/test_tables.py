"""Moments of many cells at once: what is put in can be taken out again."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.folding.tables import (
    Table,
    empty_table,
    grouped,
    merge_tables,
    remove_tables,
    worn,
)
from analysis.inference.moments import Moments, merge, of_rows

Rows = Sequence[tuple[float, float, float]]
numbers = st.floats(-1e6, 1e6)
rows = st.lists(st.tuples(numbers, numbers, numbers), max_size=12)
cells = st.lists(rows, min_size=1, max_size=6)


def table(groups: Sequence[Rows]) -> Table:
    """A table with a cell for each group of rows."""
    cell = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    values = np.array([row for group in groups for row in group]).reshape(-1, 3)
    return grouped(cell, values, len(groups))


def moments(found: Table, cell: int) -> Moments:
    """A cell of a table by itself."""
    return Moments(int(found.n[cell]), tuple(found.mean[cell]), tuple(found.m2[cell]))


def assert_close(a: Moments, b: Moments, scale: float = 1e6) -> None:
    """Equal up to what rounding of numbers of this size makes of them."""
    assert a.n == b.n
    assert a.mean == pytest.approx(b.mean, rel=1e-9, abs=1e-9 * scale)
    assert a.m2 == pytest.approx(b.m2, rel=1e-9, abs=1e-11 * scale * scale * max(a.n, 1))


def column(values: Iterable[float]) -> Table:
    """A table of one cell of single numbers."""
    rows = np.fromiter(values, np.float64).reshape(-1, 1)
    return grouped(np.zeros(len(rows), np.int64), rows, 1)


@given(cells)
def test_grouping_gives_the_moments_of_each_group(groups: list[Rows]) -> None:
    found = table(groups)
    for cell, group in enumerate(groups):
        assert_close(moments(found, cell), of_rows(np.array(group).reshape(-1, 3)))


@given(cells, cells)
def test_merging_is_that_of_single_moments(some: list[Rows], others: list[Rows]) -> None:
    size = min(len(some), len(others))
    a, b = table(some[:size]), table(others[:size])
    merged = merge_tables(a, b)
    for cell in range(size):
        assert_close(moments(merged, cell), merge(moments(a, cell), moments(b, cell)))


@given(cells, cells)
def test_removing_inverts_merging(some: list[Rows], others: list[Rows]) -> None:
    size = min(len(some), len(others))
    a, b = table(some[:size]), table(others[:size])
    left = remove_tables(merge_tables(a, b), b)
    for cell in range(size):
        assert_close(moments(left, cell), moments(a, cell))
    assert (left.m2[:, [0, 3, 5]] >= 0.0).all()


def test_a_tiny_spread_around_1e12_survives_a_removal() -> None:
    steps = np.random.default_rng(1).integers(0, 16, 4_000) / 16.0  # exact beside 1e12
    total, first = column(1e12 + steps), column(1e12 + steps[:2_000])
    left = remove_tables(total, first)
    assert left.n[0] == 2_000
    assert left.m2[0, 0] / 1_999 == pytest.approx(np.var(steps[2_000:], ddof=1), rel=1e-4)


def test_a_trace_of_what_has_gone_is_not_left_behind() -> None:
    nothing = [0.0] * 50
    left = remove_tables(column([*nothing, 0.1]), column([0.1]))
    assert (left.mean[0, 0], left.m2[0, 0]) == (0.0, 0.0)
    assert remove_tables(column([0.1, 0.7]), column([0.7])).m2[0, 0] == 0.0
    gone = remove_tables(column([0.1, 0.7]), column([0.1, 0.7]))
    assert (gone.n[0], gone.mean[0, 0], gone.m2[0, 0]) == (0, 0.0, 0.0)
    kept = remove_tables(column([0.1, 0.7]), empty_table(1, 1))
    assert (kept.mean, kept.m2) == (column([0.1, 0.7]).mean, column([0.1, 0.7]).m2)


def test_a_cell_gives_no_more_than_it_has() -> None:
    with pytest.raises(ValueError, match="cannot remove 2 rows from 1"):
        remove_tables(column([1.0]), column([1.0, 2.0]))


@pytest.mark.parametrize(
    ("stay", "leave", "lost"),
    [
        ([1.0, 2.0, 3.0], [1e30], True),
        ([1.0, 2.0, 3.0], [1e9], True),
        ([1.0, 2.0, 3.0], [100.0], False),
        ([1e12, 1e12 + 1, 1e12 + 2], [1e12 + 5], False),
        ([2.5, 2.5], [0.0, 0.0], False),
        ([0.0, 0.0], [0.0], False),
    ],
)
def test_a_cell_that_lost_its_digits_is_noticed(
    stay: list[float], leave: list[float], lost: bool
) -> None:
    before = column(stay + leave)
    assert worn(before, remove_tables(before, column(leave)))[0] == lost
