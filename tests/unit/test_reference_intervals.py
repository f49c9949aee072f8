"""Intervals of lifts and quantiles against scipy and statsmodels, on the units themselves."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.inference.bins import bucket, edges
from analysis.inference.estimate import Comparison
from analysis.inference.moments import Moments
from analysis.inference.quantile import Bin, compare_quantiles, quantile
from tests.unit.samples import compared

seeds = st.integers(0, 2**32 - 1)


def histogram(values: np.typing.NDArray[np.float64]) -> tuple[Bin, ...]:
    numbers, counts = np.unique(bucket(values), return_counts=True)
    return tuple(
        Bin(*edges(number), n) for number, n in zip(numbers.tolist(), counts.tolist(), strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(
    seeds,
    st.integers(20, 500),
    st.floats(-50.0, 50.0).filter(lambda mean: abs(mean) > 1.0),
    st.floats(-30.0, 30.0),
)
def test_the_ends_of_a_lift_are_where_the_test_of_the_scaled_control_just_rejects(
    seed: int, n: int, mean: float, shift: float
) -> None:
    """At an end θ the treatment differs from (1 ± θ) times the control by exactly the critical
    value: Fieller's interval is the inversion of that test, which statsmodels makes on the rows."""
    rng = np.random.default_rng(seed)
    control, treatment = rng.normal(mean, 3.0, n), rng.normal(mean + shift, 5.0, n + 7)
    found: Comparison = compared([(Moments.of(control), Moments.of(treatment))], "mean")
    assume(found.lift_ci_low is not None)
    assert found.df is not None
    critical = stats.t.isf(0.025, found.df)
    sign = 1.0 if control.mean() > 0 else -1.0
    for end in (found.lift_ci_low, found.lift_ci_high):
        assert end is not None
        scaled = (1.0 + sign * end) * control
        test = CompareMeans(DescrStatsW(treatment), DescrStatsW(scaled))
        statistic, _, _ = test.ttest_ind(usevar="unequal")
        assert abs(statistic) == pytest.approx(critical, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(2_000, 20_000), st.sampled_from([0.1, 0.5, 0.9, 0.99]))
def test_the_interval_of_a_quantile_has_the_ranks_of_the_binomial(
    seed: int, n: int, level: float
) -> None:
    """The interval of Conover (1999), section 3.2, is exact; ours has the ranks of the normal
    approximation, and knows values to a bin of 2 %."""
    values = np.sort(np.random.default_rng(seed).lognormal(2.0, 0.7, n))
    found = quantile(histogram(values), level)
    low, high = np.asarray(stats.binom.ppf([0.025, 0.975], n, level)).astype(int).tolist()
    # A rank or two are the approximation's, and definitions of a quantile differ by one.
    for end, rank in ((found.value, round(n * level)), (found.ci_low, low), (found.ci_high, high)):
        assert end is not None
        assert 0.985 * values[rank - 4] <= end <= 1.015 * values[min(rank + 3, n - 1)]


def test_the_error_of_a_difference_of_quantiles_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(12)
    control, treatment = rng.lognormal(2.0, 0.7, 4_000), rng.lognormal(2.1, 0.6, 3_000)
    for level in (0.5, 0.9):
        found = compare_quantiles(histogram(control), histogram(treatment), level, 1)

        def difference(
            x: np.typing.NDArray[np.float64],
            y: np.typing.NDArray[np.float64],
            axis: int,
            level: float = level,
        ) -> np.typing.NDArray[np.float64]:
            return np.quantile(x, level, axis=axis) - np.quantile(y, level, axis=axis)

        drawn = stats.bootstrap(
            (treatment, control), difference, n_resamples=600, method="basic", rng=rng
        )
        assert found.std_error == pytest.approx(drawn.standard_error, rel=0.15)
        assert found.difference == pytest.approx(
            np.quantile(treatment, level) - np.quantile(control, level),
            abs=0.02 * np.quantile(control, level),
        )
