"""The variance of one arm's scores inside each epoch, where some epochs have few units.

An epoch with a handful of units cannot estimate its own variance, and one variance for all epochs
is wrong where the base rate and the allocation moved together: on a ramp from 1 % at a rate of .30
to 50 % at .05 it halves the standard error (32 % false positives at a nominal 5 %). So each epoch
keeps its own variance, shrunk towards the arm's pooled one with the weight of `PRIOR_UNITS` units.
"""

from collections.abc import Sequence

import msgspec

from analysis.kinds import Kind
from analysis.moments import Moments

PRIOR_UNITS = 5.0
"""Weight of the pooled variance, in units: of 5, 10 and 20 the best coverage in simulations."""


class ArmVariance(msgspec.Struct, frozen=True):
    """Variance of a weighted sum of one arm's epoch means.

    Arguments:
        variance: Σ_e w_e² s_e²/n_e, in the metric's unit squared.
        df: Satterthwaite's degrees of freedom of that variance.
    """

    variance: float
    df: float


def spread(cell: Moments, kind: Kind) -> float:
    """Σ (x - mean)²; for a proportion n p(1-p), which carries no rounding of merges."""
    if kind == "proportion":
        # A merged mean may miss 0 or 1 by a rounding, and a spread is never negative.
        return max(0.0, cell.n * cell.mean[0] * (1.0 - cell.mean[0]))
    return cell.m2[0]


def degrees(cells: Sequence[Moments], kind: Kind) -> tuple[int, ...]:
    """Degrees of freedom of each epoch's own variance.

    n for a proportion in one epoch (Wald's p(1-p), as statsmodels has it), n - 1 otherwise: over
    many small epochs the loss of one degree in each is no longer negligible.
    """
    ddof = 0 if kind == "proportion" and len(cells) == 1 else 1
    return tuple(cell.n - ddof for cell in cells)


def weighted_mean_variance(
    cells: Sequence[Moments], weights: Sequence[float], kind: Kind, prior: float | None = None
) -> ArmVariance | None:
    """Variance of Σ w_e mean_e over the epochs of one arm.

    With s_e² = (M2_e + κ s²)/(df_e + κ), where s² is the pooled variance and κ = PRIOR_UNITS, the
    sum Σ w_e² s_e²/n_e is linear in the M2_e, so its degrees of freedom follow from Satterthwaite
    (1946). One epoch gives the textbook variance s²/n with its own degrees of freedom.

    Arguments:
        cells: the arm's moments by epoch, each with at least one unit.
        weights: the epochs' weights w_e, summing to 1.
        kind: proportion or mean.
        prior: the variance to shrink towards; the arm's pooled one when None.

    Returns:
        None where no epoch has a degree of freedom.
    """
    own = degrees(cells, kind)
    total = sum(own)
    if total <= 0:
        return None
    spreads = [spread(cell, kind) for cell in cells]
    pooled = sum(spreads) / total
    target = pooled if prior is None else prior
    scale = [w * w / cell.n for w, cell in zip(weights, cells, strict=True)]
    if len(cells) == 1 and prior is None:
        return ArmVariance(variance=scale[0] * pooled, df=float(total))
    shrunk = [
        (m2 + PRIOR_UNITS * target) / (df + PRIOR_UNITS)
        for m2, df in zip(spreads, own, strict=True)
    ]
    variance = sum(f * s2 for f, s2 in zip(scale, shrunk, strict=True))
    lent = sum(PRIOR_UNITS * f / (df + PRIOR_UNITS) for f, df in zip(scale, own, strict=True))
    if variance <= 0.0:
        return ArmVariance(variance=0.0, df=float(total))
    shares = (
        (f / (df + PRIOR_UNITS) + lent / total) * (s2 / variance)
        for f, s2, df in zip(scale, shrunk, own, strict=True)
    )
    inverse_df = sum(share * share * df for share, df in zip(shares, own, strict=True))
    return ArmVariance(variance=variance, df=1.0 / inverse_df)
