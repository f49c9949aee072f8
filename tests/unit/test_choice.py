"""Which estimate is read, by the stated rule, and that one constant epoch is the textbook's."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from statsmodels.stats import proportion as rates
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.inference.aipw import aipw_comparison, aipw_sequence
from analysis.inference.choice import has_small_epochs, read_continuous, read_fixed
from analysis.inference.epoch_sums import SMALL_EPOCH, EpochSums, Population
from analysis.inference.estimate import cautious_std_error, compare
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.sequence import always_valid
from analysis.inference.trail import Trail, TrailCell, follow, start
from tests.unit.samples import contrast, population, proportion


def trail_of(epochs: Sequence[tuple[Moments, Moments]]) -> Trail:
    """The trail of epochs of one block each, in halves."""
    trail = start(1)
    for number, (a, b) in enumerate(epochs):
        trail = follow(trail, [TrailCell(number, number, 0.5, 0.5, a.n + b.n, a, b)])
    return trail


LARGE = [(proportion(500, 100), proportion(500, 120))] * 3
SMALL = [(proportion(30, 6), proportion(30, 8))] * 60


def test_one_constant_epoch_of_a_proportion_is_the_textbook_to_the_last_digit() -> None:
    cells = [(proportion(12_345, 1_234), proportion(12_111, 1_301))]
    found = read_fixed(
        population(cells, "proportion"), trail_of(cells), "a", "b", "proportion", reallocated=False
    )
    wald = rates.test_proportions_2indep(
        1_301, 12_111, 1_234, 12_345, method="wald", return_results=True
    )
    low, high = rates.confint_proportions_2indep(1_301, 12_111, 1_234, 12_345, method="wald")
    assert found.method == "within_epochs"
    assert found.difference == pytest.approx(wald.diff, rel=1e-12)
    assert found.statistic == pytest.approx(wald.statistic, rel=1e-12)
    assert found.p_value == pytest.approx(wald.pvalue, rel=1e-11)
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), rel=1e-11)


def test_one_constant_epoch_of_a_mean_is_the_textbook_to_the_last_digit() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.lognormal(1.0, 1.0, 700), rng.lognormal(1.1, 1.2, 300)
    cells = [(Moments.of(a), Moments.of(b))]
    found = read_fixed(
        population(cells, "mean"), trail_of(cells), "a", "b", "mean", reallocated=False
    )
    textbook = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    statistic, p_value, df = textbook.ttest_ind(usevar="unequal")
    assert found.statistic == pytest.approx(statistic, rel=1e-12)
    assert found.df == pytest.approx(df, rel=1e-12)
    assert found.p_value == pytest.approx(p_value, rel=1e-10)
    assert (found.ci_low, found.ci_high) == pytest.approx(
        textbook.tconfint_diff(usevar="unequal"), rel=1e-11
    )


def test_small_epochs_after_a_reallocation_are_read_by_their_scores() -> None:
    trail = trail_of(SMALL)
    fixed = read_fixed(
        population(SMALL, "proportion"), trail, "a", "b", "proportion", reallocated=True
    )
    assert fixed == aipw_comparison(trail, "proportion")
    assert fixed.method == "aipw"
    continuous = read_continuous(
        population(SMALL, "proportion"),
        trail,
        "a",
        "b",
        "proportion",
        reallocated=True,
        decision_n=2_000,
    )
    difference, reading, mean = aipw_sequence(trail, "proportion", decision_n=2_000)
    assert reading.valid
    assert (continuous.difference, continuous.reading) == (difference, reading)
    assert continuous.method == "aipw"
    assert continuous.n_control == trail.sequence.control.units
    assert mean is not None
    assert difference is not None
    assert continuous.mean_control == mean
    assert continuous.mean_treatment == pytest.approx(mean + difference)
    assert continuous.lift == pytest.approx(difference / abs(mean))


@pytest.mark.parametrize(
    ("epochs", "reallocated"), [(SMALL, False), (LARGE, True), (LARGE, False), ([], True)]
)
def test_constant_allocations_and_large_epochs_are_compared_within_epochs(
    epochs: Sequence[tuple[Moments, Moments]], reallocated: bool
) -> None:
    sums = population(epochs, "proportion")
    fixed = read_fixed(
        sums, trail_of(epochs), "a", "b", "proportion", reallocated=reallocated, alpha=0.1
    )
    of_pair = contrast(epochs, "proportion") if epochs else EpochSums()
    assert fixed == compare(of_pair, "a", "b", "proportion", 0.1)
    continuous = read_continuous(
        sums, trail_of(epochs), "a", "b", "proportion", reallocated=reallocated
    )
    error = cautious_std_error(of_pair, "a", "b", "proportion")
    assert continuous.method == "within_epochs"
    assert (continuous.n_control, continuous.n_treatment) == (fixed.n_control, fixed.n_treatment)
    assert continuous.reading == always_valid(
        fixed.difference, error, fixed.n_control, fixed.n_treatment
    )


@pytest.mark.parametrize("trail", [None, start(1), trail_of(SMALL[:1])])
def test_small_epochs_without_scores_say_that_they_are_approximate(trail: Trail | None) -> None:
    sums = population(SMALL, "proportion")
    fixed = read_fixed(sums, trail, "a", "b", "proportion", reallocated=True)
    plain = compare(sums.contrasts["b"], "a", "b", "proportion")
    notes = (*plain.notes, "approximate_small_epochs")
    assert fixed == msgspec.structs.replace(plain, notes=notes)
    continuous = read_continuous(sums, trail, "a", "b", "proportion", reallocated=True)
    assert continuous.method == "within_epochs"


@pytest.mark.parametrize(("seen", "method"), [(29, "within_epochs"), (30, "aipw")])
def test_a_trail_that_began_late_is_read_once_it_has_seen_half_of_the_units(
    seen: int, method: str
) -> None:
    """After an upgrade: all that was known of the run before must not be gone at once."""
    sums = population(SMALL, "proportion")
    whole = trail_of(SMALL[:seen])
    assert read_fixed(sums, whole, "a", "b", "proportion", reallocated=True).method == "aipw"
    partial = msgspec.structs.replace(whole, since_block=7)
    fixed = read_fixed(sums, partial, "a", "b", "proportion", reallocated=True)
    continuous = read_continuous(sums, partial, "a", "b", "proportion", reallocated=True)
    assert fixed.method == continuous.method == method
    assert ("partial_trail" in fixed.notes) is (method == "aipw")
    assert ("approximate_small_epochs" in fixed.notes) is (method == "within_epochs")


def test_a_hundredth_of_the_units_in_small_epochs_is_the_limit() -> None:
    large = (proportion(4_950, 99), proportion(4_950, 99))
    for arm, small in ((49, False), (SMALL_EPOCH - 1, True)):
        sums = contrast([large, (proportion(arm, 1), proportion(arm, 2))], "proportion")
        assert sums.units_in_small == 2 * arm
        assert has_small_epochs(sums) is small


def test_epochs_that_chance_left_without_an_arm_are_small_ones() -> None:
    """The bandit's floor gave an arm no unit: left out by differences within epochs, but scored."""
    one_arm = [(proportion(40, 8), EMPTY)] * 5
    assert has_small_epochs(contrast([*LARGE, *one_arm], "proportion"))
    switched_off = [(proportion(4_000, 800), EMPTY)]
    assert not has_small_epochs(contrast([*LARGE, *switched_off], "proportion"))


def test_a_metric_without_units_has_no_reading() -> None:
    found = read_continuous(Population(), None, "a", "b", "mean", reallocated=False)
    assert (found.difference, found.n_control, found.reading.valid) == (None, 0, False)
    fixed = read_fixed(Population(), None, "a", "b", "mean", reallocated=True)
    assert fixed.notes == ("no_common_epoch",)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_an_alpha_that_is_none_is_refused(alpha: float) -> None:
    sums = population(SMALL, "proportion")
    for trail in (None, trail_of(SMALL)):
        with pytest.raises(ValueError, match="alpha"):
            read_fixed(sums, trail, "a", "b", "proportion", reallocated=True, alpha=alpha)
        with pytest.raises(ValueError, match="alpha"):
            read_continuous(sums, trail, "a", "b", "proportion", reallocated=True, alpha=alpha)
