"""Quantiles of histograms, and their comparison.

A histogram knows a value to its bin only. Within a bin the values are taken to be spread evenly:
what is estimated are quantiles of the values so spread, which are within a bin's width of those of
the values, and the same for two variants that do not differ. So an interval allows for chance, and
the width of the bins comes on top.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.inference.estimate import Comparison, lift_of_limits, relative
from analysis.inference.mover import Limits, half_widths
from analysis.inference.sequence import (
    DECISION_N,
    MIN_UNITS_PER_ARM,
    AlwaysValid,
    boundary,
    log_e_value,
)
from analysis.inference.tails import critical_value, log_p_two_sided, p_from_log, to_log10

Floats = NDArray[np.float64]

_STEPS: Final = 64
_ROUNDS: Final = 10
"""Each round of the search for a deviate leaves the 64th part of where it may be."""


class Bin(msgspec.Struct, frozen=True):
    """How many units have a value from `low` to `high`."""

    low: float
    high: float
    n: int


Histogram = Sequence[Bin]
"""Bins in the order of their values, none of which overlap, with at least one unit each."""


class Quantile(msgspec.Struct, frozen=True):
    """A quantile of one variant, in the metric's unit; None where it is not defined.

    `n` units have a value. There is no interval, and no standard error, for too few of them.
    """

    n: int
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    std_error: float | None = None


def quantile(histogram: Histogram, level: float, alpha: float = 0.05) -> Quantile:
    """The quantile of a variant, with an interval from order statistics.

    With h = z √(ν(1-ν)/n), the interval is from Q(ν - h) to Q(ν + h), and the standard error is its
    length by 2z. It is not defined unless 0 < ν - h and ν + h < 1.

    Source: Deng, Knoblich, Lu (2018), "Applying the delta method in metric analytics", section 4,
    on the outer confidence interval; Meeker, Hahn, Escobar (2017), "Statistical intervals", 5.2.

    Arguments:
        histogram: of independent units.
        level: ν, strictly between 0 and 1.
        alpha: 1 - confidence level.
    """
    ranked = _ranked(histogram)
    n = ranked.n
    if n == 0:
        return Quantile(n=0)
    value, z = _value(ranked, level), critical_value(alpha, None)
    if z >= _widest(n, level):
        return Quantile(n=n, value=value)
    ends = _limits(ranked, level, z)
    low, high = value - ends.below, value + ends.above
    return Quantile(n, value, low, high, (high - low) / (2.0 * z))


def compare_quantiles(
    control: Histogram, treatment: Histogram, level: float, epochs: int, alpha: float = 0.05
) -> Comparison:
    """The difference of two quantiles, with the interval that follows from those of both.

    Where values come in two heaps and the quantile lies between these, a quantile's interval ends
    in one heap or in the other, and its two sides are of different orders: a standard error out of
    the length of it, for both sides alike, finds a difference in half of all A/A comparisons. So
    each side of the difference is made of the sides of the two order-statistic intervals that
    belong to it (`mover.py`). The p-value is that of the largest deviate z at which the interval
    leaves 0 out; it goes no further than the ranks do. `std_error` is what a normal reading has to
    take instead of both sides: the longer one, by z.

    The histograms are those of all units together, so it is for epochs that all had the same
    propensities only.

    Arguments:
        control, treatment: as for `quantile`.
        level: ν, strictly between 0 and 1.
        epochs: in which the units enrolled.
        alpha: 1 - confidence level.
    """
    arms = _ranked(control), _ranked(treatment)
    values = [_value(arm, level) if arm.n else None for arm in arms]
    result = Comparison(
        n_control=arms[0].n,
        n_treatment=arms[1].n,
        epochs_used=epochs,
        epochs_left_out=0,
        units_left_out=0,
        alpha=alpha,
        mean_control=values[0],
        mean_treatment=values[1],
    )
    if values[0] is None or values[1] is None:
        return msgspec.structs.replace(result, notes=("too_few_units",))
    difference = values[1] - values[0]
    lift = relative(difference, values[0])
    lift_note = () if lift is not None else ("zero_control_mean",)
    result = msgspec.structs.replace(result, difference=difference, lift=lift)
    z = critical_value(alpha, None)
    if z >= _widest(min(arm.n for arm in arms), level):
        return msgspec.structs.replace(result, notes=("too_few_units", *lift_note))
    of_control, of_treatment = (_limits(arm, level, z) for arm in arms)
    below, above = half_widths(of_control, of_treatment)
    if max(below, above) <= 0.0:
        return msgspec.structs.replace(result, notes=("zero_variance", *lift_note))
    deviate = _deviate(*arms, level, difference)
    log_p = log_p_two_sided(deviate, None)
    found = lift_of_limits(of_control, of_treatment)
    return msgspec.structs.replace(
        result,
        std_error=max(below, above) / z,
        statistic=deviate,
        ci_low=difference - below,
        ci_high=difference + above,
        p_value=p_from_log(log_p),
        log10_p_value=to_log10(log_p),
        lift=found.lift,
        lift_ci_low=found.ci_low,
        lift_ci_high=found.ci_high,
        test="order_statistics",
        notes=() if found.note is None else (found.note,),
    )


def quantile_sequence(
    control: Histogram,
    treatment: Histogram,
    level: float,
    alpha: float = 0.05,
    decision_n: int = DECISION_N,
) -> AlwaysValid:
    """The reading of a difference of two quantiles that may be acted on at any time.

    It is the interval of `compare_quantiles` with the boundary of the sequence (`sequence.py`) in
    place of the critical value: the share of the units below a quantile is a mean, of the known
    variance ν(1-ν), so the ranks have a confidence sequence and the values at them are one of the
    quantile. The e-value is that of the largest deviate at which 0 is left out, so 0 is outside
    exactly where it is above 1/alpha. It says nothing before the ranks on both sides exist.

    Source: Howard and Ramdas (2022), "Sequential estimation of quantiles with applications to A/B
    testing and best-arm identification", section 2, on confidence sequences from bands of ranks.

    Arguments:
        control, treatment, level: as for `compare_quantiles`.
        alpha, decision_n: as for `always_valid`.

    Raises:
        ValueError: for an alpha outside (0, 1) or a decision_n below 1.
    """
    arms = _ranked(control), _ranked(treatment)
    least, n = min(arm.n for arm in arms), arms[0].n + arms[1].n
    if least < MIN_UNITS_PER_ARM:
        return AlwaysValid(valid=False)
    z = boundary(n, alpha, decision_n)
    if z >= _widest(least, level):
        return AlwaysValid(valid=False)
    of_control, of_treatment = (_limits(arm, level, z) for arm in arms)
    below, above = half_widths(of_control, of_treatment)
    if max(below, above) <= 0.0:
        return AlwaysValid(valid=False)
    difference = of_treatment.value - of_control.value
    log_e = log_e_value(_deviate(*arms, level, difference), n, alpha, decision_n)
    return AlwaysValid(
        valid=True,
        ci_low=difference - below,
        ci_high=difference + above,
        p_value=p_from_log(-log_e),
        log_e=log_e,
    )


class _Ranked(NamedTuple):
    """A histogram as arrays: the ends of its bins, and the units of each and up to it."""

    n: int
    low: Floats
    high: Floats
    units: Floats
    through: Floats


def _ranked(histogram: Histogram) -> _Ranked:
    units = np.array([part.n for part in histogram], dtype=np.float64)
    low, high = (np.array([getattr(b, end) for b in histogram]) for end in ("low", "high"))
    return _Ranked(sum(part.n for part in histogram), low, high, units, np.cumsum(units))


def _widest(n: int, level: float) -> float:
    """The deviate below which the ranks on both sides of a quantile exist."""
    return min(level, 1.0 - level) / math.sqrt(level * (1.0 - level)) * math.sqrt(n)


def _value(ranked: _Ranked, level: float) -> float:
    return float(_values_at(ranked, np.array([level]))[0])


def _limits(ranked: _Ranked, level: float, z: float) -> Limits:
    below, above = _distances(ranked, level, np.array([z]))
    return Limits(_value(ranked, level), float(below[0]), float(above[0]))


def _distances(ranked: _Ranked, level: float, z: Floats) -> tuple[Floats, Floats]:
    """How far the order statistics at these deviates are from the quantile, below and above."""
    h = z * math.sqrt(level * (1.0 - level) / ranked.n)
    value = _value(ranked, level)
    below = value - _values_at(ranked, np.maximum(level - h, 0.0))
    above = _values_at(ranked, np.minimum(level + h, 1.0)) - value
    return below, above


def _deviate(control: _Ranked, treatment: _Ranked, level: float, difference: float) -> float:
    """The largest deviate at which the interval of the difference leaves 0 out, with the sign of
    the difference; at most the widest that both have ranks for."""
    highest = _widest(min(control.n, treatment.n), level)
    # Towards 0 lie a higher control and a lower treatment, or the other way round.
    side = 0 if difference > 0.0 else 1

    def leaves_out(z: Floats) -> NDArray[np.bool_]:
        towards = _distances(treatment, level, z)[side], _distances(control, level, z)[1 - side]
        outside: NDArray[np.bool_] = np.hypot(*towards) < abs(difference)
        return outside

    low = 0.0
    for _ in range(_ROUNDS):
        grid = np.linspace(low, highest, _STEPS + 1)
        outside = int(leaves_out(grid).sum())
        if outside > _STEPS:
            return math.copysign(highest, difference)
        if outside == 0:
            break
        low, highest = float(grid[outside - 1]), float(grid[outside])
    return math.copysign(low, difference) if low else 0.0


def _values_at(ranked: _Ranked, shares: Floats) -> Floats:
    """The values below which these shares of the units lie, those of a bin being spread evenly."""
    rank = shares * ranked.through[-1]
    place = np.minimum(np.searchsorted(ranked.through, rank), len(ranked.units) - 1)
    within = (rank - (ranked.through[place] - ranked.units[place])) / ranked.units[place]
    values: Floats = ranked.low[place] + within * (ranked.high[place] - ranked.low[place])
    return values
