"""Moments of many cells at once: the formulas of `moments.py`, a row for each cell."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.inference.moments import ROUNDING, pairs

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
KEPT_DIGITS = 1e6
"""How much larger a spread may have been, before something left, so that what is left stands."""
KEPT_SIZE = 1e3
"""How much larger it may have been than the squares of all that is left, if there is no spread."""


class Table(NamedTuple):
    """Moments of `g` cells of `d` numbers: `n` of shape (g,), `mean` (g, d), `m2` (g, d(d+1)/2)."""

    n: Integers
    mean: Floats
    m2: Floats

    def at(self, rows: Integers) -> "Table":
        """These cells only."""
        return Table(self.n[rows], self.mean[rows], self.m2[rows])


def empty_table(cells: int, d: int) -> Table:
    """Cells without a unit."""
    return Table(
        np.zeros(cells, np.int64), np.zeros((cells, d)), np.zeros((cells, d * (d + 1) // 2))
    )


def grouped(cell: Integers, rows: Floats, cells: int) -> Table:
    """The moments of rows by their cells, by two passes.

    Args:
        cell: the cell of each row, from 0 to `cells` - 1.
        rows: of shape (m, d).
    """
    d = rows.shape[1]
    n = np.bincount(cell, minlength=cells)
    mean, m2 = np.empty((cells, d)), np.empty((cells, d * (d + 1) // 2))
    divisor = np.maximum(n, 1)
    centred = np.empty_like(rows)
    for i in range(d):
        first = np.bincount(cell, rows[:, i], cells) / divisor
        # The second pass corrects the rounding of the first mean, which matters far from 0.
        mean[:, i] = first + np.bincount(cell, rows[:, i] - first[cell], cells) / divisor
        centred[:, i] = rows[:, i] - mean[cell, i]
    for place, (i, j) in enumerate(pairs(d)):
        m2[:, place] = np.bincount(cell, centred[:, i] * centred[:, j], cells)
    return Table(n, mean, m2)


def merge_tables(a: Table, b: Table) -> Table:
    """Cell by cell the moments of the rows of `a` and of `b` together, as `moments.merge`."""
    n = a.n + b.n
    share = (b.n / np.maximum(n, 1))[:, np.newaxis]
    delta = b.mean - a.mean
    both = ((a.n > 0) & (b.n > 0))[:, np.newaxis]
    only_b = (a.n == 0)[:, np.newaxis]
    mean = np.where(both, a.mean + delta * share, np.where(only_b, b.mean, a.mean))
    m2 = np.where(both, a.m2 + b.m2 + _cross(delta) * (a.n[:, np.newaxis] * share), a.m2 + b.m2)
    return Table(n, mean, m2)


def remove_tables(a: Table, b: Table) -> Table:
    """Cell by cell the moments of the rows of `a` without those of `b`: the inverse of merging.

    Counts are exact. What is left of a mean or a sum of squares becomes 0 where it is no more than
    the rounding of what it is the difference of (or a sum of squares below 0): units that are all 0
    must not keep a trace of one that was not. Whether the rows of `b` really are among those of `a`
    only the caller can know.

    Raises:
        ValueError: when a cell of `b` has more rows than that of `a`.
    """
    if (b.n > a.n).any():
        row = int(np.argmax(b.n > a.n))
        raise ValueError(f"cannot remove {b.n[row]} rows from {a.n[row]}")
    n = a.n - b.n
    divisor = np.maximum(n, 1)
    delta = a.mean - b.mean
    step = -delta * (b.n / divisor)[:, np.newaxis]
    mean = _difference(a.mean, step)
    weight = (a.n * (b.n / divisor))[:, np.newaxis]
    m2 = _difference(a.m2, b.m2 + _cross(delta) * weight)
    for place, (i, j) in enumerate(pairs(a.mean.shape[1])):
        if i == j:
            m2[:, place] = np.maximum(m2[:, place], 0.0)
    # One row has no spread, none has nothing; the subtraction would leave rounding in its place.
    m2[n <= 1] = 0.0
    mean[n == 0] = 0.0
    untouched = b.n == 0
    mean[untouched], m2[untouched] = a.mean[untouched], a.m2[untouched]
    return Table(n, mean, m2)


def worn(before: Table, after: Table) -> NDArray[np.bool_]:
    """Which cells lost their digits when rows were removed, for an outlier was among them.

    Rounding leaves in a spread about 1e-16 of what it was before. That is nothing beside a spread
    of the same size, nor beside the squares of values that all are alike.
    """
    d = before.mean.shape[1]
    lost = np.zeros(len(before.n), np.bool_)
    for place, (i, j) in enumerate(pairs(d)):
        if i == j:
            spread, squares = after.m2[:, place], after.n * after.mean[:, i] ** 2
            squares = squares + spread
            was = before.m2[:, place]
            lost |= (was > KEPT_DIGITS * spread) & (was > KEPT_SIZE * squares)
    return lost & (after.n > 0)


def _cross(delta: Floats) -> Floats:
    d = delta.shape[1]
    return np.stack([delta[:, i] * delta[:, j] for i, j in pairs(d)], axis=1)


def _difference(x: Floats, y: Floats) -> Floats:
    left = x - y
    small = np.abs(left) <= ROUNDING * np.maximum(np.abs(x), np.abs(y))
    return np.where(small, 0.0, left)
