"""The power of each reading, against other packages, published tables, and the readings at work."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestIndPower
from tea_tasting import Mean, RatioOfMeans
from tea_tasting.aggr import Aggregates

from analysis.inference.kinds import Goal
from analysis.inference.planned import boundaries
from analysis.inference.sequence import DECISION_N, always_valid
from analysis.planning.answer import Expected
from analysis.planning.crossing import course
from analysis.planning.effects import expected
from analysis.planning.power import (
    Design,
    continuous_prospect,
    detectable,
    fixed_power,
    planned_prospect,
    prospect,
    units_for,
)
from analysis.planning.request import (
    READINGS,
    Component,
    Cuped,
    MetricSpec,
    Proportion,
    Ratio,
    ReadingName,
)
from analysis.planning.request import Mean as MeanSpec
from tests.unit.samples import compared, proportion

LOOKS = (0.2, 0.4, 0.6, 0.8, 1.0)
TO_MEAN = MeanSpec(baseline=2.0, sd=3.0)
TO_RATIO = Ratio(
    numerator=Component(mean=2.0, sd=3.0), denominator=Component(mean=10.0, sd=4.0), correlation=0.5
)


def design(metric: Expected, control: float = 0.5, alpha: float = 0.05) -> Design:
    return Design(metric, control, 1.0 - control, alpha, LOOKS)


def rate(baseline: float, goal: Goal = "increase") -> Expected:
    return expected(Proportion(baseline=baseline), goal)


def within(share: float, runs: int) -> float:
    """Three Monte Carlo standard errors of a share."""
    return 3.0 * math.sqrt(share * (1.0 - share) / runs)


# A fixed horizon


@pytest.mark.parametrize(
    ("baseline", "treated", "an_arm"),
    # Of (z_{α/2} + z_β)² (p0 q0 + p1 q1)/δ² with 1.96 and .8416, worked out by hand.
    [(0.10, 0.11, 14_749), (0.05, 0.06, 8_155), (0.5, 0.6, 385), (0.01, 0.02, 2_316)],
)
def test_units_for_proportions_are_those_of_the_textbook(
    baseline: float, treated: float, an_arm: int
) -> None:
    units = units_for(design(rate(baseline)), "fixed", treated - baseline, 0.8)
    assert units is not None
    assert math.ceil(units / 2) == an_arm


@given(
    st.floats(0.01, 0.5),
    st.floats(0.01, 0.4),
    st.sampled_from([0.5, 0.25, 0.8]),
    st.sampled_from([0.01, 0.05]),
)
@settings(max_examples=40, deadline=None)
def test_a_proportion_has_the_power_that_statsmodels_gives(
    baseline: float, lift: float, control: float, alpha: float
) -> None:
    units = 20_000
    treated = baseline * (1.0 + lift)
    n0, n1 = units * control, units * (1.0 - control)
    pooled = math.sqrt(
        (baseline * (1 - baseline) / n0 + treated * (1 - treated) / n1) / (1 / n0 + 1 / n1)
    )
    theirs = NormalIndPower().power(
        (treated - baseline) / pooled, n0, alpha, ratio=n1 / n0, alternative="two-sided"
    )
    ours = prospect(design(rate(baseline), control, alpha), "fixed", baseline * lift, units)
    assert ours.power == pytest.approx(theirs, abs=1e-9)


@given(st.floats(0.05, 1.5), st.integers(3, 400), st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=40, deadline=None)
def test_a_mean_has_the_power_of_students_t(effect: float, an_arm: int, alpha: float) -> None:
    theirs = TTestIndPower().power(effect, an_arm, alpha)
    assume(math.isfinite(theirs))  # it is not everywhere
    plan = design(expected(MeanSpec(baseline=7.0, sd=2.0), "increase"), alpha=alpha)
    assert prospect(plan, "fixed", 2.0 * effect, 2 * an_arm).power == pytest.approx(theirs)


@pytest.mark.parametrize("parameter", ["n_obs", "effect_size"])
def test_means_ratios_and_covariates_are_planned_as_by_tea_tasting(parameter: str) -> None:
    aggregates = Aggregates(
        count_=1_000,
        mean_={"x": 2.0, "y": 10.0, "z": 2.0},
        var_={"x": 9.0, "y": 16.0, "z": 4.0},
        cov_={("x", "y"): 6.0, ("x", "z"): 3.6, ("y", "z"): 0.0},
    )
    options: dict[str, Any] = {"rel_effect_size": 0.05}
    if parameter == "effect_size":
        options = {"n_obs": 30_000}
    pairs: list[tuple[Any, MetricSpec, Cuped | None]] = [
        (Mean("x", **options), TO_MEAN, None),
        (Mean("x", "z", use_t=False, **options), TO_MEAN, Cuped(correlation=0.6)),
        (RatioOfMeans("x", "y", use_t=False, **options), TO_RATIO, None),
    ]
    for theirs, spec, cuped in pairs:
        [answer] = theirs.solve_power_from_aggregates(aggregates, parameter).to_dicts()
        metric = expected(spec, "increase", cuped)
        plan = design(metric)
        if parameter == "n_obs":
            ours = units_for(plan, "fixed", 0.05 * metric.baseline, 0.8)
            assert ours == pytest.approx(answer["n_obs"], abs=1)
        else:
            found = detectable(plan, "fixed", 30_000, 0.8)
            assert found == pytest.approx(answer["effect_size"], rel=1e-6)


def test_the_variance_of_a_ratio_is_that_of_its_linearised_units() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.multivariate_normal([2.0, 10.0], [[9.0, 6.0], [6.0, 16.0]], 400_000).T
    metric = expected(TO_RATIO, "increase")
    assert metric.baseline == pytest.approx(0.2)
    assert metric.variance == pytest.approx(float(np.var((x - 0.2 * y) / 10.0)), rel=0.01)


# Planned looks


def test_planned_looks_cost_what_the_tables_say() -> None:
    """Jennison, Turnbull (2000), table 2.4: five looks of O'Brien and Fleming's need 1.028 times
    the units of one (α .05, power .8); to spend alpha as Lan and DeMets do costs much the same."""
    metric = expected(MeanSpec(baseline=10.0, sd=20.0), "increase")
    fixed, planned = (
        units_for(design(metric), reading, 0.1, 0.8) for reading in ("fixed", "planned")
    )
    assert fixed is not None
    assert planned is not None
    assert planned / fixed == pytest.approx(1.028, abs=0.005)


@pytest.mark.parametrize("looks", [(1.0,), (0.5, 1.0), LOOKS, (0.1, 0.15, 0.9, 1.0)])
def test_without_an_effect_the_looks_spend_alpha(looks: tuple[float, ...]) -> None:
    assert planned_prospect(0.0, 0.05, looks).power == pytest.approx(0.05, abs=1e-6)
    if len(looks) == 1:
        assert planned_prospect(2.0, 0.05, looks).power == pytest.approx(fixed_power(2.0, 0.05))


def test_the_power_and_the_mean_units_of_planned_looks_are_those_of_simulated_ones() -> None:
    drift, runs = 2.8, 40_000
    rng = np.random.default_rng(2)
    z = rng.normal(drift * 0.2, math.sqrt(0.2), (runs, 5)).cumsum(axis=1) / np.sqrt(LOOKS)
    over = np.abs(z) >= np.array(boundaries(LOOKS, 0.05))
    ended = np.where(over.any(axis=1), over.argmax(axis=1), 4)
    found = planned_prospect(drift, 0.05, LOOKS)
    power = over.any(axis=1).mean()
    assert found.power == pytest.approx(power, abs=within(power, runs))
    took = np.array(LOOKS)[ended]
    assert found.mean_share == pytest.approx(took.mean(), abs=3 * took.std() / math.sqrt(runs))
    assert [a < b for a, b in pairwise(found.by_look)] == [True] * 4


def test_a_look_too_early_to_spend_anything_ends_nothing() -> None:
    looks = (0.0001, 1.0)
    assert boundaries(looks, 0.05)[0] > 100
    found = planned_prospect(2.8, 0.05, looks)
    assert found.by_look[0] == pytest.approx(0.0, abs=1e-12)
    assert found.power == pytest.approx(fixed_power(2.8, 0.05), abs=1e-4)


# The confidence sequence


def test_the_price_of_continuous_looks() -> None:
    """A lift of 10 % on a rate of .1 with 10,000 units an arm: .637 at a fixed horizon, .618 with
    O'Brien and Fleming's looks; the sequence has .34 with 100 looks, and a little more with a look
    after every unit."""
    plan = design(rate(0.1))
    power = {reading: prospect(plan, reading, 0.01, 20_000).power for reading in READINGS}
    assert power["fixed"] == pytest.approx(0.637, abs=0.005)
    assert power["planned"] == pytest.approx(0.622, abs=0.005)
    assert power["continuous"] == pytest.approx(0.363, abs=0.002)


def sequence_bound(
    alpha: float, times: "np.ndarray[tuple[int], np.dtype[np.float64]]"
) -> list[float]:
    bounds = np.sqrt(2.0 * (times + 1.0) * (0.5 * np.log1p(times) - math.log(alpha)))
    return [float(bound) for bound in bounds]


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_sequence_crosses_as_often_as_a_simulated_one(alpha: float) -> None:
    """Brownian paths, looked at very often, and between looks by the chance of a bridge to cross;
    and the same ones at 100 looks, which is what a walk without bridges gives."""
    rng = np.random.default_rng(3)
    runs, drift = 6_000, 2.8
    end = -2.0 * math.log(alpha) + math.log1p(-2.0 * math.log(alpha))
    times = end * np.geomspace(0.02, 1.0, 250)
    steps = np.diff(times, prepend=0.0)
    paths = rng.normal(drift / math.sqrt(end) * steps, np.sqrt(steps), (runs, len(times)))
    paths = paths.cumsum(axis=1)
    bound = np.array(sequence_bound(alpha, times))
    left = np.clip(bound - np.abs(paths), 0.0, None)
    over = left == 0.0
    bridge = np.exp(-2.0 * left[:, :-1] * left[:, 1:] / steps[1:])
    over[:, 1:] |= rng.random(bridge.shape) < bridge
    crossed = over.any(axis=1)
    units = 30_000
    found = continuous_prospect(drift, alpha, units, 0.02 * units, units)
    assert found.power == pytest.approx(crossed.mean(), abs=within(crossed.mean(), runs))
    took = np.where(crossed, times[over.argmax(axis=1)], end) / end
    assert found.mean_share == pytest.approx(took.mean(), abs=3 * took.std() / math.sqrt(runs))

    at = end * np.linspace(0.01, 1.0, 100)
    walk = course(at.tolist(), sequence_bound(alpha, at), continuous=False)
    at_looks = 1.0 - walk.survival(drift / math.sqrt(end))[-1]
    assert 0.0 < found.power - at_looks < 0.05


def test_without_an_effect_the_sequence_crosses_less_often_than_alpha() -> None:
    for alpha in (0.05, 0.01):
        powers = [continuous_prospect(0.0, alpha, n, 200).power for n in (200, 10**4, 10**9)]
        assert powers == sorted(powers)
        assert powers[-1] < alpha


def test_the_sequence_says_nothing_before_its_first_units() -> None:
    plan = design(rate(0.1), control=0.1)
    assert prospect(plan, "continuous", 0.5, 999).power == 0.0
    assert prospect(plan, "continuous", 0.5, 1_001).power > 0.99
    assert detectable(plan, "continuous", 900, 0.8) is None
    units = units_for(plan, "continuous", 0.5, 0.8)
    assert units == 1_000


# The readings themselves


def test_the_reading_at_a_fixed_horizon_has_the_power_that_is_claimed() -> None:
    rng = np.random.default_rng(4)
    runs, plan = 2_000, design(rate(0.1), control=0.4)
    units = units_for(plan, "fixed", 0.03, 0.8)
    assert units is not None
    n0, n1 = round(0.4 * units), round(0.6 * units)
    found = 0
    for x0, x1 in zip(rng.binomial(n0, 0.1, runs), rng.binomial(n1, 0.13, runs), strict=True):
        reading = compared([(proportion(n0, int(x0)), proportion(n1, int(x1)))], "proportion")
        found += reading.p_value is not None and reading.p_value < 0.05
    assert found / runs == pytest.approx(0.8, abs=within(0.8, runs) + 0.005)


def test_the_reading_at_any_time_has_the_power_that_is_claimed() -> None:
    """With a look after every hundredth of the units it is a little below that of a look after
    every unit, and as the walk through these looks has it."""
    rng = np.random.default_rng(5)
    runs, looks = 800, 50
    plan = design(rate(0.1))
    units = units_for(plan, "continuous", 0.03, 0.8)
    assert units is not None
    an_arm = units // 2 // looks
    total = 2 * an_arm * looks
    counts = rng.binomial(an_arm, [[[0.1]], [[0.13]]], (2, runs, looks)).cumsum(axis=2)
    n = an_arm * np.arange(1, looks + 1)
    share = counts / n
    errors = np.sqrt((share * (1.0 - share)).sum(axis=0) / n)
    crossed = 0
    for differences, of_run in zip((share[1] - share[0]).tolist(), errors.tolist(), strict=True):
        readings = (
            always_valid(d, error, k, k)
            for d, error, k in zip(differences, of_run, n.tolist(), strict=True)
        )
        crossed += any(r.p_value is not None and r.p_value <= 0.05 for r in readings)
    end = (-2.0 * math.log(0.05) + math.log1p(-2.0 * math.log(0.05))) * total / DECISION_N
    at = end * np.arange(1, looks + 1)[n >= 100] / looks
    walk = course(at.tolist(), sequence_bound(0.05, at), continuous=False)
    drift = 0.03 / math.sqrt((0.1 * 0.9 + 0.13 * 0.87) / (total / 2))
    claimed = 1.0 - walk.survival(drift / math.sqrt(end))[-1]
    assert crossed / runs == pytest.approx(claimed, abs=within(claimed, runs) + 0.005)
    assert 0.0 < 0.8 - claimed < 0.05


# What holds of any plan


specs = st.one_of(
    st.floats(0.01, 0.9).map(rate),
    st.floats(0.05, 0.99).map(lambda p: rate(p, "decrease")),
    st.tuples(st.floats(-100.0, 100.0), st.floats(0.1, 50.0)).map(
        lambda pair: expected(MeanSpec(baseline=pair[0], sd=pair[1]), "increase")
    ),
)


@given(specs, st.floats(0.1, 0.9), st.sampled_from(READINGS), st.floats(0.3, 0.95))
@settings(max_examples=60, deadline=None)
def test_so_many_units_have_the_power_and_one_less_has_not(
    metric: Expected, control: float, reading: ReadingName, power: float
) -> None:
    plan = design(metric, control)
    sign = 1.0 if metric.goal == "increase" else -1.0
    effect = sign * 0.08 * math.sqrt(metric.variance) * 0.5
    if metric.kind == "proportion":
        effect = sign * min(abs(effect), 0.9 * (1 - metric.baseline), 0.9 * metric.baseline)
    units = units_for(plan, reading, effect, power)
    assert units is not None
    assert prospect(plan, reading, effect, units).power >= power
    if units > plan.least_units:
        assert prospect(plan, reading, effect, units - 1).power < power
    found = detectable(plan, reading, units, power)
    assert found is not None
    assert abs(found) <= abs(effect) * (1 + 1e-6)
    assert math.copysign(1.0, found) == sign
    assert prospect(plan, reading, found, units).power >= power


@given(specs, st.sampled_from(READINGS), st.lists(st.integers(300, 10**7), min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_more_units_never_have_less_power(
    metric: Expected, reading: ReadingName, units: list[int]
) -> None:
    sign = 1.0 if metric.goal == "increase" else -1.0
    effect = sign * 0.01 * min(metric.variance, 1.0)
    plan = design(metric)
    powers = [prospect(plan, reading, effect, n).power for n in sorted(units)]
    assert all(a <= b + 1e-9 for a, b in pairwise(powers))


@pytest.mark.parametrize("reading", READINGS)
def test_power_rises_with_the_effect(reading: ReadingName) -> None:
    plan = design(rate(0.2))
    powers = [prospect(plan, reading, effect, 5_000).power for effect in np.linspace(0, 0.8, 60)]
    assert all(a <= b + 1e-12 for a, b in pairwise(powers))
    assert powers[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("reading", READINGS)
def test_extremes_have_answers(reading: ReadingName) -> None:
    assert units_for(design(rate(0.1)), reading, 1e-9, 0.8) is None
    assert prospect(design(rate(0.5)), reading, 0.5, 10**12).power == 1.0
    tiny = design(expected(MeanSpec(baseline=1e12, sd=1e-3), "increase"))
    units = units_for(tiny, reading, 1e-3, 0.8)
    assert units is not None
    assert units < 1_000
    sure = units_for(tiny, reading, 1e3, 0.8)
    assert sure == (200 if reading == "continuous" else 4)
    assert detectable(design(rate(0.99)), reading, 10, 0.8) is None
    small = units_for(design(rate(0.1), alpha=1e-6), reading, 0.01, 0.999)
    assert small is not None
    assert 20_000 < small < 10**6


def test_few_units_of_a_mean_pay_for_the_spread_that_they_do_not_know() -> None:
    """With 2 units an arm t has 2 degrees of freedom, and has to reach 100 at an alpha of .0001."""
    plan = design(expected(MeanSpec(baseline=0.0, sd=1.0), "increase"), alpha=1e-4)
    rng = np.random.default_rng(6)
    x = rng.normal(0.0, 1.0, (2, 20_000, 2))
    x[1] += 60.0
    shown = np.mean(stats.ttest_ind(x[1], x[0], axis=1).pvalue < 1e-4)
    found = prospect(plan, "fixed", 60.0, 4).power
    assert 0.2 < found < 0.4
    assert found == pytest.approx(shown, abs=within(shown, 20_000))


def test_a_fixed_power_is_the_normal_one_in_large_samples() -> None:
    for drift in (0.0, 1.0, 2.8, 12.0, 29.0, 31.0):
        normal = stats.norm.sf(1.959964 - drift) + stats.norm.cdf(-1.959964 - drift)
        assert fixed_power(drift, 0.05) == pytest.approx(normal, abs=1e-6)
        assert fixed_power(drift, 0.05, 1e5) == pytest.approx(normal, abs=1e-4)
