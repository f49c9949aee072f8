"""Interaction of treatment and segment: the differences are compared, not their stars."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.inference.interaction import Effect, cochran_q, sequence_of_differences
from analysis.inference.kinds import Kind
from analysis.inference.moments import Moments
from analysis.inference.sequence import always_valid
from tests.unit.samples import at_most, compared

Floats = NDArray[np.float64]


def effect(control: Sequence[float], treatment: Sequence[float], kind: Kind) -> Effect:
    """The effect in one segment, from the values of its units."""
    found = compared([(Moments.of(control), Moments.of(treatment))], kind)
    assert found.difference is not None
    assert found.std_error is not None
    return Effect(found.difference, found.std_error, found.n_control, found.n_treatment)


def wald_of_interactions(segments: Sequence[tuple[Floats, Floats]], robust: str) -> float:
    """Wald's chi-square of all interactions in a saturated regression on raw rows."""
    rows, values = [], []
    for place, arms in enumerate(segments):
        for treated, arm in enumerate(arms):
            indicator = np.eye(len(segments))[place]
            rows += [np.concatenate([indicator, treated * indicator])] * len(arm)
            values += arm.tolist()
    fit = sm.OLS(np.array(values), np.array(rows)).fit(cov_type=robust)
    k = len(segments)
    contrasts = np.zeros((k - 1, 2 * k))
    for place in range(1, k):
        contrasts[place - 1, k], contrasts[place - 1, k + place] = -1.0, 1.0
    return float(fit.wald_test(contrasts, use_f=False, scalar=True).statistic)


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_q_is_walds_test_of_the_interactions_in_a_regression_on_raw_rows(seed: int, k: int) -> None:
    source = np.random.default_rng(seed)

    def arm(mean: float) -> Floats:
        return source.normal(mean, source.uniform(0.5, 4.0), source.integers(20, 60))

    segments = [(arm(3.0 * s), arm(3.0 * s + source.normal())) for s in range(k)]
    found = cochran_q([effect(c.tolist(), t.tolist(), "mean") for c, t in segments])
    assert found is not None
    # HC2 of a saturated regression is the variance of each arm with n - 1.
    assert found.statistic == pytest.approx(wald_of_interactions(segments, "HC2"), rel=1e-8)
    assert found.df == k - 1


def test_q_of_proportions_is_walds_too() -> None:
    source = np.random.default_rng(5)
    segments = [
        (
            source.binomial(1, rate, 900).astype(np.float64),
            source.binomial(1, rate + 0.05, 700).astype(np.float64),
        )
        for rate in (0.2, 0.5, 0.4)
    ]
    found = cochran_q([effect(c.tolist(), t.tolist(), "proportion") for c, t in segments])
    assert found is not None
    # HC0 has the variance p(1 - p)/n.
    assert found.statistic == pytest.approx(wald_of_interactions(segments, "HC0"), rel=1e-8)


def test_q_keeps_the_spread_of_large_differences_near_each_other() -> None:
    near_zero = cochran_q([Effect(d, 2.0, 500, 500) for d in (0.0, 3.0, 5.0)])
    far = cochran_q([Effect(1e12 + d, 2.0, 500, 500) for d in (0.0, 3.0, 5.0)])
    assert near_zero == far


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1.0, 1e9, 1e200])
def test_the_unit_of_a_metric_does_not_matter(scale: float) -> None:
    effects = [Effect(d * scale, s * scale, 500, 500) for d, s in ((1.0, 2.0), (7.0, 1.0))]
    found = cochran_q(effects)
    assert found is not None
    assert found.statistic == pytest.approx(36 / 5)


def test_a_p_value_is_small_but_never_zero() -> None:
    effects = [Effect(0.0, 1.0, 500, 500), Effect(1e6, 1.0, 500, 500)]
    for found in (cochran_q(effects), sequence_of_differences(effects)):
        assert found is not None
        assert 0.0 < found.p_value < 1e-300
        assert math.isfinite(found.statistic)


@pytest.mark.parametrize("effects", [[], [Effect(1.0, 1.0, 500, 500)]])
def test_one_segment_cannot_differ_from_itself(effects: list[Effect]) -> None:
    assert cochran_q(effects) is None
    assert sequence_of_differences(effects) is None


def test_the_sequence_of_two_segments_is_that_of_their_difference() -> None:
    first, second = Effect(5.0, 3.0, 400, 500), Effect(-6.0, 4.0, 300, 200)
    found = sequence_of_differences([first, second])
    direct = always_valid(11.0, 5.0, 700, 700)
    assert found is not None
    assert found.statistic == pytest.approx(direct.log_e)
    assert found.p_value == pytest.approx(direct.p_value)


def test_the_sequence_sees_more_than_bonferroni_would() -> None:
    effects = [Effect(d, 1.0, 500, 500) for d in (0.0, 0.5, 6.0, 5.5)]
    found = sequence_of_differences(effects)
    assert found is not None
    largest = max(
        e
        for d in (-4.0, -3.5 + 1 / 6, 4.0, 3.5 - 1 / 6)
        if (e := always_valid(d, math.hypot(1.0, math.sqrt(1 / 3)), 2000, 2000).log_e) is not None
    )
    assert found.statistic > largest - math.log(4)


def test_a_sequence_waits_for_units() -> None:
    assert sequence_of_differences([Effect(1.0, 1.0, 30, 30), Effect(2.0, 1.0, 30, 30)]) is None


RUNS, SEGMENTS = 2_000, 5


def aa_effects(source: np.random.Generator, effect_of_all: float) -> Floats:
    """z values, errors and differences of segments with one effect, of shape (runs, segments)."""
    rate, n = 0.2, 1_000
    control = source.binomial(n, rate, (RUNS, SEGMENTS)) / n
    treatment = source.binomial(n, rate + effect_of_all, (RUNS, SEGMENTS)) / n
    error = np.sqrt((control * (1 - control) + treatment * (1 - treatment)) / n)
    return np.stack([treatment - control, error], axis=-1)


@pytest.mark.parametrize("effect_of_all", [0.0, 0.04])
def test_q_finds_an_interaction_where_there_is_none_as_often_as_it_says(
    effect_of_all: float,
) -> None:
    found = aa_effects(np.random.default_rng(11), effect_of_all)
    tests = [cochran_q([Effect(d, e, 1_000, 1_000) for d, e in run]) for run in found.tolist()]
    rate = sum(test is not None and test.p_value <= 0.05 for test in tests) / RUNS
    assert 0.035 <= rate <= at_most(0.05, RUNS)
    # Naive: an effect is there in one segment and not in another.
    starred = np.abs(found[..., 0] / found[..., 1]) > 1.96
    naive = (starred.any(axis=1) & ~starred.all(axis=1)).mean()
    assert naive > 0.2


def test_the_sequence_holds_at_every_look_and_q_does_not() -> None:
    source, runs, looks, batch = np.random.default_rng(12), 1_000, 20, 150
    shape = (runs, looks, 4)
    n = batch * np.arange(1, looks + 1)[:, np.newaxis]
    control, treatment = (
        source.binomial(batch, 0.3, shape).cumsum(axis=1) / n for _ in ("control", "treatment")
    )
    error = np.sqrt((control * (1 - control) + treatment * (1 - treatment)) / n)
    wrong = {"sequence": 0, "q": 0}
    for run in range(runs):
        ever = {"sequence": False, "q": False}
        for look in range(looks):
            units = batch * (look + 1)
            effects = [
                Effect(d, e, units, units)
                for d, e in zip(
                    (treatment - control)[run, look].tolist(),
                    error[run, look].tolist(),
                    strict=True,
                )
            ]
            for name, found in (
                ("sequence", sequence_of_differences(effects)),
                ("q", cochran_q(effects)),
            ):
                ever[name] |= found is not None and found.p_value <= 0.05
        for name, alarm in ever.items():
            wrong[name] += alarm
    assert wrong["sequence"] / runs <= at_most(0.05, runs)
    assert wrong["q"] / runs > 0.15
