from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.inference import ratio_check
from analysis.inference.ratio_check import RatioCheck, UnitSums, of_units
from tests.unit.samples import at_most

Epoch = tuple[Mapping[str, int], Mapping[str, float]]
"""Units by variant, and the propensities that they were enrolled with."""


def summed(epochs: Iterable[Epoch]) -> UnitSums:
    """The sums over epochs in which no unit met a second variant."""
    total = UnitSums()
    for units, propensities in epochs:
        total += of_units(units, {}, propensities)
    return total


def check_ratio(epochs: Iterable[Epoch]) -> RatioCheck:
    """The check of these epochs."""
    return ratio_check.check_ratio(summed(epochs))


EVEN = {"a": 0.5, "b": 0.5}


def test_is_scipys_chi_square_in_one_epoch() -> None:
    found = check_ratio([({"a": 5_100, "b": 4_900}, EVEN)])
    expected = stats.chisquare([5_100, 4_900])
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.df, found.mismatch) == (1, False)
    assert check_ratio([({"a": 5_200, "b": 4_800}, EVEN)]).mismatch


def test_expects_by_the_logged_propensities_not_the_latest() -> None:
    epochs = [
        ({"a": 9_000, "b": 1_000}, {"a": 0.9, "b": 0.1}),
        ({"a": 5_010, "b": 4_990}, EVEN),
    ]
    found = check_ratio(epochs)
    assert found.expected == pytest.approx({"a": 14_000.0, "b": 6_000.0})
    assert not found.mismatch
    naive = stats.chisquare([14_010, 5_990])  # against the weights of the last epoch
    assert naive.pvalue < 1e-100


def test_an_arm_without_weight_has_no_degree_of_freedom() -> None:
    quiet = check_ratio([({"a": 510, "b": 490, "c": 0}, {**EVEN, "c": 0.0})])
    assert (quiet.df, quiet.impossible, quiet.mismatch) == (1, (), False)
    for weights in ({**EVEN, "c": 0.0}, EVEN):
        loud = check_ratio([({"a": 510, "b": 490, "c": 1}, weights)])
        assert (loud.impossible, loud.mismatch) == (("c",), True)


def test_a_unit_before_its_arm_had_weight_is_an_alarm() -> None:
    epochs = [
        ({"a": 1_000, "b": 1}, {"a": 1.0, "b": 0.0}),
        ({"a": 500, "b": 500}, EVEN),
    ]
    assert check_ratio(epochs).impossible == ("b",)


@pytest.mark.parametrize(
    "epochs",
    [
        [],
        [({}, EVEN)],
        [({"a": 0, "b": 0}, EVEN)],
        [({"a": 1}, {"a": 1.0})],
        [({"a": 8, "b": 1}, {"a": 0.99, "b": 0.01})],  # expects 0.09 units
    ],
)
def test_says_nothing_where_chi_square_cannot(epochs: list[Epoch]) -> None:
    found = check_ratio(epochs)
    assert (found.p_value, found.statistic, found.df, found.mismatch) == (None, None, None, False)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        check_ratio([({"a": 1}, {"a": 0.5})])
    with pytest.raises(ValueError, match="count"):
        check_ratio([({"a": -1}, EVEN)])
    with pytest.raises(ValueError, match="propensity"):
        check_ratio([({"a": 1}, {"a": 1.5, "b": -0.5})])


def test_false_alarms_after_a_reallocation() -> None:
    rng = np.random.default_rng(3)
    runs = 2_000
    first, second = rng.binomial(3_000, 0.1, runs), rng.binomial(2_000, 0.6, runs)
    p_values = [
        check_ratio(
            [
                ({"a": 3_000 - x, "b": x}, {"a": 0.9, "b": 0.1}),
                ({"a": 2_000 - y, "b": y}, {"a": 0.4, "b": 0.6}),
            ]
        ).p_value
        for x, y in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert np.mean([p is not None and p < 0.05 for p in p_values]) <= at_most(0.05, runs)


@given(
    st.lists(
        st.tuples(
            st.fixed_dictionaries({"a": st.integers(0, 10**9), "b": st.integers(0, 10**9)}),
            st.integers(1, 9_999),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_sums_are_those_of_the_epochs_that_have_units(
    epochs: list[tuple[dict[str, int], int]],
) -> None:
    found = [(units, {"a": 1 - p / 10_000, "b": p / 10_000}) for units, p in epochs]
    sums = summed(found)
    enrolled = [(units, shares) for units, shares in found if any(units.values())]
    assert sums.epochs == len(enrolled)
    assert sums.reallocated == (len({shares["b"] for _, shares in enrolled}) > 1)
    for variant, of_variant in sums.variants.items():
        assert of_variant.units == sum(units[variant] for units, _ in enrolled)
        assert float(of_variant.expected) == pytest.approx(
            sum(sum(units.values()) * shares[variant] for units, shares in enrolled), rel=1e-12
        )
    assert msgspec.json.decode(msgspec.json.encode(sums), type=UnitSums) == sums


def test_an_epoch_leaves_the_sums_as_if_it_had_never_been_there() -> None:
    thirds = {"a": 1 / 3, "b": 1 - 1 / 3}
    kept = summed([({"a": 5, "b": 6}, EVEN)])
    passing = of_units({"a": 10, "b": 3}, {"a": 1}, thirds)
    assert not kept.reallocated
    assert (kept + passing).reallocated
    assert kept + passing - passing == kept


def test_a_variant_that_is_not_in_an_epoch_was_reallocated() -> None:
    assert summed([({"a": 1}, EVEN), ({"a": 1}, {"a": 1.0})]).reallocated
    assert summed([({"a": 1}, {"a": 1.0}), ({"a": 1}, EVEN)]).reallocated
    assert not UnitSums().reallocated
