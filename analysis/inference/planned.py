"""Planned looks: a group-sequential reading, whose boundary spends the plan's alpha look by look.

The spending function is that of Lan and DeMets (1983), "Discrete sequential boundaries for clinical
trials", of O'Brien and Fleming's kind. For a two-sided test each side spends its half:
α*(t) = 2 (2 - 2Φ(z_{α/4} / √t)) by the information fraction t. What a look spends is
α*(t_k) - α*(t_{k-1}), and its boundary c_k is where the chance to reach it, and no boundary before,
is that much. The chance comes from recursive numerical integration over the statistics that have
not crossed yet: Jennison and Turnbull (2000), "Group sequential methods", chapter 19.

What has been spent by a look depends on the share of the planned units that have finished, which no
outcome can change. How two looks are correlated depends on the variance behind them. With w_e the
epoch's share of the units, N d = Σ N_e d_e is a sum whose parts are independent, whichever way the
allocation went from epoch to epoch, and so is the sum of AIPW scores; so the correlation of looks j
and k is √(v_j / v_k) with v = (N SE)². In one epoch v grows as the units do, and these are taken
instead, for they are known exactly.
"""

import math
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.inference.estimate import Comparison
from analysis.inference.small_counts import agreeing, smoothed
from analysis.inference.tails import critical_value, p_from_log

Floats = NDArray[np.float64]

EQUAL_LOOKS: Final = (0.2, 0.4, 0.6, 0.8, 1.0)
"""The shares of its units at which a plan looks that names none."""
_WIDEST: Final = 9.0
"""Statistics beyond this, either way, have a chance below 1e-18 and are left out of integrals."""
_LEAST_INTEGRATED: Final = math.log(1e-12)
"""Below this chance, the chance that a look has to cross stands for the chance to cross there
first, which is less: the boundary is a little higher, and no integral has to resolve it."""
_MOST_CORRELATED: Final = 0.995
"""The most that the squared correlation of two looks counts. Less of it makes boundaries higher
(Šidák 1968), and a look that adds next to nothing needs no finer grid."""
_LEAST_GAIN: Final = 1e-6
"""A look that adds less information spends nothing: what it could is left to the next one."""
_NODES: Final = (65, 129, 257, 449)
_LOWEST, _HIGHEST, _BEYOND, _GRID = 0.675, 6.5, 38.6, 48
"""z_{α/4} of α = 0.9995, of about 1e-10, and of the least float; and how many are tabled:
enough for a p-value to 1e-4 of itself."""
_HIGHEST_BOUND: Final = 37.0
"""A boundary above this belongs to a chance that is no float."""
_LOG_10: Final = math.log(10.0)
_LOG_4: Final = math.log(4.0)


class _State(NamedTuple):
    """Points, and the chance that the statistic is there."""

    at: Floats
    mass: Floats


class Look(msgspec.Struct, frozen=True):
    """A comparison as it stood at a planned look. It is stored once, and never changes.

    Arguments:
        number: 1 for the first look.
        taken_at: when; None where that is not known, as of a table without times.
        units: finished units of the metric then, of all variants.
        information: the share of the planned units that they are; 1 at the last look.
        difference, std_error: of the comparison, in the metric's unit.
        statistic: the standard normal deviate that has the comparison's two-sided p-value, with the
            difference's sign; that is z, and of a Welch test nearly t.
        comparison: all of it.
    """

    number: int
    taken_at: datetime | None
    units: int
    information: float
    difference: float | None = None
    std_error: float | None = None
    statistic: float | None = None
    comparison: Comparison | None = None


class PlannedReading(msgspec.Struct, frozen=True):
    """What the looks so far say.

    Arguments:
        looks: the looks, in order.
        boundaries: for each, what |statistic| has to reach; None where it has nothing to spend.
        crossed: the number of the first look that reached it; None while none did.
        p_value: sequential: the least alpha at which one of the looks would have rejected. It only
            falls from look to look, and Holm's correction may be applied to it. None before a look
            has a statistic.
        ci_low, ci_high: repeated confidence interval for the difference at the last look, in the
            metric's unit. All of a run's hold together at level 1 - alpha.
        final: whether the last look has been taken, so that no more will come.
    """

    looks: tuple[Look, ...] = ()
    boundaries: tuple[float | None, ...] = ()
    crossed: int | None = None
    p_value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    final: bool = False


def look_at(
    comparison: Comparison,
    number: int,
    taken_at: datetime | None,
    units: int,
    information: float,
) -> Look:
    """The look that freezes a comparison.

    Arguments:
        comparison: of the finished units.
        number, taken_at, units, information: as in `Look`.
    """
    statistic = None
    if comparison.log10_p_value is not None and comparison.difference is not None:
        log_tail = comparison.log10_p_value * _LOG_10 - math.log(2.0)
        deviate = -float(special.ndtri_exp(min(log_tail, -math.log(2.0))))
        statistic = math.copysign(deviate, comparison.difference)
    return Look(
        number=number,
        taken_at=taken_at,
        units=units,
        information=information,
        difference=comparison.difference,
        std_error=comparison.std_error,
        statistic=statistic,
        comparison=comparison,
    )


def planned_reading(looks: Sequence[Look], alpha: float = 0.05) -> PlannedReading:
    """What the looks so far say, whatever the spacing that they came in.

    The sequential p-value follows Liu and Anderson (2008), "On adaptive extensions of group
    sequential trials for clinical investigations"; that Holm's correction may be applied to it,
    Maurer and Bretz (2013), "Multiple testing in group sequential trials using graphical
    approaches". The interval is the repeated one of Jennison and Turnbull (1989), "Interim
    analyses: the repeated confidence interval approach".

    Arguments:
        looks: of one comparison, in the order in which they were taken.
        alpha: the chance of a false positive at any of the looks.

    Raises:
        ValueError: for an alpha outside (0, 1), or information that falls or leaves (0, 1].
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies strictly between 0 and 1, not at {alpha}")
    if not looks:
        return PlannedReading()
    fractions = tuple(look.information for look in looks)
    clock = _clock(looks)
    heights = boundaries(fractions, alpha, clock)
    sizes = tuple(0.0 if look.statistic is None else abs(look.statistic) for look in looks)
    crossed = next(
        (
            look.number
            for look, size, height in zip(looks, sizes, heights, strict=True)
            if size >= height
        ),
        None,
    )
    p_value = None
    if any(look.statistic is not None for look in looks):
        p_value = sequential_p(sizes, fractions, clock)
    ci_low, ci_high = _repeated_interval(looks[-1], heights[-1], rejected=sizes[-1] >= heights[-1])
    return PlannedReading(
        looks=tuple(looks),
        boundaries=tuple(height if math.isfinite(height) else None for height in heights),
        crossed=crossed,
        p_value=p_value,
        ci_low=ci_low,
        ci_high=ci_high,
        final=fractions[-1] >= 1.0,
    )


def log_spent(information: float, alpha: float) -> float:
    """ln α*(t): what a two-sided boundary of O'Brien and Fleming's kind has spent by a fraction of
    the information, strictly between 0 and 1 or 1."""
    quarter = -float(special.ndtri(alpha / 4.0))
    return _LOG_4 + float(special.log_ndtr(-quarter / math.sqrt(information)))


def boundaries(
    fractions: tuple[float, ...], alpha: float, clock: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """What |z| has to reach at each look; infinite where there is nothing to spend.

    Arguments:
        fractions: of the information, in (0, 1], not falling: what has been spent by each look.
        alpha: two-sided, over all looks.
        clock: for each look the variance, in any unit, whose growth makes the correlation of the
            looks; the fractions themselves unless told otherwise.

    Raises:
        ValueError: for fractions that fall, or leave (0, 1].
    """
    rising = all(a <= b for a, b in pairwise(fractions))
    if not (rising and all(0.0 < t <= 1.0 for t in fractions)):
        raise ValueError(f"information rises within (0, 1], unlike {fractions}")
    correlated = _squared_correlations(fractions if clock is None else clock)
    heights: list[float] = []
    state: _State | None = None
    before, reached = -math.inf, 0.0
    for place, fraction in enumerate(fractions):
        log_budget = -math.inf
        if fraction - reached >= _LEAST_GAIN:
            by_now = log_spent(fraction, alpha)
            log_budget = by_now + math.log(-math.expm1(before - by_now))
            before, reached = by_now, fraction
        if state is None or log_budget < _LEAST_INTEGRATED:
            heights.append(_own_height(log_budget))
        else:
            heights.append(_height(state, correlated[place], log_budget))
        if place + 1 < len(fractions) and math.log(alpha) >= _LEAST_INTEGRATED:
            narrowest = max(correlated[place : place + 2])
            state = _step(state, correlated[place], heights[-1], narrowest)
    return tuple(heights)


@lru_cache(maxsize=4096)
def sequential_p(
    sizes: tuple[float, ...],
    fractions: tuple[float, ...],
    clock: tuple[float, ...] | None = None,
) -> float:
    """The least alpha at which a look would have rejected; 1 where that is above 0.9995, held above
    2.2e-308.

    Arguments:
        sizes: |z| of each look, 0 where it has none.
        fractions, clock: as for `boundaries`.
    """
    if len(sizes) == 1:
        # α*(t) = 2 sf(|z|), solved for α.
        log_quarter = float(special.log_ndtr(-sizes[0])) - math.log(2.0)
        quarter = -math.sqrt(fractions[0]) * float(special.ndtri_exp(log_quarter))
        return p_from_log(_LOG_4 + float(special.log_ndtr(-quarter)))

    table = _heights_by_alpha(fractions, clock)

    def missing(quarter: float) -> float:
        """By how much the statistics miss the boundaries, at most, at α = 4 sf(quarter)."""
        if quarter <= _HIGHEST:
            heights = table(quarter)
        else:
            alpha = max(4.0 * float(special.ndtr(-quarter)), sys.float_info.min)
            heights = boundaries(fractions, alpha, clock)
        return max(size - float(h) for size, h in zip(sizes, heights, strict=True))

    if missing(_LOWEST) < 0.0:
        return 1.0
    from scipy import optimize  # noqa: PLC0415 - slow to load, and only plans of looks need it

    low, high = (_LOWEST, _HIGHEST) if missing(_HIGHEST) < 0.0 else (_HIGHEST, _BEYOND)
    if missing(high) >= 0.0:
        return sys.float_info.min
    quarter = float(optimize.brentq(missing, low, high, xtol=1e-9))
    return p_from_log(_LOG_4 + float(special.log_ndtr(-quarter)))


@lru_cache(maxsize=256)
def _heights_by_alpha(
    fractions: tuple[float, ...], clock: tuple[float, ...] | None
) -> Callable[[float], Sequence[float]]:
    """The boundaries as a function of z_{α/4}, in which they are nearly linear: so all comparisons
    that were looked at together share the integrals."""
    from scipy import interpolate  # noqa: PLC0415 - as above

    grid = np.linspace(_LOWEST, _HIGHEST, _GRID)
    heights = np.array([boundaries(fractions, 4.0 * float(special.ndtr(-q)), clock) for q in grid])
    # A look that spends nothing is never reached.
    reached = np.isfinite(heights).all(axis=0)
    spline = interpolate.CubicSpline(grid, np.where(reached, heights, 0.0))

    def at(quarter: float) -> Sequence[float]:
        found: Sequence[float] = np.where(reached, spline(quarter), math.inf).tolist()
        return found

    return at


def _clock(looks: Sequence[Look]) -> tuple[float, ...] | None:
    """The variance behind the looks, as this module's text says; None for the information itself,
    in one epoch or where a look has no standard error."""
    last = looks[-1].comparison
    if last is None or (last.method == "within_epochs" and last.epochs_used <= 1):
        return None
    if any(not look.std_error for look in looks):
        return None
    return tuple((look.units * (look.std_error or 0.0)) ** 2 for look in looks)


def _repeated_interval(
    look: Look, height: float, *, rejected: bool
) -> tuple[float | None, float | None]:
    """d ± c SE, c being the boundary; of Student's t where the comparison was that. None where the
    look can be reached by no statistic, or next to none."""
    if look.difference is None or look.std_error is None or height > _HIGHEST_BOUND:
        return None, None
    critical, comparison = height, look.comparison
    if comparison is not None and comparison.df is not None:
        critical = critical_value(2.0 * float(special.ndtr(-height)), comparison.df)
    centre, half_width = look.difference, critical * look.std_error
    if comparison is not None and comparison.test in {"order_statistics", "score"}:
        # Neither is symmetric: at another boundary than its own, both sides are the longer one.
        if math.isclose(height, critical_value(comparison.alpha, None), rel_tol=1e-6):
            return comparison.ci_low, comparison.ci_high
        return agreeing(
            centre - half_width, centre + half_width, look.difference, rejected=rejected
        )
    if comparison is None or comparison.test not in {"agresti_caffo", "fisher"}:
        return centre - half_width, centre + half_width
    rates = [
        smoothed(n, n * (mean or 0.0))
        for n, mean in (
            (comparison.n_control, comparison.mean_control),
            (comparison.n_treatment, comparison.mean_treatment),
        )
    ]
    centre = rates[1] - rates[0]
    low, high = agreeing(
        centre - half_width, centre + half_width, look.difference, rejected=rejected
    )
    return max(low, -1.0), min(high, 1.0)


def _squared_correlations(clock: Sequence[float]) -> tuple[float, ...]:
    """Of each look with the one before; of the first one 0."""
    latest = np.maximum.accumulate(clock)  # an estimate of what can only grow may fall
    squared = [0.0]
    for before, now in pairwise(latest.tolist()):
        squared.append(min(before / now, _MOST_CORRELATED))
    return tuple(squared)


def _own_height(log_budget: float) -> float:
    """The boundary that a look by itself reaches with this chance."""
    return -float(special.ndtri_exp(log_budget - math.log(2.0)))


def _height(state: _State, squared: float, log_budget: float) -> float:
    """The boundary that is reached with this chance after no other was."""
    root, left = math.sqrt(squared), math.sqrt(1.0 - squared)
    up = root * state.at

    def excess(height: float) -> float:
        tails = special.ndtr((up - height) / left) + special.ndtr((-up - height) / left)
        return math.log(max(float(state.mass @ tails), sys.float_info.min)) - log_budget

    if excess(0.0) <= 0.0:
        return 0.0
    from scipy import optimize  # noqa: PLC0415 - as above

    return float(optimize.brentq(excess, 0.0, _own_height(log_budget) + 1e-6, xtol=1e-10))


def _step(state: _State | None, squared: float, height: float, narrowest: float) -> _State:
    """Where a look's statistic is that crossed neither there nor before.

    Arguments:
        state: that of the look before.
        squared: the squared correlation with it.
        height: the boundary of this look.
        narrowest: the larger of the squared correlations with the looks before and after.
    """
    widest = min(height, _WIDEST)
    # Nodes lie π widest / n apart in the middle: within the deviation of the narrowest kernel.
    wanted = math.pi * widest / math.sqrt(1.0 - narrowest)
    nodes, weights = _gauss(next((n for n in _NODES if n >= wanted), _NODES[-1]))
    at, weight = widest * nodes, widest * weights / math.sqrt(2.0 * math.pi)
    if state is None:
        return _State(at, weight * np.exp(-0.5 * at * at))
    root, left = math.sqrt(squared), math.sqrt(1.0 - squared)
    kernel = np.exp(-0.5 * np.square((at[:, None] - root * state.at[None, :]) / left))
    return _State(at, weight / left * (kernel @ state.mass))


@lru_cache(maxsize=len(_NODES))
def _gauss(n: int) -> tuple[Floats, Floats]:
    nodes, weights = special.roots_legendre(n)
    return nodes, weights
