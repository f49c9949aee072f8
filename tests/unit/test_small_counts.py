import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep

from analysis.inference.estimate import Comparison, compare
from analysis.inference.small_counts import FISHER_UNITS, are_small, small_counts
from tests.unit.samples import at_most, compared, contrast, proportion

unhurried = settings(deadline=None)


def read(n0: int, x0: int, n1: int, x1: int, alpha: float = 0.05) -> Comparison:
    """A control with x0 of n0 and a treatment with x1 of n1, in one epoch."""
    return compared([(proportion(n0, x0), proportion(n1, x1))], "proportion", alpha)


def arms(most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Units, and those that converted."""
    return st.integers(1, most).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


few = arms(FISHER_UNITS // 2 - 1)
rare = st.integers(FISHER_UNITS, 10**9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 9)))


def excludes_zero(low: float | None, high: float | None, p: float, alpha: float) -> bool:
    """An end that is 0 belongs to an interval unless the test has rejected it."""
    assert low is not None
    assert high is not None
    return low > 0 or high < 0 or (p <= alpha and 0 in {low, high})


@unhurried
@given(few, few, st.sampled_from([0.01, 0.05, 0.2]))
def test_few_units_are_tested_by_fisher(
    control: tuple[int, int], treatment: tuple[int, int], alpha: float
) -> None:
    (n0, x0), (n1, x1) = control, treatment
    found = small_counts(n0, x0, n1, x1, alpha)
    p = stats.fisher_exact(np.array([[x1, n1 - x1], [x0, n0 - x0]])).pvalue
    assert found.test == "fisher"
    assert math.exp(found.log_p) == pytest.approx(p, rel=1e-6)
    assert found.statistic is None
    assert excludes_zero(found.ci_low, found.ci_high, p, alpha) == (p <= alpha)
    low, high = confint_proportions_2indep(x1, n1, x0, n0, method="agresti-caffo", alpha=alpha)
    assert found.ci_low == pytest.approx(max(low, -1)) or found.ci_low == 0
    assert found.ci_high == pytest.approx(min(high, 1)) or found.ci_high == 0


@unhurried
@given(rare, rare, st.sampled_from([0.01, 0.05, 0.2]))
def test_many_units_of_which_few_converted_are_read_by_agresti_and_caffo(
    control: tuple[int, int], treatment: tuple[int, int], alpha: float
) -> None:
    (n0, x0), (n1, x1) = control, treatment
    result = read(n0, x0, n1, x1, alpha)
    interval = confint_proportions_2indep(x1, n1, x0, n0, method="agresti-caffo", alpha=alpha)
    assert (result.ci_low, result.ci_high) == pytest.approx(interval, rel=1e-9, abs=1e-15)
    assert result.test == "agresti_caffo"
    assert result.p_value is not None
    assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(result.statistic or 0)))
    assert (interval[0] > 0 or interval[1] < 0) == (result.p_value <= alpha)


def test_counts_that_are_not_small_are_read_by_wald() -> None:
    result = read(40, 10, 40, 30)
    assert result.test == "wald"
    assert "small_counts" not in result.notes


@unhurried
@given(few, few)
def test_a_lift_agrees_with_its_difference(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    (n0, x0), (n1, x1) = control, treatment
    result = read(n0, x0, n1, x1)
    if not (are_small(n0, x0) or are_small(n1, x1)) or result.lift_ci_low is None:
        return
    assert result.p_value is not None
    assert result.lift_ci_high is not None
    assert -1 <= result.lift_ci_low <= result.lift_ci_high
    significant = result.p_value <= 0.05
    ends = (result.lift_ci_low, result.lift_ci_high)
    assert excludes_zero(*ends, result.p_value, 0.05) == significant


@pytest.mark.parametrize(
    ("counts", "p_value"),
    [
        ((1, 0, 1, 0), 1.0),
        ((1, 1, 1, 0), 1.0),
        ((50, 0, 50, 0), 1.0),
        ((50, 50, 50, 50), 1.0),
        ((3, 0, 3, 3), 0.1),
        ((10**9, 0, 10**9, 0), 1.0),
    ],
)
def test_all_or_none_converted_and_a_single_unit_have_an_interval(
    counts: tuple[int, int, int, int], p_value: float
) -> None:
    result = read(*counts)
    assert result.p_value == pytest.approx(p_value)
    assert result.ci_low is not None
    assert result.ci_high is not None
    assert -1 <= result.ci_low < result.ci_high <= 1
    assert result.notes[0] == "small_counts"


def test_a_lift_over_nothing_is_not_defined_though_its_difference_is() -> None:
    result = read(200, 0, 200, 8)
    assert result.p_value == pytest.approx(0.0072746, rel=1e-4)  # scipy.stats.fisher_exact
    assert (result.lift, result.lift_ci_low, result.lift_ci_high) == (None, None, None)
    assert result.notes == ("small_counts", "zero_control_mean")


def test_counts_are_never_pooled_over_epochs() -> None:
    epoch = (proportion(50, 2), proportion(50, 5))
    result = compared([epoch, epoch], "proportion")
    assert result.test == "score"
    assert "small_counts" in result.notes


ramp = st.lists(st.tuples(arms(60), arms(60)), min_size=2, max_size=4)


@unhurried
@given(ramp, st.sampled_from([0.01, 0.05, 0.2]))
def test_small_counts_of_a_ramp_are_tested_with_both_arms_together_in_each_epoch(
    epochs: list[tuple[tuple[int, int], tuple[int, int]]], alpha: float
) -> None:
    cells = [(proportion(*control), proportion(*treatment)) for control, treatment in epochs]
    result = compared(cells, "proportion", alpha)
    if result.test != "score":
        return
    counts = np.array(epochs, dtype=np.float64)
    n, x = counts[:, :, 0], counts[:, :, 1]
    both = n.sum(axis=1)
    weight = both / both.sum()
    rate = x.sum(axis=1) / both
    variance = (weight**2 * rate * (1 - rate) * (1 / n).sum(axis=1)).sum()
    rates = x / n
    difference = float(weight @ (rates[:, 1] - rates[:, 0]))
    z = difference / math.sqrt(variance) if variance else 0.0
    assert result.p_value is not None
    assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-6)
    for low, high in (
        (result.ci_low, result.ci_high),
        (result.lift_ci_low, result.lift_ci_high),
    ):
        if low is not None:
            assert -1 <= low <= (high or 0.0)
            assert excludes_zero(low, high, result.p_value, alpha) == (result.p_value <= alpha)


def test_sums_of_a_form_that_knows_no_score_are_read_by_wald() -> None:
    epoch = (proportion(50, 2), proportion(50, 5))
    older = msgspec.structs.replace(contrast([epoch, epoch], "proportion"), null={})
    assert compare(older, "a", "b", "proportion").test == "wald"


def test_nobody_that_converted_in_several_epochs_is_no_difference_with_an_interval() -> None:
    result = compared([(proportion(50, 0), proportion(40, 0))] * 2, "proportion")
    assert (result.p_value, result.statistic) == (1.0, 0.0)
    assert result.ci_low is not None
    assert result.ci_low < 0.0 < (result.ci_high or 0.0) < 0.1


def test_many_conversions_in_epochs_that_hardly_weigh_are_small_counts() -> None:
    """Some 100 conversions, of which the epoch with ten elevenths of the weight has 2."""
    result = compared(
        [(proportion(19_800, 198), proportion(200, 2)), (proportion(1_000, 100),) * 2], "proportion"
    )
    assert result.test == "score"


@pytest.mark.parametrize(
    ("sizes", "shares", "rates"),
    [
        ((2_000, 2_000), (0.05, 0.1), ((0.005, 0.005), (0.005, 0.005))),
        ((20_000, 2_000), (0.01, 0.5), ((0.01, 0.01), (0.01, 0.01))),
        ((500, 500), (0.1, 0.5), ((0.02, 0.06), (0.02, 0.06))),
    ],
)
def test_a_ramp_of_a_rare_event_keeps_its_level_where_wald_does_not(
    sizes: tuple[int, ...], shares: tuple[float, ...], rates: tuple[tuple[float, float], ...]
) -> None:
    rng = np.random.default_rng(67)
    runs, missed, rejected, naive = 400, 0, 0, 0
    weight = np.array(sizes) / sum(sizes)
    truth = float(sum(w * (r1 - r0) for w, (r0, r1) in zip(weight, rates, strict=True)))
    for _ in range(runs):
        n1 = rng.binomial(sizes, shares)
        n = np.stack([np.array(sizes) - n1, n1], axis=1)
        x = rng.binomial(n, rates)
        cells = [
            (proportion(int(a), int(c)), proportion(int(b), int(d)))
            for (a, b), (c, d) in zip(n, x, strict=True)
        ]
        result = compared(cells, "proportion")
        assert result.ci_low is not None
        assert result.ci_high is not None
        assert result.p_value is not None
        missed += not result.ci_low <= truth <= result.ci_high
        rejected += result.p_value <= 0.05
        p = x / n
        error = math.sqrt(float((weight[:, None] ** 2 * p * (1 - p) / n).sum()))
        naive += abs(float(weight @ (p[:, 1] - p[:, 0])) - truth) > 1.96 * error
    assert missed / runs <= at_most(0.05, runs)
    assert truth != 0.0 or rejected / runs <= at_most(0.05, runs)
    assert naive / runs > 0.07


def test_counts_of_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match="no counts of two arms"):
        small_counts(0, 0, 5, 1)
    with pytest.raises(ValueError, match="no counts of two arms"):
        small_counts(5, 6, 5, 1)


@pytest.mark.parametrize(("n0", "n1"), [(12, 12), (20, 100)])
def test_the_interval_covers_where_that_of_wald_does_not(n0: int, n1: int) -> None:
    """Coverage, summed over all tables, at rates from rare to even: no Monte Carlo error."""
    x0, x1 = np.meshgrid(np.arange(n0 + 1), np.arange(n1 + 1), indexing="ij")
    found = [small_counts(n0, int(a), n1, int(b)) for a, b in zip(x0.flat, x1.flat, strict=True)]
    low = np.array([f.ci_low for f in found]).reshape(x0.shape)
    high = np.array([f.ci_high for f in found]).reshape(x0.shape)
    difference = x1 / n1 - x0 / n0
    wald = 1.96 * np.sqrt(x0 / n0 * (1 - x0 / n0) / n0 + x1 / n1 * (1 - x1 / n1) / n1)
    coverage, naive = [], []
    for rate_0 in (0.02, 0.1, 0.3, 0.5):
        for rate_1 in (0.02, 0.1, 0.3, 0.5):
            chance = stats.binom.pmf(x0, n0, rate_0) * stats.binom.pmf(x1, n1, rate_1)
            true = rate_1 - rate_0
            coverage.append(float(chance[(low <= true) & (true <= high)].sum()))
            naive.append(float(chance[np.abs(difference - true) <= wald].sum()))
    assert min(coverage) > 0.93
    assert np.mean(coverage) > 0.95
    assert min(naive) < 0.87
