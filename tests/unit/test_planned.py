import math
import time
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from analysis.inference.moments import Moments
from analysis.inference.multiplicity import holm
from analysis.inference.planned import (
    Look,
    PlannedReading,
    boundaries,
    look_at,
    planned_reading,
    sequential_p,
)
from analysis.inference.quantile import Bin, compare_quantiles
from tests.unit.samples import at_most, compared, proportion

THEN = datetime(2026, 3, 2, tzinfo=UTC)
unhurried = settings(deadline=None)
FIVE = (0.2, 0.4, 0.6, 0.8, 1.0)


def looks(fractions: tuple[float, ...], z: tuple[float, ...], units: int = 1_000) -> list[Look]:
    """Looks at a difference whose standard error falls as units come."""
    return [
        Look(
            number=place,
            taken_at=THEN,
            units=round(units * fraction),
            information=fraction,
            difference=size / math.sqrt(units * fraction),
            std_error=1 / math.sqrt(units * fraction),
            statistic=size,
        )
        for place, (fraction, size) in enumerate(zip(fractions, z, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("fractions", "published"),
    [
        # Lan and DeMets' program (ld98), two-sided alpha of .05; also R's gsDesign, sfLDOF.
        (FIVE, (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ((1 / 3, 2 / 3, 1.0), (3.7103, 2.5114, 1.9930)),
        ((0.5, 1.0), (2.9626, 1.9686)),
        ((0.25, 0.5, 0.75, 1.0), (4.3326, 2.9631, 2.3590, 2.0141)),
        ((1.0,), (1.9600,)),
    ],
)
def test_boundaries_are_the_published_ones(
    fractions: tuple[float, ...], published: tuple[float, ...]
) -> None:
    assert boundaries(fractions, 0.05) == pytest.approx(published, abs=3e-4)


def test_a_boundary_of_two_looks_is_that_of_the_bivariate_normal() -> None:
    """An independent integral: scipy's multivariate normal distribution."""
    fractions, alpha = (0.37, 1.0), 0.02
    first, last = boundaries(fractions, alpha)
    root = math.sqrt(fractions[0])
    both = stats.multivariate_normal(cov=np.array([[1, root], [root, 1]]))
    inside = both.cdf(np.array([first, last]), lower_limit=np.array([-first, -last]))
    assert 1 - float(inside) == pytest.approx(alpha, abs=1e-6)


@unhurried
@given(st.lists(st.integers(1, 100), min_size=1, max_size=8, unique=True), st.floats(1e-6, 0.5))
def test_less_alpha_makes_every_boundary_higher(percent: list[int], alpha: float) -> None:
    """So a sequential p-value means the same at every alpha."""
    places = tuple(sorted(share / 100 for share in percent))
    wide, narrow = boundaries(places, alpha), boundaries(places, alpha / 1.5)
    assert all(a < b + 1e-7 for a, b in zip(wide, narrow, strict=True))


def test_a_single_look_at_all_information_is_the_fixed_horizon() -> None:
    rng = np.random.default_rng(1)
    cells = Moments.of(rng.normal(0, 1, 15).tolist()), Moments.of(rng.normal(1, 2, 12).tolist())
    comparison = compared([cells], "mean")
    reading = planned_reading([look_at(comparison, 1, THEN, 27, 1.0)])
    assert comparison.test == "welch"
    assert reading.p_value == pytest.approx(comparison.p_value, rel=1e-9)
    assert (reading.ci_low, reading.ci_high) == pytest.approx(
        (comparison.ci_low, comparison.ci_high), rel=1e-9
    )
    assert (reading.crossed == 1) == ((comparison.p_value or 1) <= 0.05)
    assert reading.final


@pytest.mark.parametrize("counts", [(40, 1, 40, 9), (3_000, 2, 3_000, 15), (900, 400, 900, 300)])
def test_a_single_look_at_a_proportion_is_the_fixed_horizon(
    counts: tuple[int, int, int, int],
) -> None:
    n0, x0, n1, x1 = counts
    comparison = compared([(proportion(n0, x0), proportion(n1, x1))], "proportion")
    reading = planned_reading([look_at(comparison, 1, THEN, n0 + n1, 1.0)])
    assert reading.p_value == pytest.approx(comparison.p_value, rel=1e-9)
    assert reading.ci_low == pytest.approx(comparison.ci_low, rel=1e-9)
    assert reading.ci_high == pytest.approx(comparison.ci_high, rel=1e-9)


def test_a_single_look_that_is_not_symmetric_is_the_fixed_horizon() -> None:
    ramp = [(proportion(1_900, 9), proportion(100, 1)), (proportion(1_800, 9), proportion(200, 3))]
    bins = [tuple(Bin(2.0**k, 2.0 ** (k + 1), n) for k in range(9)) for n in (30, 20)]
    rates, medians = compared(ramp, "proportion"), compare_quantiles(bins[0], bins[1], 0.5, 1)
    assert (rates.test, medians.test) == ("score", "order_statistics")
    for comparison in (rates, medians):
        once = planned_reading([look_at(comparison, 1, THEN, 4_000, 1.0)])
        assert (once.ci_low, once.ci_high) == (comparison.ci_low, comparison.ci_high)
        assert once.p_value == pytest.approx(comparison.p_value, rel=1e-9)
        early = planned_reading([look_at(comparison, 1, THEN, 2_000, 0.5)])
        assert early.crossed is None
        assert early.ci_low is not None
        assert early.ci_high is not None
        assert early.ci_low <= min(0.0, comparison.ci_low or 0.0)
        assert early.ci_high >= max(0.0, comparison.ci_high or 0.0)


def test_the_first_look_that_crosses_is_named() -> None:
    reading = planned_reading(looks(FIVE[:4], (1.0, 3.4, 2.0, 2.5)))
    assert reading.crossed == 2
    assert not reading.final
    assert reading.boundaries == pytest.approx((4.8769, 3.3570, 2.6803, 2.2898), abs=1e-4)


def test_the_sequential_p_value_is_where_alpha_would_just_have_rejected() -> None:
    z = (1.0, 2.2, 2.5, 2.1, 1.2)
    reading = planned_reading(looks(FIVE, z))

    def missed(log_alpha: float) -> float:
        heights = boundaries(FIVE, math.exp(log_alpha))
        return max(a - b for a, b in zip(z, heights, strict=True))

    expected = math.exp(optimize.brentq(missed, math.log(1e-9), math.log(0.99)))
    assert reading.p_value == pytest.approx(expected, rel=1e-5)


sizes = st.lists(st.floats(0, 45), min_size=5, max_size=5)


@unhurried
@given(sizes)
def test_the_sequential_p_value_only_falls_and_agrees_with_the_boundary(z: list[float]) -> None:
    readings = [planned_reading(looks(FIVE[:k], tuple(z[:k])), 0.05) for k in range(1, 6)]
    values = [reading.p_value or 0.0 for reading in readings]
    assert all(0 < value <= 1 for value in values)
    assert all(b <= a * (1 + 1e-3) for a, b in pairwise(values))
    for value, reading in zip(values, readings, strict=True):
        if abs(value - 0.05) > 1e-5:
            assert (value <= 0.05) == (reading.crossed is not None)


@unhurried
@given(sizes)
def test_the_repeated_interval_excludes_0_exactly_where_the_last_look_crossed(
    z: list[float],
) -> None:
    reading = planned_reading(looks(FIVE, tuple(z)))
    height = reading.boundaries[-1]
    assert reading.ci_low is not None
    assert height is not None
    assert (reading.ci_low > 0) == (z[-1] > height)


@given(st.floats(-30, 30), st.integers(3, 30))
@unhurried
def test_a_repeated_interval_of_few_units_is_students(shift: float, n: int) -> None:
    """It agrees with the look's statistic, which is the deviate of Student's p-value."""
    spread = [float(i) for i in range(n)]
    cells = Moments.of(spread), Moments.of([x + shift for x in spread])
    look = look_at(compared([cells], "mean"), 1, THEN, 2 * n, 0.5)
    reading = planned_reading([look])
    assert reading.ci_low is not None
    assert reading.ci_high is not None
    excluded = reading.ci_low > 0 or reading.ci_high < 0
    assert look.statistic is not None
    if abs(abs(look.statistic) - 2.96259) > 1e-4:
        assert excluded == (reading.crossed == 1)


def test_the_realised_information_counts_not_the_planned_one() -> None:
    late = boundaries((0.47, 1.0), 0.05)
    assert late[0] < boundaries((0.4, 1.0), 0.05)[0]
    assert late[1] > boundaries((0.4, 1.0), 0.05)[1]


def test_a_second_look_without_new_units_spends_nothing() -> None:
    reading = planned_reading(looks((0.5, 0.5, 1.0), (1.0, 30.0, 1.0)))
    assert reading.boundaries[1] is None
    assert reading.crossed is None
    assert reading.p_value is not None
    assert reading.p_value > 0.05


def test_extreme_looks_have_a_p_value() -> None:
    for z in ((0.0, 0.0), (40.0, 1.0), (1.0, 40.0), (1e9, 1e9)):
        p = sequential_p(z, (0.3, 1.0))
        assert 0 < p <= 1
    assert sequential_p((0.0, 0.0), (0.3, 1.0)) == 1.0
    assert sequential_p((50.0,), (0.001,)) > 0.1  # there is next to nothing to spend
    assert boundaries((0.001, 0.002, 1.0), 0.05)[0] > 50


def test_a_look_without_a_standard_error_says_nothing_and_spends_all_the_same() -> None:
    blind = Look(number=1, taken_at=THEN, units=500, information=0.5)
    alone = planned_reading([blind])
    assert alone.boundaries == pytest.approx((2.9626,), abs=1e-4)
    assert (alone.crossed, alone.p_value, alone.ci_low) == (None, None, None)
    reading = planned_reading([blind, *looks((1.0,), (2.1,))])
    assert reading.crossed == 1  # the second look is number 1 of its own here
    assert reading.p_value == pytest.approx(0.0365, abs=1e-3)


def test_information_that_falls_is_refused() -> None:
    with pytest.raises(ValueError, match="information rises"):
        planned_reading(looks((0.5, 0.4), (1.0, 1.0)))
    with pytest.raises(ValueError, match="information rises"):
        planned_reading(looks((0.5, 1.1), (1.0, 1.0)))
    with pytest.raises(ValueError, match="strictly between"):
        planned_reading(looks((0.5,), (1.0,)), alpha=1.0)


def test_no_look_is_no_reading() -> None:
    assert planned_reading([]) == PlannedReading()


def test_a_reading_survives_json() -> None:
    reading = planned_reading(looks(FIVE, (1.0, 2.0, 3.0, 2.0, 1.0)))
    assert msgspec.json.decode(msgspec.json.encode(reading), type=PlannedReading) == reading


def test_a_report_of_many_comparisons_is_quick() -> None:
    rng = np.random.default_rng(3)
    comparisons = [looks(FIVE, tuple(rng.normal(0, 2, 5).tolist())) for _ in range(64)]
    planned_reading(comparisons[0][:1])  # what scipy does once
    begun = time.process_time()
    for comparison in comparisons:
        planned_reading(comparison)
    assert time.process_time() - begun < 0.3  # 0.06 s on an idle machine


def test_five_looks_keep_alpha_and_most_of_the_power() -> None:
    runs = 40_000
    rng = np.random.default_rng(5)
    heights = np.array(boundaries(FIVE, 0.05))
    steps = rng.standard_normal((runs, 5)) * math.sqrt(0.2)
    times = np.array(FIVE)

    def z(drift: float) -> NDArray[np.float64]:
        walk: NDArray[np.float64] = np.cumsum(steps, axis=1) + drift * times
        walk /= np.sqrt(times)
        return walk

    false = (np.abs(z(0.0)) >= heights).any(axis=1).mean()
    naive = (np.abs(z(0.0)) >= 1.96).any(axis=1).mean()
    assert 0.045 < false <= at_most(0.05, runs)
    assert naive > 0.13  # 14.2 % (Armitage, McPherson, Rowe 1969)
    drift = 1.96 + 0.8416
    power = (np.abs(z(drift)) >= heights).any(axis=1).mean()
    assert 0.77 < power < 0.8


def moved_traffic(rng: np.random.Generator) -> list[Look]:
    """Two looks at a run in which nothing differs: after the first one the treatment's share falls
    from a half to 1 in 20, and the base rate falls, too."""
    even, skewed = (
        (proportion(n0, int(rng.binomial(n0, rate))), proportion(n1, int(rng.binomial(n1, rate))))
        for n0, n1, rate in ((4_500, 4_500, 0.3), (1_900, 100, 0.2))
    )
    return [
        look_at(compared(epochs, "proportion"), place, THEN, units, units / 11_000)
        for place, epochs, units in ((1, [even], 9_000), (2, [even, skewed], 11_000))
    ]


def test_looks_are_as_correlated_as_the_variance_behind_them_says() -> None:
    """And not as the share of the units would: a few units of a rare variant weigh much."""
    rng = np.random.default_rng(7)
    runs = [moved_traffic(rng) for _ in range(500)]
    first, last = (
        np.array([look.statistic or 0.0 for look in looks]) for looks in zip(*runs, strict=True)
    )
    clocks = np.array([[(look.units * (look.std_error or 0)) ** 2 for look in r] for r in runs])
    found = float(stats.pearsonr(first, last).statistic)
    expected = math.sqrt(float(np.mean(clocks[:, 0]) / np.mean(clocks[:, 1])))
    allowed = 3.5 * (1 - expected**2) / math.sqrt(len(runs))
    assert found == pytest.approx(expected, abs=allowed)
    assert math.sqrt(9 / 11) > expected + 2 * allowed
    assert planned_reading(runs[0]).boundaries == pytest.approx(
        boundaries((9 / 11, 1.0), 0.05, tuple(clocks[0].tolist()))
    )


def test_looks_keep_alpha_also_where_traffic_was_moved_between_them() -> None:
    runs, fractions, variance = 40_000, (0.9, 1.0), (0.25, 1.0)
    steps = np.random.default_rng(9).standard_normal((runs, 2)) * np.sqrt([0.25, 0.75])
    z = np.abs(np.cumsum(steps, axis=1) / np.sqrt(variance))
    false = (z >= np.array(boundaries(fractions, 0.05, variance))).any(axis=1).mean()
    by_units = (z >= np.array(boundaries(fractions, 0.05))).any(axis=1).mean()
    assert 0.045 < false <= at_most(0.05, runs)
    assert by_units > 0.065


def test_holm_over_sequential_p_values_keeps_the_family_wise_error_rate() -> None:
    """Three comparisons with one control, five looks at each; nothing differs in any of them."""
    runs, family = 3_000, 3
    rng = np.random.default_rng(11)
    steps = (rng.standard_normal((runs, family, 5)) + rng.standard_normal((runs, 1, 5))) / 2**0.5
    z = np.cumsum(steps, axis=2) / np.sqrt(np.arange(1, 6))
    wrong = naive = 0
    for run in np.abs(z).tolist():
        p_values = [sequential_p(tuple(sizes), FIVE) for sizes in run]
        wrong += any(p is not None and p <= 0.05 for p in holm(p_values))
        naive += min(p_values) <= 0.05
    assert wrong / runs <= at_most(0.05, runs)
    assert naive / runs > 0.08
