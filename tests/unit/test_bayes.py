import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from analysis.inference.bayes import (
    ArmCounts,
    BayesianReading,
    Counts,
    bayesian_reading,
    counts_of,
)
from analysis.inference.estimate import Comparison
from analysis.inference.kinds import Goal
from experiments.model import Prior
from tests.unit.samples import compared, contrast, proportion

unhurried = settings(deadline=None)
UNIFORM = Prior()
NOTHING = Comparison(
    n_control=0, n_treatment=0, epochs_used=0, epochs_left_out=0, units_left_out=0, alpha=0.05
)


def rates(
    n0: int, x0: int, n1: int, x1: int, goal: Goal = "increase", prior: Prior = UNIFORM
) -> BayesianReading:
    """The Beta model's reading of x0 of n0 and x1 of n1."""
    counts = Counts(ArmCounts(n0, x0), ArmCounts(n1, x1))
    return bayesian_reading(NOTHING, goal, "proportion", prior, counts)


def normal(
    difference: float,
    std_error: float,
    goal: Goal = "increase",
    lift_sd: float | None = None,
    mean_control: float = 10.0,
) -> BayesianReading:
    """The normal model's reading of an estimate."""
    comparison = Comparison(
        n_control=500,
        n_treatment=500,
        epochs_used=3,
        epochs_left_out=0,
        units_left_out=0,
        alpha=0.05,
        mean_control=mean_control,
        mean_treatment=mean_control + difference,
        difference=difference,
        std_error=std_error,
        lift_ci_low=-1.0,
        lift_ci_high=1.0,
    )
    return bayesian_reading(comparison, goal, "mean", Prior(lift_sd=lift_sd))


def millers_sum(n0: int, x0: int, n1: int, x1: int) -> float:
    """P(p1 > p0) in closed form: Evan Miller (2015), "Formulas for Bayesian A/B testing"."""
    a0, b0, a1, b1 = 1 + x0, 1 + n0 - x0, 1 + x1, 1 + n1 - x1
    i = np.arange(a1)
    terms = (
        special.betaln(a0 + i, b0 + b1) - np.log(b1 + i) - special.betaln(1 + i, b1)
    ) - special.betaln(a0, b0)
    return float(np.exp(terms).sum())


few = st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@unhurried
@given(few, few)
def test_the_chance_to_win_is_the_closed_form_of_miller(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    reading = rates(*control, *treatment)
    assert reading.chance_to_win == pytest.approx(millers_sum(*control, *treatment), abs=1e-9)


@unhurried
@given(few, few)
def test_expected_losses_are_those_of_the_joint_posterior(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    """E(p0 - p1)+ = E(p0 1{p0 > p1}) - E(p1 1{p0 > p1}), each a chance to win with one more
    conversion (Stucchio 2015)."""
    (n0, x0), (n1, x1) = control, treatment
    mean_0, mean_1 = (x0 + 1) / (n0 + 2), (x1 + 1) / (n1 + 2)
    loss = mean_0 * (1 - millers_sum(n0 + 1, x0 + 1, n1, x1)) - mean_1 * (
        1 - millers_sum(n0, x0, n1 + 1, x1 + 1)
    )
    reading = rates(n0, x0, n1, x1)
    assert reading.expected_loss == pytest.approx(loss, abs=1e-9)
    assert reading.expected_loss is not None
    assert reading.expected_loss_control == pytest.approx(reading.expected_loss + mean_1 - mean_0)


@pytest.mark.parametrize(
    "counts", [(100, 10, 100, 20), (100, 0, 100, 100), (50, 0, 50, 0), (5, 5, 900, 0)]
)
def test_a_credible_interval_leaves_out_the_same_chance_on_either_side(
    counts: tuple[int, int, int, int],
) -> None:
    n0, x0, n1, x1 = counts
    control, treatment = stats.beta(1 + x0, 1 + n0 - x0), stats.beta(1 + x1, 1 + n1 - x1)

    def chance(of: str, bound: float) -> float:
        def inner(x: float) -> float:
            end = x + bound if of == "difference" else x * (1 + bound)
            return float(control.pdf(x) * treatment.cdf(end))

        cut = -bound if of == "difference" else 1 / (1 + bound)
        points = sorted({min(max(p, 0.0), 1.0) for p in (cut, 1 + cut, *control.ppf([0.01, 0.99]))})
        return float(integrate.quad(inner, 0, 1, points=points, limit=500)[0])

    r = rates(*counts)
    for of, ends in (
        ("difference", (r.ci_low, r.ci_high)),
        ("lift", (r.lift_ci_low, r.lift_ci_high)),
    ):
        assert ends[0] is not None
        assert ends[1] is not None
        assert chance(of, ends[0]) == pytest.approx(0.025, abs=1e-6)
        assert chance(of, ends[1]) == pytest.approx(0.975, abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "chance"),
    [
        ((10**9, 10**8, 10**9, 10**8 + 5_000), stats.norm.cdf(0.372673)),
        ((10**9, 0, 10**9, 3), 0.9375),
        ((10**9, 10**9, 10**9, 10**9 - 3), 0.0625),
        ((10**9, 10**9, 10**9, 10**9), 0.5),
    ],
)
def test_it_is_safe_with_a_billion_units_and_at_the_ends(
    counts: tuple[int, int, int, int], chance: float
) -> None:
    reading = rates(*counts)
    assert reading.chance_to_win == pytest.approx(chance, rel=1e-4)
    n0, x0, n1, x1 = counts
    mean = (x1 + 1) / (n1 + 2) - (x0 + 1) / (n0 + 2)
    assert reading.difference == pytest.approx(mean, abs=1e-15)
    assert reading.ci_low is not None
    assert reading.ci_high is not None
    assert reading.ci_low < mean < reading.ci_high or counts[1] == counts[3]


def test_a_hopeless_chance_is_tiny_and_not_zero() -> None:
    reading = rates(100, 0, 100, 100, goal="decrease")
    # C(202, 101)^-1 halves: P(p1 < p0) of Beta(101, 1) and Beta(1, 101) is 1/C(202, 101).
    assert reading.chance_to_win == pytest.approx(1 / math.comb(202, 101), rel=1e-6)


@unhurried
@given(few, few)
def test_a_decrease_is_the_mirror_of_an_increase(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    (n0, x0), (n1, x1) = control, treatment
    down = rates(n0, x0, n1, x1, goal="decrease")
    up = rates(n0, n0 - x0, n1, n1 - x1)
    assert down.chance_to_win == pytest.approx(up.chance_to_win, abs=1e-9)
    assert down.expected_loss == pytest.approx(up.expected_loss, abs=1e-9)
    assert down.ci_low == pytest.approx(-(up.ci_high or 0), abs=1e-7)


def test_a_strong_prior_of_the_rates_counts_as_units() -> None:
    strong = rates(10, 5, 10, 8, prior=Prior(a=90.0, b=90.0))
    as_units = rates(188, 94, 188, 97)
    assert strong.chance_to_win == pytest.approx(as_units.chance_to_win)
    assert strong.prior == "each rate is Beta(90, 90)"


@unhurried
@given(st.floats(-30, 30), st.floats(0.01, 100))
def test_the_normal_model_is_its_closed_form(z: float, std_error: float) -> None:
    reading = normal(z * std_error, std_error)
    assert reading.chance_to_win == pytest.approx(stats.norm.cdf(z), rel=1e-9)
    near = max(0.0, -z)  # where the integrand is
    loss, _ = integrate.quad(
        lambda x: x * stats.norm.pdf(x + z), max(0.0, near - 12), near + 12, limit=200
    )
    assert reading.expected_loss == pytest.approx(std_error * loss, rel=1e-5, abs=1e-9)
    assert reading.expected_loss is not None
    assert reading.expected_loss >= 0
    assert reading.expected_loss_control == pytest.approx(
        reading.expected_loss + z * std_error, rel=1e-9, abs=1e-12
    )


def test_a_flat_prior_gives_the_textbooks_interval() -> None:
    reading = normal(1.0, 0.5)
    assert (reading.ci_low, reading.ci_high) == pytest.approx((1 - 0.97998, 1 + 0.97998), abs=1e-5)
    assert reading.lift_ci_high == pytest.approx(0.197998, abs=1e-6)
    assert "flat" in reading.prior


def test_a_prior_of_the_lift_draws_the_estimate_to_nothing() -> None:
    """Lift 0.2 ± 0.1 with a prior of 0.1: half of it, with half of the variance."""
    reading = normal(2.0, 1.0, lift_sd=0.1)
    assert reading.difference == pytest.approx(1.0)
    assert reading.std_dev == pytest.approx(math.sqrt(0.5))
    assert reading.prior == "the lift is normal around 0 with standard deviation 0.1"
    mirrored = normal(2.0, 1.0, lift_sd=0.1, mean_control=-10.0)
    assert mirrored.difference == reading.difference


def test_a_decrease_is_won_by_less() -> None:
    up, down = normal(-1.0, 0.5), normal(-1.0, 0.5, "decrease")
    assert down.chance_to_win == pytest.approx(stats.norm.cdf(2))
    assert (down.expected_loss, down.expected_loss_control) == (
        up.expected_loss_control,
        up.expected_loss,
    )
    assert (up.ci_low, up.ci_high) == (down.ci_low, down.ci_high)


def test_without_an_estimate_nothing_is_believed() -> None:
    reading = bayesian_reading(NOTHING, "increase", "mean", Prior())
    assert reading.chance_to_win is None
    assert reading.expected_loss is None
    assert normal(1.0, 1.0, lift_sd=0.3, mean_control=0.0).chance_to_win is None


def test_counts_are_read_in_one_epoch_only() -> None:
    epoch = (proportion(50, 5), proportion(50, 9))
    assert counts_of(contrast([epoch], "proportion"), "a", "b", "proportion") == Counts(
        ArmCounts(50, 5), ArmCounts(50, 9)
    )
    assert counts_of(contrast([epoch, epoch], "proportion"), "a", "b", "proportion") is None
    comparison = compared([epoch, epoch], "proportion")
    reading = bayesian_reading(comparison, "increase", "proportion", Prior())
    assert reading.model == "normal"
    assert reading.chance_to_win == pytest.approx(stats.norm.cdf(comparison.statistic or 0))


def test_an_alpha_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="strictly between"):
        bayesian_reading(NOTHING, "increase", "mean", Prior(), alpha=0.0)


def test_stopping_at_a_chance_to_win_of_95_percent_is_no_bound_on_errors() -> None:
    """Between two equals one of them is called better with a chance of 95 % at one of a hundred
    looks more often than not: what a posterior promises is another thing."""
    assert (normal(1.645, 1.0).chance_to_win or 0) == pytest.approx(0.95, abs=1e-4)
    runs, looks = 4_000, 100
    walk = np.cumsum(np.random.default_rng(58).standard_normal((runs, looks)), axis=1)
    z = walk / np.sqrt(np.arange(1, looks + 1))
    stopped = (special.ndtr(np.abs(z)) > 0.95).any(axis=1).mean()
    assert stopped > 0.5


@given(
    few,
    few,
    st.sampled_from([0.001, 0.5, 1.0, 1e6, 1e9]),
    st.sampled_from([0.001, 0.5, 1.0, 100.0, 1e9]),
    st.sampled_from([0.5, 0.05, 0.001]),
)
@unhurried
def test_every_number_of_any_prior_is_finite_and_in_its_place(
    control: tuple[int, int], treatment: tuple[int, int], a: float, b: float, alpha: float
) -> None:
    counts = Counts(ArmCounts(*control), ArmCounts(*treatment))
    r = bayesian_reading(NOTHING, "increase", "proportion", Prior(a=a, b=b), counts, alpha)
    numbers = [getattr(r, name) for name in r.__struct_fields__[2:]]
    assert all(number is not None and math.isfinite(number) for number in numbers)
    low, high, lift_low, lift_high, _ = numbers[-5:]
    assert -1 <= low <= high <= 1
    assert -1 <= lift_low <= lift_high
    assert 0 <= numbers[1] <= 1 + 1e-9


@pytest.mark.parametrize("difference", [0.0, 1e12, -1e300])
@pytest.mark.parametrize("std_error", [5e-324, 1e-6, 1e200])
@pytest.mark.parametrize("mean_control", [0.0, 5e-324, 1.0, -1e12])
@pytest.mark.parametrize("lift_sd", [None, 0.3])
def test_no_estimate_makes_a_number_that_is_none(
    difference: float, std_error: float, mean_control: float, lift_sd: float | None
) -> None:
    r = normal(difference, std_error, lift_sd=lift_sd, mean_control=mean_control)
    numbers = [getattr(r, name) for name in r.__struct_fields__[2:]]
    assert all(number is None or math.isfinite(number) for number in numbers)
