"""The guard's evidence for many experiments, guardrails and variants at once.

`Watch` is `analysis.inference.evidence.step` on arrays. It has no say of its own: `must_agree`
steps the library through the experiments that come nearest to an alarm.
"""

import math

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


class Watch:
    """One rule's evidence in many experiments.

    Arguments:
        rule: the same in all.
        experiments: how many.
    """

    def __init__(self, rule: GuardRule, experiments: int) -> None:
        self.rule = rule
        self.control, self.treatment = Arm(experiments), Arm(experiments)
        self.units = np.zeros(experiments)
        self.blocks = np.zeros(experiments)
        self.log_stakes = np.full((experiments, len(rule.bets)), -math.log(2.0))
        self.peak = np.zeros(experiments)

    def see(self, n: Counts, mean: Floats, m2: Floats, share: Floats) -> None:
        """Take in a block, of one epoch in each experiment.

        Arguments:
            n, mean, m2: moments of control and treatment, of shape (experiments, 2).
            share: the treatment's propensity over that of both, of shape (experiments,).
        """
        factors, bets_at = (
            self._betting(n, mean, share)
            if self.rule.kind == "proportion"
            else self._gaussian(n, mean, m2, share)
        )
        bets_at = bets_at & (n.sum(axis=1) > 0)
        self.units = self.units + n.sum(axis=1)
        self.control.remember(n[:, 0].astype(float), mean[:, 0], m2[:, 0])
        self.treatment.remember(n[:, 1].astype(float), mean[:, 1], m2[:, 1])
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

    def _plug_ins(self) -> tuple[Floats, Floats]:
        if self.rule.kind == "mean":
            return self.control.mean, self.treatment.mean
        m0, m1 = (
            (arm.n * arm.mean + 0.5) / (arm.n + 1.0) for arm in (self.control, self.treatment)
        )
        return m0, m1

    def _scores(self, share: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
        m0, m1 = self._plug_ins()
        e1, e0 = share, 1.0 - share
        s = 1.0 if self.rule.goal == "increase" else -1.0
        sign = np.copysign(1.0, m0)
        of_control = s - self.rule.margin * sign if self.rule.relative else np.full_like(m0, s)
        expected = -s * m1 + of_control * m0 - (0.0 if self.rule.relative else self.rule.margin)
        return (
            expected - of_control * m0 / e0,
            of_control / e0,
            expected + s * m1 / e1,
            -s / e1,
            expected,
            of_control * of_control / e0 + 1.0 / e1,
        )

    def _betting(self, n: Counts, mean: Floats, share: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        at_0, slope_0, at_1, slope_1, _, _ = self._scores(share)
        converted = np.round(n * mean)
        counts = np.stack(
            [n[:, 0] - converted[:, 0], converted[:, 0], n[:, 1] - converted[:, 1], converted[:, 1]]
        )
        x = np.stack([at_0, at_0 + slope_0, at_1, at_1 + slope_1])
        worst = -x.min(axis=0)
        bets = np.array(self.rule.bets)
        logs = np.log1p(bets[:, None, None] / worst * x)
        return (counts * logs).sum(axis=1).T, np.ones(len(n), dtype=bool)

    def _gaussian(
        self, n: Counts, mean: Floats, m2: Floats, share: Floats
    ) -> tuple[Floats, NDArray[np.bool_]]:
        at_0, slope_0, at_1, slope_1, expected, factor = self._scores(share)
        larger = np.maximum(self.control.variance, self.treatment.variance)
        fewest = np.minimum(self.control.n, self.treatment.n)
        ready = (self.units >= BURN_IN_UNITS) & (fewest >= BURN_IN_UNITS_PER_ARM) & (larger > 0.0)
        plugs = self._plug_ins()
        sum_x = np.zeros(len(n))
        sum_x2, deviations = sum_x.copy(), sum_x.copy()
        for arm, (at, slope) in enumerate(((at_0, slope_0), (at_1, slope_1))):
            mean_x = at + slope * mean[:, arm]
            sum_x += n[:, arm] * mean_x
            sum_x2 += n[:, arm] * mean_x**2 + slope**2 * m2[:, arm]
            deviations += n[:, arm] * (mean[:, arm] - plugs[arm]) ** 2 + m2[:, arm]
        both = np.maximum(n.sum(axis=1), 1)
        sigma2 = np.where(ready, expected**2 + factor * larger, 1.0)
        z, q = sum_x / np.sqrt(sigma2), sum_x2 / sigma2
        v = np.maximum.reduce(
            [both.astype(float), q, both * (expected**2 + factor * deviations / both) / sigma2]
        )
        bets = np.array(self.rule.bets)
        return z[:, None] * bets - bets * bets * (q / 6.0 + v / 3.0)[:, None], ready


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
