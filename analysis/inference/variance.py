"""The variance of one arm's scores inside each epoch, where some epochs have few units.

An epoch with a handful of units cannot estimate its own variance, and one variance for all epochs
is wrong where the base rate and the allocation moved together: on a ramp from 1 % at a rate of .30
to 50 % at .05 it halves the standard error (32 % false positives at a nominal 5 %). So each epoch
keeps its own variance, shrunk towards the arm's pooled one with the weight of `PRIOR_UNITS` units.
"""

import sys
from collections.abc import Mapping

import msgspec

from analysis.inference.epoch_sums import PRIOR_UNITS, ArmSums, EpochSums
from analysis.inference.exact import quotient
from analysis.inference.kinds import Kind
from analysis.inference.linear import ITSELF, Weights, quadratic

CAUTIOUS_UNITS = 1000.0
"""Weight of the larger of two arms' variances in a reading that may be acted on at any time."""


class ArmVariance(msgspec.Struct, frozen=True):
    """Variance of a weighted sum of one arm's epoch means.

    Arguments:
        variance: Σ_e w_e² s_e²/n_e, in the metric's unit squared.
        df: Satterthwaite's degrees of freedom of that variance; None for a form of several numbers
            in several epochs, whose squares the sums do not know. In one epoch a form counts as one
            number does: its weights are estimates, too, but of much less error.
        pooled: the arm's variance of one unit, pooled within epochs.
    """

    variance: float
    df: float | None
    pooled: float


def degrees(arm: ArmSums, epochs: int, kind: Kind) -> int:
    """Degrees of freedom of an arm's pooled variance: the sum of those of its epochs.

    n for a proportion in one epoch (Wald's p(1-p), as statsmodels has it), n - 1 in each epoch
    otherwise: over many small epochs the loss of one degree in each is no longer negligible.
    """
    return arm.n if kind == "proportion" and epochs == 1 else arm.n - epochs


def weighted_mean_variance(
    sums: EpochSums,
    variant: str,
    kind: Kind,
    prior: float | None = None,
    form: Weights = ITSELF,
) -> ArmVariance | None:
    """Variance of Σ w_e mean_e over the epochs of one arm, the mean being that of a linear form of
    each unit's numbers.

    With s_e² = (M2_e + κ s²)/(df_e + κ), where s² is the pooled variance and κ = PRIOR_UNITS, the
    sum Σ w_e² s_e²/n_e is linear in the M2_e, so its degrees of freedom follow from Satterthwaite
    (1946). One epoch gives the textbook variance s²/n with its own degrees of freedom.

    Arguments:
        sums: over the epochs, at least one, in all of which the arm has units.
        variant: the arm's key.
        kind: of the metric.
        prior: the variance to shrink towards; the arm's pooled one when None.
        form: the weights of the form.

    Returns:
        None where no epoch has a degree of freedom.
    """
    arm = sums.arms[variant]
    total = degrees(arm, sums.epochs, kind)
    if total <= 0:
        return None
    spread = quadratic(form, arm.spread)
    pooled = quotient(spread, total)
    if sums.epochs == 1:
        own = pooled if prior is None else _shrunk(quotient(spread), total, prior)
        return ArmVariance(variance=own / arm.n, df=float(total), pooled=pooled)
    target = pooled if prior is None else prior
    square = sums.weight**2
    variance = quotient(quadratic(form, arm.own), square) + target * quotient(arm.lent, square)
    single = len(form) == 1
    df = _satterthwaite(arm, sums.weight, total, target, variance) if single else None
    return ArmVariance(variance=variance, df=df, pooled=pooled)


def cautious_variance(sums: EpochSums, forms: Mapping[str, Weights], kind: Kind) -> float | None:
    """Variance of Σ w_e (mean_1e - mean_0e), for arms that may have seen too few rare values.

    An arm at 5 % of the traffic that has not converted yet shows no variance, so that chance looks
    like certainty: at a rate of .004 a sequence on the arms' own variances excludes the truth in
    most A/A runs. So the pooled variance s² of an arm with df degrees of freedom becomes
    (df s² + κ L)/(df + κ), with L the larger one of the two arms and κ = CAUTIOUS_UNITS. That is
    conservative early and vanishes as units come in.

    Arguments:
        sums: over the epochs, at least one, in which both arms have units.
        forms: the weights of each arm's form, by its key.
        kind: of the metric.

    Returns:
        None where an arm has no variance.
    """
    variances = {
        key: weighted_mean_variance(sums, key, kind, form=form) for key, form in forms.items()
    }
    larger = max(own.pooled if own is not None else 0.0 for own in variances.values())
    variance = 0.0
    for key, own in variances.items():
        if own is None:
            return None
        arm = sums.arms[key]
        weight = CAUTIOUS_UNITS / (degrees(arm, sums.epochs, kind) + CAUTIOUS_UNITS)
        scale = quotient(arm.scale, sums.weight**2)
        variance += own.variance + weight * scale * (larger - own.pooled)
    return variance


def _shrunk(spread: float, df: int, prior: float) -> float:
    """The variance of one unit, shrunk towards the prior one."""
    return (spread + PRIOR_UNITS * prior) / (df + PRIOR_UNITS)


def _satterthwaite(arm: ArmSums, weight: int, total: int, target: float, variance: float) -> float:
    """Degrees of freedom of V = Σ f (c + d t), in the words of `ArmSums`, t being the target.

    An epoch's M2 comes into V with the factor a and, by way of the pooled variance, with
    b = Σ f d / Σ df, and is worth df degrees, so that
    1/df(V) = Σ df (a + b)² (c + d t)² / V². The squares multiplied out leave nine sums of terms
    that know neither b nor t nor V. Source: Satterthwaite (1946), "An approximate distribution of
    estimates of variance components".

    Where there is no variance, or its square is too small for a float, all degrees count.
    """
    t = target
    b = quotient(arm.lent, weight**2 * total)
    with_aa, with_a, without = (
        quotient(cc, scale) + 2.0 * t * quotient(cd, scale) + t * t * quotient(dd, scale)
        for cc, cd, dd, scale in (
            (arm.aacc, arm.aacd, arm.aadd, weight**4),
            (arm.acc, arm.acd, arm.add, weight**2),
            (arm.cc, arm.cd, arm.dd, 1),
        )
    )
    squares = with_aa + 2.0 * b * with_a + b * b * without
    if min(variance * variance, squares) < sys.float_info.min:
        return float(total)
    return variance * variance / squares
