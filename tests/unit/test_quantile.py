"""Quantiles of histograms against those of the values themselves."""

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis.inference.bins import ACCURACY, bucket, edges
from analysis.inference.estimate import lift_of_limits
from analysis.inference.mover import Limits
from analysis.inference.quantile import (
    Bin,
    Histogram,
    compare_quantiles,
    quantile,
    quantile_sequence,
)
from analysis.inference.sequence import boundary
from tests.unit.samples import at_most

Values = NDArray[np.float64]


def histogram(values: Values) -> Histogram:
    """The histogram that folding would keep of these values."""
    buckets, counts = np.unique(bucket(values), return_counts=True)
    return tuple(
        Bin(*edges(number), n) for number, n in zip(buckets.tolist(), counts.tolist(), strict=True)
    )


@given(
    st.lists(st.just(0.0) | st.floats(1e-9, 1e9) | st.floats(-1e9, -1e-9), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
)
def test_a_quantile_is_known_to_the_width_of_a_bucket(values: list[float], level: float) -> None:
    found = quantile(histogram(np.array(values)), level)
    assert found.n == len(values)
    assert found.value is not None
    exact = float(np.quantile(values, level, method="inverted_cdf"))
    assert found.value == pytest.approx(exact, rel=2.1 * ACCURACY)


def test_the_interval_is_that_of_order_statistics() -> None:
    rng = np.random.default_rng(51)
    values = rng.lognormal(3.0, 1.0, 20_000)
    found = quantile(histogram(values), 0.9, alpha=0.1)
    h = stats.norm.isf(0.05) * math.sqrt(0.09 / 20_000)
    ends = np.quantile(values, [0.9 - h, 0.9 + h])
    assert found.ci_low == pytest.approx(ends[0], rel=0.005)
    assert found.ci_high == pytest.approx(ends[1], rel=0.005)
    draws = np.quantile(rng.choice(values, (400, 20_000)), 0.9, axis=1)
    assert found.std_error == pytest.approx(draws.std(), rel=0.15)


@pytest.mark.parametrize(
    ("level", "n", "defined"),
    # n must exceed z² ν/(1-ν) = 34.6 or its mirror.
    [(0.9, 34, False), (0.9, 35, True), (0.1, 34, False), (0.1, 35, True), (0.5, 4, True)],
)
def test_too_few_units_have_no_interval(level: float, n: int, defined: bool) -> None:
    found = quantile(histogram(np.linspace(1.0, 2.0, n)), level)
    assert (found.ci_low is not None, found.std_error is not None) == (defined, defined)
    assert found.value is not None


def test_each_side_of_a_difference_is_made_of_the_sides_that_belong_to_it() -> None:
    rng = np.random.default_rng(52)
    control, treatment = (histogram(rng.lognormal(m, 0.9, n)) for m, n in ((1, 3_000), (1.1, 500)))
    result = compare_quantiles(control, treatment, 0.9, epochs=2)
    (low_0, value_0, high_0), (low_1, value_1, high_1) = (
        (found.ci_low or 0.0, found.value or 0.0, found.ci_high or 0.0)
        for found in (quantile(h, 0.9) for h in (control, treatment))
    )
    d = value_1 - value_0
    below, above = (
        math.hypot(value_1 - low_1, high_0 - value_0),
        math.hypot(high_1 - value_1, value_0 - low_0),
    )
    assert (result.mean_control, result.mean_treatment) == (value_0, value_1)
    assert (result.ci_low, result.ci_high) == pytest.approx((d - below, d + above))
    assert result.std_error == pytest.approx(max(below, above) / stats.norm.isf(0.025))
    assert (result.n_control, result.n_treatment, result.epochs_used) == (3_000, 500, 2)
    # MOVER-R: q1 - r q0 is as far from 0 as the sides that belong to it.
    for end, sides in (
        (result.lift_ci_low, (value_1 - low_1, high_0 - value_0)),
        (result.lift_ci_high, (high_1 - value_1, value_0 - low_0)),
    ):
        assert end is not None
        away = abs(value_1 - (1 + end) * value_0)
        assert away == pytest.approx(math.hypot(sides[0], (1 + end) * sides[1]))


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
@pytest.mark.parametrize(
    ("mean_control", "mean_treatment"), [(5.0, 6.0), (-5.0, -6.0), (3.0, -4.0)]
)
def test_a_lift_is_that_of_any_unit_and_any_sign(
    mean_control: float, mean_treatment: float, scale: float
) -> None:
    """MOVER-R: q1 - r q0 is as far from 0 as the sides that belong to it."""
    control = Limits(mean_control * scale, 0.4 * scale, 0.9 * scale)
    treatment = Limits(mean_treatment * scale, 0.3 * scale, 0.8 * scale)
    found = lift_of_limits(control, treatment)
    sign = math.copysign(1.0, mean_control)
    for end, up in ((found.ci_low, 1), (found.ci_high, -1)):
        assert end is not None
        ratio = 1 + sign * end
        form = (mean_treatment - ratio * mean_control) * up
        own = 0.3 if up > 0 else 0.8
        other = 0.9 if (up > 0) == (ratio > 0) else 0.4
        assert form == pytest.approx(math.hypot(own, ratio * other))


def heaps(rng: np.random.Generator, n: int, share: float = 0.5) -> Values:
    """Values in two heaps, as of a cache that is hit or missed; the first has this share."""
    low, high = rng.lognormal(0.0, 0.02, n), rng.lognormal(3.0, 0.02, n)
    return np.where(rng.random(n) < share, low, high)


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.3, 0.5, 0.9]),
    st.floats(-0.5, 0.5),
    st.sampled_from([0.001, 0.05, 0.2]),
)
def test_p_interval_and_lift_say_the_same_of_no_difference(
    seed: int, level: float, shift: float, alpha: float
) -> None:
    rng = np.random.default_rng(seed)
    draw = heaps if seed % 2 else (lambda rng, n: rng.lognormal(2.0, 1.0, n))
    control = histogram(draw(rng, 700))
    treatment = histogram(draw(rng, 400) * math.exp(shift))
    found = compare_quantiles(control, treatment, level, 1, alpha)
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.p_value is not None
    assert found.difference is not None
    assert found.statistic is not None
    assert found.ci_low <= found.difference <= found.ci_high
    assert found.statistic * found.difference >= 0
    assert (found.ci_low > 0 or found.ci_high < 0) == (found.p_value <= alpha)
    if found.lift_ci_low is not None:
        assert (found.lift_ci_low > 0 or (found.lift_ci_high or 0) < 0) == (found.p_value <= alpha)
    reading = quantile_sequence(control, treatment, level, alpha)
    if reading.valid:
        assert reading.ci_low is not None
        assert reading.ci_high is not None
        assert reading.log_e is not None
        excluded = reading.ci_low > 0 or reading.ci_high < 0
        assert excluded == (reading.log_e >= -math.log(alpha))


def test_the_sequence_is_the_interval_at_its_boundary() -> None:
    rng = np.random.default_rng(53)
    control, treatment = (
        histogram(rng.lognormal(1, 0.5, 3_000)),
        histogram(rng.lognormal(1, 1, 900)),
    )
    reading = quantile_sequence(control, treatment, 0.75, 0.05, 8_000)
    alpha = 2 * stats.norm.sf(boundary(3_900, 0.05, 8_000))
    fixed = compare_quantiles(control, treatment, 0.75, 1, alpha)
    assert (reading.ci_low, reading.ci_high) == pytest.approx((fixed.ci_low, fixed.ci_high))


def test_evidence_goes_no_further_than_the_ranks_do() -> None:
    few = compare_quantiles(histogram(np.full(25, 1.0)), histogram(np.full(25, 1e6)), 0.5, epochs=1)
    many = compare_quantiles((Bin(1.0, 2.0, 10**9),), (Bin(1.1, 2.1, 10**9),), 0.5, epochs=1)
    assert few.statistic == pytest.approx(5.0)
    assert many.p_value is not None
    assert many.log10_p_value is not None
    assert 0.0 < many.p_value < 1e-300
    assert many.log10_p_value < -1e6


def test_what_is_not_defined_is_none() -> None:
    some = histogram(np.linspace(1.0, 2.0, 300))
    zeros = histogram(np.zeros(300))
    cases = {
        (): ("too_few_units",),
        histogram(np.array([0.0])): ("too_few_units", "zero_control_mean"),
        zeros: ("zero_variance", "zero_control_mean"),
    }
    for control, notes in cases.items():
        for treatment in (some, zeros):
            result = compare_quantiles(control, treatment, 0.5, epochs=1)
            values = msgspec.structs.asdict(result).values()
            assert all(math.isfinite(value) for value in values if isinstance(value, float))
        assert compare_quantiles(control, zeros, 0.5, epochs=1).notes == notes
    for control, level in (((), 0.5), (histogram(np.ones(99)), 0.5), (some, 0.99)):
        assert not quantile_sequence(control, some, level).valid
    assert not quantile_sequence(zeros, zeros, 0.5).valid
    assert quantile_sequence(zeros, some, 0.5).valid


# Calibration


def test_the_interval_of_one_variant_covers_its_quantile() -> None:
    rng = np.random.default_rng(58)
    truth = float(stats.lognorm.ppf(0.9, 1.0, scale=math.exp(3.0)))
    runs, missed = 1_000, 0
    for _ in range(runs):
        found = quantile(histogram(rng.lognormal(3.0, 1.0, 500)), 0.9)
        assert found.ci_low is not None
        assert found.ci_high is not None
        missed += not found.ci_low <= truth <= found.ci_high
    assert 0.03 < missed / runs <= at_most(0.05, runs)


def test_values_that_are_few_and_often_the_same_keep_the_level() -> None:
    """Whole numbers, each alone in its bucket, within which the values are taken to be spread."""
    rng = np.random.default_rng(55)
    runs, missed = 500, 0
    for _ in range(runs):
        control, treatment = (histogram(rng.poisson(8.0, n).astype(np.float64)) for n in (600, 600))
        result = compare_quantiles(control, treatment, 0.5, epochs=1)
        missed += result.p_value is not None and result.p_value < 0.05
    assert missed / runs <= at_most(0.05, runs)


def falsely_found(draw: Callable[[int], Values], level: float, runs: int) -> tuple[int, int]:
    """Differences found between equals, and how many a symmetric interval would have found."""
    found = naive = 0
    for _ in range(runs):
        control, treatment = histogram(draw(600)), histogram(draw(600))
        result = compare_quantiles(control, treatment, level, epochs=1)
        found += result.p_value is not None and result.p_value <= 0.05
        errors = [quantile(h, level).std_error or 0.0 for h in (control, treatment)]
        naive += abs(result.difference or 0.0) > 1.96 * math.hypot(*errors)
    return found, naive


@pytest.mark.parametrize(("share", "level"), [(0.5, 0.5), (0.9, 0.9)])
def test_values_in_two_heaps_keep_the_level(share: float, level: float) -> None:
    rng, runs = np.random.default_rng(56), 500
    found, naive = falsely_found(lambda n: heaps(rng, n, share), level, runs)
    assert found / runs <= at_most(0.05, runs)
    assert naive / runs > 0.2


@pytest.mark.parametrize(("share", "level"), [(0.5, 0.5), (0.9, 0.9)])
def test_values_in_two_heaps_may_be_watched(share: float, level: float) -> None:
    rng, runs, crossed = np.random.default_rng(57), 150, 0
    for _ in range(runs):
        control, treatment = heaps(rng, 3_000, share), heaps(rng, 3_000, share)
        crossed += any(
            (quantile_sequence(*so_far, level).log_e or 0.0) >= math.log(20)
            for n in np.geomspace(250, 3_000, 15).astype(int)
            for so_far in [(histogram(control[:n]), histogram(treatment[:n]))]
        )
    assert crossed / runs <= at_most(0.05, runs)
