"""Sample sizes and detectable effects against tea-tasting and statsmodels."""

import pytest
import tea_tasting as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import NormalIndPower
from tea_tasting.aggr import Aggregates

from analysis.planning.plan import make_plan
from analysis.planning.request import Mean, PlanRequest
from experiments.model import Margin

baselines = st.floats(0.5, 1e4)
spreads = st.floats(0.3, 3.0)
effects = st.floats(0.02, 0.3)
levels = st.sampled_from([(0.05, 0.8), (0.01, 0.9), (0.1, 0.7)])


@settings(deadline=None, max_examples=30)
@given(baselines, spreads, effects, levels)
def test_the_units_that_an_effect_needs(
    baseline: float, spread: float, effect: float, level: tuple[float, float]
) -> None:
    alpha, power = level
    request = PlanRequest(
        metric=Mean(baseline=baseline, sd=spread * baseline),
        effect=Margin(relative=effect),
        alpha=alpha,
        power=power,
        reading="fixed",
    )
    units = make_plan(request).units
    assert units is not None
    theirs = tt.Mean("x", alpha=alpha, power=power, rel_effect_size=effect, use_t=False)
    sample = Aggregates(1_000, {"x": baseline}, {"x": (spread * baseline) ** 2})
    [solved] = theirs.solve_power_from_aggregates(sample, "n_obs")
    per_arm = NormalIndPower().solve_power(effect / spread, alpha=alpha, power=power)
    # Theirs are of the normal distribution, since scipy's noncentral t is not a number in places.
    # Student's t costs about z²/4 units an arm more, and whole units of each arm up to two.
    assert 0 <= units - solved.n_obs <= 6
    assert 0 <= units - 2 * per_arm <= 6


@settings(deadline=None, max_examples=30)
@given(baselines, spreads, st.integers(1_000, 10**6), levels)
def test_the_effect_that_units_can_show(
    baseline: float, spread: float, units: int, level: tuple[float, float]
) -> None:
    alpha, power = level
    request = PlanRequest(
        metric=Mean(baseline=baseline, sd=spread * baseline),
        units=units,
        alpha=alpha,
        power=power,
        reading="fixed",
    )
    effect = make_plan(request).effect
    assert effect is not None
    theirs = tt.Mean("x", alpha=alpha, power=power, n_obs=units, use_t=False)
    sample = Aggregates(1_000, {"x": baseline}, {"x": (spread * baseline) ** 2})
    [solved] = theirs.solve_power_from_aggregates(sample, "effect_size")
    assert abs(effect.absolute) == pytest.approx(solved.effect_size, rel=5e-3)
