"""Estimates against tea-tasting, which was written by others from the same formulas.

Hypothesis draws sizes, levels, spreads and the seed of the units. Where tea-tasting does otherwise
on purpose the tests say so: it takes the slope of a covariate from all units together, between the
variants too, where ours is that within them; and its interval of a lift is that of logarithms.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tea_tasting as tt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tea_tasting.aggr import Aggregates

from analysis.inference.estimate import Comparison
from analysis.inference.kinds import Kind
from analysis.inference.moments import of_rows
from analysis.inference.multiplicity import benjamini_hochberg, holm
from analysis.inference.ratio_check import check_ratio, of_units
from tests.unit.samples import compared, proportion

Rows = NDArray[np.float64]

sizes = st.integers(100, 3_000)
seeds = st.integers(0, 2**32 - 1)


def aggregates(rows: Rows) -> Aggregates:
    """What tea-tasting reads of units with the numbers x0, x1 and so on."""
    names = [f"x{place}" for place in range(rows.shape[1])]
    covariance = np.atleast_2d(np.cov(rows.T))
    return Aggregates(
        count_=len(rows),
        mean_=dict(zip(names, rows.mean(axis=0).tolist(), strict=True)),
        var_=dict(zip(names, np.diag(covariance).tolist(), strict=True)),
        cov_={
            (names[i], names[j]): float(covariance[i, j])
            for i in range(len(names))
            for j in range(i)
        },
    )


def ours(control: Rows, treatment: Rows, kind: Kind) -> Comparison:
    return compared([(of_rows(control), of_rows(treatment))], kind)


def units(seed: int, n: int, d: int, level: float, lift: float) -> tuple[Rows, Rows]:
    """Positive skewed numbers of units that share a cause, of the control and of a treatment."""
    rng = np.random.default_rng(seed)

    def arm(size: int, factor: float) -> Rows:
        cause = rng.lognormal(0.0, 0.6, (size, 1))
        rows: Rows = level * cause * rng.lognormal(0.0, 0.3, (size, d))
        rows[:, 0] *= factor
        if d == 4:  # what a unit's ratio owes to the unit is there before, too
            rows[:, [0, 2]] *= rng.lognormal(0.0, 0.6, (size, 1))
        return rows

    return arm(n, 1.0), arm(n + n // 3, 1.0 + lift)


def assert_the_same(found: Comparison, expected: Any, rel: float = 1e-9) -> None:
    """Means, difference, interval and p-value."""
    assert found.mean_control == pytest.approx(expected.control, rel=rel)
    assert found.mean_treatment == pytest.approx(expected.treatment, rel=rel)
    assert found.std_error is not None
    near = rel * found.std_error
    assert found.difference == pytest.approx(expected.effect_size, rel=rel, abs=near)
    assert found.ci_low == pytest.approx(expected.effect_size_ci_lower, rel=rel, abs=near)
    assert found.ci_high == pytest.approx(expected.effect_size_ci_upper, rel=rel, abs=near)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-5, abs=1e-300)


@settings(deadline=None)
@given(seeds, sizes, st.floats(0.01, 1e6), st.floats(-0.2, 0.2))
def test_a_mean(seed: int, n: int, level: float, lift: float) -> None:
    control, treatment = units(seed, n, 1, level, lift)
    expected = tt.Mean("x0").analyze_aggregates(aggregates(control), aggregates(treatment))
    found = ours(control, treatment, "mean")
    assert_the_same(found, expected)
    assert found.lift == pytest.approx(expected.rel_effect_size, rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(seeds, sizes, st.floats(0.01, 1e6), st.floats(-0.2, 0.2))
def test_a_ratio(seed: int, n: int, level: float, lift: float) -> None:
    control, treatment = units(seed, n, 2, level, lift)
    metric = tt.RatioOfMeans("x0", "x1")
    expected = metric.analyze_aggregates(aggregates(control), aggregates(treatment))
    assert_the_same(ours(control, treatment, "ratio"), expected)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1_000, 5_000), st.floats(0.01, 1e6), st.floats(-0.05, 0.05))
def test_an_adjusted_mean(seed: int, n: int, level: float, lift: float) -> None:
    control, treatment = units(seed, n, 2, level, lift)
    metric = tt.Mean("x0", covariate="x1")
    expected = metric.analyze_aggregates(aggregates(control), aggregates(treatment))
    assert_nearly_the_same(ours(control, treatment, "mean"), expected)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1_000, 5_000), st.floats(0.01, 1e6), st.floats(-0.05, 0.05))
def test_an_adjusted_ratio(seed: int, n: int, level: float, lift: float) -> None:
    control, treatment = units(seed, n, 4, level, lift)
    metric = tt.RatioOfMeans("x0", "x1", "x2", "x3")
    expected = metric.analyze_aggregates(aggregates(control), aggregates(treatment))
    assert_nearly_the_same(ours(control, treatment, "ratio"), expected)


def assert_nearly_the_same(found: Comparison, expected: Any) -> None:
    """But for the slope, whose error is of the order of 1/√n and moves the difference by as little
    of a standard error."""
    assert found.std_error is not None
    assert found.difference == pytest.approx(expected.effect_size, abs=0.1 * found.std_error)
    width = expected.effect_size_ci_upper - expected.effect_size_ci_lower
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_high - found.ci_low == pytest.approx(width, rel=0.01)
    unadjusted = found.variance_reduction
    assert unadjusted is not None
    assert unadjusted > 0.3


@settings(deadline=None)
@given(
    st.integers(500, 10**6),
    st.integers(500, 10**6),
    st.floats(0.05, 0.95),
    st.floats(0.05, 0.95),
)
def test_a_proportion(n0: int, n1: int, rate_0: float, rate_1: float) -> None:
    x0, x1 = round(n0 * rate_0), round(n1 * rate_1)
    metric = tt.Proportion("x0", method="norm", equal_var=False, correction=False)
    expected = metric.analyze_aggregates(
        Aggregates(n0, {"x0": x0 / n0}), Aggregates(n1, {"x0": x1 / n1})
    )
    assert_the_same(compared([(proportion(n0, x0), proportion(n1, x1))], "proportion"), expected)


@settings(deadline=None, max_examples=50)
@given(st.integers(5, 400), st.integers(5, 400), st.integers(0, 9), st.integers(0, 9))
def test_a_proportion_of_tiny_counts(n0: int, n1: int, x0: int, x1: int) -> None:
    assume(x0 <= n0 and x1 <= n1)
    metric = tt.Proportion("x0", method="fisher")
    expected = metric.analyze_aggregates(
        Aggregates(n0, {"x0": x0 / n0}), Aggregates(n1, {"x0": x1 / n1})
    )
    found = compared([(proportion(n0, x0), proportion(n1, x1))], "proportion")
    assert found.test == "fisher"
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(0.1, 1e3), st.floats(-0.2, 0.2))
def test_the_interval_of_a_lift_agrees_in_large_samples(
    seed: int, level: float, lift: float
) -> None:
    """Up to the square of the relative error of the control mean."""
    control, treatment = units(seed, 30_000, 1, level, lift)
    expected = tt.Mean("x0").analyze_aggregates(aggregates(control), aggregates(treatment))
    found = ours(control, treatment, "mean")
    width = expected.rel_effect_size_ci_upper - expected.rel_effect_size_ci_lower
    assert found.lift_ci_low == pytest.approx(expected.rel_effect_size_ci_lower, abs=0.02 * width)
    assert found.lift_ci_high == pytest.approx(expected.rel_effect_size_ci_upper, abs=0.02 * width)


def test_a_lift_over_a_negative_mean_keeps_its_sign_where_tea_tastings_turns_round() -> None:
    control, treatment = units(1, 1_000, 1, 10.0, 0.5)
    control, treatment = -treatment, -control  # from about -16 to -11: more
    expected = tt.Mean("x0").analyze_aggregates(aggregates(control), aggregates(treatment))
    found = ours(control, treatment, "mean")
    assert found.difference == pytest.approx(expected.effect_size)
    assert found.difference is not None
    assert found.difference > 0
    assert found.lift is not None
    assert found.lift_ci_low is not None
    assert found.lift_ci_high is not None
    assert 0 < found.lift_ci_low < found.lift < found.lift_ci_high
    assert expected.rel_effect_size == pytest.approx(-found.lift)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0.1, 10.0))
def test_the_sample_ratio(n0: int, n1: int, ratio: float) -> None:
    share = ratio / (1.0 + ratio)
    assume(min(share, 1 - share) * (n0 + n1) >= 5)
    found = check_ratio(of_units({"a": n0, "b": n1}, {}, {"a": 1 - share, "b": share}))
    metric = tt.SampleRatio(ratio, method="norm", correction=False)
    data: Any = {"a": Aggregates(n0), "b": Aggregates(n1)}
    expected = metric.analyze(data, control="a", treatment="b", variant="variant")
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-300)


def test_corrections_over_a_family_of_metrics() -> None:
    rng = np.random.default_rng(6)
    arm = rng.integers(0, 2, 2_000)
    table = {"variant": arm} | {f"m{k}": rng.normal(0.03 * k * arm, 1.0) for k in range(6)}
    experiment = tt.Experiment({f"m{k}": tt.Mean(f"m{k}") for k in range(6)})
    result = experiment.analyze(pa.table(table), control=0)
    raw = [result[f"m{k}"].pvalue for k in range(6)]
    holms = tt.adjust_fwer(result, arbitrary_dependence=True, method="bonferroni").to_dicts()
    assert holm(raw) == pytest.approx([row["pvalue_adj"] for row in holms], rel=1e-9)
    discoveries = tt.adjust_fdr(result).to_dicts()
    assert benjamini_hochberg(raw) == pytest.approx(
        [row["pvalue_adj"] for row in discoveries], rel=1e-9
    )
