import numpy as np
import pytest
from scipy import stats

from analysis.ratio_check import EpochCounts, check_ratio
from tests.unit.samples import at_most

EVEN = {"a": 0.5, "b": 0.5}


def test_is_scipys_chi_square_in_one_epoch() -> None:
    found = check_ratio([EpochCounts(counts={"a": 5_100, "b": 4_900}, propensities=EVEN)])
    expected = stats.chisquare([5_100, 4_900])
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.df, found.mismatch) == (1, False)
    assert check_ratio([EpochCounts({"a": 5_200, "b": 4_800}, EVEN)]).mismatch


def test_expects_by_the_logged_propensities_not_the_latest() -> None:
    epochs = [
        EpochCounts(counts={"a": 9_000, "b": 1_000}, propensities={"a": 0.9, "b": 0.1}),
        EpochCounts(counts={"a": 5_010, "b": 4_990}, propensities=EVEN),
    ]
    found = check_ratio(epochs)
    assert found.expected == pytest.approx({"a": 14_000.0, "b": 6_000.0})
    assert not found.mismatch
    naive = stats.chisquare([14_010, 5_990])  # against the weights of the last epoch
    assert naive.pvalue < 1e-100


def test_an_arm_without_weight_has_no_degree_of_freedom() -> None:
    quiet = check_ratio([EpochCounts({"a": 510, "b": 490, "c": 0}, {**EVEN, "c": 0.0})])
    assert (quiet.df, quiet.impossible, quiet.mismatch) == (1, (), False)
    for weights in ({**EVEN, "c": 0.0}, EVEN):
        loud = check_ratio([EpochCounts({"a": 510, "b": 490, "c": 1}, weights)])
        assert (loud.impossible, loud.mismatch) == (("c",), True)


def test_a_unit_before_its_arm_had_weight_is_an_alarm() -> None:
    epochs = [
        EpochCounts({"a": 1_000, "b": 1}, {"a": 1.0, "b": 0.0}),
        EpochCounts({"a": 500, "b": 500}, EVEN),
    ]
    assert check_ratio(epochs).impossible == ("b",)


@pytest.mark.parametrize(
    "epochs",
    [
        [],
        [EpochCounts({}, EVEN)],
        [EpochCounts({"a": 0, "b": 0}, EVEN)],
        [EpochCounts({"a": 1}, {"a": 1.0})],
        [EpochCounts({"a": 8, "b": 1}, {"a": 0.99, "b": 0.01})],  # expects 0.09 units
    ],
)
def test_says_nothing_where_chi_square_cannot(epochs: list[EpochCounts]) -> None:
    found = check_ratio(epochs)
    assert (found.p_value, found.statistic, found.df, found.mismatch) == (None, None, None, False)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        check_ratio([EpochCounts({"a": 1}, {"a": 0.5})])
    with pytest.raises(ValueError, match="count"):
        check_ratio([EpochCounts({"a": -1}, EVEN)])
    with pytest.raises(ValueError, match="propensity"):
        check_ratio([EpochCounts({"a": 1}, {"a": 1.5, "b": -0.5})])


def test_false_alarms_after_a_reallocation() -> None:
    rng = np.random.default_rng(3)
    runs = 2_000
    first, second = rng.binomial(3_000, 0.1, runs), rng.binomial(2_000, 0.6, runs)
    p_values = [
        check_ratio(
            [
                EpochCounts({"a": 3_000 - x, "b": x}, {"a": 0.9, "b": 0.1}),
                EpochCounts({"a": 2_000 - y, "b": y}, {"a": 0.4, "b": 0.6}),
            ]
        ).p_value
        for x, y in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert np.mean([p is not None and p < 0.05 for p in p_values]) <= at_most(0.05, runs)
