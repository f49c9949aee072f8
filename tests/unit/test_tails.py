import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.inference.tails import (
    _log_t_tail,
    critical_value,
    log_p_two_sided,
    p_from_log,
    to_log10,
)


@given(st.floats(-35.0, 35.0), st.one_of(st.none(), st.floats(1.0, 1e9)))
def test_two_sided_p(statistic: float, df: float | None) -> None:
    tail = stats.norm.sf(abs(statistic)) if df is None else stats.t.sf(abs(statistic), df)
    assert math.exp(log_p_two_sided(statistic, df)) == pytest.approx(2 * tail, rel=1e-9)


@given(st.floats(2.0, 30.0), st.floats(1.0, 1e6))
def test_far_tail_agrees_where_scipy_has_one(t: float, df: float) -> None:
    tail = stats.t.sf(t, df)
    if tail > 1e-290:
        assert _log_t_tail(t, df) == pytest.approx(np.log(tail), rel=1e-8)


def test_the_far_tail_goes_on_where_floats_end() -> None:
    assert log_p_two_sided(1000.0, None) == pytest.approx(-500007.1336, abs=1e-3)
    # Student's tail tends to the normal one, from above.
    assert log_p_two_sided(60.0, 1e12) == pytest.approx(log_p_two_sided(60.0, None), rel=1e-6)
    assert log_p_two_sided(60.0, 1e3) > log_p_two_sided(60.0, None)
    # P(T > t) ~ constant * t^-df for large t
    far, farther = log_p_two_sided(1e70, 5.0), log_p_two_sided(1e80, 5.0)
    assert far - farther == pytest.approx(50.0 * math.log(10.0), rel=1e-9)


def test_a_variance_near_the_least_float_makes_a_small_p_and_no_warning() -> None:
    for size in (1e160, 1e308, math.inf):
        for df in (None, 1.5, 40.0):
            assert -1.8e308 <= log_p_two_sided(size, df) < -500.0
    # The two forms of the tail meet, and both are the exact one of two degrees of freedom.
    for t in (1e7, 9.9e7, 1.1e8, 1e12):
        exact = math.log(1.0 / (t * t * (1.0 + 2.0 / (t * t))))
        assert _log_t_tail(t, 2.0) == pytest.approx(exact - math.log(2.0), rel=1e-9)


def test_p_is_small_but_never_zero() -> None:
    assert p_from_log(-1e6) > 0.0
    assert p_from_log(0.1) == 1.0
    assert to_log10(math.log(1e-300)) == pytest.approx(-300.0)
    assert log_p_two_sided(0.0, None) == 0.0


def test_critical_value() -> None:
    assert critical_value(0.05, None) == pytest.approx(1.959963984540054)
    assert critical_value(0.05, 10.0) == pytest.approx(stats.t.ppf(0.975, 10))
    with pytest.raises(ValueError, match="alpha"):
        critical_value(0.0, None)
