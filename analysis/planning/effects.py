"""From a metric as it is expected to the standard error of the difference that is looked for."""

import math

from analysis.inference.kinds import Goal
from analysis.planning.answer import EffectSize, Expected
from analysis.planning.request import Cuped, MetricSpec, Proportion, Ratio


def expected(metric: MetricSpec, goal: Goal, cuped: Cuped | None = None) -> Expected:
    """The metric in one form for all kinds.

    The score of a unit of a ratio is (x - R y)/ȳ, with the variance
    (v_x - 2 R c_xy + R² v_y)/ȳ² (Deng, Knoblich, Lu 2018, the delta method); a covariate with the
    correlation ρ leaves 1 - ρ² of a variance (Deng, Xu, Kohavi, Walker 2013, CUPED).

    Raises:
        ValueError: for a ratio whose mean denominator is 0, or that does not vary.
    """
    left = 1.0 if cuped is None else 1.0 - cuped.correlation**2
    if isinstance(metric, Proportion):
        rate = metric.baseline
        return Expected("proportion", goal, rate, rate * (1.0 - rate), left)
    if isinstance(metric, Ratio):
        baseline, variance = _ratio(metric)
        return Expected("ratio", goal, baseline, variance, left)
    return Expected("mean", goal, metric.baseline, metric.sd**2, left)


def size(metric: Expected, difference: float) -> EffectSize:
    """An effect in the metric's unit and as a share of the baseline."""
    base = abs(metric.baseline)
    relative = difference / base if base > 0.0 else math.inf
    return EffectSize(difference, relative if math.isfinite(relative) else None)


def direction(metric: Expected) -> float:
    """The sign of a difference for the better."""
    return 1.0 if metric.goal == "increase" else -1.0


def largest(metric: Expected) -> float:
    """The size of the largest effect for the better: a proportion stays within 0 and 1."""
    if metric.kind != "proportion":
        return math.inf
    return 1.0 - metric.baseline if metric.goal == "increase" else metric.baseline


def variances(metric: Expected, difference: float) -> tuple[float, float]:
    """The variance of one unit of the control, and of a treatment that is so much apart.

    That of a proportion follows from its rate; of any other metric a treatment is expected to move
    the level, not the spread.
    """
    control = metric.variance * metric.variance_left
    if metric.kind != "proportion":
        return control, control
    rate = min(1.0, max(0.0, metric.baseline + difference))
    return control, rate * (1.0 - rate) * metric.variance_left


def std_error(metric: Expected, difference: float, n_control: float, n_treatment: float) -> float:
    """The standard error of the difference of two arms with so many units."""
    v0, v1 = variances(metric, difference)
    return math.sqrt(v0 / n_control + v1 / n_treatment)


def welch_df(
    metric: Expected, difference: float, n_control: float, n_treatment: float
) -> float | None:
    """The degrees of freedom that `compare` reads such a difference with: Welch's for a mean
    without a covariate, None where it takes the normal distribution. Both arms have 2 units."""
    if metric.kind != "mean" or metric.variance_left < 1.0:
        return None
    v0, v1 = variances(metric, difference)
    v0, v1 = v0 / n_control, v1 / n_treatment
    return (v0 + v1) ** 2 / (v0 * v0 / (n_control - 1.0) + v1 * v1 / (n_treatment - 1.0))


def _ratio(metric: Ratio) -> tuple[float, float]:
    x, y = metric.numerator, metric.denominator
    if y.mean == 0.0:
        raise ValueError("a ratio over a mean denominator of 0 is not defined")
    ratio = x.mean / y.mean
    # The quadratic form as a sum of squares, which rounding does not take below 0.
    along = x.sd - metric.correlation * ratio * y.sd
    across = (1.0 - metric.correlation**2) * (ratio * y.sd) ** 2
    variance = (along * along + across) / y.mean**2
    if not math.isfinite(variance):
        raise ValueError("the mean denominator is too near 0 for a ratio")
    if variance <= 0.0:
        raise ValueError("the ratio does not vary between units, so any effect shows at once")
    return ratio, variance
