"""Quantiles of histograms, at the end and under many looks."""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

from analysis.inference.bins import bucket, edges
from analysis.inference.quantile import (
    Bin,
    Histogram,
    compare_quantiles,
    quantile_sequence,
)
from analysis.inference.sequence import boundary
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, ever
from bench.calibration.twins import Counts, Floats, must_agree

ALPHA: Final = 0.05
CHECKED: Final = 10
"""Experiments of a chunk that the library reads at the look with the most evidence."""

LOOKS: Final = 20
_CRITICAL: Final = float(stats.norm.isf(ALPHA / 2))


class Histograms:
    """Histograms of many groups of values, counted in the same buckets.

    Arguments:
        values: each above 0, of shape (..., values).
    """

    def __init__(self, *values: Floats) -> None:
        numbers = [bucket(each) for each in values]
        first = min(int(number.min()) for number in numbers)
        last = max(int(number.max()) for number in numbers)
        self.edges = [edges(number) for number in range(first, last + 1)]
        self.counts = [_counted(number - first, last - first + 1) for number in numbers]


def _counted(numbers: Counts, buckets: int) -> Counts:
    """How many values of each group lie in each bucket, of shape (..., buckets)."""
    rows = numbers.reshape(-1, numbers.shape[-1])
    places = np.arange(len(rows))[:, None] * buckets + rows
    counts = np.bincount(places.ravel(), minlength=len(rows) * buckets)
    return counts.reshape(*numbers.shape[:-1], buckets)


class Limits(NamedTuple):
    """Quantiles, and how far the order statistics around them are below and above."""

    value: Floats
    below: Floats
    above: Floats

    @property
    def error(self) -> Floats:
        """Of a normal interval that is as long, at the critical value."""
        return (self.below + self.above) / (2.0 * _CRITICAL)


def limits_of(
    counts: Counts, ends: list[tuple[float, float]], level: float, z: Floats | float
) -> Limits:
    """The quantiles of histograms of shape (..., buckets) and their limits at the deviates z; not
    numbers where the ranks do not exist."""
    n = counts.sum(axis=-1)
    h = z * np.sqrt(level * (1.0 - level) / n)
    through = counts.cumsum(axis=-1)
    edges_low, edges_high = np.array(ends).T
    values = []
    for share in (level - h, np.full_like(h, level), level + h):
        rank = np.clip(share, 0.0, 1.0) * n
        place = (through < rank[..., None]).sum(axis=-1)
        inside = np.take_along_axis(counts, place[..., None], axis=-1)[..., 0]
        upto = np.take_along_axis(through, place[..., None], axis=-1)[..., 0]
        within = (rank - (upto - inside)) / np.maximum(inside, 1)
        values.append(edges_low[place] + within * (edges_high[place] - edges_low[place]))
    low, value, high = values
    exist = (level - h > 0.0) & (level + h < 1.0)
    return Limits(value, *(np.where(exist, side, np.nan) for side in (value - low, high - value)))


def interval(control: Limits, treatment: Limits) -> tuple[Floats, Floats]:
    """`mover.half_widths` about the difference."""
    difference = treatment.value - control.value
    return (
        difference - np.hypot(treatment.below, control.above),
        difference + np.hypot(treatment.above, control.below),
    )


def _histogram(counts: Counts, ends: list[tuple[float, float]]) -> Histogram:
    return tuple(
        Bin(low, high, n) for (low, high), n in zip(ends, counts.tolist(), strict=True) if n
    )


def several_values(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """The 95 % quantile of units' means of five values each, which are alike within a unit."""
    level, flags = 0.95, {}
    arms = []
    for units in (1_200, 400):
        own = rng.lognormal(3.0, 0.6, (experiments, units, 1))
        arms.append(own * rng.lognormal(0.0, 0.3, (experiments, units, 5)))
    for name, groups in (
        ("units", [arm.mean(axis=2) for arm in arms]),
        ("values", [arm.reshape(experiments, -1) for arm in arms]),
    ):
        flags[name], _ = _compared(Histograms(*groups), level)
    return flags


def _compared(both: Histograms, level: float) -> tuple[Flags, Flags]:
    """Which differences the library's interval takes for some, and which one that is symmetric."""
    control, treatment = (limits_of(c, both.edges, level, _CRITICAL) for c in both.counts)
    low, high = interval(control, treatment)
    for experiment in range(CHECKED):
        arms = [_histogram(counts[experiment], both.edges) for counts in both.counts]
        compared = compare_quantiles(arms[0], arms[1], level, epochs=1)
        must_agree("low", float(low[experiment]), compared.ci_low)
        must_agree("high", float(high[experiment]), compared.ci_high)
        rejected = compared.p_value is not None and compared.p_value <= ALPHA
        excluded = bool(low[experiment] > 0.0 or high[experiment] < 0.0)
        must_agree("rejected", float(excluded), float(rejected))
    size = np.abs(treatment.value - control.value)
    symmetric = size > _CRITICAL * np.hypot(control.error, treatment.error)
    return np.asarray((low > 0.0) | (high < 0.0)), np.asarray(symmetric)


def heaps(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> Floats:
    """Values in two heaps, as of a cache that is hit or missed; the first has this share."""
    low, high = rng.lognormal(0.0, 0.02, shape), rng.lognormal(3.0, 0.02, shape)
    return np.where(rng.random(shape) < share, low, high)


def in_heaps(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """The median of values half of which lie in either heap, 1,000 units an arm."""
    both = Histograms(*(heaps(rng, (experiments, 1_000), 0.5) for _ in range(2)))
    limits, symmetric = _compared(both, 0.5)
    return {"limits": limits, "symmetric": symmetric}


def watched(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A 90 % quantile, 30 % of the traffic in the treatment, looked at after every 300 units."""
    both = Histograms(
        rng.lognormal(3.0, 0.8, (experiments, LOOKS, 210)),
        rng.lognormal(3.0, 0.8, (experiments, LOOKS, 90)),
    )
    return _watched(both, 0.9)


def watched_in_heaps(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A 90 % quantile with a tenth of the values in the upper heap, as `watched`."""
    both = Histograms(*(heaps(rng, (experiments, LOOKS, units), 0.9) for units in (210, 90)))
    return _watched(both, 0.9)


def _watched(both: Histograms, level: float) -> Mapping[str, Flags]:
    """Whether a look has the sequence leave 0 out, or a z test find a difference."""
    so_far = [counts.cumsum(axis=1)[:, 1:] for counts in both.counts]
    units = sum(counts[0].sum(axis=-1) for counts in so_far)
    z = np.array([boundary(int(n), ALPHA) for n in units])
    control, treatment = (limits_of(counts, both.edges, level, z) for counts in so_far)
    low, high = interval(control, treatment)
    difference = treatment.value - control.value
    # What is left of the side towards 0; below 0 where that is left out.
    margin = np.where(difference > 0.0, -low, high) / np.maximum(np.abs(difference), 1e-300)
    margin = np.where(np.isnan(margin), np.inf, margin)
    nearest = margin.min(axis=1)
    wrong = np.asarray(nearest < 0.0)
    for experiment in np.argsort(nearest)[:CHECKED].tolist():
        look = int(margin[experiment].argmin())
        arms = [_histogram(counts[experiment, look], both.edges) for counts in so_far]
        reading = quantile_sequence(arms[0], arms[1], level, ALPHA)
        must_agree("low", float(low[experiment, look]), reading.ci_low)
        must_agree("high", float(high[experiment, look]), reading.ci_high)
        crossed = reading.log_e is not None and reading.log_e >= -math.log(ALPHA)
        must_agree("crossed", float(wrong[experiment]), float(crossed))
    fixed = [limits_of(counts, both.edges, level, _CRITICAL) for counts in so_far]
    found = np.abs(difference) / np.hypot(fixed[0].error, fixed[1].error)
    return {"sequence": wrong, "z test": ever(found > _CRITICAL)}


SCENARIOS: Final = (
    Scenario(
        "quantile",
        "A/A on a 95 % quantile, five values a unit, 1,200 and 400 units",
        571,
        several_values,
        (
            Claim(
                rate="false positives",
                method="order statistics of units",
                event="units",
                bound=Bound(0.03, ALPHA),
                naive="order statistics of values",
                naive_event="values",
            ),
        ),
    ),
    Scenario(
        "quantile-watched",
        f"A/A on a 90 % quantile, treatment at 30 %, {LOOKS} looks",
        572,
        watched,
        (
            Claim(
                rate=f"false positives under {LOOKS} looks",
                method="asymptotic confidence sequence",
                event="sequence",
                bound=Bound(high=ALPHA),
                naive="z test at every look",
                naive_event="z test",
            ),
        ),
    ),
    Scenario(
        "quantile-heaps",
        "A/A on the median of values in two heaps, 1,000 units each",
        573,
        in_heaps,
        (
            Claim(
                rate="false positives",
                method="limits of order statistics",
                event="limits",
                bound=Bound(high=ALPHA),
                naive="one error for both sides",
                naive_event="symmetric",
            ),
        ),
    ),
    Scenario(
        "quantile-heaps-watched",
        f"A/A on a 90 % quantile between two heaps, treatment at 30 %, {LOOKS} looks",
        574,
        watched_in_heaps,
        (
            Claim(
                rate=f"false positives under {LOOKS} looks",
                method="asymptotic confidence sequence",
                event="sequence",
                bound=Bound(high=ALPHA),
                naive="z test at every look",
                naive_event="z test",
            ),
        ),
    ),
)
