"""What more data would tell: detectable effects, units still needed, conditional power.

Forecasts take the spread of the data so far, s² = n SE², for that of the data to come.
"""

import math
from collections.abc import Callable
from typing import Final

from scipy import special

from analysis.inference.sequence import DECISION_N, MIN_UNITS_PER_ARM, always_valid
from analysis.inference.tails import critical_value

MOST_UNITS: Final = 10**10
"""More units than these are said to be out of reach."""


def detectable_effect(
    std_error: float | None, df: float | None, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest true difference that a two-sided test of this standard error finds.

    (t_{1-α/2} + t_power) SE, with the normal quantiles where `df` is None. Source: Bloom (1995),
    "Minimum detectable effects: a simple way to report the statistical power of experimental
    designs".

    Arguments:
        std_error: of the difference, in the metric's unit; None where it is not defined.
        df: degrees of freedom of the test.
        alpha: of the test, two-sided.
        power: the chance to find it.
    """
    if std_error is None:
        return None
    return (critical_value(alpha, df) + _quantile(power, df)) * std_error


def units_for_sequence(
    effect: float,
    std_error: float,
    units: int,
    alpha: float = 0.05,
    power: float = 0.8,
    decision_n: int = DECISION_N,
) -> int | None:
    """Units (both arms) by which the confidence sequence excludes 0, if the effect is this one.

    The smallest n with half-width(n) + z_power SE(n) <= |effect|: at this one look the power is
    `power`, over all looks up to it a little more. None beyond `MOST_UNITS`.

    Arguments:
        effect: the true difference, in the metric's unit.
        std_error: of the difference so far, with `units` units behind it.
        units: of both arms, split between them as those to come are.
        alpha, decision_n: of the sequence.
        power: the chance wanted.
    """
    spread, reach = std_error * math.sqrt(units), _quantile(power, None)

    def tells(n: int) -> bool:
        error = spread / math.sqrt(n)
        reading = always_valid(abs(effect), error, n // 2, n - n // 2, alpha, decision_n)
        return reading.ci_low is not None and reading.ci_low >= reach * error

    return _smallest(2 * MIN_UNITS_PER_ARM, tells)


def units_for_loss(difference: float, std_error: float, units: int, caring: float) -> int | None:
    """Units (both arms) by which the expected loss of the better arm is below what one cares about.

    The loss of choosing the arm that looks better, σ(φ(z) - z Φ(-z)) with z = |difference|/σ and
    σ = s/√n, under a flat prior; it falls with n. None beyond `MOST_UNITS`.

    Arguments:
        difference, std_error, units: as it looks now.
        caring: the loss below which one no longer cares, in the metric's unit.
    """
    spread = std_error * math.sqrt(units)

    def little(n: int) -> bool:
        sigma = spread / math.sqrt(n)
        z = abs(difference) / sigma
        density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        return sigma * (density - z * 0.5 * math.erfc(z / math.sqrt(2.0))) < caring

    return _smallest(2 * MIN_UNITS_PER_ARM, little)


def conditional_power(statistic: float, information: float, drift: float, critical: float) -> float:
    """The chance that the last look ends above `critical`, given what an earlier one found.

    With the B-value B = Z √t: Φ((B + θ(1 - t) - c)/√(1 - t)). Crossings at looks in between are
    left out, so it is a lower bound of the chance to cross at all, by little with O'Brien and
    Fleming's boundaries. Source: Lan, Wittes (1988), "The B-value: a tool for monitoring data".

    Arguments:
        statistic: Z at the earlier look, positive in the direction that is hoped for.
        information: t, its share of the information at the last look, in (0, 1).
        drift: θ, the expectation of Z at the last look.
        critical: c, the boundary of the last look.

    Raises:
        ValueError: for an information outside (0, 1).
    """
    if not 0.0 < information < 1.0:
        raise ValueError(f"the information at a look lies between 0 and 1, not at {information}")
    left = 1.0 - information
    ahead = statistic * math.sqrt(information) + drift * left - critical
    return float(special.ndtr(ahead / math.sqrt(left)))


def _quantile(share: float, df: float | None) -> float:
    return float(special.ndtri(share) if df is None else special.stdtrit(df, share))


def _smallest(low: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest n >= low at which it holds, once it holds for good; None beyond `MOST_UNITS`."""
    if holds(low):
        return low
    high = 2 * low
    while not holds(high):
        if high > MOST_UNITS:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
