"""The power of each reading: the chance that it shows an effect of a given size.

All three are functions of the drift d, the effect over its standard error at the last unit; units
and detectable effects are found by search, since power rises with either.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np
from scipy import special

from analysis.inference.planned import boundaries
from analysis.inference.sequence import DECISION_N, MIN_UNITS_PER_ARM
from analysis.inference.tails import critical_value
from analysis.planning.answer import Expected
from analysis.planning.crossing import FAR, Course, course
from analysis.planning.effects import direction, largest, std_error, welch_df
from analysis.planning.request import MOST_UNITS, ReadingName

_LOG_STEP: Final = 0.08
"""Of the grid of times, each e to this times the one before: a finer one changes power by less than
.0005."""
_FEW_STEPS: Final = 32
"""Courses are so many steps long, or twice that, and so on, so that few are made and kept."""
_SURE: Final = 30.0
"""A drift that no bound withstands: at alphas of a plan they lie below 15."""
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(120)
_TAIL: Final = 1e-16
"""What the quadrature leaves out at either end."""
_MANY: Final = 1e6
"""Degrees of freedom from which on the normal distribution is as good."""


class Design(msgspec.Struct, frozen=True):
    """One comparison with the control, as it is planned.

    Arguments:
        control, treatment: the shares of all units that the two arms get.
        alpha: of this comparison.
        looks: shares of the units at which a planned reading looks, the last one 1.
    """

    metric: Expected
    control: float
    treatment: float
    alpha: float
    looks: tuple[float, ...]

    @property
    def least_units(self) -> int:
        """Units of all arms with which either arm of this comparison has 2."""
        return math.ceil(2.0 / min(self.control, self.treatment))


class Prospect(msgspec.Struct, frozen=True):
    """What is to be expected of a reading.

    Arguments:
        power: the chance that it shows the effect, by the last unit.
        mean_share: the share of the units that it takes, on average, where it ends at once.
        by_look: the chance to have ended by each look of a planned reading.
    """

    power: float
    mean_share: float
    by_look: tuple[float, ...] = ()


def prospect(design: Design, reading: ReadingName, difference: float, units: float) -> Prospect:
    """What to expect of a reading, where this difference is real, with so many units in all."""
    n_control, n_treatment = units * design.control, units * design.treatment
    error = std_error(design.metric, difference, n_control, n_treatment)
    drift = abs(difference) / error if error > 0.0 else math.inf
    if reading == "fixed":
        df = welch_df(design.metric, difference, n_control, n_treatment)
        return Prospect(fixed_power(drift, design.alpha, df), 1.0)
    if reading == "planned":
        return planned_prospect(drift, design.alpha, design.looks)
    both = n_control + n_treatment
    first = MIN_UNITS_PER_ARM * both / min(n_control, n_treatment)
    return continuous_prospect(drift, design.alpha, both, first)


def fixed_power(drift: float, alpha: float, df: float | None = None) -> float:
    """The power of one two-sided look: P(|Z + d| > z), or P(|T| > t) with a noncentral t.

    Arguments:
        drift: d, the effect over its standard error.
        alpha: of the test.
        df: degrees of freedom; None for the normal distribution.
    """
    if math.isinf(drift):
        return 1.0
    if df is None or df > _MANY:
        return _beyond(drift, critical_value(alpha, None))
    # The estimated over the true standard error is √(χ²/df); scipy's noncentral t is not a number
    # in places, so the power is its mean over that, here by quadrature.
    critical = critical_value(alpha, df)
    low = math.sqrt(2.0 * float(special.gammaincinv(df / 2.0, _TAIL)) / df)
    high = math.sqrt(float(special.chdtri(df, _TAIL)) / df)
    ratio = low + (high - low) * 0.5 * (_NODES + 1.0)
    chi = df * ratio * ratio
    log_density = (
        (df / 2.0 - 1.0) * np.log(chi)
        - chi / 2.0
        - math.lgamma(df / 2.0)
        - math.log(2.0) * df / 2.0
    )
    density = 2.0 * df * ratio * np.exp(log_density)
    over = special.ndtr(drift - critical * ratio) + special.ndtr(-drift - critical * ratio)
    return min(1.0, float(0.5 * (high - low) * np.sum(_NODE_WEIGHTS * density * over)))


def _beyond(drift: float, critical: float) -> float:
    """P(|Z + d| > critical)."""
    return float(special.ndtr(drift - critical) + special.ndtr(-drift - critical))


def planned_prospect(drift: float, alpha: float, looks: tuple[float, ...]) -> Prospect:
    """The power of a two-sided group-sequential test with the spending of Lan and DeMets and the
    boundaries of O'Brien and Fleming, and what it takes on average.

    Source: Jennison, Turnbull (2000), "Group sequential methods", chapter 19 for the integration.

    Arguments:
        drift: the effect over its standard error at the last look.
        alpha: of all looks together.
        looks: shares of the information at which it looks, the last one 1.
    """
    if drift >= _SURE:
        return Prospect(1.0, looks[0], (1.0,) * len(looks))
    survival = _planned_course(alpha, looks).survival(drift)
    mean = looks[0] + sum(
        float(left) * (later - earlier)
        for left, earlier, later in zip(survival, looks, looks[1:], strict=False)
    )
    by_look = tuple(float(1.0 - left) for left in survival)
    return Prospect(by_look[-1], mean, by_look)


def continuous_prospect(
    drift: float, alpha: float, units: float, first: float, decision_n: int = DECISION_N
) -> Prospect:
    """The power of the confidence sequence that is read after every unit, and what it takes.

    With τ = n ρ², as in `always_valid`, its statistic is a Brownian motion in τ, and it ends where
    ln E = -ln α, at √(2 (τ + 1) (½ ln(τ + 1) - ln α)).

    Arguments:
        drift: the effect over its standard error at the last unit.
        alpha: of the sequence.
        units: of both arms, by the last one.
        first: units of both arms before which it says nothing.
        decision_n: units of both arms at which it is tightest.
    """
    if units < first:
        return Prospect(0.0, 1.0)
    if drift >= _SURE:
        return Prospect(1.0, first / units)
    per_unit = (-2.0 * math.log(alpha) + math.log1p(-2.0 * math.log(alpha))) / decision_n
    end = units * per_unit
    begin = max(math.floor(math.log(first * per_unit) / _LOG_STEP), _first_in_reach(alpha))
    steps = math.ceil(math.log(end) / _LOG_STEP) - begin
    if steps < 1:  # its only look within reach is the last
        return Prospect(_beyond(drift, _bound(alpha, end) / math.sqrt(end)), 1.0)
    doublings = max(0, math.ceil(math.log2(steps / _FEW_STEPS)))
    paths = _sequence_course(alpha, begin, _FEW_STEPS << doublings)
    times = np.array(paths.times[: steps + 1])
    survival = paths.survival(drift / math.sqrt(end), steps + 1)
    left = float(np.interp(math.log(end), np.log(times), survival))
    times[-1], survival[-1] = end, left
    mean = times[0] + np.sum(0.5 * (survival[1:] + survival[:-1]) * np.diff(times))
    return Prospect(1.0 - left, float(mean) / end)


def units_for(design: Design, reading: ReadingName, difference: float, power: float) -> int | None:
    """The fewest units, of all arms, that show this difference with this power; None beyond
    `MOST_UNITS`."""
    return _smallest(
        design.least_units,
        lambda units: prospect(design, reading, difference, units).power >= power,
    )


def detectable(design: Design, reading: ReadingName, units: int, power: float) -> float | None:
    """The smallest difference for the better that so many units show with this power, to 9 digits;
    None where none can be shown."""
    sign, most = direction(design.metric), largest(design.metric)

    def shows(size: float) -> bool:
        return prospect(design, reading, sign * size, units).power >= power

    if units < design.least_units:
        return None
    shares = units * design.control, units * design.treatment
    low, high = 0.0, min(most, 3.0 * std_error(design.metric, 0.0, *shares))
    while not shows(high):
        if high >= most or high > 1e12 * std_error(design.metric, 0.0, *shares):
            return None
        low, high = high, min(most, 2.0 * high)
    while high - low > 1e-9 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if shows(middle) else (middle, high)
    return sign * high


def _smallest(low: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest n >= low at which it holds, and does ever after; None beyond `MOST_UNITS`."""
    if low > MOST_UNITS:
        return None
    if holds(low):
        return low
    high = 2 * low
    while not holds(high):
        low, high = high, 2 * high
        if low > MOST_UNITS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@lru_cache(maxsize=32)
def _planned_course(alpha: float, looks: tuple[float, ...]) -> Course:
    bounds = boundaries(looks, alpha)
    ends = [z * math.sqrt(t) for z, t in zip(bounds, looks, strict=True)]
    return course(looks, ends, continuous=False)


def _bound(alpha: float, time: float) -> float:
    return math.sqrt(2.0 * (time + 1.0) * (0.5 * math.log1p(time) - math.log(alpha)))


@lru_cache(maxsize=32)
def _first_in_reach(alpha: float) -> int:
    """The first step at which the bound of the sequence is not out of reach."""
    step = math.floor(math.log(1e-6) / _LOG_STEP)
    while _bound(alpha, math.exp(step * _LOG_STEP)) > FAR * math.exp(0.5 * step * _LOG_STEP):
        step += 1
    return step


@lru_cache(maxsize=16)
def _sequence_course(alpha: float, begin: int, steps: int) -> Course:
    """The course of a sequence at the times e to `_LOG_STEP` times `begin` and the next `steps`."""
    times = [math.exp((begin + step) * _LOG_STEP) for step in range(steps + 1)]
    return course(times, [_bound(alpha, time) for time in times], continuous=True)
