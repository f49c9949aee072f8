"""Ratios and adjusted means from sums over epochs, against the raw rows of the units."""

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import msgspec
import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import stats

from analysis.inference.epoch_sums import PRIOR_UNITS
from analysis.inference.estimate import Comparison, cautious_std_error, compare, fieller
from analysis.inference.kinds import Kind
from analysis.inference.linear import quadratic
from analysis.inference.moments import Moments, empty, of_rows
from analysis.inference.variance import CAUTIOUS_UNITS
from tests.unit.samples import at_most, compared, contrast, population, terms

Rows = NDArray[np.float64]
"""The numbers of units, of shape (n, d)."""

Epochs = Sequence[tuple[Rows, Rows]]
"""Units of the control and of the treatment, by epoch."""

WIDE: Sequence[tuple[Kind, int]] = [("mean", 2), ("ratio", 2), ("ratio", 4)]


def cells(epochs: Epochs) -> list[tuple[Moments, Moments]]:
    return [(of_rows(a), of_rows(b)) for a, b in epochs]


def found(epochs: Epochs, kind: Kind) -> Comparison:
    return compared(cells(epochs), kind)


def correlated(rng: np.random.Generator, n: int, d: int, level: float = 1.0) -> Rows:
    """Positive skewed numbers that share a cause."""
    cause = rng.lognormal(0.0, 0.8, (n, 1))
    return level * cause * rng.lognormal(0.0, 0.4, (n, d)) + rng.random((n, d))


def drifting(rng: np.random.Generator, d: int) -> list[tuple[Rows, Rows]]:
    """Epochs of other sizes, splits and levels."""
    shapes = [(400, 30, 3.0), (150, 150, 1.0), (60, 500, 2.0), (5, 40, 0.5)]
    return [(correlated(rng, n, d, x), correlated(rng, m, d, 1.2 * x)) for n, m, x in shapes]


def by_rows(epochs: Epochs, kind: Kind) -> dict[str, float]:
    """The estimate, epoch by epoch and unit by unit, in floats."""
    units = np.array([len(a) + len(b) for a, b in epochs], dtype=float)
    weights = units / units.sum()
    arms = list(zip(*epochs, strict=True))
    means = [
        np.average([rows.mean(axis=0) for rows in arm], axis=0, weights=weights) for arm in arms
    ]
    width = 2 if kind == "ratio" else 1

    def scores(rows: Rows, own: Rows, place: int) -> Rows:
        """A unit's deviation from the level `own` of its arm, or of all arms."""
        if kind == "mean":
            return rows[:, place]
        level, denominator = own[place] / own[place + 1], own[place + 1]
        deviation: Rows = (rows[:, place] - level * rows[:, place + 1]) / denominator
        return deviation

    levels = [m[0] / m[1] if kind == "ratio" else m[0] for m in means]
    outcome = [[scores(rows, m, 0) for rows in arm] for arm, m in zip(arms, means, strict=True)]
    before, theta, shared = outcome, 0.0, 0.0
    if len(means[0]) > width:
        both = (means[0] + means[1]) / 2
        z = [[scores(rows, both, width) for rows in arm] for arm in arms]
        centred = [
            [(y - y.mean(), x - x.mean()) for y, x in zip(ys, xs, strict=True)]
            for ys, xs in zip(outcome, z, strict=True)
        ]
        products = np.array([(y @ x, x @ x) for arm in centred for y, x in arm])
        theta = products[:, 0].sum() / products[:, 1].sum()
        outcome = [
            [y - theta * x for y, x in zip(ys, xs, strict=True)]
            for ys, xs in zip(outcome, z, strict=True)
        ]
        n = [sum(map(len, arm)) for arm in arms]
        of_z = [np.average([x.mean() for x in xs], weights=weights) for xs in z]
        centre = np.average(of_z, weights=n)
        levels = [level - theta * (x - centre) for level, x in zip(levels, of_z, strict=True)]
        shared = sum(
            (theta * k / sum(n)) ** 2 * variance(xs, weights)[0] for k, xs in zip(n, z, strict=True)
        )
    variances = [variance(arm, weights) for arm in outcome]
    total = variances[0][0] + variances[1][0]
    plain = sum(variance(arm, weights)[0] for arm in before)
    larger = max(v[1] for v in variances)
    cautious = total
    for arm, (_, pooled) in zip(outcome, variances, strict=True):
        df = sum(map(len, arm)) - len(arm)
        scale = sum(w * w / len(y) for w, y in zip(weights, arm, strict=True))
        cautious += CAUTIOUS_UNITS / (df + CAUTIOUS_UNITS) * scale * (larger - pooled)
    of_arms = [own for own, _ in variances]
    freedom = math.inf  # in several epochs; in one it is Welch's
    if len(units) == 1:
        freedom = total**2 / sum(
            own**2 / (len(arm[0]) - 1) for own, arm in zip(of_arms, arms, strict=True)
        )
    critical = float(stats.t.isf(0.025, freedom))
    lift = fieller(levels[0], levels[1] - levels[0], of_arms[0], of_arms[1], critical, shared)
    assert lift.ci_high is not None
    return {
        "difference": levels[1] - levels[0],
        "mean_control": levels[0],
        "mean_treatment": levels[1],
        "std_error": math.sqrt(total),
        "cautious": math.sqrt(cautious),
        "theta": theta,
        "variance_reduction": 1 - total / plain,
        "lift_ci_high": lift.ci_high,
        "df": freedom,
    }


def variance(arm: Sequence[Rows], weights: Rows) -> tuple[float, float]:
    """Of a weighted mean of epochs, each variance shrunk towards the pooled one; and that one."""
    squares = [((y - y.mean()) ** 2).sum() for y in arm]
    pooled = sum(squares) / sum(len(y) - 1 for y in arm)
    kappa = PRIOR_UNITS if len(arm) > 1 else 0.0
    own = [(m + kappa * pooled) / (len(y) - 1 + kappa) for m, y in zip(squares, arm, strict=True)]
    return float(sum(w * w * s / len(y) for w, s, y in zip(weights, own, arm, strict=True))), pooled


@pytest.mark.parametrize(("kind", "d"), WIDE)
@pytest.mark.parametrize("single", [True, False])
def test_estimates_are_those_of_the_rows(kind: Kind, d: int, single: bool) -> None:
    epochs = drifting(np.random.default_rng(31), d)
    epochs = epochs[1:2] if single else epochs
    expected = by_rows(epochs, kind)
    result = found(epochs, kind)
    assert result.df == (pytest.approx(expected["df"], rel=1e-9) if single else None)
    for name in ("difference", "mean_control", "mean_treatment", "std_error"):
        assert getattr(result, name) == pytest.approx(expected[name], rel=1e-9), name
    assert result.lift_ci_high == pytest.approx(expected["lift_ci_high"], rel=1e-6)
    error = cautious_std_error(contrast(cells(epochs), kind), "a", "b", kind)
    assert error == pytest.approx(expected["cautious"], rel=1e-9)
    assert result.ci_high is not None
    p = 2 * stats.t.sf(abs(result.statistic or 0.0), expected["df"])
    assert result.p_value == pytest.approx(p)
    if d > (2 if kind == "ratio" else 1):
        assert result.theta == pytest.approx(expected["theta"], rel=1e-9)
        assert result.variance_reduction == pytest.approx(expected["variance_reduction"], rel=1e-6)
    else:
        assert result.theta is None
        assert result.variance_reduction is None


def test_a_ratio_has_the_variance_of_the_delta_method_and_of_the_bootstrap() -> None:
    rng = np.random.default_rng(32)
    arms = [correlated(rng, n, 2) for n in (3_000, 2_000)]
    result = found([(arms[0], arms[1])], "ratio")
    by_hand, draws = 0.0, []
    for rows in arms:
        x, y = rows.T
        n, ratio = len(rows), x.mean() / y.mean()
        v = np.cov(x, y)
        by_hand += (v[0, 0] - 2 * ratio * v[0, 1] + ratio**2 * v[1, 1]) / (n * y.mean() ** 2)
        chosen = rng.integers(0, n, (2_000, n))
        draws.append(x[chosen].sum(axis=1) / y[chosen].sum(axis=1))
    assert result.std_error == pytest.approx(math.sqrt(by_hand), rel=1e-9)
    assert result.std_error == pytest.approx((draws[1] - draws[0]).std(), rel=0.05)
    assert result.mean_treatment == pytest.approx(arms[1][:, 0].sum() / arms[1][:, 1].sum())


def test_an_adjusted_mean_is_that_of_a_regression_on_the_covariate() -> None:
    """The coefficient of the treatment in a regression with the covariate; its error is HC2's."""
    rng = np.random.default_rng(33)
    rows = rng.multivariate_normal([3.0, 5.0], [[2.0, 1.5], [1.5, 3.0]], 1_300)
    control, treatment = rows[:900], rows[900:]
    treatment[:, 0] += 0.1
    result = found([(control, treatment)], "mean")
    treated = np.repeat([0.0, 1.0], [900, 400])
    design = sm.add_constant(np.stack([treated, rows[:, 1]], axis=1))
    fit = sm.OLS(rows[:, 0], design).fit(cov_type="HC2")
    assert result.difference == pytest.approx(fit.params[1], rel=1e-9)
    assert result.theta == pytest.approx(fit.params[2], rel=1e-9)
    assert result.std_error == pytest.approx(fit.bse[1], rel=0.005)
    plain = found([(control[:, :1], treatment[:, :1])], "mean")
    assert result.std_error is not None
    assert plain.std_error is not None
    fall = 1 - (result.std_error / plain.std_error) ** 2
    assert result.variance_reduction == pytest.approx(fall, rel=1e-9)
    assert fall > 0.3


def test_the_lift_of_an_adjusted_mean_allows_for_the_mean_of_the_covariate() -> None:
    """Both means are shifted alike by it, so it is not in the difference but it is in the lift."""
    rng = np.random.default_rng(34)
    missed, runs = 0, 1_500
    for _ in range(runs):
        z = rng.normal(10.0, 4.0, 400)
        y = z + rng.normal(0.0, 1.0, 400)
        rows = np.stack([y, z], axis=1)
        rows[200:, 0] += 20.0  # twice as much again as the mean of 10
        result = found([(rows[:200], rows[200:])], "mean")
        assert result.lift_ci_low is not None
        assert result.lift_ci_high is not None
        missed += not result.lift_ci_low <= 2.0 <= result.lift_ci_high
    assert 0.03 < missed / runs < 0.07


def test_totals_follow_the_cells_whatever_came_and_went() -> None:
    rng = np.random.default_rng(35)
    epochs = cells(drifting(rng, 4))
    gone = cells(drifting(rng, 4))
    total = population([*epochs, *gone], "ratio")
    for pair in reversed(gone):
        total -= terms(pair, "ratio")
    afresh = population(epochs, "ratio")
    assert total - afresh == afresh - total
    ours, theirs = total.contrasts["b"], afresh.contrasts["b"]
    assert compare(ours, "a", "b", "ratio") == compare(theirs, "a", "b", "ratio")


def test_a_form_that_cancels_has_no_negative_square() -> None:
    """A ratio that is the same for every unit: what is left is the rounding of large numbers."""
    rng = np.random.default_rng(36)
    y = 1e6 * rng.lognormal(0.0, 1.0, 300)
    rows = np.stack([3.0 * y, y], axis=1)
    result = found([(rows[:200], rows[200:])], "ratio")
    assert result.difference == pytest.approx(0.0, abs=1e-12)
    assert "zero_variance" in result.notes
    assert (result.std_error, result.p_value) == (None, None)
    one = Decimal(1)
    assert quadratic((Fraction(1), Fraction(-1)), (one, one, one)) == 0


@pytest.mark.parametrize(("kind", "d"), WIDE)
def test_what_is_not_defined_is_none(kind: Kind, d: int) -> None:
    zeros, ones = np.zeros((200, d)), np.ones((200, d))
    rows = correlated(np.random.default_rng(37), 200, d)
    cases = {
        "nobody": [(empty(d), empty(d))],
        "nothing": [(of_rows(zeros), of_rows(zeros))],
        "nothing in one arm": [(of_rows(rows), of_rows(zeros))],
        "no spread": [(of_rows(ones), of_rows(ones))],
        "one unit": [(of_rows(rows[:1]), of_rows(rows[1:2]))],
        "out of sight": [(of_rows(rows * 1e-40), of_rows(rows * 1e-40))],
        "large": [(of_rows(rows * 1e30), of_rows(rows[::-1] * 1e30))] * 3,
    }
    for case, strata in cases.items():
        result = compared(strata, kind)
        values = msgspec.structs.asdict(result).values()
        assert all(math.isfinite(value) for value in values if isinstance(value, float)), case
        assert (result.p_value is None) == (case != "large" and result.std_error is None), case
        error = cautious_std_error(contrast(strata, kind), "a", "b", kind)
        assert error is None or math.isfinite(error)
    assert compared(cases["nobody"], kind).notes == ("no_common_epoch",)
    if kind == "ratio":
        assert compared(cases["nothing in one arm"], kind).notes == ("zero_denominator",)
    assert "too_few_units" in compared(cases["one unit"], kind).notes


@pytest.mark.parametrize(("kind", "width"), [("mean", 1), ("ratio", 2)])
def test_a_covariate_that_says_nothing_changes_nothing(kind: Kind, width: int) -> None:
    rng = np.random.default_rng(38)
    arms = [correlated(rng, n, width) for n in (300, 40)]
    plain = found([(arms[0], arms[1])], kind)
    wide = [np.concatenate([rows, np.zeros_like(rows)], axis=1) for rows in arms]
    result = found([(wide[0], wide[1])], kind)
    assert (result.theta, result.variance_reduction) == (0.0, 0.0)
    assert result.notes == ("few_units", "constant_covariate")
    assert result.std_error == plain.std_error
    assert result.difference == plain.difference


def test_a_ratio_with_a_rare_numerator_is_said_to_be_rough() -> None:
    rng = np.random.default_rng(39)
    often, rare = requests(rng, 2_000, 0.1), requests(rng, 2_000, 0.1)
    assert found([(often, rare)], "ratio").notes == ()
    rare[:, 0] = np.arange(2_000) < 9
    assert found([(often, rare)], "ratio").notes == ("few_units",)
    rare[:, 0] = np.arange(2_000) < 11
    assert found([(often, rare)], "ratio").notes == ()
    rare[:, 0] = 0.0
    assert found([(often, rare)], "ratio").notes == ("few_units",)
    rare[:, 0] = often[:, 0]
    rare[0, 0] = 1e5  # all errors are, in effect, those of one unit
    assert found([(often, rare)], "ratio").notes == ("few_units",)


# Calibration, each beside what a simpler reading would do


def requests(rng: np.random.Generator, n: int, rate: float) -> Rows:
    """Errors and requests of units; few make many requests, and each has a rate of its own."""
    y = rng.geometric(0.1, n).astype(float)
    own = rng.beta(20 * rate, 20 * (1 - rate), n)
    return np.stack([rng.binomial(y.astype(int), own), y], axis=1)


def test_a_ratio_covers_its_difference_where_there_is_one() -> None:
    """The arm's own ratio is linearised around; that of both arms is nearly the control's here."""
    rng = np.random.default_rng(43)
    runs, missed = 800, np.zeros(2)
    for _ in range(runs):
        y = [rng.geometric(0.1, n).astype(float) for n in (4_000, 200)]
        arms = [
            np.stack([0.0 * v + level, v], axis=1) for v, level in zip(y, (1.0, 3.0), strict=True)
        ]
        result = found([(arms[0], arms[1])], "ratio")
        assert result.ci_low is not None
        assert result.ci_high is not None
        missed[0] += not result.ci_low <= 0.2 <= result.ci_high
        totals = sum(rows.sum(axis=0) for rows in arms)
        common = totals[0] / totals[1]
        variance = sum(
            (rows[:, 0] - common * rows[:, 1]).var() / len(rows) / rows[:, 1].mean() ** 2
            for rows in arms
        )
        missed[1] += abs((result.difference or 0.0) - 0.2) > 1.96 * math.sqrt(variance)
    assert missed[0] / runs <= at_most(0.05, runs) + 0.01  # 200 units are a small sample
    assert missed[1] / runs > 0.2


def shifting(rng: np.random.Generator, kind: Kind) -> list[tuple[Rows, Rows]]:
    """A/A over two epochs of which the second has twice the level, and most of the treatment."""
    epochs = []
    for control, treatment, level in ((900, 100, 1.0), (300, 700, 2.0)):
        if kind == "ratio":
            rate = 0.1 * level
            epochs.append((requests(rng, control, rate), requests(rng, treatment, rate)))
        else:
            epochs.append(
                (correlated(rng, control, 2, level), correlated(rng, treatment, 2, level))
            )
    return epochs


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_within_epochs_the_level_is_kept_and_pooled_over_them_it_is_not(kind: Kind) -> None:
    rng = np.random.default_rng(44)
    runs, missed = 500, np.zeros(2)
    for _ in range(runs):
        epochs = shifting(rng, kind)
        both = [np.concatenate(arm) for arm in zip(*epochs, strict=True)]
        for place, strata in enumerate((epochs, [(both[0], both[1])])):
            p_value = found(strata, kind).p_value
            assert p_value is not None
            missed[place] += p_value < 0.05
    assert missed[0] / runs <= at_most(0.05, runs)
    assert missed[1] / runs > (0.9 if kind == "ratio" else 0.2)
