"""The confidence sequence against its definition: a mixture of likelihood ratios, integrated."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special

from analysis.inference.sequence import always_valid


def log_mixture(total: float, variance: float, spread: float) -> float:
    """ln ∫ exp(λ S - λ² V/2) dN(λ; 0, spread²), by quadrature: Howard et al. (2021), equation 14,
    without the closed form of their proposition 5."""
    precision = variance + 1.0 / spread**2
    peak, width = total / precision, 1.0 / math.sqrt(precision)

    def exponent(x: float) -> float:
        return x * total - x * x * variance / 2.0 - (x / spread) ** 2 / 2.0

    top = exponent(peak)
    area, _ = integrate.quad(
        lambda v: math.exp(exponent(peak + v * width) - top), -12.0, 12.0, epsabs=0, epsrel=1e-9
    )
    return top + math.log(area * width / (spread * math.sqrt(2.0 * math.pi)))


def tuned(alpha: float, decision_n: int) -> float:
    """The spread of the mixture for a decision at so many units, of variance 1 each."""
    return math.sqrt((-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / decision_n)


cases = given(
    st.integers(200, 10**7),
    st.floats(-6.0, 6.0),
    st.sampled_from([0.001, 0.01, 0.05, 0.2]),
    st.sampled_from([500, 5_000, 10**6]),
    st.floats(1e-6, 1e6),
)


@settings(deadline=None, max_examples=60)
@cases
def test_the_e_value_is_the_integral(
    n: int, t: float, alpha: float, decision_n: int, scale: float
) -> None:
    reading = always_valid(t * scale, scale, n // 2, n - n // 2, alpha, decision_n)
    expected = log_mixture(t * math.sqrt(n), float(n), tuned(alpha, decision_n))
    assert reading.log_e == pytest.approx(expected, rel=1e-7, abs=1e-7)


@settings(deadline=None, max_examples=60)
@cases
def test_the_boundary_is_where_the_mixture_reaches_its_level(
    n: int, t: float, alpha: float, decision_n: int, scale: float
) -> None:
    """By root finding on the integral; the interval is all that it does not reject."""
    spread = tuned(alpha, decision_n)

    def over(z: float) -> float:
        return log_mixture(z * math.sqrt(n), float(n), spread) + math.log(alpha)

    beyond = 4.0
    while over(beyond) < 0.0:
        beyond *= 2.0
    root = optimize.brentq(over, 0.0, beyond)
    reading = always_valid(t * scale, scale, n // 2, n - n // 2, alpha, decision_n)
    assert reading.ci_high == pytest.approx(scale * (t + root), rel=1e-7, abs=1e-7 * scale)
    assert reading.ci_low == pytest.approx(scale * (t - root), rel=1e-7, abs=1e-7 * scale)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_the_sequence_is_tightest_where_the_decision_is_expected(alpha: float) -> None:
    """Among all spreads; the best one has Lambert's function in it (Howard et al., proposition 3),
    and the one that is used costs next to nothing."""
    decision_n = 5_000

    def width(spread: float) -> float:
        v = decision_n * spread**2
        return math.sqrt((v + 1) / v * (math.log(v + 1) - 2 * math.log(alpha)))

    best = math.sqrt((-float(special.lambertw(-(alpha**2) / math.e, -1).real) - 1) / decision_n)
    assert optimize.minimize_scalar(width, bracket=(best / 2, best * 2)).x == pytest.approx(
        best, rel=1e-3
    )
    reading = always_valid(0.0, 1.0, decision_n // 2, decision_n // 2, alpha, decision_n)
    assert reading.ci_high == pytest.approx(width(best), rel=1e-3)
