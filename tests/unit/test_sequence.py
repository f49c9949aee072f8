import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.inference.sequence import always_valid


def test_the_formula_at_one_point() -> None:
    """Against the formulas as the paper has them, computed step by step."""
    n, alpha, se, difference = 10_000, 0.05, 0.01, 0.03
    rho2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / 5_000
    s = se * math.sqrt(n)
    half = s * math.sqrt(
        2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha)
    )
    reading = always_valid(difference, se, 5_000, 5_000, alpha)
    assert reading.valid
    assert reading.ci_low == pytest.approx(difference - half)
    assert reading.ci_high == pytest.approx(difference + half)
    mixture = math.exp(rho2 * 9.0 * n / (2 * (n * rho2 + 1))) / math.sqrt(n * rho2 + 1)
    assert reading.log_e == pytest.approx(math.log(mixture))
    assert reading.p_value == pytest.approx(min(1.0, 1.0 / mixture))


@given(
    st.floats(-1.0, 1.0),
    st.floats(1e-3, 1.0),
    st.integers(200, 10**9),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_interval_and_e_value_say_the_same(
    difference: float, se: float, n: int, alpha: float
) -> None:
    reading = always_valid(difference, se, n // 2, n - n // 2, alpha)
    assert reading.ci_low is not None
    assert reading.ci_high is not None
    assert reading.log_e is not None
    distance = abs(reading.log_e + math.log(alpha))
    if distance > 1e-9:  # on the edge itself rounding decides
        assert (reading.ci_low > 0 or reading.ci_high < 0) == (reading.log_e > -math.log(alpha))


def test_huge_evidence_does_not_overflow() -> None:
    reading = always_valid(1.0, 1e-6, 10**9, 10**9)
    assert reading.log_e is not None
    assert reading.log_e > 1e6
    assert reading.p_value is not None
    assert 0.0 < reading.p_value < 1e-300


@pytest.mark.parametrize(
    ("difference", "std_error", "n_control"),
    [(None, None, 1_000), (0.1, None, 1_000), (0.1, 0.0, 1_000), (0.1, 0.01, 99)],
)
def test_says_nothing_before_it_can(
    difference: float | None, std_error: float | None, n_control: int
) -> None:
    reading = always_valid(difference, std_error, n_control, 1_000)
    assert not reading.valid
    assert (reading.ci_low, reading.ci_high, reading.p_value, reading.log_e) == (None,) * 4


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        always_valid(0.1, 0.1, 100, 100, alpha=0.0)
    with pytest.raises(ValueError, match="decision_n"):
        always_valid(0.1, 0.1, 100, 100, decision_n=0)
