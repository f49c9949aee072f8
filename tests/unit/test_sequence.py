import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.inference.estimate import cautious_std_error, compare
from analysis.inference.sequence import always_valid
from tests.unit.samples import at_most, contrast, proportion


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


def _a_a_false_positives(runs: int, seed: int) -> tuple[float, float]:
    """A/A at a rate of .1, 100 looks at 200 units each: (sequence, z test at each look)."""
    rng = np.random.default_rng(seed)
    looks, per_look = 100, 100
    x = rng.binomial(per_look, 0.1, (2, runs, looks)).cumsum(axis=2)
    n = per_look * np.arange(1, looks + 1)
    p = x / n
    difference = p[1] - p[0]
    std_error = np.sqrt((p * (1 - p)).sum(axis=0) / n)
    naive = (np.abs(difference) > stats.norm.isf(0.025) * std_error).any(axis=1).mean()
    crossed = 0
    for differences, errors in zip(difference.tolist(), std_error.tolist(), strict=True):
        crossed += any(
            (r := always_valid(d, se, units, units)).log_e is not None
            and r.log_e >= -math.log(0.05)
            for d, se, units in zip(differences, errors, n.tolist(), strict=True)
        )
    return crossed / runs, float(naive)


def test_a_a_under_100_looks() -> None:
    runs = 1_000
    sequence, naive = _a_a_false_positives(runs, seed=4)
    assert sequence <= at_most(0.05, runs)
    assert naive > 0.25


@pytest.mark.calibration
def test_a_a_under_100_looks_at_full_size() -> None:
    runs = 20_000
    sequence, naive = _a_a_false_positives(runs, seed=5)
    assert sequence <= at_most(0.05, runs)
    assert naive > 0.3


def _rare_a_a_false_positives(runs: int, seed: int) -> tuple[float, float]:
    """A/A at a rate of .004 with a treatment of 5 %, 40 looks: (cautious, own variances)."""
    rng = np.random.default_rng(seed)
    crossed = [0, 0]
    for _ in range(runs):
        n = rng.multinomial(500, (0.95, 0.05), 40).cumsum(axis=0)
        x = rng.binomial(np.diff(n, axis=0, prepend=[[0, 0]]), 0.004).cumsum(axis=0)
        alarms = np.zeros(2, dtype=bool)
        for (n0, n1), (x0, x1) in zip(n.tolist(), x.tolist(), strict=True):
            cells = [(proportion(n0, x0), proportion(n1, x1))]
            sums = contrast(cells, "proportion")
            own = compare(sums, "a", "b", "proportion")
            errors = (cautious_std_error(sums, "a", "b", "proportion"), own.std_error)
            for place, error in enumerate(errors):
                reading = always_valid(own.difference, error, n0, n1)
                alarms[place] |= reading.p_value is not None and reading.p_value <= 0.05
        crossed = [count + int(alarm) for count, alarm in zip(crossed, alarms, strict=True)]
    return crossed[0] / runs, crossed[1] / runs


def test_a_a_with_a_small_variant_and_a_rare_outcome() -> None:
    runs = 100
    cautious, naive = _rare_a_a_false_positives(runs, seed=6)
    assert cautious <= at_most(0.05, runs)
    assert naive > 0.4


@pytest.mark.calibration
def test_a_a_with_a_small_variant_and_a_rare_outcome_at_full_size() -> None:
    runs = 3_000
    cautious, naive = _rare_a_a_false_positives(runs, seed=7)
    assert cautious <= at_most(0.05, runs)
    assert naive > 0.5
