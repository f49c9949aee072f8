"""Histograms: every value is in the bucket whose edges hold it, and quantiles are right to 1 %."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.inference.bins import ACCURACY, bucket, edges

sizes = st.floats(1e-30, 1e30)


@given(sizes, st.sampled_from([-1.0, 1.0]))
def test_a_value_lies_between_the_edges_of_its_bucket(size: float, sign: float) -> None:
    low, high = edges(int(bucket(np.array([sign * size]))[0]))
    assert low * (1 - 1e-9 * sign) <= sign * size <= high * (1 + 1e-9 * sign)
    assert abs(high - low) <= 2 * ACCURACY * max(abs(low), abs(high))


def test_nothing_has_a_bucket_of_its_own() -> None:
    assert bucket(np.array([0.0, -0.0, 1e-300, -1e-300])).tolist() == [0, 0, 2, -2]
    assert edges(0) == (0.0, 0.0)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2))
def test_buckets_stand_in_the_order_of_their_values(values: list[float]) -> None:
    ordered = np.sort(np.array(values))
    assert (np.diff(bucket(ordered)) >= 0).all()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.999])
def test_a_quantile_is_right_to_one_percent(share: float) -> None:
    values = np.random.default_rng(7).lognormal(3.0, 2.0, 20_000)
    number = np.quantile(bucket(values), share, method="inverted_cdf")
    exact = np.quantile(values, share, method="inverted_cdf")
    assert np.mean(edges(int(number))) == pytest.approx(exact, rel=ACCURACY * 1.01)
