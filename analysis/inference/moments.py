"""Count, mean and centred cross-products: the statistics that every other one is made from.

They add (`merge`) without the cancellation of raw sums of squares, so the spread of values around
1e12 survives. Many cells at once are added to and taken from in `tables.py`.
"""

import math
import sys
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike

ROUNDING = 64 * sys.float_info.epsilon
"""What is left of a difference is noise below this share of its terms."""


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
        m2=tuple(float(cross[i, j]) for i, j in pairs(d)),
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
            for x, y, (i, j) in zip(a.m2, b.m2, pairs(a.d), strict=True)
        ),
    )


def scaled_to(a: Moments, n: int) -> Moments:
    """The same means and variances, with the weight of `n` rows: forgetting, kept mergeable.

    Raises:
        ValueError: when `a` has no rows.
    """
    if a.n == 0:
        raise ValueError("no rows cannot be given a weight")
    return Moments(n=n, mean=a.mean, m2=tuple(x * (n / a.n) for x in a.m2))


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


def _same_d(a: Moments, b: Moments) -> None:
    if a.d != b.d:
        raise ValueError(f"rows of {a.d} and of {b.d} numbers have no common moments")


def pairs(d: int) -> list[tuple[int, int]]:
    """The places (i, j), i <= j, of packed cross-products, in their order."""
    return [(i, j) for i in range(d) for j in range(i, d)]
