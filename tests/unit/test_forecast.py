"""What more data would tell: against independent formulas, and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestIndPower

from analysis.inference.forecast import (
    MOST_UNITS,
    conditional_power,
    detectable_effect,
    units_for_loss,
    units_for_sequence,
)
from analysis.inference.sequence import always_valid
from tests.unit.samples import at_most


def test_a_detectable_effect_is_found_with_the_power_claimed() -> None:
    """Statsmodels: the standardised effect of two arms of 500."""
    std_error = 3.0 * math.sqrt(2 / 500)
    found = detectable_effect(std_error, None, alpha=0.05, power=0.8)
    expected = NormalIndPower().solve_power(nobs1=500, alpha=0.05, power=0.8)
    assert found == pytest.approx(3.0 * expected, rel=1e-5)


def test_with_few_degrees_of_freedom_it_is_larger() -> None:
    std_error = math.sqrt(2 / 10)
    found = detectable_effect(std_error, 18.0, alpha=0.05, power=0.8)
    expected = TTestIndPower().solve_power(nobs1=10, alpha=0.05, power=0.8)
    assert found == pytest.approx(expected, rel=0.01)  # Bloom's two quantiles are an approximation


def test_without_a_standard_error_no_effect_is_claimed() -> None:
    assert detectable_effect(None, None) is None


def test_the_units_for_a_sequence_are_the_fewest_with_that_power() -> None:
    effect, std_error, units = 0.01, 0.006, 10_000
    needed = units_for_sequence(effect, std_error, units)
    assert needed is not None
    spread = std_error * math.sqrt(units)
    for n, enough in ((needed, True), (needed - 1, False)):
        error = spread / math.sqrt(n)
        reading = always_valid(effect, error, n // 2, n - n // 2)
        assert reading.ci_low is not None
        assert bool(reading.ci_low >= stats.norm.ppf(0.8) * error) is enough


def test_it_does_not_matter_which_way_the_effect_goes_nor_how_far_one_has_come() -> None:
    needed = units_for_sequence(0.01, 0.006, 10_000)
    assert units_for_sequence(-0.01, 0.006, 10_000) == needed
    assert units_for_sequence(0.01, 0.003, 40_000) == needed


def test_a_simulated_sequence_has_that_power_by_then() -> None:
    """It may be a little more, since earlier looks count, too."""
    needed = units_for_sequence(0.1, 0.02, 10_000, power=0.8)
    assert needed is not None
    generator = np.random.default_rng(1)
    error = 2.0 / math.sqrt(needed)
    runs = 4_000
    told = sum(
        (reading.p_value or 1.0) <= 0.05
        for reading in (
            always_valid(float(d), error, needed // 2, needed // 2)
            for d in generator.normal(0.1, error, runs)
        )
    )
    assert 1.0 - told / runs <= at_most(0.2, runs)
    assert told / runs <= at_most(0.8, runs)


def test_what_is_out_of_reach_is_not_promised() -> None:
    assert units_for_sequence(1e-9, 1.0, 1_000) is None
    assert units_for_loss(0.0, 1.0, 1_000, 1e-9) is None


def test_a_huge_effect_needs_no_more_than_the_least_units() -> None:
    assert units_for_sequence(1e6, 1.0, 1_000) == 200
    assert units_for_loss(1e6, 1.0, 1_000, 1e-9) == 200


@pytest.mark.parametrize("difference", [0.0, 0.02, -0.05])
def test_the_loss_is_what_one_cares_about_once_the_units_are_there(difference: float) -> None:
    needed = units_for_loss(difference, 0.05, 1_000, 0.001)
    assert needed is not None
    sigma = 0.05 * math.sqrt(1_000 / needed)
    x = np.linspace(-12, 12, 200_001) * sigma
    losses = np.maximum(0.0, -(abs(difference) + x)) * stats.norm.pdf(x, scale=sigma)
    assert np.trapezoid(losses, x) == pytest.approx(0.001, rel=0.05)
    assert needed < MOST_UNITS


def test_conditional_power_is_that_of_a_brownian_motion() -> None:
    generator = np.random.default_rng(2)
    information, z, drift = 0.4, 1.0, 2.0
    rest = generator.normal(drift * 0.6, math.sqrt(0.6), 200_000)
    simulated = np.mean(z * math.sqrt(information) + rest > 1.96)
    assert conditional_power(z, information, drift, 1.96) == pytest.approx(simulated, abs=0.004)


@pytest.mark.parametrize("information", [0.0, 1.0, math.nan])
def test_conditional_power_is_of_a_look_in_between(information: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        conditional_power(1.0, information, 1.0, 1.96)
