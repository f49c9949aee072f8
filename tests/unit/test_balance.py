"""Covariates of two variants, compared."""

import numpy as np
import pytest
from scipy.stats import ttest_ind
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.inference.balance import balance
from analysis.inference.moments import of_rows
from tests.unit.samples import at_most, contrast


def test_is_the_z_test_with_one_variance_in_one_epoch() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (500, 4)), rng.normal([0, 0, 0.1, 0.3], 2, (400, 4))
    sums = contrast([[of_rows(a), of_rows(b)]], "ratio")
    for place in (2, 3):
        found = balance(sums, "a", "b", place, 0.001)
        means = CompareMeans(DescrStatsW(b[:, place]), DescrStatsW(a[:, place]))
        statistic, p_value = means.ztest_ind(usevar="pooled")
        assert found is not None
        assert found.difference / found.std_error == pytest.approx(statistic)
        assert found.p_value == pytest.approx(p_value)
        assert found.p_anytime > found.p_value


def test_days_that_differ_are_no_imbalance_on_a_ramp() -> None:
    """On the second day all units have more of the covariate, and b has more of the units."""
    rng = np.random.default_rng(2)
    days = [(0.0, 900, 100), (1.0, 100, 900)]
    rows = [
        [np.stack([rng.normal(size=n), rng.normal(level, 1, n)], axis=1) for n in (a, b)]
        for level, a, b in days
    ]
    sums = contrast([[of_rows(arm) for arm in day] for day in rows], "mean")
    found = balance(sums, "a", "b", 1, 0.001)
    assert found is not None
    assert found.p_value > 0.01
    pooled = [np.concatenate([day[arm][:, 1] for day in rows]) for arm in (0, 1)]
    assert CompareMeans.from_data(*pooled).ztest_ind()[1] < 1e-50


def test_false_alarms_at_one_look() -> None:
    rng = np.random.default_rng(3)
    runs = 2_000
    alarms = 0
    for _ in range(runs):
        cells = [of_rows(rng.exponential(size=(300, 2))) for _ in "ab"]
        found = balance(contrast([cells], "mean"), "a", "b", 1, 0.001)
        alarms += found is not None and found.p_value < 0.05
    assert alarms / runs <= at_most(0.05, runs)


def test_false_alarms_of_a_skewed_covariate_where_one_variant_is_small() -> None:
    """Welch's test alarms more than twice as often as it says."""
    rng = np.random.default_rng(7)
    runs = 1_000
    alarms = naive = 0
    for _ in range(runs):
        before = rng.lognormal(0.0, 1.5, 2_000) * (rng.random(2_000) > 0.7)
        in_b = rng.random(2_000) < 0.1
        a, b = before[~in_b], before[in_b]
        cells = [of_rows(np.stack([np.zeros(len(arm)), arm], axis=1)) for arm in (a, b)]
        found = balance(contrast([cells], "mean"), "a", "b", 1, 0.001)
        assert found is not None
        alarms += found.p_value < 0.05
        naive += bool(ttest_ind(a, b, equal_var=False).pvalue < 0.05)
    assert alarms / runs <= at_most(0.05, runs)
    assert naive / runs > 0.1


def test_nothing_is_said_of_too_few_units_or_of_what_does_not_vary() -> None:
    rng = np.random.default_rng(4)
    few = [of_rows(rng.normal(size=(n, 2))) for n in (1_000, 99)]
    assert balance(contrast([few], "mean"), "a", "b", 1, 0.001) is None
    flat = [of_rows(np.stack([rng.normal(size=500), np.ones(500)], axis=1)) for _ in "ab"]
    assert balance(contrast([flat], "mean"), "a", "b", 1, 0.001) is None
    assert balance(contrast([], "mean"), "a", "b", 1, 0.001) is None
