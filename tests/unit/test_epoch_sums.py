"""Estimates made of sums over epochs, against the same formulas written out over the epochs."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.inference.epoch_sums import PRIOR_UNITS, EpochSums, Population, of_epoch
from analysis.inference.estimate import cautious_std_error, compare
from analysis.inference.kinds import Kind
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.thompson import posterior
from analysis.inference.variance import CAUTIOUS_UNITS, weighted_mean_variance
from tests.unit.samples import compared, contrast, population, proportion, terms

KAPPA, CAUTIOUS = Fraction(PRIOR_UNITS), Fraction(CAUTIOUS_UNITS)

Epochs = Sequence[Sequence[Moments]]
"""The cells of the variants a, b and so on, by epoch."""


class Arm(NamedTuple):
    """An arm over epochs, by the formulas of `variance.py` in fractions."""

    n: int
    mean: Fraction
    variance: Fraction
    df: Fraction
    pooled: Fraction
    scale: Fraction
    degrees: int


def spread(cell: Moments, kind: Kind) -> Fraction:
    """Σ (x - mean)²."""
    if kind == "mean":
        return Fraction(cell.m2[0])
    share = Fraction(round(cell.n * cell.mean[0]), cell.n)
    return cell.n * share * (1 - share)


def center(cell: Moments, kind: Kind) -> Fraction:
    """The mean."""
    if kind == "mean":
        return Fraction(cell.mean[0])
    return Fraction(round(cell.n * cell.mean[0]), cell.n)


def by_epochs(
    cells: Sequence[Moments], weights: Sequence[Fraction], kind: Kind, prior: float | None = None
) -> Arm | None:
    """An arm's mean and variance, epoch by epoch; None where it has no degree of freedom."""
    ddof = 0 if kind == "proportion" and len(cells) == 1 else 1
    own = [cell.n - ddof for cell in cells]
    total = sum(own)
    if total == 0:
        return None
    spreads = [spread(cell, kind) for cell in cells]
    pooled = sum(spreads, start=Fraction(0)) / total
    target = pooled if prior is None else Fraction(prior)
    scale = [w * w / cell.n for w, cell in zip(weights, cells, strict=True)]
    kappa = KAPPA if len(cells) > 1 or prior is not None else Fraction(0)
    shrunk = [(m2 + kappa * target) / (df + kappa) for m2, df in zip(spreads, own, strict=True)]
    variance = sum((f * s2 for f, s2 in zip(scale, shrunk, strict=True)), start=Fraction(0))
    df = Fraction(total)
    if variance > 0:
        lent = sum(
            (kappa * f / (df + kappa) for f, df in zip(scale, own, strict=True)),
            start=Fraction(0),
        )
        shares = [
            (f / (df + kappa) + lent / total) * s2 / variance
            for f, s2, df in zip(scale, shrunk, own, strict=True)
        ]
        df = 1 / sum(
            (share * share * df for share, df in zip(shares, own, strict=True)),
            start=Fraction(0),
        )
    return Arm(
        n=sum(cell.n for cell in cells),
        mean=sum(
            (w * center(cell, kind) for w, cell in zip(weights, cells, strict=True)),
            start=Fraction(0),
        ),
        variance=variance,
        df=df,
        pooled=pooled,
        scale=sum(scale, start=Fraction(0)),
        degrees=total,
    )


def used(epochs: Epochs, arms: Sequence[int]) -> tuple[list[Sequence[Moments]], list[Fraction]]:
    """The epochs in which all these arms have units, and their weights."""
    found = [cells for cells in epochs if all(cells[arm].n > 0 for arm in arms)]
    units = [sum(cell.n for cell in cells) for cells in found]
    return found, [Fraction(n, sum(units)) for n in units]


def close(x: float | Fraction | None) -> object:
    """Equal to 1e-9."""
    return None if x is None else pytest.approx(float(x), rel=1e-9, abs=1e-300)


def under_no_difference(epochs: Sequence[Sequence[Moments]], weights: Sequence[Fraction]) -> float:
    """The variance of a difference of two proportions that are the same in each epoch."""
    total = Fraction(0)
    for weight, (control, treatment, *_) in zip(weights, epochs, strict=True):
        n = control.n + treatment.n
        rate = Fraction(sum(round(c.n * c.mean[0]) for c in (control, treatment)), n)
        inverse = Fraction(1, control.n) + Fraction(1, treatment.n)
        total += weight**2 * rate * (1 - rate) * inverse
    return float(total)


@st.composite
def proportions(draw: st.DrawFn) -> Moments:
    """A cell of a proportion: empty, of one unit, of a billion, with all or no conversions."""
    n = draw(st.sampled_from([0, 1, 2, 10**9]) | st.integers(0, 5_000))
    return proportion(n, draw(st.sampled_from([0, n]) | st.integers(0, n)))


@st.composite
def means(draw: st.DrawFn) -> Moments:
    """A cell of a mean: as above, around 0 or far from it, with and without a spread."""
    n = draw(st.sampled_from([0, 1, 2, 10**9]) | st.integers(0, 5_000))
    if n == 0:
        return EMPTY
    offset = draw(st.sampled_from([0.0, 1e12, -1e12, 1e-9]))
    mean = offset + draw(st.floats(-10, 10))
    variance = draw(st.just(0.0) | st.floats(1e-12, 1e4)) if n > 1 else 0.0
    return Moments(n=n, mean=(mean,), m2=((n - 1) * variance,))


def epochs_of(cells: st.SearchStrategy[Moments]) -> st.SearchStrategy[Epochs]:
    """One to six epochs of three variants."""
    return st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6)


samples = st.one_of(
    st.tuples(epochs_of(proportions()), st.just("proportion")),
    st.tuples(epochs_of(means()), st.just("mean")),
)


@given(samples)
def test_a_comparison_is_that_of_the_epochs(sample: tuple[Epochs, Kind]) -> None:
    epochs, kind = sample
    found, weights = used(epochs, (0, 1))
    sums = contrast(epochs, kind)
    result = compare(sums, "a", "b", kind)
    left_out = [cells[0].n + cells[1].n for cells in epochs if cells not in found]
    assert result.epochs_used == len(found)
    assert result.epochs_left_out == sum(units > 0 for units in left_out)
    assert result.units_left_out == sum(left_out)
    if not found:
        assert result.notes == ("no_common_epoch",)
        assert cautious_std_error(sums, "a", "b", kind) is None
        return
    difference = sum(
        (
            w * (center(c[1], kind) - center(c[0], kind))
            for w, c in zip(weights, found, strict=True)
        ),
        start=Fraction(0),
    )
    # A proportion of an epoch is rounded to a float before it is summed.
    assert result.difference == pytest.approx(float(difference), rel=1e-9, abs=1e-15)
    arms = [by_epochs([cells[place] for cells in found], weights, kind) for place in (0, 1)]
    control, treatment = arms
    assert result.n_control == sum(cells[0].n for cells in found)
    assert result.n_treatment == sum(cells[1].n for cells in found)
    if control is None or treatment is None:
        assert "too_few_units" in result.notes
        assert cautious_std_error(sums, "a", "b", kind) is None
        return
    assert result.mean_control == close(control.mean)
    assert result.mean_treatment == close(treatment.mean)
    larger = max(control.pooled, treatment.pooled)
    cautious = sum(
        (
            arm.variance + CAUTIOUS / (arm.degrees + CAUTIOUS) * arm.scale * (larger - arm.pooled)
            for arm in (control, treatment)
        ),
        start=Fraction(0),
    )
    assert cautious_std_error(sums, "a", "b", kind) == close(math.sqrt(cautious))
    variance = control.variance + treatment.variance
    if result.test in {"agresti_caffo", "fisher"}:
        assert (kind, result.epochs_used) == ("proportion", 1)
        assert "small_counts" in result.notes
    elif min(control.n, treatment.n) < 2:
        assert "too_few_units" in result.notes
    elif result.test == "score":
        assert kind == "proportion"
        assert result.epochs_used > 1
        assert "small_counts" in result.notes
        null = under_no_difference(found, weights)
        z = float(difference) / math.sqrt(null) if null else 0.0
        assert result.statistic == pytest.approx(z, rel=1e-9, abs=1e-9)
        assert result.std_error is not None
        assert result.std_error >= math.sqrt(max(float(variance), null)) * (1 - 1e-9)
    elif variance == 0:
        assert "zero_variance" in result.notes
    else:
        assert result.std_error == close(math.sqrt(variance))
        inverse = sum(
            ((arm.variance / variance) ** 2 / arm.df for arm in (control, treatment)),
            start=Fraction(0),
        )
        assert result.df == (None if kind == "proportion" else close(1 / inverse))


@given(samples)
def test_posteriors_are_those_of_the_epochs(sample: tuple[Epochs, Kind]) -> None:
    epochs, kind = sample
    found, weights = used(epochs, (0, 1, 2))
    result = posterior(population(epochs, kind).together, kind, warmup=3)
    units = [sum(cells[place].n for cells in found) for place in range(3)]
    if min(units) < 3:
        assert result is None
        return
    if kind == "proportion" and len([c for c in epochs if any(cell.n for cell in c)]) == 1:
        assert result is not None
        for beta, cell in zip(result.values(), found[0], strict=True):
            converted = round(cell.n * cell.mean[0])
            assert (beta.n, beta.beta) == (cell.n, (1.0 + converted, 1.0 + cell.n - converted))
        return
    expected = []
    for place in range(3):
        cells, prior = [cells[place] for cells in found], None
        if kind == "proportion":
            rate = (sum(round(c.n * c.mean[0]) for c in cells) + 1) / (units[place] + 2)
            prior = rate * (1 - rate)
        expected.append(by_epochs(cells, weights, kind, prior))
    if any(arm is None or arm.variance == 0 for arm in expected):
        assert result is None
        return
    assert result is not None
    assert list(result) == ["a", "b", "c"]
    for ours, arm in zip(result.values(), expected, strict=True):
        assert arm is not None
        assert (ours.n, ours.beta) == (arm.n, None)
        assert ours.mean == close(arm.mean)
        assert ours.sd == close(math.sqrt(arm.variance))


@given(samples)
def test_degrees_of_freedom_are_those_of_the_epochs(sample: tuple[Epochs, Kind]) -> None:
    epochs, kind = sample
    found, weights = used(epochs, (0, 1))
    if not found:
        return
    sums = contrast(epochs, kind)
    for place, variant in enumerate("ab"):
        expected = by_epochs([cells[place] for cells in found], weights, kind)
        result = weighted_mean_variance(sums, variant, kind)
        if expected is None:
            assert result is None
        else:
            assert result is not None
            assert result.df == close(expected.df)
            assert result.pooled == close(expected.pooled)
            assert result.variance == close(expected.variance)


@given(samples, st.data())
def test_totals_follow_the_cells_whatever_came_and_went(
    sample: tuple[Epochs, Kind], data: st.DataObject
) -> None:
    epochs, kind = sample
    standing = list(epochs)
    total = population(epochs, kind)
    cell = proportions() if kind == "proportion" else means()
    for _ in range(3):
        epoch = data.draw(st.integers(0, len(standing) - 1))
        cells = data.draw(st.tuples(cell, cell, cell))
        total -= terms(standing[epoch], kind)
        total += terms(cells, kind)
        standing[epoch] = cells
    afresh = population(data.draw(st.permutations(standing)), kind)
    for variant in ("b", "c"):
        assert compare(total.contrasts[variant], "a", variant, kind) == compare(
            afresh.contrasts[variant], "a", variant, kind
        )
    assert posterior(total.together, kind, 1) == posterior(afresh.together, kind, 1)
    assert total - afresh == afresh - total  # both are nothing at all
    assert msgspec.json.decode(msgspec.json.encode(total), type=Population) == total


def test_one_epoch_gives_the_textbook_answers() -> None:
    [n0, x0], [n1, x1] = (2_000, 137), (3_001, 290)
    p0, p1 = x0 / n0, x1 / n1
    wald = compared([(proportion(n0, x0), proportion(n1, x1))], "proportion")
    expected = math.sqrt(p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1)
    assert wald.std_error == pytest.approx(expected, rel=1e-12)
    assert wald.statistic == pytest.approx((p1 - p0) / expected, rel=1e-12)
    control, treatment = Moments(100, (3.0,), (250.0,)), Moments(37, (3.5,), (400.0,))
    welch = compared([(control, treatment)], "mean")
    v0, v1 = 250 / 99 / 100, 400 / 36 / 37
    assert welch.std_error == pytest.approx(math.sqrt(v0 + v1), rel=1e-12)
    df = (v0 + v1) ** 2 / (v0**2 / 99 + v1**2 / 36)
    assert welch.df == pytest.approx(df, rel=1e-12)


def test_a_small_difference_of_large_means_keeps_its_digits() -> None:
    """Per-epoch means near 1e12 differ by 2^-9; sums of them in floats would differ by noise."""
    step = 2.0**-9
    cells = [
        (
            Moments(n, (1e12 + epoch,), (1e-4 * n,)),
            Moments(2 * n, (1e12 + epoch + step,), (1e-4 * n,)),
        )
        for epoch, n in enumerate((7, 11, 13, 101))
    ]
    assert compared(cells, "mean").difference == step


def test_an_epoch_in_which_nothing_is_compared_only_counts() -> None:
    alone = of_epoch({"a": proportion(5, 1)}, ["a", "b", "c"], "a", "proportion")
    assert alone.units == {"a": 5}
    expected = EpochSums(epochs_left_out=1, units_left_out=5, units_in_small=5)
    assert alone.together == expected
    assert alone.contrasts == {"b": expected, "c": expected}
    nobody = of_epoch({"a": EMPTY}, ["a", "b"], "a", "proportion")
    assert nobody == Population(contrasts={"b": EpochSums()})


def test_scores_of_all_sizes_have_terms() -> None:
    """Up to 1e30 in epochs of a billion units, and down to what is nothing beside 1."""
    for size in (1e30, 1.0, 1e-30, 1e-90, 1e-160, 5e-324):
        big = Moments(10**9, (size,), (1e9 * size * size,))
        lone = Moments(1, (size,), (0.0,))
        few = Moments(2, (-size,), (size * size,))
        result = compared([(big, lone), (few, big), (big, big)], "mean")
        assert result.difference is not None
        if result.std_error is not None:
            assert result.df is not None
            assert result.df >= 1.0
            assert result.std_error > 0.0
        else:
            assert "zero_variance" in result.notes
    huge = Moments(10**9, (1e80,), (1e169,))
    with pytest.raises(OverflowError, match="finite"):
        population([(huge, Moments(2, (0.0,), (1e160,)))], "mean")


def test_a_proportion_has_whole_conversions() -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        population([(Moments.of([0.5, 0.7]), proportion(3, 1))], "proportion")
