import math

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
)
from statsmodels.stats.proportion import (
    test_proportions_2indep as compare_with_statsmodels,
)
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.inference.epoch_sums import PRIOR_UNITS
from analysis.inference.estimate import Comparison, fieller, possible_lift
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.variance import ArmVariance, weighted_mean_variance
from tests.unit.samples import compared, contrast, proportion

NUMBERS = [
    "std_error",
    "statistic",
    "ci_low",
    "ci_high",
    "p_value",
    "log10_p_value",
    "lift_ci_low",
    "lift_ci_high",
]


def one_epoch(control: Moments, treatment: Moments) -> list[tuple[Moments, Moments]]:
    return [(control, treatment)]


def interval(result: Comparison) -> tuple[float, float]:
    assert result.ci_low is not None
    assert result.ci_high is not None
    return result.ci_low, result.ci_high


def assert_is_json(result: Comparison) -> None:
    """Every number is finite: msgspec would write NaN and infinity as null and lose them."""
    for value in msgspec.structs.asdict(result).values():
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize(
    ("control", "treatment", "difference", "low", "high", "p_value"),
    [
        ((10_000, 46), (10_000, 69), 0.0023, 0.0002, 0.0044, 0.0315),
        ((10_000, 38), (10_000, 42), 0.0004, -0.00135, 0.00215, 0.654),
        ((10_000, 46), (10_000, 46), 0.0, -0.0019, 0.0019, 1.0),
        # The test of the reference table pools the rates (p = 3e-90); ours has the interval's SE.
        ((2_814, 1_562), (2_779, 803), -0.266, -0.291, -0.241, 2.934e-97),
    ],
)
def test_the_reference_table(
    control: tuple[int, int],
    treatment: tuple[int, int],
    difference: float,
    low: float,
    high: float,
    p_value: float,
) -> None:
    result = compared(one_epoch(proportion(*control), proportion(*treatment)), "proportion")
    assert result.difference == pytest.approx(difference, abs=5e-4)
    assert interval(result) == pytest.approx(
        (low, high), abs=5e-4 if abs(difference) > 0.1 else 5e-5
    )
    assert result.p_value == pytest.approx(p_value, rel=2e-3)


counts = st.integers(20, 10**6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@given(counts, counts, st.sampled_from([0.01, 0.05, 0.2]))
def test_proportions_are_statsmodels_wald(
    control: tuple[int, int], treatment: tuple[int, int], alpha: float
) -> None:
    (n0, x0), (n1, x1) = control, treatment
    assume(min(x0, n0 - x0, x1, n1 - x1) >= 10)
    result = compared(one_epoch(proportion(n0, x0), proportion(n1, x1)), "proportion", alpha)
    low, high = confint_proportions_2indep(x1, n1, x0, n0, method="wald", alpha=alpha)
    assert interval(result) == pytest.approx((low, high), rel=1e-9, abs=1e-12)
    with np.errstate(divide="ignore"):  # statsmodels also works out odds ratios, not used here
        expected = compare_with_statsmodels(x1, n1, x0, n0, method="wald")
    assert result.statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-300)
    assert result.df is None
    assert_is_json(result)


scores = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)


@given(scores, scores)
def test_means_are_welch(control: list[float], treatment: list[float]) -> None:
    assume(min(np.var(control), np.var(treatment)) > 1e-6)
    result = compared(one_epoch(Moments.of(control), Moments.of(treatment)), "mean")
    expected = stats.ttest_ind(treatment, control, equal_var=False)
    assert result.statistic == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert result.df == pytest.approx(expected.df, rel=1e-6)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    ours = CompareMeans(DescrStatsW(treatment), DescrStatsW(control))
    low, high = ours.tconfint_diff(usevar="unequal")
    assert interval(result) == pytest.approx((low, high), rel=1e-6, abs=1e-6)
    assert result.mean_treatment is not None
    assert result.mean_control is not None
    assert result.difference == result.mean_treatment - result.mean_control
    assert_is_json(result)


@given(
    st.floats(-10.0, 10.0).filter(lambda m: abs(m) > 0.01),
    st.floats(-10.0, 10.0),
    st.floats(1e-4, 4.0),
    st.floats(1e-4, 4.0),
)
def test_fieller_solves_its_equation(m0: float, d: float, v0: float, v1: float) -> None:
    c = 1.96
    found = fieller(m0, d, v0, v1, c)
    if m0 * m0 <= c * c * v0:
        assert (found.ci_low, found.ci_high) == (None, None)
        assert found.note == "lift_interval_unbounded"
        return
    assert found.lift is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low <= found.lift <= found.ci_high
    assert (found.ci_low > 0 or found.ci_high < 0) == (abs(d) - c * math.sqrt(v0 + v1) > 0)
    for lift in (found.ci_low, found.ci_high):
        ratio = 1.0 + lift if m0 > 0 else 1.0 - lift
        left = (m0 + d - ratio * m0) ** 2
        right = c * c * (v1 + ratio * ratio * v0)
        assert left == pytest.approx(right, rel=1e-6)


def test_fieller_by_root_finding() -> None:
    """Against a search for the two ratios at which the test of m1 = ρ m0 just rejects."""
    m0, m1, v0, v1, c = 2.0, 2.6, 0.04, 0.09, 1.96

    def edge(rho: float) -> float:
        return (m1 - rho * m0) ** 2 - c * c * (v1 + rho * rho * v0)

    low, high = optimize.brentq(edge, 0.0, 1.3), optimize.brentq(edge, 1.3, 5.0)
    found = fieller(m0, m1 - m0, v0, v1, c)
    assert (found.ci_low, found.ci_high) == pytest.approx((low - 1.0, high - 1.0))


@given(scores, scores)
def test_a_negative_control_mean_mirrors_the_lift(a: list[float], b: list[float]) -> None:
    assume(np.var(a) + np.var(b) > 1e-6)
    plus = compared(one_epoch(Moments.of(a), Moments.of(b)), "mean")
    minus = compared(one_epoch(Moments.of([-x for x in a]), Moments.of([-x for x in b])), "mean")
    assert plus.notes == minus.notes
    if plus.lift is not None and minus.lift is not None:
        assert minus.lift == pytest.approx(-plus.lift)
        assert (minus.difference or 0.0) * minus.lift >= 0.0  # a rise is a positive lift
    if plus.lift_ci_low is not None and plus.lift_ci_high is not None:
        assert minus.lift_ci_high == pytest.approx(-plus.lift_ci_low)
        assert minus.lift_ci_low == pytest.approx(-plus.lift_ci_high)


@pytest.mark.parametrize(
    ("control", "treatment", "notes"),
    [
        (EMPTY, EMPTY, ("no_common_epoch",)),
        (proportion(50, 5), EMPTY, ("no_common_epoch",)),
    ],
)
def test_what_is_not_defined_is_none(
    control: Moments, treatment: Moments, notes: tuple[str, ...]
) -> None:
    result = compared(one_epoch(control, treatment), "proportion")
    assert result.notes == notes
    assert all(getattr(result, name) is None for name in NUMBERS)
    assert_is_json(result)


def test_means_without_spread_or_units() -> None:
    constant = Moments.of([2.0, 2.0, 2.0])
    assert compared(one_epoch(constant, constant), "mean").notes == ("zero_variance",)
    one = compared(one_epoch(Moments.of([1.0]), constant), "mean")
    assert one.notes == ("too_few_units",)
    assert (one.difference, one.lift, one.p_value) == (1.0, 1.0, None)
    half = compared(one_epoch(constant, Moments.of([1.0, 4.0])), "mean")
    assert half.p_value is not None  # spread in one arm is enough
    assert half.df == pytest.approx(1.0)
    zero = compared(one_epoch(Moments.of([-1.0, 1.0]), Moments.of([1.0, 4.0])), "mean")
    assert (zero.lift, zero.notes) == (None, ("zero_control_mean",))
    assert zero.p_value is not None
    tiny = compared(one_epoch(Moments.of([5e-324, 5e-324]), Moments.of([1.0, 4.0])), "mean")
    assert (tiny.lift, tiny.notes) == (None, ("zero_control_mean",))


def test_a_lift_beyond_floats_is_unbounded() -> None:
    tiny = Moments.of([0.0, 3.642342869103253e-237])
    result = compared(one_epoch(tiny, Moments.of([0.0, 1.0])), "mean")
    assert result.lift is not None
    assert (result.lift_ci_low, result.lift_ci_high) == (None, None)
    assert result.notes == ("lift_interval_unbounded",)
    assert_is_json(result)


def test_a_billion_units_and_a_p_value_below_floats() -> None:
    n = 10**9
    result = compared(one_epoch(proportion(n, n // 1000), proportion(n, n // 500)), "proportion")
    assert result.p_value is not None
    assert 0.0 < result.p_value < 1e-300
    assert result.log10_p_value == pytest.approx(-72506.1, abs=0.1)
    assert result.notes == ()
    assert_is_json(result)


def test_epochs_with_one_arm_are_left_out_and_counted() -> None:
    strata = [
        (proportion(100, 30), EMPTY),
        (proportion(200, 20), proportion(100, 15)),
        (EMPTY, EMPTY),
    ]
    result = compared(strata, "proportion")
    assert (result.epochs_used, result.epochs_left_out, result.units_left_out) == (1, 1, 100)
    assert (result.n_control, result.n_treatment) == (200, 100)
    alone = compared(strata[1:2], "proportion")
    assert (result.difference, result.p_value) == (alone.difference, alone.p_value)


def test_weights_are_the_units_of_the_epoch() -> None:
    strata = [
        (proportion(100, 10), proportion(100, 20)),
        (proportion(300, 90), proportion(100, 60)),
    ]
    assert compared(strata, "proportion").difference == pytest.approx(0.1 / 3 + 0.3 * 2 / 3)
    thirds = (proportion(700, 0), proportion(200, 0))
    of_all = [(*stratum, third) for stratum, third in zip(strata, thirds, strict=True)]
    assert compared(of_all, "proportion").difference == pytest.approx(0.1 * 0.6 + 0.3 * 0.4)


def test_what_is_refused() -> None:
    cell = proportion(10, 3)
    with pytest.raises(ValueError, match="alpha"):
        compared(one_epoch(cell, cell), "proportion", alpha=1.0)
    with pytest.raises(ValueError, match="not a proportion"):
        compared(one_epoch(Moments.of([0.5, 0.7]), cell), "proportion")


def arm_variance(*epochs: Moments) -> ArmVariance | None:
    """The variance of the mean of one arm over epochs of the same weight."""
    most = max(cell.n for cell in epochs)
    balanced = [(cell, proportion(most + 1 - cell.n, 0)) for cell in epochs]
    return weighted_mean_variance(contrast(balanced, "mean"), "a", "mean")


def test_the_variance_of_an_epoch_borrows_from_the_others() -> None:
    big, small = Moments.of([1.0, 3.0] * 500), Moments.of([2.0])
    pooled = big.variance  # a single unit adds nothing to it
    found = arm_variance(big, small)
    assert found is not None
    assert pooled is not None
    assert found.variance == pytest.approx(0.25 * pooled / 1000 + 0.25 * pooled / 1)
    # Nearly all of it hangs on one unit, whose variance rests on the big epoch's 999 degrees.
    assert found.df == pytest.approx(999.0, rel=0.01)
    own = arm_variance(big, Moments.of([0.0, 10.0]))
    assert own is not None
    shrunk = (50.0 + PRIOR_UNITS * 1050 / 1000) / (1 + PRIOR_UNITS)
    assert own.variance == pytest.approx(0.25 * 1.0 / 1000 + 0.25 * shrunk / 2, rel=0.01)
    assert arm_variance(small, small) is None
    flat = arm_variance(small, Moments.of([2.0, 2.0]))
    assert flat is not None
    assert flat.variance == 0.0


def test_no_rate_is_believed_to_fall_by_more_than_all_of_it() -> None:
    assert possible_lift(-1.158, -0.31, "proportion") == -1.0
    assert possible_lift(-0.5, -0.31, "proportion") == -0.5
    assert possible_lift(-1.158, -1.05, "proportion") == -1.05
    assert possible_lift(-1.158, -0.31, "mean") == -1.158
    assert possible_lift(None, -0.31, "proportion") is None
