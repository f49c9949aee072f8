"""Count, mean and centred cross-products: the statistics that every other one is made from.

They add (`merge`) and subtract (`remove`) without the cancellation of raw sums of squares, so the
spread of values around 1e12 survives.
"""

import math
import sys
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike

_ROUNDING = 64 * sys.float_info.epsilon


class Moments(msgspec.Struct, frozen=True):
    """Moments of `n` rows of `d` numbers.

    Arguments:
        n: number of rows (units), at least 0.
        mean: the `d` means, in the metric's unit; zeros when `n` is 0.
        m2: centred cross-products Σ (x_i - mean_i)(x_j - mean_j) for i <= j: the upper triangle,
            row by row, of length d(d+1)/2.

    Raises:
        ValueError: when the lengths do not fit together or the count is negative.
    """

    n: int
    mean: tuple[float, ...]
    m2: tuple[float, ...]

    def __post_init__(self) -> None:
        d = len(self.mean)
        if self.n < 0:
            raise ValueError(f"a count is at least 0, not {self.n}")
        if d < 1 or len(self.m2) != d * (d + 1) // 2:
            raise ValueError(f"{d} means do not go with {len(self.m2)} cross-products")

    @classmethod
    def of(cls, values: Iterable[float]) -> "Moments":
        """The moments of single numbers (d = 1), by two passes.

        Raises:
            ValueError: when a value is not finite.
        """
        rows = np.fromiter(values, dtype=np.float64)
        return of_rows(rows.reshape(-1, 1))

    @property
    def d(self) -> int:
        """How many numbers a row has."""
        return len(self.mean)

    @property
    def variance(self) -> float | None:
        """Sample variance of the first number (ddof 1), None below two rows."""
        return self.m2[0] / (self.n - 1) if self.n > 1 else None


Cells = Mapping[tuple[int, str], Moments]
"""Moments of a metric by (epoch, variant)."""


def empty(d: int) -> Moments:
    """The moments of no rows of `d` numbers: the neutral element of `merge`."""
    return Moments(n=0, mean=(0.0,) * d, m2=(0.0,) * (d * (d + 1) // 2))


EMPTY = empty(1)


def of_rows(rows: ArrayLike) -> Moments:
    """The moments of an array of shape (n, d), by two passes.

    Raises:
        ValueError: when the shape is another or a value is not finite.
    """
    table = np.asarray(rows, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"rows have the shape (n, d), not {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("moments take finite values only")
    n, d = table.shape
    if n == 0:
        return empty(d)
    # The second pass corrects the rounding of the first mean, which matters far from 0.
    mean = table.mean(axis=0)
    mean = mean + (table - mean).mean(axis=0)
    centred = table - mean
    cross = centred.T @ centred
    return Moments(
        n=n,
        mean=tuple(mean.tolist()),
        m2=tuple(float(cross[i, j]) for i, j in _pairs(d)),
    )


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of `a` and of `b` together.

    Source: Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance".

    Raises:
        ValueError: when the two have rows of different lengths.
    """
    _same_d(a, b)
    if a.n == 0:
        return b
    if b.n == 0:
        return a
    n = a.n + b.n
    delta = [y - x for x, y in zip(a.mean, b.mean, strict=True)]
    weight = a.n * (b.n / n)
    return Moments(
        n=n,
        mean=tuple(x + step * (b.n / n) for x, step in zip(a.mean, delta, strict=True)),
        m2=tuple(
            x + y + delta[i] * delta[j] * weight
            for x, y, (i, j) in zip(a.m2, b.m2, _pairs(a.d), strict=True)
        ),
    )


def remove(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of `a` without those of `b`: the inverse of `merge`.

    The count is exact. What is left of a mean or a sum of squares becomes 0 where it is no more
    than the rounding of what it is the difference of (or a sum of squares below 0): units that are
    all 0 must not keep a trace of one that was not. Whether the rows of `b` really are among those
    of `a` only the caller can know.

    Raises:
        ValueError: when `b` has more rows than `a`, or rows of another length.
    """
    _same_d(a, b)
    if b.n > a.n:
        raise ValueError(f"cannot remove {b.n} rows from {a.n}")
    if b.n == 0:
        return a
    n = a.n - b.n
    if n == 0:
        return empty(a.d)
    delta = [x - y for x, y in zip(a.mean, b.mean, strict=True)]
    mean = tuple(_difference(x, -step * (b.n / n)) for x, step in zip(a.mean, delta, strict=True))
    if n == 1:
        # One row has no spread; the subtraction would leave rounding in its place.
        return Moments(n=1, mean=mean, m2=(0.0,) * len(a.m2))
    weight = a.n * (b.n / n)
    m2 = []
    for x, y, (i, j) in zip(a.m2, b.m2, _pairs(a.d), strict=True):
        left = _difference(x, y + delta[i] * delta[j] * weight)
        m2.append(max(left, 0.0) if i == j else left)
    return Moments(n=n, mean=mean, m2=tuple(m2))


def scaled_to(a: Moments, n: int) -> Moments:
    """The same means and variances, with the weight of `n` rows: forgetting, kept mergeable.

    Raises:
        ValueError: when `a` has no rows.
    """
    if a.n == 0:
        raise ValueError("no rows cannot be given a weight")
    return Moments(n=n, mean=a.mean, m2=tuple(x * (n / a.n) for x in a.m2))


def merge_all(parts: Iterable[Moments], d: int = 1) -> Moments:
    """`merge` over any number of parts; of none, the moments of no rows of `d` numbers."""
    total = empty(d)
    for part in parts:
        total = merge(total, part)
    return total


def conversions(cell: Moments) -> int:
    """How many of a proportion's units converted: `n` times the mean, as a whole number.

    Raises:
        ValueError: when the moments are not those of zeros and ones.
    """
    share = cell.mean[0]
    count = round(cell.n * share)
    # A merged mean carries rounding of about 1e-16 a merge, far below this tolerance.
    if not (0 <= count <= cell.n and math.isclose(cell.n * share, count, abs_tol=0.01)):
        raise ValueError(f"mean {share} of {cell.n} units is not a proportion of whole units")
    return count


def _difference(x: float, y: float) -> float:
    """x - y, or 0 where that is only what rounding made of it."""
    left = x - y
    return 0.0 if abs(left) <= _ROUNDING * max(abs(x), abs(y)) else left


def _same_d(a: Moments, b: Moments) -> None:
    if a.d != b.d:
        raise ValueError(f"rows of {a.d} and of {b.d} numbers have no common moments")


def _pairs(d: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(d) for j in range(i, d)]
