"""Quantiles of histograms, and their comparison.

A histogram knows a value to its bin only. Within a bin the values are taken to be spread evenly:
what is estimated are quantiles of the values so spread, which are within a bin's width of those of
the values, and the same for two variants that do not differ. So an interval allows for chance, and
the width of the bins comes on top.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.inference.estimate import Comparison, relative, with_interval
from analysis.inference.tails import critical_value
from analysis.inference.variance import CAUTIOUS_UNITS


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
    n = sum(part.n for part in histogram)
    if n == 0:
        return Quantile(n=0)
    z = critical_value(alpha, None)
    h = z * math.sqrt(level * (1.0 - level) / n)
    if level - h <= 0.0 or level + h >= 1.0:
        return Quantile(n=n, value=float(_values_at(histogram, [level])[0]))
    low, value, high = _values_at(histogram, [level - h, level, level + h]).tolist()
    return Quantile(n, value, low, high, (high - low) / (2.0 * z))


def compare_quantiles(
    control: Histogram, treatment: Histogram, level: float, epochs: int, alpha: float = 0.05
) -> Comparison:
    """The difference of two quantiles, with a normal interval from both standard errors.

    The histograms are those of all units together, so it is for epochs that all had the same
    propensities only.

    Arguments:
        control, treatment: as for `quantile`.
        level: ν, strictly between 0 and 1.
        epochs: in which the units enrolled.
        alpha: 1 - confidence level.
    """
    of_control, of_treatment = (quantile(h, level, alpha) for h in (control, treatment))
    result = Comparison(
        n_control=of_control.n,
        n_treatment=of_treatment.n,
        epochs_used=epochs,
        epochs_left_out=0,
        units_left_out=0,
        alpha=alpha,
        mean_control=of_control.value,
        mean_treatment=of_treatment.value,
    )
    if of_control.value is None or of_treatment.value is None:
        return msgspec.structs.replace(result, notes=("too_few_units",))
    difference = of_treatment.value - of_control.value
    lift = relative(difference, of_control.value)
    result = msgspec.structs.replace(result, difference=difference, lift=lift)
    if of_control.std_error is None or of_treatment.std_error is None:
        lift_note = () if lift is not None else ("zero_control_mean",)
        return msgspec.structs.replace(result, notes=("too_few_units", *lift_note))
    return with_interval(result, of_control.std_error**2, of_treatment.std_error**2)


def cautious_quantile_error(
    control: Histogram, treatment: Histogram, level: float, alpha: float = 0.05
) -> float | None:
    """The standard error of the difference for a reading that may be acted on at any time: the
    variance n SE² of each variant is shrunk towards the larger one, as those of means are
    (`variance.cautious_variance`). None where one is not defined."""
    found = []
    for histogram in (control, treatment):
        read = quantile(histogram, level, alpha)
        if read.std_error is None:
            return None
        found.append((read.n, read.n * read.std_error**2))
    larger = max(variance for _, variance in found)
    return math.sqrt(
        math.fsum(
            (n * variance + CAUTIOUS_UNITS * larger) / (n + CAUTIOUS_UNITS) / n
            for n, variance in found
        )
    )


def _values_at(histogram: Histogram, shares: Sequence[float]) -> NDArray[np.float64]:
    """The values below which these shares of the units lie, those of a bin being spread evenly."""
    n = np.array([part.n for part in histogram], dtype=np.float64)
    low, high = (np.array([getattr(b, end) for b in histogram]) for end in ("low", "high"))
    through = np.cumsum(n)
    rank = np.asarray(shares) * through[-1]
    place = np.minimum(np.searchsorted(through, rank), len(n) - 1)
    within = (rank - (through[place] - n[place])) / n[place]
    values: NDArray[np.float64] = low[place] + within * (high[place] - low[place])
    return values
