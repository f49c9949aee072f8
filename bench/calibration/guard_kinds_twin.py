"""The guard's evidence on ratios, on what has a covariate, and on quantiles, in many experiments.

As in `guard_twin.py`, the library is stepped through the experiments that come nearest to an alarm.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.inference.bins import edges
from analysis.inference.evidence import BlockCell, GuardRule, start, step
from analysis.inference.guard_model import MEMORY_UNITS
from analysis.inference.harm_readings import (
    LEAST_BEYOND,
    LEAST_DENOMINATORS,
    at_margin,
    memory_of_values,
)
from analysis.inference.moments import Moments
from analysis.inference.value_counts import MOST_DENSITY_RATIO, Buckets, Place, Side
from bench.calibration import library, twins
from bench.calibration.guard_twin import Evidence, OneNumber
from bench.calibration.twins import Counts, Floats

Pick = NDArray[np.int64]


class Units(NamedTuple):
    """Moments of d numbers a unit, of both arms, control first.

    Arguments:
        n: of shape (experiments, blocks, 2).
        mean: of shape (experiments, blocks, 2, d).
        cross: centred cross-products, of shape (experiments, blocks, 2, d, d).
        share: the treatment's propensity over that of both, of shape (experiments, blocks).
    """

    n: Counts
    mean: Floats
    cross: Floats
    share: Floats


def of_rows(rows: Floats, treated: NDArray[np.bool_], share: Floats) -> Units:
    """From units' numbers, of shape (experiments, blocks, units, d), and their arms."""
    n, mean, cross = [], [], []
    for arm in (~treated, treated):
        units = arm.sum(axis=-1)
        level = (rows * arm[..., None]).sum(axis=-2) / np.maximum(units, 1)[..., None]
        centred = (rows - level[..., None, :]) * arm[..., None]
        n.append(units)
        mean.append(level)
        cross.append(np.swapaxes(centred, -1, -2) @ centred)
    return Units(np.stack(n, -1), np.stack(mean, -2), np.stack(cross, -3), share)


class Gain(NamedTuple):
    """ln F of a block by one reading, in many experiments.

    Arguments:
        factors: for each bet, of shape (experiments, bets).
        bets: where its past has a spread.
        there: where there is such a reading.
    """

    factors: Floats
    bets: NDArray[np.bool_]
    there: NDArray[np.bool_]


def least(gains: Sequence[Gain]) -> tuple[Floats, NDArray[np.bool_]]:
    """The least ln F of all readings, 0 of one that does not bet; and where any of them bets."""
    bets = np.logical_or.reduce([gain.bets & gain.there for gain in gains])
    of_each = [
        np.where(gain.there[:, None], np.where(gain.bets[:, None], gain.factors, 0.0), np.inf)
        for gain in gains
    ]
    return np.where(bets[:, None], np.minimum.reduce(of_each), 0.0), bets


class Denominators:
    """`Denominator` of both arms, in many experiments."""

    def __init__(self, experiments: int) -> None:
        self.units = np.zeros((experiments, 2))
        self.weight = np.zeros((experiments, 2))
        self.mean = np.zeros((experiments, 2))

    def remember(self, n: Counts, mean: Floats, share: Floats) -> None:
        """Take in a block's means, of shape (experiments, 2)."""
        weight = n / np.stack([1.0 - share, share], axis=1)
        total = self.weight + weight
        part = weight / np.where(total > 0.0, total, 1.0)
        self.mean = self.mean + (mean - self.mean) * part
        units = self.units + n
        fading = np.minimum(1.0, MEMORY_UNITS / np.maximum(units.min(axis=1), 1.0))[:, None]
        self.units, self.weight = units * fading, total * fading


class Forms(Evidence):
    """One rule's evidence on a ratio, or on a mean with a covariate."""

    def __init__(self, rule: GuardRule, experiments: int, d: int) -> None:
        super().__init__(rule, experiments)
        self.n = np.zeros((experiments, 2))
        self.mean = np.zeros((experiments, 2, d))
        self.cross = np.zeros((experiments, 2, d, d))
        self.denominators = Denominators(experiments)

    def see(self, n: Counts, mean: Floats, cross: Floats, share: Floats) -> None:
        """Take in a block."""
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = [
                Gain(*self.gaussian(n, share, self._read(mean, cross, level)), there)
                for level, there in self._levels(n, mean)
            ]
        self.take_in(n, *least(gains))
        if self.rule.kind == "ratio":
            self.denominators.remember(n, mean[..., 1], share)
        total = self.n + n
        part = n / np.maximum(total, 1)
        delta = mean - self.mean
        between = delta[..., :, None] * delta[..., None, :] * (self.n * part)[..., None, None]
        kept = np.minimum(total, MEMORY_UNITS)
        fading = (kept / np.maximum(total, 1))[..., None, None]
        self.cross = (self.cross + cross + between) * fading
        self.mean = self.mean + delta * part[..., None]
        self.n = kept

    def _levels(self, n: Counts, mean: Floats) -> list[tuple[Floats, NDArray[np.bool_]]]:
        """The control's levels around which there is a reading: the past one, and of a ratio the
        block's; and where it is known."""
        everywhere = np.ones(len(n), dtype=bool)
        if self.rule.kind != "ratio":
            return [(self.mean[:, 0, 0], everywhere)]
        own = (n[:, 0] > 0) & (mean[:, 0, 1] * self.mean[:, 0, 1] > 0.0)
        return [
            (self.mean[:, 0, 0] / self.mean[:, 0, 1], everywhere),
            (mean[:, 0, 0] / mean[:, 0, 1], own),
        ]

    def _read(self, mean: Floats, cross: Floats, level0: Floats) -> OneNumber:
        form, ready = np.zeros_like(self.mean), self.burnt_in(self.n)
        of_treatment, of_control, constant = self.harm(level0)
        ratio = self.rule.kind == "ratio"
        if ratio:
            y = self.mean[..., 1]
            level = np.stack([level0, -(of_control * level0 + constant) / of_treatment], axis=1)
            divisor = self.denominators.mean
            form[..., 0], form[..., 1] = 1.0 / divisor, -level / divisor
            square = self.cross[..., 1, 1] / self.n + y * y
            known = self.n * y * y >= LEAST_DENOMINATORS * square
            full = self.n >= MEMORY_UNITS
            ready = ready & (known | full).all(axis=1) & (divisor.prod(axis=1) > 0.0)
        else:
            form[..., 0], level = 1.0, np.zeros_like(self.mean[..., 0])
        if form.shape[-1] > (2 if ratio else 1):
            form, level = self._adjusted(form, level, of_treatment, of_control)
        past_m2 = np.einsum("eai,eaij,eaj->ea", form, self.cross, form)
        return OneNumber(
            past_mean=level + (form * self.mean).sum(axis=-1),
            past_variance=past_m2 / np.maximum(self.n - 1, 1),
            mean=level + (form * mean).sum(axis=-1),
            m2=np.einsum("eai,eaij,eaj->ea", form, cross, form),
            of_treatment=of_treatment,
            of_control=of_control,
            constant=constant,
            ready=ready,
        )

    def _adjusted(
        self, form: Floats, level: Floats, of_treatment: float, of_control: Floats
    ) -> tuple[Floats, Floats]:
        pooled = (self.mean * self.n[..., None]).sum(axis=1) / self.n.sum(axis=1)[:, None]
        covariate = np.zeros_like(pooled)
        shift = np.zeros(len(pooled))
        if self.rule.kind == "ratio":
            covariate[:, 2], covariate[:, 3] = 1 / pooled[:, 3], -pooled[:, 2] / pooled[:, 3] ** 2
        else:
            covariate[:, 1], shift = 1.0, -pooled[:, 1]
        spread = np.einsum("ei,eaij,ej->e", covariate, self.cross, covariate)
        slope = np.einsum("eai,eaij,ej->e", form, self.cross, covariate) / spread
        slopes = np.stack([slope, -slope * of_control / of_treatment], axis=1)
        return (
            form - slopes[..., None] * covariate[:, None, :],
            level - slopes * shift[:, None],
        )


def watched(units: Units, rule: GuardRule, checked: int) -> Forms:
    """The evidence after all blocks, the library's on those nearest to an alarm included.

    Raises:
        DisagreementError: when the library has another peak.
    """
    watch = Forms(rule, len(units.n), units.mean.shape[-1])
    for block in range(units.n.shape[1]):
        watch.see(
            units.n[:, block], units.mean[:, block], units.cross[:, block], units.share[:, block]
        )
    for experiment in np.argsort(watch.peak)[-checked:].tolist():
        state = start(rule)
        for block in range(units.n.shape[1]):
            n, mean, cross, share = (part[experiment, block] for part in units)
            arms: list[Moments] = [
                library.moments(k, m, c) for k, m, c in zip(n.tolist(), mean, cross, strict=True)
            ]
            e1 = float(share)
            state = step(rule, state, [BlockCell(block, 1, 1.0 - e1, e1, arms[0], arms[1])])
        twins.must_agree("peak", float(watch.peak[experiment]), state.log_peak)
    return watch


class Values(NamedTuple):
    """Units of both arms and the buckets of their values, control first.

    Arguments:
        n: units, of shape (experiments, blocks, 2).
        counts: of those with a value, of shape (experiments, blocks, 2, buckets).
        first: the number of the first bucket.
        share: as in `Units`.
    """

    n: Counts
    counts: NDArray[np.int16]
    first: int
    share: Floats

    def buckets(self, counts: NDArray[np.int16]) -> Buckets:
        """A row of counts as the library has it."""
        return tuple((self.first + int(k), int(counts[k])) for k in np.flatnonzero(counts))


class Quantiles(Evidence):
    """One rule's evidence on a quantile."""

    def __init__(self, rule: GuardRule, experiments: int, first: int, buckets: int) -> None:
        super().__init__(rule, experiments)
        self.first = first
        self.n = np.zeros((experiments, 2), dtype=np.int64)
        self.counts = np.zeros((experiments, 2, buckets), dtype=np.int64)
        self.valued = Denominators(experiments)
        self.edges = np.array([edges(first + k) for k in range(buckets)])
        self.most = memory_of_values(rule)
        self.margins = np.array([self._at_margin(first + k) for k in range(buckets)])

    def see(self, n: Counts, counts: Counts, share: Floats) -> None:
        """Take in a block: the units, and where the values of those lie that have one."""
        ready = self._ready()
        if ready.any():
            with np.errstate(divide="ignore", invalid="ignore"):
                gains = [
                    Gain(*self.gaussian(n, share, one), there)
                    for one, there in self._readings(n, counts, ready)
                ]
            self.take_in(n, *least(gains))
        else:
            self.units = self.units + n.sum(axis=1)
        self.valued.remember(n, counts.sum(axis=-1) / np.maximum(n, 1), share)
        self.n = self.n + n
        self.counts = self.counts + counts
        full = self.n > 2 * self.most
        if full.any():
            through = self.counts[full].cumsum(axis=-1) * self.most // self.n[full][:, None]
            self.counts[full] = np.diff(through, axis=-1, prepend=0)
            self.n[full] = self.most

    @property
    def _level(self) -> float:
        assert self.rule.quantile is not None, "of a quantile"  # noqa: S101 - an invariant
        return self.rule.quantile

    def _at_margin(self, bucket: int) -> tuple[int, float]:
        side: Side = "above" if self.rule.goal == "decrease" else "below"
        place, stretched = at_margin(self.rule, Place(bucket, 0.0, side))
        return place.bucket, stretched

    def _ready(self) -> NDArray[np.bool_]:
        rarer = min(self._level, 1.0 - self._level)
        valued = self.counts.sum(axis=-1)
        known = (valued[:, 0] * rarer >= LEAST_BEYOND) & (valued[:, 1] >= LEAST_DENOMINATORS)
        found: NDArray[np.bool_] = self.burnt_in(self.n.astype(float)) & known
        return found

    def _rank(self, counts: Counts, level: float) -> tuple[Pick, Floats]:
        """The place of a quantile's bucket, and how much of the bucket lies below it."""
        through = counts.cumsum(axis=-1)
        rank = level * through[:, -1]
        at = np.argmax(through >= rank[:, None], axis=-1)
        inside = np.take_along_axis(counts, at[:, None], -1)[:, 0]
        upto = np.take_along_axis(through, at[:, None], -1)[:, 0]
        return at, np.clip((rank - (upto - inside)) / inside, 0.0, 1.0)

    def _width(self, arm: int) -> Floats:
        h = min(self._level, 1.0 - self._level) / 2.0
        ends = []
        for level in (self._level - h, self._level + h):
            at, within = self._rank(self.counts[:, arm], level)
            low, high = self.edges[at].T
            ends.append(low + within * (high - low))
        width: Floats = ends[1] - ends[0]
        return width

    def _readings(
        self, n: Counts, counts: Counts, ready: NDArray[np.bool_]
    ) -> list[tuple[OneNumber, NDArray[np.bool_]]]:
        """At the past quantile, for arms of one shape and of different ones, and at the block's."""
        share = 1.0 - self._level if self.rule.goal == "decrease" else self._level
        alike, stretched = self._alike_at(self.counts[:, 0], n, counts, ready)
        ratio = np.clip(
            self._width(0) / self._width(1), 1.0 / MOST_DENSITY_RATIO, MOST_DENSITY_RATIO
        )
        densities = stretched * ratio
        unlike = alike._replace(of_control=-densities, constant=(densities - 1.0) * share)
        own = counts[:, 0].sum(axis=-1) > 0
        here, _ = self._alike_at(counts[:, 0], n, counts, ready & own)
        everywhere = np.ones(len(n), dtype=bool)
        return [(alike, everywhere), (unlike, everywhere), (here, own)]

    def _alike_at(
        self, of_control: Counts, n: Counts, counts: Counts, ready: NDArray[np.bool_]
    ) -> tuple[OneNumber, Floats]:
        """Shares beyond the quantile of these values of the control, and how much farther from 0
        the treatment's is."""
        above = self.rule.goal == "decrease"
        share = 1.0 - self._level if above else self._level
        at0, within0 = self._rank(of_control, self._level)
        within = np.stack([1.0 - within0 if above else within0, np.zeros(len(n))], axis=1)
        reached, stretched = self.margins[at0].T
        at = np.stack([at0, reached.astype(np.int64) - self.first], axis=1)
        valued = self.valued.mean
        past = self._shares(self.n, self.counts, at, within, share, valued)
        now = self._shares(n, counts, at, within, share, valued)
        alike = OneNumber(
            past_mean=past[0],
            past_variance=past[1] / np.maximum(self.n - 1, 1),
            mean=now[0],
            m2=now[1],
            of_treatment=1.0,
            of_control=np.full(len(n), -1.0),
            constant=0.0,
            ready=ready,
        )
        return alike, stretched

    def _shares(
        self, n: Counts, counts: Counts, at: Pick, within: Floats, share: float, valued: Floats
    ) -> tuple[Floats, Floats]:
        ahead = np.arange(counts.shape[-1]) - at[..., None]
        ahead = ahead if self.rule.goal == "decrease" else -ahead
        inside = (counts * (ahead == 0)).sum(axis=-1)
        beyond = (counts * (ahead > 0)).sum(axis=-1)
        has = counts.sum(axis=-1)
        groups = [
            (n - has, np.full_like(valued, share)),
            (has - inside - beyond, share - share / valued),
            (inside, share + (within - share) / valued),
            (beyond, share + (1.0 - share) / valued),
        ]
        units = np.maximum(n, 1)
        mean = sum(k * x for k, x in groups) / units
        return mean, sum(k * (x - mean) ** 2 for k, x in groups)


def quantiles_watched(values: Values, rule: GuardRule, checked: int) -> Quantiles:
    """As `watched`, of a quantile."""
    watch = Quantiles(rule, len(values.n), values.first, values.counts.shape[-1])
    for block in range(values.n.shape[1]):
        counts = values.counts[:, block].astype(np.int64)
        watch.see(values.n[:, block], counts, values.share[:, block])
    for experiment in np.argsort(watch.peak)[-checked:].tolist():
        state = start(rule)
        for block in range(values.n.shape[1]):
            arms = [Moments(k, (0.0,), (0.0,)) for k in values.n[experiment, block].tolist()]
            found = [values.buckets(row) for row in values.counts[experiment, block]]
            e1 = float(values.share[experiment, block])
            cell = BlockCell(block, 1, 1.0 - e1, e1, arms[0], arms[1], found[0], found[1])
            state = step(rule, state, [cell])
        twins.must_agree("peak", float(watch.peak[experiment]), state.log_peak)
    return watch
