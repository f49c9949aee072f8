"""The Bayesian reading: what to believe of a difference, given a stated prior.

A proportion whose units all lie in one epoch has a Beta posterior for the rate of each arm. What is
asked of the two is an integral over one rate, and it is taken by quadrature, never by draws:
P(p1 > p0) = E F0(p1), and E(p0 - p1)+ = ∫ F1(x) (1 - F0(x)) dx, which has no cancellation where it
is tiny. Everything else is normal: the estimate is, given the difference, and so is the prior. So
P(δ > 0) = Φ(μ/s), and E(-δ)+ = s (φ(z) - z Φ(-z)) with z = μ/s. A prior of the lift becomes one of
the difference at the observed mean m0 of the control: its standard deviation is lift_sd |m0|.

Sources: Gelman et al. (2013), "Bayesian data analysis", 2.4 and 2.5; Stucchio (2015), "Bayesian A/B
testing at VWO", on the expected loss; the normal prior of a lift is that of GrowthBook's engine.

A posterior bounds no error rate: between two equals, the chance that one of them wins is above 95 %
at one of a hundred looks more often than not (`tests/unit/test_bayes.py`).
"""

import math
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.inference.epoch_sums import EpochSums
from analysis.inference.estimate import Comparison, possible_lift, relative
from analysis.inference.kinds import Goal, Kind
from analysis.inference.tails import critical_value
from experiments.model import Prior

Model = Literal["beta", "normal"]
Floats = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)
_CUTS: Final = np.concatenate(
    [np.arange(-38.0, -8.0, 2.0), np.arange(-8.0, 9.0), np.arange(10.0, 39.0, 2.0)]
)
"""Where the quantiles of a rate cut the axis into panels, as normal deviates."""
_SURE: Final = 9.0
"""Deviates beyond this, either way, are left out of what only needs absolute accuracy: 1e-19."""


class ArmCounts(msgspec.Struct, frozen=True):
    """The units of an arm, and those of them that converted."""

    n: int
    converted: int


class Counts(msgspec.Struct, frozen=True):
    """The counts of two arms in one epoch."""

    control: ArmCounts
    treatment: ArmCounts


class BayesianReading(msgspec.Struct, frozen=True):
    """A posterior, read with the metric's goal. A number that is not defined is None.

    Arguments:
        model: beta: a rate for each arm; normal: of the difference.
        prior: what was believed beforehand, in words.
        alpha: 1 - credible level.
        chance_to_win: the probability that the treatment is better than the control.
        expected_loss: what shipping the treatment is expected to lose, in the metric's unit: by how
            much it is worse, where it is, and 0 where it is better.
        expected_loss_control: the same of keeping the control.
        difference: the posterior mean of treatment - control; ci_low, ci_high: its equal-tailed
            credible interval; std_dev: its standard deviation.
        lift_ci_low, lift_ci_high: the same of the lift. With the normal model the control's mean
            is taken for known, and there is none where it cannot be told from 0.
        lift: `difference` over the absolute mean that is believed of the control.
    """

    model: Model
    prior: str
    alpha: float
    chance_to_win: float | None = None
    expected_loss: float | None = None
    expected_loss_control: float | None = None
    difference: float | None = None
    std_dev: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    lift_ci_low: float | None = None
    lift_ci_high: float | None = None
    lift: float | None = None


def counts_of(sums: EpochSums, control: str, treatment: str, kind: Kind) -> Counts | None:
    """What the Beta model reads; None of another kind of metric, or over several epochs, whose
    counts are never pooled."""
    if kind != "proportion" or sums.epochs != 1:
        return None
    arm_0, arm_1 = sums.arms[control], sums.arms[treatment]
    return Counts(ArmCounts(arm_0.n, arm_0.converted), ArmCounts(arm_1.n, arm_1.converted))


def bayesian_reading(
    comparison: Comparison,
    goal: Goal,
    kind: Kind,
    prior: Prior,
    counts: Counts | None = None,
    alpha: float = 0.05,
) -> BayesianReading:
    """What to believe of a comparison.

    Arguments:
        comparison: what the normal model reads, its estimate and standard error.
        goal: which way is better.
        kind: of the metric.
        prior: its `a` and `b` for the Beta model, its `lift_sd` for the normal one.
        counts: of `counts_of`; where there are none, the normal model is taken.
        alpha: 1 - credible level.

    Raises:
        ValueError: for an alpha outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies strictly between 0 and 1, not at {alpha}")
    posterior: _Posterior | None
    if kind == "proportion" and counts is not None:
        reading = BayesianReading("beta", _beta_in_words(prior), alpha)
        posterior = _of_rates(counts, prior.a, prior.b, alpha)
    else:
        reading = BayesianReading("normal", _normal_in_words(prior), alpha)
        posterior = _of_difference(comparison, prior.lift_sd, alpha)
    if posterior is None:
        return reading
    up, lift = goal == "increase", relative(posterior.mean, posterior.mean_control)
    return msgspec.structs.replace(
        reading,
        chance_to_win=posterior.above if up else posterior.below,
        expected_loss=posterior.loss if up else posterior.gain,
        expected_loss_control=posterior.gain if up else posterior.loss,
        difference=posterior.mean,
        std_dev=posterior.std_dev,
        ci_low=posterior.interval[0],
        ci_high=posterior.interval[1],
        lift_ci_low=possible_lift(posterior.lift_interval[0], lift, kind),
        lift_ci_high=posterior.lift_interval[1],
        lift=lift,
    )


class _Posterior(NamedTuple):
    """Of a difference δ: P(δ > 0), P(δ < 0), E(δ)+, E(-δ)+, mean, standard deviation, intervals;
    and the mean of the control."""

    above: float
    below: float
    gain: float
    loss: float
    mean: float
    std_dev: float
    interval: tuple[float, float]
    lift_interval: tuple[float | None, float | None]
    mean_control: float


# The normal model


def _normal_in_words(prior: Prior) -> str:
    if prior.lift_sd is None:
        return "flat: no difference is likelier than another"
    return f"the lift is normal around 0 with standard deviation {prior.lift_sd:g}"


def _of_difference(
    comparison: Comparison, lift_sd: float | None, alpha: float
) -> _Posterior | None:
    """The posterior of a normal estimate; None where it has no standard error, or where a prior of
    the lift says nothing of the difference since the control's mean is 0."""
    difference, std_error = comparison.difference, comparison.std_error
    mean_control = comparison.mean_control
    if difference is None or std_error is None or mean_control is None or std_error <= 0.0:
        return None
    shrink = 1.0
    if lift_sd is not None:
        spread = lift_sd * abs(mean_control)
        if spread == 0.0:
            return None
        ratio = std_error / spread
        shrink = 1.0 / (1.0 + ratio * ratio)  # (1/v) / (1/v + 1/v0)
    mean, std_dev = shrink * difference, math.sqrt(shrink) * std_error
    if std_dev == 0.0:
        return None
    half_width = critical_value(alpha, None) * std_dev
    interval = mean - half_width, mean + half_width
    lift_interval: tuple[float | None, float | None] = (None, None)
    if comparison.lift_ci_low is not None:
        lift_interval = relative(interval[0], mean_control), relative(interval[1], mean_control)
    z = mean / std_dev
    small = std_dev * _beyond(abs(z))
    large = abs(mean) + small
    return _Posterior(
        above=float(special.ndtr(z)),
        below=float(special.ndtr(-z)),
        gain=large if z > 0.0 else small,
        loss=small if z > 0.0 else large,
        mean=mean,
        std_dev=std_dev,
        interval=interval,
        lift_interval=lift_interval,
        mean_control=mean_control,
    )


def _beyond(z: float) -> float:
    """E(X - z)+ of a standard normal X at z >= 0: φ(z) - z Φ(-z), with what cancels taken out."""
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    mills = math.sqrt(math.pi / 2.0) * float(special.erfcx(z / math.sqrt(2.0)))
    return density * max(0.0, 1.0 - z * mills)


# The Beta model


def _beta_in_words(prior: Prior) -> str:
    return f"each rate is Beta({prior.a:g}, {prior.b:g})"


class _Rate(NamedTuple):
    """The posterior of a rate, Beta(a, b)."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    @property
    def variance(self) -> float:
        total = self.a + self.b
        return self.a / total * (self.b / total) / (total + 1.0)

    @property
    def relative_variance(self) -> float:
        """The variance over the square of the mean, taken without either."""
        return self.b / self.a / (self.a + self.b + 1.0)

    def below(self, x: Floats) -> Floats:
        """P(p < x)."""
        found: Floats = special.betainc(self.a, self.b, np.clip(x, 0.0, 1.0))
        return found

    def above(self, x: Floats) -> Floats:
        """P(p > x)."""
        found: Floats = special.betaincc(self.a, self.b, np.clip(x, 0.0, 1.0))
        return found

    def at(self, deviates: Floats) -> Floats:
        """The quantiles at these normal deviates."""
        low = special.betaincinv(self.a, self.b, special.ndtr(deviates))
        high = special.betainccinv(self.a, self.b, special.ndtr(-deviates))
        found: Floats = np.where(deviates < 0.0, low, high)
        return found

    def expect(self, of: Callable[[Floats], Floats], *kinks: float) -> float:
        """E of(p), where `of` is smooth but for kinks."""
        low, high = _ends(self)
        inside = np.array([kink for kink in kinks if low < kink < high])
        x, chance = _spread_out(self, tuple(self.deviates(inside).tolist()))
        return float(chance @ of(x))

    def deviates(self, x: Floats) -> Floats:
        """The normal deviates whose quantiles these are."""
        below = self.below(x)
        found: Floats = np.where(below < 0.5, special.ndtri(below), -special.ndtri(self.above(x)))
        return found


@lru_cache(maxsize=64)
def _ends(rate: _Rate) -> tuple[float, float]:
    """The least and the largest that a rate may be; above 0 and at most 1."""
    found = rate.at(np.array([-_SURE, _SURE]))
    low, high = np.where(np.isfinite(found), found, [0.0, 1.0]).tolist()
    return max(low, sys.float_info.min), high


@lru_cache(maxsize=64)
def _spread_out(rate: _Rate, cuts: tuple[float, ...]) -> tuple[Floats, Floats]:
    """Where a rate is, and the chance of each point."""
    return _chances(rate, np.concatenate([np.arange(-_SURE, _SURE + 1.0), cuts]))


def _chances(rate: _Rate, cuts: Floats) -> tuple[Floats, Floats]:
    """The points of a rate between these deviates, and the chance of each."""
    at, weight = _gauss(cuts)
    x = rate.at(at)
    known = np.isfinite(x)  # scipy does not find each of the quantiles that are next to 0 or 1
    return x[known], (weight * np.exp(-0.5 * at * at))[known] / math.sqrt(2.0 * math.pi)


@lru_cache(maxsize=4096)
def _of_rates(counts: Counts, a: float, b: float, alpha: float) -> _Posterior:
    """The posterior of the difference of two rates."""
    rates = [
        _Rate(a + arm.converted, b + arm.n - arm.converted)
        for arm in (counts.control, counts.treatment)
    ]
    control, treatment = rates
    mean = treatment.mean - control.mean
    high, low = (treatment, control) if mean >= 0.0 else (control, treatment)
    # The chance and the loss that are small are integrated, and give the others.
    x, chance = _chances(low, np.concatenate([_CUTS, low.deviates(high.at(_CUTS))]))
    against = float(chance @ high.below(x))
    x, weight = _gauss(np.concatenate([[0.0, 1.0], low.at(_CUTS), high.at(_CUTS)]))
    loss = float(weight @ (high.below(x) * low.above(x)))
    for_, gain = 1.0 - against, abs(mean) + loss
    above, below = (for_, against) if mean >= 0.0 else (against, for_)
    up, down = (gain, loss) if mean >= 0.0 else (loss, gain)
    return _Posterior(
        above=above,
        below=below,
        gain=up,
        loss=down,
        mean=mean,
        std_dev=math.sqrt(control.variance + treatment.variance),
        interval=_difference_interval(control, treatment, alpha),
        lift_interval=_lift_interval(control, treatment, alpha),
        mean_control=control.mean,
    )


def _gauss(cuts: Floats) -> tuple[Floats, Floats]:
    """Gauss and Legendre's points and weights within each of the panels between these cuts."""
    ends = np.unique(cuts[np.isfinite(cuts)])
    half = np.diff(ends)[:, None] / 2.0
    centre = ends[:-1, None] + half
    return (centre + half * _NODES).ravel(), (half * _WEIGHTS).ravel()


def _difference_interval(control: _Rate, treatment: _Rate, alpha: float) -> tuple[float, float]:
    """Equal-tailed, for p1 - p0. The outer expectation is over the narrower rate, for the chance of
    the other one varies slowly there."""

    def at_most(d: float) -> float:
        if treatment.variance < control.variance:
            return treatment.expect(lambda x: control.above(x - d), d, 1.0 + d)
        return control.expect(lambda x: treatment.below(x + d), -d, 1.0 - d)

    (low_0, high_0), (low_1, high_1) = _ends(control), _ends(treatment)
    ends = low_1 - high_0, high_1 - low_0
    return _equal_tailed(at_most, alpha, ends)


def _lift_interval(control: _Rate, treatment: _Rate, alpha: float) -> tuple[float, float]:
    """Equal-tailed, for p1/p0 - 1; found on the scale of ln(p1/p0)."""
    narrower = treatment.relative_variance < control.relative_variance

    def at_most(log_ratio: float) -> float:
        ratio = math.exp(log_ratio)
        if narrower:
            return treatment.expect(lambda x: control.above(x / ratio), ratio)
        return control.expect(lambda x: treatment.below(x * ratio), 1.0 / ratio)

    (low_0, high_0), (low_1, high_1) = _ends(control), _ends(treatment)
    ends = math.log(low_1 / high_0), math.log(high_1 / low_0)
    low, high = _equal_tailed(at_most, alpha, ends)
    return math.expm1(low), math.expm1(high)


def _equal_tailed(
    at_most: Callable[[float], float], alpha: float, ends: tuple[float, float]
) -> tuple[float, float]:
    low = _quantile(at_most, alpha / 2.0, ends)
    return low, max(low, _quantile(at_most, 1.0 - alpha / 2.0, ends))


def _quantile(at_most: Callable[[float], float], level: float, ends: tuple[float, float]) -> float:
    """Where a distribution function reaches a level, between two ends. It is sought on the scale of
    normal deviates, on which the function is nearly a line."""
    sought = float(special.ndtri(level))

    def beyond(x: float) -> float:
        deviate = float(special.ndtri(min(max(at_most(x), 0.0), 1.0)))
        return min(max(deviate, -2.0 * _SURE), 2.0 * _SURE) - sought

    low, high = ends
    if beyond(low) >= 0.0:
        return low
    if beyond(high) <= 0.0:
        return high
    from scipy import optimize  # noqa: PLC0415 - slow to load, and only posteriors need it

    # To 1e-10 of the stretch, some 1e-9 of the standard deviation.
    return float(optimize.brentq(beyond, low, high, xtol=1e-10 * (high - low)))
