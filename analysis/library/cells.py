"""Cells: the moments of units that met one variant, under one allocation, in one stretch of time.

All that a report needs of an experiment's units, and what a `group by` gives.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from analysis.inference.moments import Moments, empty, pairs
from analysis.inference.quantile import Histogram


class Cell(msgspec.Struct, frozen=True):
    """What the units of a variant came to on a metric.

    Arguments:
        metric, variant: their keys.
        moments: of the units' numbers: the outcome (numerator and denominator of a ratio), then
            the covariates.
        epoch: of the allocation that they met.
        block: a number of the stretch of time in which they enrolled; later ones are greater.
        segment: the attribute and its value, where the cell counts only units that have it; such
            cells come beside those of all units, and count in breakdowns only.
        values: of a quantile metric, the values of the units that have one.
    """

    metric: str
    variant: str
    moments: Moments
    epoch: int = 1
    block: int = 0
    segment: tuple[str, str] | None = None
    values: Histogram = ()


class Epoch(msgspec.Struct, frozen=True):
    """A stretch of constant allocation.

    Arguments:
        units: how many enrolled in it, by variant; None for as many as the metric with the most
            of them has.
        propensities: with which they met each variant; None where they are not known, and then
            nothing is said of the sample ratio.
    """

    units: Mapping[str, int] | None = None
    propensities: Mapping[str, float] | None = None


def moments(
    n: int, mean: float | Sequence[float], covariance: float | Sequence[Sequence[float]] = 0.0
) -> Moments:
    """The moments of `n` units from what a database gives.

    Arguments:
        n: number of units.
        mean: of their number; or of each of their numbers.
        covariance: the sample variance (ddof 1); or the matrix of sample covariances.

    Raises:
        ValueError: when the shapes do not fit, a number is not finite, a variance is negative, or
            the matrix is not symmetric.
    """
    means = (mean,) if isinstance(mean, int | float) else tuple(mean)
    matrix = ((covariance,),) if isinstance(covariance, int | float) else covariance
    d = len(means)
    if len(matrix) != d or any(len(row) != d for row in matrix):
        raise ValueError(f"{d} means go with {d} by {d} covariances")
    if not all(math.isfinite(x) for x in (*means, *(x for row in matrix for x in row))):
        raise ValueError("moments take finite numbers only")
    if any(matrix[i][i] < 0.0 for i in range(d)):
        raise ValueError("a variance is at least 0")
    if any(not math.isclose(matrix[i][j], matrix[j][i], rel_tol=1e-9) for i, j in pairs(d)):
        raise ValueError("covariances are symmetric")
    if n == 0:
        return empty(d)
    return Moments(
        n=n,
        mean=tuple(map(float, means)),
        m2=tuple(float(matrix[i][j]) * (n - 1) for i, j in pairs(d)),
    )
