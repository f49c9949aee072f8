"""What experiments leave behind when traffic was moved, and how it is read.

The readings are those of `analysis/inference`, beside those of pooled units.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Final

import numpy as np
from scipy import stats

from analysis.inference.aipw import aipw_comparison
from analysis.inference.batched import batched_ols
from analysis.inference.choice import read_continuous, read_fixed
from analysis.inference.epoch_sums import PRIOR_UNITS, Population, of_epoch
from analysis.inference.estimate import Comparison
from analysis.inference.exact import combined
from analysis.inference.kinds import Kind
from analysis.inference.moments import Moments, merge
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.inference.trail import Trail
from bench.calibration.library import CONTROL, TREATMENT, excludes
from bench.calibration.scenario import Flags, ever
from bench.calibration.trail_twin import Followed, followed, small_epochs
from bench.calibration.twins import Counts, Floats, log_e, must_agree, within_epochs

ALPHA: Final = 0.05
CHECKED: Final = 5
"""Experiments of a chunk whose fixed readings are compared with the library's; those of the
sequence that come nearest to an error are all read by it."""

CRITICAL: Final = float(stats.norm.isf(ALPHA / 2))


class Run:
    """What every experiment of a kind left behind.

    Arguments:
        n, mean, m2: moments of all arms, of shape (experiments, blocks, arms), control first.
        propensity: of all arms, of the same shape.
        epoch: of each block; by default each is an epoch of its own.
        truth: the true difference of each treatment from the control.
        kind: proportion or mean.
    """

    def __init__(
        self,
        n: Counts,
        mean: Floats,
        m2: Floats,
        propensity: Floats,
        *,
        epoch: Counts | None = None,
        truth: float = 0.0,
        kind: Kind = "proportion",
    ) -> None:
        self.every = n.sum(axis=2)
        self.all_n, self.all_mean, self.all_m2 = n, mean, m2
        self.n, self.mean, self.m2 = n[..., :2], mean[..., :2], m2[..., :2]
        self.propensity = propensity[..., :2]
        self.epoch = np.arange(n.shape[1]) if epoch is None else epoch
        self.truth, self.kind = truth, kind

    def population(self, experiment: int, blocks: int) -> Population:
        """The sums of the library over the first blocks, for the first treatment."""
        names = [CONTROL, TREATMENT, *(str(arm) for arm in range(2, self.all_n.shape[2]))]
        cells: dict[int, list[Moments]] = {}
        for block in range(blocks):
            new = [
                Moments(n, (mean,), (m2,))
                for n, mean, m2 in zip(
                    self.all_n[experiment, block].tolist(),
                    self.all_mean[experiment, block].tolist(),
                    self.all_m2[experiment, block].tolist(),
                    strict=True,
                )
            ]
            old = cells.get(int(self.epoch[block]))
            merged = new if old is None else list(map(merge, old, new))
            cells[int(self.epoch[block])] = merged
        return combined(
            [
                of_epoch(dict(zip(names, of, strict=True)), names, CONTROL, self.kind)
                for of in cells.values()
            ]
        )

    def trail(self, experiment: int, blocks: int) -> Trail:
        """The library's trail of the first blocks."""
        return followed(
            self.n[experiment, :blocks],
            self.mean[experiment, :blocks],
            self.m2[experiment, :blocks],
            self.every[experiment, :blocks],
            self.propensity[experiment, :blocks],
            self.epoch[:blocks],
        )

    def so_far(self) -> tuple[Counts, Floats, Floats, Counts]:
        """What each epoch holds after each block: moments of shape (experiments, blocks, epochs,
        2), and the units of all variants, (experiments, blocks, epochs)."""
        inside = self.epoch[:, None] == np.unique(self.epoch)
        n, total, square = (
            (numbers[:, :, None] * inside[..., None]).cumsum(axis=1)
            for numbers in (self.n, self.n * self.mean, self.m2 + self.n * self.mean**2)
        )
        mean = total / np.maximum(n, 1)
        every = (self.every[:, :, None] * inside).cumsum(axis=1)
        return n, mean, np.maximum(square - n * mean**2, 0.0), every

    @cached_property
    def trails(self) -> Followed:
        """The trails of all experiments."""
        return Followed(self.n, self.mean, self.m2, self.every, self.propensity)

    def aipw(self) -> list[Comparison]:
        """The AIPW readings at the end; the library follows the first trails itself.

        Raises:
            DisagreementError: when the library has other standard errors.
        """
        found = [aipw_comparison(self.trails.trail(each), self.kind) for each in range(len(self.n))]
        for experiment in range(CHECKED):
            again = aipw_comparison(self.trail(experiment, self.n.shape[1]), self.kind)
            must_agree("AIPW", found[experiment].difference, again.difference)
            must_agree("error", found[experiment].std_error, again.std_error)
        return found


def fixed_flags(run: Run) -> Mapping[str, Flags]:
    """Whether the fixed readings of the first treatment cover the truth at the end."""
    off, error = _pooled(run)
    batched, batched_error = _batched(run.n, run.mean, run.m2, run.kind)
    scored = run.aipw()
    for experiment in range(CHECKED):
        _check(
            run,
            experiment,
            scored[experiment],
            float(batched[experiment]),
            float(batched_error[experiment]),
        )
    return {
        "aipw": np.array([covers(found, run.truth) for found in scored]),
        "batched": np.abs(batched - run.truth) <= CRITICAL * batched_error,
        "pooled": off[:, -1] <= CRITICAL * error[:, -1],
    }


def sequence_flags(run: Run) -> Mapping[str, Flags]:
    """Whether the continuous reading ever excludes the truth, and whether repeated tests do."""
    off, error = _pooled(run)
    enough = run.n.cumsum(axis=1).min(axis=2) >= MIN_UNITS_PER_ARM
    return {
        "sequence": ever_wrong(run),
        "pooled z": ever(enough & (off > CRITICAL * error)),
    }


def covers(found: Comparison, truth: float) -> bool:
    """Whether a fixed reading's interval has the truth in it."""
    low, high = found.ci_low, found.ci_high
    return low is not None and high is not None and low <= truth <= high


def _pooled(run: Run) -> tuple[Floats, Floats]:
    """How far the difference of pooled units is off after each block, and its standard error."""
    n = np.maximum(run.n.cumsum(axis=1), 1)
    mean = (run.n * run.mean).cumsum(axis=1) / n
    square = (run.m2 + run.n * run.mean**2).cumsum(axis=1) / n
    error = np.sqrt(((square - mean**2) / n).sum(axis=2))
    return np.abs(mean[..., 1] - mean[..., 0] - run.truth), error


def _batched(n: Counts, mean: Floats, m2: Floats, kind: Kind) -> tuple[Floats, Floats]:
    """`batched_ols`: its difference and standard error."""
    used = n.min(axis=2) > 0
    units = np.where(used[..., None], n, 1)
    h = used * n[..., 0] * n[..., 1] / np.maximum(n.sum(axis=2), 1)
    df = units - 1
    epochs = used.sum(axis=1)
    single = (kind == "proportion") & (epochs == 1)
    degrees = (n * used[..., None]).sum(axis=1) - np.where(single, 0, epochs)[:, None]
    pooled = (m2 * used[..., None]).sum(axis=1) / degrees
    shared = m2.sum(axis=2, keepdims=True) / np.maximum(n.sum(axis=2, keepdims=True) - 2, 1)
    factor = h[..., None] / units / (df + PRIOR_UNITS)
    own = (factor * m2).sum(axis=1)
    lent = PRIOR_UNITS * np.maximum(pooled * factor.sum(axis=1), (factor * shared).sum(axis=1))
    root = np.sqrt(h).sum(axis=1)
    difference = (np.sqrt(h) * (mean[..., 1] - mean[..., 0])).sum(axis=1) / root
    variance = (own + lent).sum(axis=1) / root**2
    return difference, np.sqrt(variance)


def _check(
    run: Run, experiment: int, scored: Comparison, batched: float, batched_error: float
) -> None:
    """Raises:
    DisagreementError: when the library reads an experiment differently at its end.
    """
    blocks = run.n.shape[1]
    population = run.population(experiment, blocks)
    trail = run.trail(experiment, blocks)
    fixed = read_fixed(population, trail, CONTROL, TREATMENT, run.kind, reallocated=True)
    must_agree("AIPW", scored.difference, fixed.difference)
    must_agree("error", scored.std_error, fixed.std_error)
    ols = batched_ols(population.contrasts[TREATMENT], CONTROL, TREATMENT, run.kind)
    must_agree("batched", batched, None if ols is None else ols.difference)
    must_agree("batched error", batched_error, None if ols is None else ols.std_error)


def ever_wrong(run: Run) -> Flags:
    """Whether the continuous reading, by the rule of `choice.py` at every look, ever excluded the
    truth. The library reads the look with the most evidence against it, of the nearest tenth."""
    trails = run.trails
    n, mean, m2, every = run.so_far()
    sums = within_epochs(n, mean, m2, run.kind, every)
    used = (n * (n.min(axis=3, keepdims=True) > 0)).sum(axis=2)
    within = log_e(sums.difference - run.truth, sums.cautious, used)
    away = trails.difference - run.truth
    scored = log_e(away, trails.std_error, trails.units, time=trails.time)
    reallocated = run.epoch > run.epoch[0]
    by_scores = reallocated & trails.is_scored & small_epochs(n)
    evidence = np.where(by_scores, scored, within)
    peak = evidence.max(axis=1)
    wrong = np.asarray(peak >= -math.log(ALPHA))
    for experiment in np.argsort(peak)[-len(peak) // 10 :].tolist():
        look = int(evidence[experiment].argmax())
        if peak[experiment] == -np.inf:
            continue
        seen = read_continuous(
            run.population(experiment, look + 1),
            run.trail(experiment, look + 1),
            CONTROL,
            TREATMENT,
            run.kind,
            reallocated=bool(reallocated[look]),
        )
        must_agree("sequence", float(wrong[experiment]), excludes(seen.reading, run.truth))
    return wrong
