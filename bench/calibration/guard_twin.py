"""The guard's evidence for many experiments, guardrails and variants at once.

`Watch` is `analysis.inference.evidence.step` on arrays. It has no say of its own: `must_agree`
steps the library through the experiments that come nearest to an alarm.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.inference.evidence import (
    BURN_IN_UNITS,
    BURN_IN_UNITS_PER_ARM,
    MEMORY_UNITS,
    BlockCell,
    GuardRule,
    start,
    step,
)
from analysis.inference.moments import Moments
from bench.calibration import twins
from bench.calibration.twins import Counts, Floats


class Arm:
    """Moments of an arm in each experiment, with the guard's memory."""

    def __init__(self, experiments: int) -> None:
        self.n = np.zeros(experiments)
        self.mean = np.zeros(experiments)
        self.m2 = np.zeros(experiments)

    def remember(self, n: Floats, mean: Floats, m2: Floats) -> None:
        """Take in a block: Chan's merge, then the memory's limit."""
        total = self.n + n
        share = n / np.maximum(total, 1)
        delta = mean - self.mean
        self.mean = self.mean + delta * share
        self.m2 = self.m2 + m2 + delta * delta * self.n * share
        kept = np.minimum(total, MEMORY_UNITS)
        self.m2 = self.m2 * kept / np.maximum(total, 1)
        self.n = kept

    def moments(self, experiment: int) -> Moments:
        """Those of an experiment, of one number a unit."""
        n, mean, m2 = (float(x[experiment]) for x in (self.n, self.mean, self.m2))
        return Moments(round(n), (mean,), (m2,))

    @property
    def variance(self) -> Floats:
        """Sample variance, 0 below two units."""
        return np.where(self.n > 1, self.m2 / np.maximum(self.n - 1, 1), 0.0)


class OneNumber(NamedTuple):
    """What is bet on in each experiment: arms in the last axis of the first four, control first.

    `of_control` and `constant` are those of the harm, in the sign of the treatment's.
    """

    past_mean: Floats
    past_variance: Floats
    mean: Floats
    m2: Floats
    of_treatment: float
    of_control: Floats
    constant: Floats | float
    ready: NDArray[np.bool_]


class Evidence:
    """The recursion over blocks, in many experiments at once.

    Arguments:
        rule: the same in all.
        experiments: how many.
    """

    def __init__(self, rule: GuardRule, experiments: int) -> None:
        self.rule = rule
        self.units = np.zeros(experiments)
        self.blocks = np.zeros(experiments)
        self.log_stakes = np.full((experiments, len(rule.bets)), -math.log(2.0))
        self.peak = np.zeros(experiments)

    def take_in(self, n: Counts, factors: Floats, bets_at: NDArray[np.bool_]) -> None:
        """A block's factors, in those experiments in which it was bet on."""
        bets_at = bets_at & (n.sum(axis=1) > 0)
        self.units = self.units + n.sum(axis=1)
        after = self.blocks + 1
        start_next = -np.log(after + 1) - np.log(after + 2)
        stakes = np.logaddexp(self.log_stakes + factors, start_next[:, None])
        self.log_stakes = np.where(bets_at[:, None], stakes, self.log_stakes)
        self.blocks = np.where(bets_at, after, self.blocks)
        mixture = np.logaddexp.reduce(self.log_stakes, axis=1) - math.log(len(self.rule.bets))
        evidence = np.logaddexp(mixture, -np.log(self.blocks + 2))
        self.peak = np.where(bets_at, np.maximum(self.peak, evidence), self.peak)

    @property
    def alarms(self) -> NDArray[np.bool_]:
        """In which experiments the evidence ever reached its threshold."""
        return self.peak >= -math.log(self.rule.alpha_share)

    def burnt_in(self, past: Floats) -> NDArray[np.bool_]:
        """Where the arms have seen enough, from the units that they remember."""
        enough: NDArray[np.bool_] = past.min(axis=1) >= BURN_IN_UNITS_PER_ARM
        return enough & (self.units >= BURN_IN_UNITS)

    def harm(self, control: Floats) -> tuple[float, Floats, float]:
        """The contrast of the arms' levels, for these of the control."""
        s = 1.0 if self.rule.goal == "increase" else -1.0
        if self.rule.relative:
            return -s, s - self.rule.margin * np.copysign(1.0, control), 0.0
        return -s, np.full_like(control, s), -self.rule.margin

    def gaussian(self, n: Counts, share: Floats, one: OneNumber) -> tuple[Floats, NDArray[Any]]:
        """ln F of a block for each bet, and where there is one."""
        e = np.stack([1.0 - share, share], axis=1)
        along = np.stack([one.of_control, np.full_like(one.of_control, one.of_treatment)], axis=1)
        slope = along / e
        expected = (along * one.past_mean).sum(axis=1) + one.constant
        at = expected[:, None] - slope * one.past_mean
        factor = (along * along / e).sum(axis=1)
        larger = one.past_variance.max(axis=1)
        ready = one.ready & (larger > 0.0)
        mean_x = at + slope * one.mean
        sum_x = (n * mean_x).sum(axis=1)
        sum_x2 = (n * mean_x**2 + slope**2 * one.m2).sum(axis=1)
        deviations = (n * (one.mean - one.past_mean) ** 2 + one.m2).sum(axis=1)
        both = np.maximum(n.sum(axis=1), 1)
        sigma2 = np.where(ready, expected**2 + factor * larger, 1.0)
        z, q = sum_x / np.sqrt(sigma2), sum_x2 / sigma2
        v = np.maximum.reduce(
            [both.astype(float), q, both * (expected**2 + factor * deviations / both) / sigma2]
        )
        bets = np.array(self.rule.bets)
        return z[:, None] * bets - bets * bets * (q / 6.0 + v / 3.0)[:, None], ready


class Watch(Evidence):
    """One rule's evidence on a proportion or a mean.

    Arguments:
        rule: the same in all.
        experiments: how many.
    """

    def __init__(self, rule: GuardRule, experiments: int) -> None:
        super().__init__(rule, experiments)
        self.control, self.treatment = Arm(experiments), Arm(experiments)

    def see(self, n: Counts, mean: Floats, m2: Floats, share: Floats) -> None:
        """Take in a block, of one epoch in each experiment.

        Arguments:
            n, mean, m2: moments of control and treatment, of shape (experiments, 2).
            share: the treatment's propensity over that of both, of shape (experiments,).
        """
        if self.rule.kind == "proportion":
            factors, bets_at = self._betting(n, mean, share)
        else:
            factors, bets_at = self.gaussian(n, share, self._itself(mean, m2))
        self.take_in(n, factors, bets_at)
        self.control.remember(n[:, 0].astype(float), mean[:, 0], m2[:, 0])
        self.treatment.remember(n[:, 1].astype(float), mean[:, 1], m2[:, 1])

    def _itself(self, mean: Floats, m2: Floats) -> OneNumber:
        arms = (self.control, self.treatment)
        of_treatment, of_control, constant = self.harm(self.control.mean)
        return OneNumber(
            past_mean=np.stack([arm.mean for arm in arms], axis=1),
            past_variance=np.stack([arm.variance for arm in arms], axis=1),
            mean=mean,
            m2=m2,
            of_treatment=of_treatment,
            of_control=of_control,
            constant=constant,
            ready=self.burnt_in(np.stack([arm.n for arm in arms], axis=1)),
        )

    def _betting(self, n: Counts, mean: Floats, share: Floats) -> tuple[Floats, NDArray[Any]]:
        m0, m1 = (
            (arm.n * arm.mean + 0.5) / (arm.n + 1.0) for arm in (self.control, self.treatment)
        )
        of_treatment, of_control, constant = self.harm(m0)
        e1, e0 = share, 1.0 - share
        expected = of_treatment * m1 + of_control * m0 + constant
        at_0, at_1 = expected - of_control * m0 / e0, expected - of_treatment * m1 / e1
        converted = np.round(n * mean)
        counts = np.stack(
            [n[:, 0] - converted[:, 0], converted[:, 0], n[:, 1] - converted[:, 1], converted[:, 1]]
        )
        x = np.stack([at_0, at_0 + of_control / e0, at_1, at_1 + of_treatment / e1])
        worst = -x.min(axis=0)
        bets = np.array(self.rule.bets)
        logs = np.log1p(bets[:, None, None] / worst * x)
        return (counts * logs).sum(axis=1).T, np.ones(len(n), dtype=bool)


class Blocks:
    """What was shown to a `Watch`, so that the library can be shown the same.

    Arguments:
        n, mean, m2: of shape (experiments, blocks, 2).
        share: the treatment's propensity over that of both, of shape (experiments, blocks).
    """

    def __init__(self, n: Counts, mean: Floats, m2: Floats, share: Floats) -> None:
        self.n, self.mean, self.m2, self.share = n, mean, m2, share

    def watched_by(self, rule: GuardRule, checked: int) -> Watch:
        """The evidence after all blocks, the library's on those nearest to an alarm included.

        Arguments:
            checked: how many experiments the library is stepped through.

        Raises:
            DisagreementError: when the library has another peak.
        """
        watch = Watch(rule, len(self.n))
        for block in range(self.n.shape[1]):
            watch.see(
                self.n[:, block], self.mean[:, block], self.m2[:, block], self.share[:, block]
            )
        for experiment in np.argsort(watch.peak)[-checked:].tolist():
            twins.must_agree("peak", float(watch.peak[experiment]), self._peak(rule, experiment))
        return watch

    def _peak(self, rule: GuardRule, experiment: int) -> float:
        """The largest evidence, by the library."""
        state = start(rule)
        for block, (n, mean, m2, e1) in enumerate(
            zip(
                self.n[experiment].tolist(),
                self.mean[experiment].tolist(),
                self.m2[experiment].tolist(),
                self.share[experiment].tolist(),
                strict=True,
            )
        ):
            control, treatment = (
                Moments(k, (m,), (s,)) for k, m, s in zip(n, mean, m2, strict=True)
            )
            state = step(rule, state, [BlockCell(block, 1, 1.0 - e1, e1, control, treatment)])
        return state.log_peak
