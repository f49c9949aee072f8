"""Differences within epochs against pooled counts, on ramps and after a bandit."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

from analysis.inference.moments import Moments
from tests.unit.samples import at_most, compared, proportion

Counts = NDArray[np.int64]


def ramp(
    rng: np.random.Generator,
    runs: int,
    units: list[int],
    propensities: list[float],
    rates: list[float],
) -> tuple[Counts, Counts]:
    """Units and conversions of an A/A ramp, of shape (runs, epochs, arms)."""
    treated = rng.binomial(units, propensities, (runs, len(units)))
    n = np.stack([np.array(units) - treated, treated], axis=2)
    return n, rng.binomial(n, np.array(rates)[None, :, None])


def thompson(
    rng: np.random.Generator, runs: int, rates: NDArray[np.float64], batch: int, floor: float
) -> tuple[Counts, Counts]:
    """Counts of a two-armed A/A bandit on pooled counts: adaptive, and misled by the drift."""
    n = np.zeros((runs, len(rates), 2), dtype=np.int64)
    x = np.zeros_like(n)
    weight = np.full(runs, 0.5)
    for epoch, rate in enumerate(rates):
        treated = rng.binomial(batch, weight)
        n[:, epoch] = np.stack([batch - treated, treated], axis=1)
        x[:, epoch] = rng.binomial(n[:, epoch], rate)
        seen, converted = n.sum(axis=1), x.sum(axis=1)
        smoothed = (converted + 1) / (seen + 2)
        z = (smoothed[:, 1] - smoothed[:, 0]) / np.sqrt(
            (smoothed * (1 - smoothed) / (seen + 2)).sum(axis=1)
        )
        weight = floor + (1 - 2 * floor) * ndtr(z)
    return n, x


def false_positives(n: Counts, x: Counts) -> tuple[float, float]:
    """Share of runs whose 95 % interval misses 0: (within epochs, pooled counts)."""
    missed = 0
    for run_n, run_x in zip(n.tolist(), x.tolist(), strict=True):
        strata = [
            (proportion(units[0], conv[0]), proportion(units[1], conv[1]))
            for units, conv in zip(run_n, run_x, strict=True)
        ]
        result = compared(strata, "proportion")
        missed += result.p_value is not None and result.p_value < 0.05
    p = x.sum(axis=1) / n.sum(axis=1)
    std_error = np.sqrt((p * (1 - p) / n.sum(axis=1)).sum(axis=1))
    pooled = np.abs(p[:, 1] - p[:, 0]) > stats.norm.isf(0.025) * std_error
    return missed / len(n), float(pooled.mean())


def test_a_ramp_with_a_day_effect() -> None:
    rng = np.random.default_rng(11)
    runs = 2_000
    n, x = ramp(rng, runs, [20_000, 20_000, 20_000], [0.05, 0.2, 0.5], [0.3, 0.2, 0.1])
    within, pooled = false_positives(n, x)
    assert within <= at_most(0.05, runs)
    assert within > 0.03  # and not by being useless
    assert pooled > 0.999


def test_one_variance_for_all_epochs_would_not_do() -> None:
    """A treatment that met the high-variance day with few units needs that day's variance."""
    rng = np.random.default_rng(12)
    runs = 2_000
    n, x = ramp(rng, runs, [10_000, 10_000], [0.02, 0.5], [0.3, 0.05])
    within, _ = false_positives(n, x)
    assert within <= at_most(0.05, runs) + 0.01  # 200 units are a small sample
    used = n / n.sum(axis=2, keepdims=True).sum(axis=1, keepdims=True)
    rates = x / n
    weights = used.sum(axis=2)
    difference = (weights * (rates[:, :, 1] - rates[:, :, 0])).sum(axis=1)
    spread = (n * rates * (1 - rates)).sum(axis=1) / n.sum(axis=1)
    variance = (weights[:, :, None] ** 2 / n * spread[:, None, :]).sum(axis=(1, 2))
    one_variance = np.abs(difference) > stats.norm.isf(0.025) * np.sqrt(variance)
    assert one_variance.mean() > 0.2


def test_many_tiny_epochs() -> None:
    """Two hundred epochs of four treated units each: none can estimate its own variance."""
    rng = np.random.default_rng(13)
    runs = 600
    n, x = ramp(rng, runs, [20] * 200, [0.2] * 200, np.linspace(0.02, 0.3, 200).tolist())
    within, _ = false_positives(n, x)
    assert within <= at_most(0.05, runs)


def test_after_thompson_under_a_drifting_base_rate() -> None:
    rng = np.random.default_rng(14)
    runs = 1_500
    n, x = thompson(rng, runs, np.linspace(0.05, 0.15, 30), batch=1_000, floor=0.05)
    within, pooled = false_positives(n, x)
    assert 1 - within >= 0.95 - (at_most(0.05, runs) - 0.05) - 0.01
    assert 1 - pooled < 0.4


@pytest.mark.calibration
@pytest.mark.parametrize("floor", [0.05, 0.2])
@pytest.mark.parametrize(("first", "last"), [(0.05, 0.15), (0.15, 0.05)])
def test_after_thompson_at_full_size(floor: float, first: float, last: float) -> None:
    rng = np.random.default_rng(15)
    runs = 10_000
    n, x = thompson(rng, runs, np.linspace(first, last, 30), batch=1_000, floor=floor)
    within, _ = false_positives(n, x)
    assert within <= at_most(0.05, runs) + 0.01


def test_means_over_epochs_keep_their_level() -> None:
    """Skewed scores, a drifting mean, moving propensities: Welch's t over epochs."""
    rng = np.random.default_rng(16)
    runs, missed = 1_000, 0
    for _ in range(runs):
        strata = []
        for propensity, scale in ((0.1, 3.0), (0.3, 1.0), (0.5, 2.0)):
            treated = int(rng.binomial(400, propensity))
            scores = scale * rng.lognormal(0.0, 0.5, 400)
            strata.append((Moments.of(scores[treated:]), Moments.of(scores[:treated])))
        result = compared(strata, "mean")
        missed += result.p_value is not None and result.p_value < 0.05
    assert missed / runs <= at_most(0.05, runs)
