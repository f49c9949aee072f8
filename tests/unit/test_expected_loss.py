"""The expected loss of shipping an arm, against closed forms, draws and the Bayesian reading."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.inference.bayes import bayesian_reading, counts_of
from analysis.inference.epoch_sums import of_epoch
from analysis.inference.estimate import compare
from analysis.inference.expected_loss import expected_loss
from analysis.inference.kinds import Goal
from analysis.inference.thompson import ArmPosterior, posterior
from experiments.model import Prior
from tests.unit.samples import proportion

DRAWS = 1_000_000


def normal(mean: float, sd: float) -> ArmPosterior:
    return ArmPosterior(n=1_000, mean=mean, sd=sd)


def by_draws(arms: dict[str, ArmPosterior], goal: Goal) -> dict[str, tuple[float, float]]:
    """The loss of each arm, and its Monte Carlo standard error."""
    rng = np.random.default_rng(31)
    draws = np.stack(
        [
            rng.normal(arm.mean, arm.sd, DRAWS) if arm.beta is None else rng.beta(*arm.beta, DRAWS)
            for arm in arms.values()
        ]
    )
    best = draws.max(axis=0) if goal == "increase" else draws.min(axis=0)
    lost = np.abs(best - draws)
    errors = lost.std(axis=1) / math.sqrt(DRAWS)
    return {key: (lost[k].mean(), errors[k]) for k, key in enumerate(arms)}


@given(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.floats(1e-3, 10.0), st.floats(1e-3, 10.0))
def test_two_normal_arms_have_a_closed_form(m0: float, m1: float, s0: float, s1: float) -> None:
    losses = expected_loss({"a": normal(m0, s0), "b": normal(m1, s1)}, "increase")
    s = math.hypot(s0, s1)
    for key, lead in (("a", m0 - m1), ("b", m1 - m0)):
        z = lead / s
        expected = s * (stats.norm.pdf(z) - z * stats.norm.sf(z))
        assert losses[key] == pytest.approx(expected, rel=1e-7, abs=1e-9 * s)
    fewer = expected_loss({"a": normal(m0, s0), "b": normal(m1, s1)}, "decrease")
    assert fewer["a"] == pytest.approx(losses["b"], rel=1e-7, abs=1e-9 * s)


@pytest.mark.parametrize("goal", ["increase", "decrease"])
@pytest.mark.parametrize(
    "arms",
    [
        {"a": normal(0.0, 1.0), "b": normal(0.5, 1.0), "c": normal(0.4, 3.0)},
        {"a": normal(1e6, 3.0), "b": normal(1e6 + 1, 0.5), "c": normal(1e6 - 2, 1.0)},
        {f"arm-{k}": normal(0.1 * k, 1.0 + 0.2 * k) for k in range(10)},
    ],
)
def test_normal_posteriors_against_draws(arms: dict[str, ArmPosterior], goal: Goal) -> None:
    losses = expected_loss(arms, goal)
    for key, (mean, error) in by_draws(arms, goal).items():
        assert abs(losses[key] - mean) <= 4.5 * error


@pytest.mark.parametrize("goal", ["increase", "decrease"])
@pytest.mark.parametrize(
    "cells",
    [
        {"a": (10_000, 46), "b": (10_000, 69), "c": (300, 2)},
        {"a": (100, 0), "b": (100, 0), "c": (100, 1)},
        {"a": (150, 150), "b": (5_000, 4_990)},
    ],
)
def test_beta_posteriors_against_draws(cells: dict[str, tuple[int, int]], goal: Goal) -> None:
    moments = {key: proportion(*counts) for key, counts in cells.items()}
    sums = of_epoch(moments, list(cells), "a", "proportion").together
    arms = posterior(sums, "proportion")
    assert arms is not None
    losses = expected_loss(arms, goal)
    for key, (mean, error) in by_draws(arms, goal).items():
        assert abs(losses[key] - mean) <= 4.5 * error


def test_of_two_rates_it_is_the_loss_of_the_bayesian_reading() -> None:
    """Which is integrated by another quadrature."""
    cells = {"a": proportion(1_000, 50), "b": proportion(1_000, 95)}
    of_pair = of_epoch(cells, ["a", "b"], "a", "proportion").contrasts["b"]
    arms = posterior(of_pair, "proportion")
    assert arms is not None
    found = bayesian_reading(
        compare(of_pair, "a", "b", "proportion"),
        "increase",
        "proportion",
        Prior(),
        counts_of(of_pair, "a", "b", "proportion"),
    )
    losses = expected_loss(arms, "increase")
    assert losses["b"] == pytest.approx(found.expected_loss, rel=1e-6)
    assert losses["a"] == pytest.approx(found.expected_loss_control, rel=1e-6)


def test_a_loss_that_is_tiny_keeps_its_digits() -> None:
    losses = expected_loss({"a": normal(0.0, 1.0), "b": normal(15.0, 1.0)}, "increase")
    s, z = math.sqrt(2.0), 15.0 / math.sqrt(2.0)
    # The Mills ratio of z to two terms: φ(z)/z² (1 - 3/z²), good to 1e-3 here.
    approximate = s * stats.norm.pdf(z) / z**2 * (1.0 - 3.0 / z**2 + 15.0 / z**4)
    assert losses["b"] == pytest.approx(approximate, rel=3e-3)
    assert losses["a"] == pytest.approx(15.0)


def test_one_arm_loses_nothing_and_none_has_no_loss() -> None:
    assert expected_loss({"a": normal(1.0, 1.0)}, "increase") == {"a": 0.0}
    with pytest.raises(ValueError, match="no arms"):
        expected_loss({}, "increase")
