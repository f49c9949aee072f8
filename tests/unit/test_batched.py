"""Batched OLS, against loops over epochs and the textbook.

That intervals hold the truth after a bandit is for `test_calibration.py` to show.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.inference.batched import batched_ols
from analysis.inference.epoch_sums import PRIOR_UNITS, EpochSums
from analysis.inference.kinds import Kind
from analysis.inference.moments import EMPTY, Moments, of_rows
from tests.unit.samples import contrast, proportion

Floats = NDArray[np.float64]
Z = float(stats.norm.isf(0.025))


def random_epochs(seed: int, epochs: int, d: int) -> list[tuple[Floats, Floats]]:
    """The units of both arms in each epoch, with d correlated numbers each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(epochs):
        n = rng.integers(2, 40, 2)
        common = rng.normal(size=(int(n.sum()), 1))
        values = 5.0 + rng.normal() + common + rng.normal(size=(int(n.sum()), d))
        found.append((values[: n[0]], values[n[0] :]))
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    epochs=st.integers(1, 12),
    kind=st.sampled_from(["mean", "adjusted", "ratio"]),
)
def test_it_is_the_sum_over_epochs_of_the_paper(seed: int, epochs: int, kind: str) -> None:
    d = 1 if kind == "mean" else 2
    units = random_epochs(seed, epochs, d)
    of_kind: Kind = "ratio" if kind == "ratio" else "mean"
    sums = contrast([(of_rows(a), of_rows(b)) for a, b in units], of_kind)
    found = batched_ols(sums, "a", "b", of_kind)
    assert found is not None

    h = [len(a) * len(b) / (len(a) + len(b)) for a, b in units]
    root = sum(map(math.sqrt, h))
    means = [
        sum(math.sqrt(w) * both[k].mean(axis=0) for w, both in zip(h, units, strict=True)) / root
        for k in (0, 1)
    ]
    spread = [
        sum((y[k] - y[k].mean(axis=0)).T @ (y[k] - y[k].mean(axis=0)) for y in units)
        for k in (0, 1)
    ]
    if kind == "mean":
        forms, levels = [np.array([1.0])] * 2, [m[0] for m in means]
    elif kind == "adjusted":
        theta = sum(s[0, 1] for s in spread) / sum(s[1, 1] for s in spread)
        forms, levels = [np.array([1.0, -theta])] * 2, [m[0] - theta * m[1] for m in means]
    else:
        levels = [m[0] / m[1] for m in means]
        forms = [np.array([1.0, -r]) / m[1] for r, m in zip(levels, means, strict=True)]
    variance = 0.0
    for k, form in enumerate(forms):
        df = sum(len(y[k]) for y in units) - epochs
        pooled = float(form @ spread[k] @ form) / df
        own = towards_own = towards_both = 0.0
        for w, y in zip(h, units, strict=True):
            n, m2 = (
                [len(rows) for rows in y],
                [float((((rows - rows.mean(axis=0)) @ form) ** 2).sum()) for rows in y],
            )
            weight = w / n[k] / (n[k] - 1 + PRIOR_UNITS) / root**2
            own += weight * m2[k]
            towards_own += weight * PRIOR_UNITS * pooled
            towards_both += weight * PRIOR_UNITS * sum(m2) / (sum(n) - 2)
        variance += own + max(towards_own, towards_both)
    assert found.difference == pytest.approx(levels[1] - levels[0], rel=1e-9, abs=1e-12)
    assert found.std_error == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert found.ci_high - found.difference == pytest.approx(Z * math.sqrt(variance), rel=1e-9)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(found.statistic)), rel=1e-9)
    assert found.epochs == epochs


def test_one_epoch_gives_the_textbook_difference_and_error() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(5.0, 2.0, 80), rng.normal(5.5, 1.0, 120)
    found = batched_ols(contrast([(Moments.of(a), Moments.of(b))], "mean"), "a", "b", "mean")
    assert found is not None
    textbook = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    assert found.difference == pytest.approx(b.mean() - a.mean(), rel=1e-12)
    assert found.std_error == pytest.approx(textbook.std_meandiff_separatevar, rel=0.05)


def test_an_effect_that_is_the_same_everywhere_is_found_whatever_the_split() -> None:
    cells = [
        (proportion(900, 90), proportion(100, 20)),
        (proportion(100, 30), proportion(900, 360)),
    ]
    found = batched_ols(contrast(cells, "proportion"), "a", "b", "proportion")
    assert found is not None
    assert found.difference == pytest.approx(0.1)


def test_an_epoch_with_one_arm_only_says_nothing() -> None:
    cells = [(proportion(50, 20), proportion(50, 30))]
    alone = [*cells, (proportion(500, 5), EMPTY), (EMPTY, proportion(40, 40))]
    expected = batched_ols(contrast(cells, "proportion"), "a", "b", "proportion")
    assert expected is not None
    assert batched_ols(contrast(alone, "proportion"), "a", "b", "proportion") == expected


@pytest.mark.parametrize(
    "epochs",
    [
        [],
        [(proportion(50, 20), EMPTY)],
        [(Moments(1, (1.0,), (0.0,)), Moments(1, (2.0,), (0.0,)))],
        [(Moments(9, (1.0,), (0.0,)), Moments(9, (2.0,), (0.0,)))],
    ],
)
def test_without_a_variance_there_is_no_answer(epochs: list[tuple[Moments, Moments]]) -> None:
    sums = contrast(epochs, "mean") if epochs else EpochSums()
    assert batched_ols(sums, "a", "b", "mean") is None


def test_batches_with_hardly_a_conversion_are_doubtful() -> None:
    one, other = (proportion(198, 4), proportion(2, 0)), (proportion(198, 4), proportion(2, 1))
    for epochs, notes in (
        ([one] * 20 + [other] * 2, ("few_conversions",)),
        ([other] * 20, ()),
        ([(proportion(50, 45), proportion(60, 58)), (proportion(80, 8), proportion(60, 4))], ()),
    ):
        found = batched_ols(contrast(epochs, "proportion"), "a", "b", "proportion")
        assert found is not None
        assert found.notes == notes


def test_a_ratio_without_denominators_has_no_answer() -> None:
    cell = of_rows([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert batched_ols(contrast([(cell, cell)], "ratio"), "a", "b", "ratio") is None
