"""Quantiles of histograms against those of the values themselves."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from analysis.inference.bins import ACCURACY, bucket, edges
from analysis.inference.quantile import (
    Bin,
    Histogram,
    cautious_quantile_error,
    compare_quantiles,
    quantile,
)
from analysis.inference.sequence import always_valid
from analysis.inference.variance import CAUTIOUS_UNITS
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


def test_a_comparison_adds_the_squares_of_both_errors() -> None:
    rng = np.random.default_rng(52)
    control, treatment = (histogram(rng.lognormal(m, 0.5, n)) for m, n in ((1, 3_000), (1.1, 500)))
    result = compare_quantiles(control, treatment, 0.75, epochs=2)
    one, other = (quantile(h, 0.75) for h in (control, treatment))
    assert one.std_error is not None
    assert other.std_error is not None
    assert result.std_error == math.hypot(one.std_error, other.std_error)
    assert (result.mean_control, result.mean_treatment) == (one.value, other.value)
    assert result.difference is not None
    assert result.p_value == pytest.approx(
        2 * stats.norm.sf(abs(result.difference) / result.std_error)
    )
    assert (result.n_control, result.n_treatment, result.epochs_used) == (3_000, 500, 2)
    larger = max(3_000 * one.std_error**2, 500 * other.std_error**2)
    cautious = sum(
        (n * n * error**2 + CAUTIOUS_UNITS * larger) / (n + CAUTIOUS_UNITS) / n
        for n, error in ((3_000, one.std_error), (500, other.std_error))
    )
    assert cautious_quantile_error(control, treatment, 0.75) == pytest.approx(math.sqrt(cautious))


def test_what_is_not_defined_is_none() -> None:
    some = histogram(np.linspace(1.0, 2.0, 100))
    zeros = histogram(np.zeros(100))
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
    assert cautious_quantile_error((), some, 0.5) is None


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


def false_positives(runs: int, level: float, seed: int) -> tuple[float, float]:
    """A/A of units with several alike values: (the units' means, all values as if independent)."""
    rng = np.random.default_rng(seed)
    missed = np.zeros(2)
    for _ in range(runs):
        arms = []
        for n in (1_200, 400):
            own = rng.lognormal(3.0, 0.6, (n, 1))
            arms.append(own * rng.lognormal(0.0, 0.3, (n, 5)))
        means: list[Values] = [a.mean(axis=1).astype(np.float64) for a in arms]
        for place, values in enumerate((means, [a.ravel() for a in arms])):
            control, treatment = map(histogram, values)
            p_value = compare_quantiles(control, treatment, level, epochs=1).p_value
            assert p_value is not None
            missed[place] += p_value < 0.05
    return missed[0] / runs, missed[1] / runs


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_a_a_keeps_its_level(level: float) -> None:
    runs = 1_000
    of_units, of_values = false_positives(runs, level, seed=53)
    assert of_units <= at_most(0.05, runs)
    assert of_values > 0.12


@pytest.mark.calibration
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_a_a_keeps_its_level_at_full_size(level: float) -> None:
    runs = 5_000
    of_units, _ = false_positives(runs, level, seed=54)
    assert of_units <= at_most(0.05, runs) + 0.005  # the error of a quantile is itself rough


def test_values_that_are_few_and_often_the_same_keep_the_level() -> None:
    """Whole numbers, each alone in its bucket, within which the values are taken to be spread."""
    rng = np.random.default_rng(55)
    runs, missed = 500, 0
    for _ in range(runs):
        control, treatment = (histogram(rng.poisson(8.0, n).astype(np.float64)) for n in (600, 600))
        result = compare_quantiles(control, treatment, 0.5, epochs=1)
        missed += result.p_value is not None and result.p_value < 0.05
    assert missed / runs <= at_most(0.05, runs)


def sequence_false_positives(runs: int, looks: int, seed: int) -> tuple[float, float]:
    """A/A on a 90 % quantile, read after every 300 units: (any-time, naive)."""
    rng = np.random.default_rng(seed)
    crossed = np.zeros(2)
    for _ in range(runs):
        values = rng.lognormal(3.0, 0.8, 300 * looks)
        treated = rng.random(300 * looks) < 0.3
        alarms = np.zeros(2, dtype=bool)
        for seen in range(600, 300 * looks + 1, 300):
            now, those = values[:seen], treated[:seen]
            pair = histogram(now[~those]), histogram(now[those])
            read = compare_quantiles(*pair, 0.9, epochs=1)
            error = cautious_quantile_error(*pair, 0.9)
            reading = always_valid(read.difference, error, read.n_control, read.n_treatment)
            alarms |= [(p is not None and p <= 0.05) for p in (reading.p_value, read.p_value)]
        crossed += alarms
    return crossed[0] / runs, crossed[1] / runs


def test_a_quantile_may_be_read_at_any_time() -> None:
    runs = 80
    sequence, naive = sequence_false_positives(runs, 15, seed=56)
    assert sequence <= at_most(0.05, runs)
    assert naive > 0.12


@pytest.mark.calibration
def test_a_quantile_may_be_read_at_any_time_at_full_size() -> None:
    runs = 1_000
    sequence, naive = sequence_false_positives(runs, 40, seed=57)
    assert sequence <= at_most(0.05, runs)
    assert naive > 0.25
