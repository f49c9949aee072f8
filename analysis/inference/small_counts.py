"""Two proportions with small counts, where Wald's interval covers less than it says.

The interval is that of Agresti and Caffo (2000), "Simple and effective confidence intervals for
proportions and differences of proportions result from adding two successes and two failures": that
of Wald after one conversion and one other were added to each arm. It is defined for any counts, a
single unit included, and its coverage stays near its level where Wald's falls to a half.

The p-value comes from the same centre and standard error, or, where there are few units, from
Fisher's exact test. That one is conditional on how many converted in all, so no interval for the
difference belongs to it. The interval then is made to agree with it about 0, as the test of each
other value would have it: where Fisher's test does not reject 0, the interval is stretched to 0;
where it does, values on the other side of 0 are cut off, which the test of their sign has rejected,
too. An end that is 0 belongs to the interval exactly where p is above alpha.

Over several epochs nothing can be added to counts that are not to be pooled. The test is that of
the score: with p_e the rate of both arms together in epoch e, V = Σ w_e² p_e(1-p_e)(1/n0e + 1/n1e)
is the variance of the difference where there is none, whatever the base rate does from epoch to
epoch. Wald's test, whose variance falls where an arm happens not to convert, takes equal arms for
different in a sixth of all ramps at a rate of .005. The interval is Newcombe's, of the Wilson
intervals of both standardised rates on the units that their weights leave in effect, no side of
which is shorter than the larger of the two variances has it; it is made to agree with the test,
too.

Sources: Mantel and Haenszel (1959) and Miettinen and Nurminen (1985), "Comparative analysis of two
rates", on the test; Kish (1965), "Survey sampling", on units in effect; `mover.py` on Newcombe's
interval.
"""

import math
from typing import Final, Literal

import msgspec
import numpy as np

from analysis.inference.mover import Limits, half_widths
from analysis.inference.tails import critical_value, log_p_two_sided

SMALL_COUNT: Final = 10
"""Conversions, or units without, of an arm, below which its counts are small."""
FISHER_UNITS: Final = 1_000
"""Units of both arms together below which Fisher's test is taken."""


class SmallCounts(msgspec.Struct, frozen=True):
    """How two proportions with small counts are read.

    Arguments:
        test: where the p-value comes from.
        rate_control, rate_treatment: after the additions.
        variance_control, variance_treatment: of these rates.
        statistic: of the p-value, normal; None of Fisher's.
        ci_low, ci_high: for the difference of the rates, treatment - control, within -1 and 1.
        log_p: ln of the two-sided p-value.
        rejected: whether it is at most alpha.
    """

    test: Literal["agresti_caffo", "fisher"]
    rate_control: float
    rate_treatment: float
    variance_control: float
    variance_treatment: float
    statistic: float | None
    ci_low: float
    ci_high: float
    log_p: float
    rejected: bool

    @property
    def std_error(self) -> float:
        """Of the difference, in the interval."""
        return math.sqrt(self.variance_control + self.variance_treatment)


def are_small(n: int, converted: int) -> bool:
    """Whether an arm's counts are."""
    return min(converted, n - converted) < SMALL_COUNT


def small_counts(n0: int, x0: int, n1: int, x1: int, alpha: float = 0.05) -> SmallCounts:
    """Read the counts of a control (0) and of a treatment (1), at least one unit each.

    Arguments:
        n0, n1: units.
        x0, x1: those of them that converted.
        alpha: 1 - confidence level.

    Raises:
        ValueError: for an alpha outside (0, 1), or counts that are none.
    """
    if not (0 <= x0 <= n0 and 0 <= x1 <= n1 and n0 and n1):
        raise ValueError(f"these are no counts of two arms: {x0} of {n0} and {x1} of {n1}")
    rate_0, rate_1 = smoothed(n0, x0), smoothed(n1, x1)
    variance_0, variance_1 = _variance(n0, rate_0), _variance(n1, rate_1)
    std_error = math.sqrt(variance_0 + variance_1)
    statistic = (rate_1 - rate_0) / std_error
    half_width = critical_value(alpha, None) * std_error
    low, high = rate_1 - rate_0 - half_width, rate_1 - rate_0 + half_width
    exact = n0 + n1 < FISHER_UNITS
    if exact:
        from scipy import stats  # noqa: PLC0415 - slow to load, and only small counts need it

        p = float(stats.fisher_exact(np.array([[x0, n0 - x0], [x1, n1 - x1]])).pvalue)
        log_p = math.log(min(p, 1.0))
        rejected = p <= alpha
        low, high = agreeing(low, high, x1 / n1 - x0 / n0, rejected=rejected)
    else:
        log_p = log_p_two_sided(statistic, None)
        rejected = low > 0.0 or high < 0.0
    return SmallCounts(
        test="fisher" if exact else "agresti_caffo",
        rate_control=rate_0,
        rate_treatment=rate_1,
        variance_control=variance_0,
        variance_treatment=variance_1,
        statistic=None if exact else statistic,
        ci_low=max(low, -1.0),
        ci_high=min(high, 1.0),
        log_p=log_p,
        rejected=rejected,
    )


class Standardised(msgspec.Struct, frozen=True):
    """The rate of an arm, standardised over several epochs.

    Arguments:
        rate: Σ w_e p_e.
        effective: the units that would give as precise a rate in one epoch, (Σ w_e²/n_e)^-1.
        variance: Wald's.
        null: Σ w_e² p(1-p)/n_e, p being the rate in the epoch of both arms together.
    """

    rate: float
    effective: float
    variance: float
    null: float


class SmallCountsOverEpochs(msgspec.Struct, frozen=True):
    """How two proportions with small counts in several epochs are read.

    Arguments:
        control, treatment: the limits of the two rates.
        std_error: the longer side of the interval before it was made to agree, by the critical
            value.
        statistic: of the score test, normal.
        ci_low, ci_high: for the difference, treatment - control, within -1 and 1.
        log_p: ln of the two-sided p-value.
        rejected: whether it is at most alpha.
    """

    control: Limits
    treatment: Limits
    std_error: float
    statistic: float
    ci_low: float
    ci_high: float
    log_p: float
    rejected: bool


def are_few_in_effect(rate: float, effective: float) -> bool:
    """Whether a standardised rate has small counts behind it, in effect."""
    return effective * min(rate, 1.0 - rate) < SMALL_COUNT


def over_epochs(
    control: Standardised, treatment: Standardised, difference: float, alpha: float = 0.05
) -> SmallCountsOverEpochs:
    """Read the rates of a control and of a treatment that have units in the same epochs.

    Arguments:
        control, treatment: their rates.
        difference: of these, before they were rounded.
        alpha: 1 - confidence level.

    Raises:
        ValueError: for an alpha outside (0, 1).
    """
    critical = critical_value(alpha, None)
    null = control.null + treatment.null
    # Where nobody converted, or everybody, there is no difference.
    statistic = difference / math.sqrt(null) if null > 0.0 else 0.0
    rejected = abs(statistic) > critical
    limits = [_wilson(arm, critical) for arm in (control, treatment)]
    below, above = half_widths(*limits)
    low, high = agreeing(difference - below, difference + above, difference, rejected=rejected)
    return SmallCountsOverEpochs(
        control=limits[0],
        treatment=limits[1],
        std_error=max(below, above) / critical,
        statistic=statistic,
        ci_low=max(low, -1.0),
        ci_high=min(high, 1.0),
        log_p=log_p_two_sided(statistic, None),
        rejected=rejected,
    )


def _wilson(arm: Standardised, z: float) -> Limits:
    """Wilson's limits of a rate, neither nearer to it than those of its variances, which know of
    rates that move from epoch to epoch. Source: Wilson (1927), "Probable inference, the law of
    succession, and statistical inference"."""
    p, n = arm.rate, arm.effective
    root = math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))
    to_centre = (0.5 - p) * z * z / n
    scale = 1.0 + z * z / n
    normal = z * math.sqrt(max(arm.variance, arm.null))
    return Limits(
        value=p,
        below=max((z * root - to_centre) / scale, normal),
        above=max((z * root + to_centre) / scale, normal),
    )


def smoothed(n: int, converted: float) -> float:
    """A rate after one conversion and one other were added."""
    return (converted + 1.0) / (n + 2.0)


def agreeing(low: float, high: float, difference: float, *, rejected: bool) -> tuple[float, float]:
    """An interval made to agree with a test about 0: stretched to it or cut off at it."""
    if not rejected:
        return min(low, 0.0), max(high, 0.0)
    return (max(low, 0.0), high) if difference > 0.0 else (low, min(high, 0.0))


def _variance(n: int, rate: float) -> float:
    return rate * (1.0 - rate) / (n + 2.0)
