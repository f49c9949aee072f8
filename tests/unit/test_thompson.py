import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import betaln

from analysis.inference.epoch_sums import EpochSums, Population, of_epoch
from analysis.inference.kinds import Goal, Kind, Sampling
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.thompson import (
    ArmPosterior,
    next_weights,
    posterior,
    probability_best,
    sampled,
)
from tests.unit.samples import proportion

DRAWS = 1_000_000


def normal(mean: float, sd: float) -> ArmPosterior:
    return ArmPosterior(n=1_000, mean=mean, sd=sd)


def summed(arms: dict[str, dict[int, Moments]], kind: Kind) -> EpochSums:
    """The sums over epochs of all arms, from their cells by variant and epoch."""
    total = Population()
    for epoch in {epoch for cells in arms.values() for epoch in cells}:
        cells = {variant: of[epoch] for variant, of in arms.items() if epoch in of}
        total += of_epoch(cells, list(arms), next(iter(arms)), kind)
    return total.together


def by_draws(arms: dict[str, ArmPosterior], goal: Goal) -> dict[str, float]:
    rng = np.random.default_rng(21)
    draws = np.stack(
        [
            rng.normal(arm.mean, arm.sd, DRAWS) if arm.beta is None else rng.beta(*arm.beta, DRAWS)
            for arm in arms.values()
        ]
    )
    best = draws.argmax(axis=0) if goal == "increase" else draws.argmin(axis=0)
    return {key: float(np.mean(best == k)) for k, key in enumerate(arms)}


@pytest.mark.parametrize("goal", ["increase", "decrease"])
@pytest.mark.parametrize(
    "cells",
    [
        {"a": (10_000, 46), "b": (10_000, 69)},
        {"a": (100, 0), "b": (100, 0), "c": (100, 1)},
        {"a": (150, 150), "b": (5_000, 4_990), "c": (100, 97)},
        {"a": (1_000_000, 5_000), "b": (100, 1), "c": (300, 0), "d": (20_000, 104)},
    ],
)
def test_beta_posteriors_against_draws(cells: dict[str, tuple[int, int]], goal: Goal) -> None:
    arms = posterior(
        summed({key: {1: proportion(*c)} for key, c in cells.items()}, "proportion"), "proportion"
    )
    assert arms is not None
    assert all(arm.beta is not None for arm in arms.values())
    assert probability_best(arms, goal) == pytest.approx(by_draws(arms, goal), abs=3e-3)


@pytest.mark.parametrize("goal", ["increase", "decrease"])
@pytest.mark.parametrize(
    "arms",
    [
        {"a": normal(0.0, 1.0), "b": normal(0.5, 1.0)},
        {"a": normal(0.0, 1.0), "b": normal(0.1, 1e-6), "c": normal(-0.3, 2.0)},
        {"a": normal(1e6, 3.0), "b": normal(1e6 + 1, 0.5), "c": normal(0.0, 1.0)},
        {f"arm-{k}": normal(0.1 * k, 1.0 + 0.2 * k) for k in range(10)},
    ],
)
def test_normal_posteriors_against_draws(arms: dict[str, ArmPosterior], goal: Goal) -> None:
    assert probability_best(arms, goal) == pytest.approx(by_draws(arms, goal), abs=3e-3)


@given(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.floats(1e-3, 10.0), st.floats(1e-3, 10.0))
def test_two_normal_arms_have_a_closed_form(m0: float, m1: float, s0: float, s1: float) -> None:
    arms = {"a": normal(m0, s0), "b": normal(m1, s1)}
    expected = stats.norm.cdf((m1 - m0) / math.hypot(s0, s1))
    assert probability_best(arms, "increase")["b"] == pytest.approx(expected, abs=1e-9)
    assert probability_best(arms, "decrease")["a"] == pytest.approx(expected, abs=1e-9)


def test_two_beta_arms_have_a_finite_sum() -> None:
    """Against the exact sum of Miller (2015), "Formulas for Bayesian A/B testing"."""
    cells = {"a": proportion(120, 13), "b": proportion(140, 21)}
    arms = posterior(
        summed({key: {1: cell} for key, cell in cells.items()}, "proportion"), "proportion"
    )
    assert arms is not None
    i = np.arange(22)
    a0, b0, b1 = 14.0, 108.0, 120.0
    exact = np.exp(betaln(a0 + i, b0 + b1) - np.log(b1 + i) - betaln(1 + i, b1) - betaln(a0, b0))
    assert probability_best(arms, "increase")["b"] == pytest.approx(exact.sum(), abs=1e-10)


def test_one_arm_and_equal_arms() -> None:
    assert probability_best({"a": normal(0.0, 1.0)}, "increase") == {"a": 1.0}
    equal = probability_best({key: normal(2.0, 0.1) for key in "abc"}, "increase")
    assert equal == pytest.approx(dict.fromkeys("abc", 1 / 3))
    for arms in ({}, {"a": normal(0.0, 0.0)}, {"a": normal(math.nan, 1.0)}):
        with pytest.raises(ValueError, match=r"no arms|finite mean"):
            probability_best(arms, "increase")


def test_counts_are_not_pooled_once_traffic_moved() -> None:
    """Simpson's paradox: b is better on both days, and worse in the sum."""
    arms = {
        "a": {1: proportion(5_000, 500), 2: proportion(500, 150)},
        "b": {1: proportion(500, 55), 2: proportion(5_000, 1_600)},
    }
    arms_pooled = {"a": 650 / 5_500, "b": 1_655 / 5_500}
    found = posterior(summed(arms, "proportion"), "proportion")
    assert found is not None
    assert found["a"].mean == pytest.approx(0.5 * 0.1 + 0.5 * 0.3)
    assert found["b"].mean == pytest.approx(0.5 * 0.11 + 0.5 * 0.32)
    assert arms_pooled["b"] - arms_pooled["a"] > 0.15
    assert 0.5 < probability_best(found, "increase")["b"] < 0.95


def test_an_epoch_that_some_arm_missed_makes_the_posterior_normal() -> None:
    """Its units are not in the comparison, so the shared epoch is not the whole history."""
    arms = {
        "a": {1: proportion(500, 50), 2: proportion(400, 8)},
        "b": {2: proportion(300, 9)},
    }
    found = posterior(summed(arms, "proportion"), "proportion")
    assert found is not None
    assert [(arm.n, arm.beta) for arm in found.values()] == [(400, None), (300, None)]
    assert found["b"].mean == 0.03
    assert found["b"].sd == pytest.approx(math.sqrt(0.03 * 0.97 / 300), rel=0.01)


def test_an_arm_without_conversions_is_not_certain() -> None:
    arms = {
        "a": {1: proportion(200, 4), 2: proportion(200, 6)},
        "b": {1: proportion(200, 0), 2: proportion(20, 0)},
    }
    found = posterior(summed(arms, "proportion"), "proportion")
    assert found is not None
    assert found["b"].mean == 0.0
    assert found["b"].sd > 1e-3


def test_means_are_normal_from_the_start() -> None:
    rng = np.random.default_rng(22)
    a, b = Moments.of(rng.lognormal(size=400)), Moments.of(rng.lognormal(size=300))
    found = posterior(summed({"a": {1: a}, "b": {1: b}}, "mean"), "mean")
    assert found is not None
    assert a.variance is not None
    assert (found["a"].mean, found["a"].beta) == (a.mean[0], None)
    assert found["a"].sd == pytest.approx(math.sqrt(a.variance / 400))


@pytest.mark.parametrize(
    "arms",
    [
        {},
        {"a": {}, "b": {1: proportion(500, 5)}},
        {"a": {1: proportion(99, 5)}, "b": {1: proportion(500, 5)}},
        {"a": {1: proportion(500, 5)}, "b": {2: proportion(500, 5)}},
        {"a": {1: EMPTY}, "b": {1: EMPTY}},
    ],
)
def test_no_decision_before_there_is_enough(arms: dict[str, dict[int, Moments]]) -> None:
    assert posterior(summed(arms, "proportion"), "proportion") is None


def test_no_decision_without_a_spread() -> None:
    flat = {"a": {1: Moments.of([1.0] * 200)}, "b": {1: Moments.of([1.0, 2.0] * 100)}}
    assert posterior(summed(flat, "mean"), "mean") is None


weights = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8).map(
    lambda ws: {f"v{k}": w / math.fsum(ws) for k, w in enumerate(ws)}
)


@given(weights, st.data(), st.floats(0.0, 0.125), st.floats(0.01, 1.0))
def test_next_weights(
    current: dict[str, float], data: st.DataObject, floor: float, max_step: float
) -> None:
    raw = [data.draw(st.floats(0.0, 1.0)) for _ in current]
    raw[0] += 0.01
    p_best = {key: p / math.fsum(raw) for key, p in zip(current, raw, strict=True)}
    moved = next_weights(p_best, current, floor, max_step)
    assert list(moved) == list(current)
    assert math.fsum(moved.values()) == 1.0
    target = {key: floor + (1 - len(current) * floor) * p for key, p in p_best.items()}
    for key, weight in moved.items():
        assert abs(weight - current[key]) <= max_step + 1e-12
        assert weight >= min(floor, current[key]) - 1e-12
        low, high = sorted((current[key], target[key]))
        assert low - 1e-12 <= weight <= high + 1e-12  # towards the target, never past it
    if max(abs(target[key] - current[key]) for key in current) <= max_step:
        assert moved == pytest.approx(target)


def test_what_next_weights_refuses() -> None:
    half = {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match="same variants"):
        next_weights({"a": 1.0}, half, 0.0, 1.0)
    with pytest.raises(ValueError, match="shares"):
        next_weights({"a": 0.5, "b": 0.6}, half, 0.0, 1.0)
    with pytest.raises(ValueError, match="current"):
        next_weights(half, {"a": 1.5, "b": -0.5}, 0.0, 1.0)
    with pytest.raises(ValueError, match="floor"):
        next_weights(half, half, 0.51, 1.0)
    with pytest.raises(ValueError, match="more than there is"):
        next_weights({"b": 1.0}, half, 0.3, 1.0, pinned={"a": 0.8})
    with pytest.raises(ValueError, match="pins name others"):
        next_weights(half, half, 0.0, 1.0, pinned={"a": 0.5})
    with pytest.raises(ValueError, match="max_step"):
        next_weights(half, half, 0.1, 0.0)
    assert next_weights(half, half, 0.5, 1.0) == half


@given(weights, st.data(), st.floats(0.01, 0.05), st.floats(0.01, 1.0))
def test_floors_and_pins_are_reached_in_steps(
    current: dict[str, float], data: st.DataObject, floor: float, max_step: float
) -> None:
    pinned = {"v0": data.draw(st.floats(0.01, 0.3))}
    free = [key for key in current if key != "v0"]
    floors = {key: data.draw(st.floats(floor, 0.08)) for key in free[:2]}
    raw = [data.draw(st.floats(0.0, 1.0)) + 0.01 for _ in free]
    shares = {key: share / math.fsum(raw) for key, share in zip(free, raw, strict=True)}
    moved = current
    for _ in range(math.ceil(1.0 / max_step) + 1):
        after = next_weights(shares, moved, floor, max_step, floors=floors, pinned=pinned)
        assert math.fsum(after.values()) == 1.0
        assert max(abs(after[key] - moved[key]) for key in moved) <= max_step + 1e-12
        moved = after
    assert moved["v0"] == pinned["v0"]  # exactly, once it is reached
    rest = 1.0 - pinned["v0"] - math.fsum(floors.get(key, floor) for key in free)
    for key in free:
        assert moved[key] == pytest.approx(floors.get(key, floor) + rest * shares[key])


def top_two_by_draws(arms: dict[str, ArmPosterior], goal: Goal) -> dict[str, float]:
    """As the algorithm is told: draw all means and name the best; in half of the cases draw again
    until another one is the best."""
    rng = np.random.default_rng(23)
    draws = rng.normal([a.mean for a in arms.values()], [a.sd for a in arms.values()], (10**6, 4))
    best = draws.argmax(axis=1) if goal == "increase" else draws.argmin(axis=1)
    first, again = best[: len(best) // 4], iter(best[len(best) // 4 :].tolist())
    chosen = np.zeros(4)
    for place, leader in enumerate(first.tolist()):
        arm = leader
        while place % 2 and arm == leader:
            arm = next(again)
        chosen[arm] += 1
    return dict(zip(arms, (chosen / len(first)).tolist(), strict=True))


@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_top_two_is_what_the_algorithm_draws(goal: Goal) -> None:
    arms = {"a": normal(0.0, 1.0), "b": normal(0.4, 0.8), "c": normal(0.2, 0.5), "d": normal(0, 2)}
    shares = sampled(probability_best(arms, goal), "top_two")
    assert shares == pytest.approx(top_two_by_draws(arms, goal), abs=5e-3)


def test_exploration_weighs_by_doubt() -> None:
    shares = sampled({"a": 0.7, "b": 0.2, "c": 0.1}, "exploration")
    assert shares == pytest.approx({"a": 0.21 / 0.46, "b": 0.16 / 0.46, "c": 0.09 / 0.46})


@pytest.mark.parametrize("sampling", ["top_two", "exploration"])
@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_those_who_look_for_the_best_favour_it_whatever_the_goal(
    sampling: Sampling, goal: Goal
) -> None:
    """Where less is better, a copy that ranks draws from above sends most traffic to the worst."""
    sign = 1.0 if goal == "increase" else -1.0
    arms = {"good": normal(sign * 1.0, 0.5), "fair": normal(0.0, 0.5), "bad": normal(-sign, 0.5)}
    shares = sampled(probability_best(arms, goal), sampling)
    assert 0.5 >= shares["good"] > shares["fair"] > shares["bad"]
    assert math.fsum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("sampling", ["top_two", "exploration"])
@given(p=st.floats(0.0, 1.0))
def test_with_two_arms_both_give_halves(sampling: Sampling, p: float) -> None:
    assert sampled({"a": p, "b": 1.0 - p}, sampling) == pytest.approx({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("sampling", ["top_two", "exploration"])
def test_where_one_arm_is_certain_the_others_share_its_half(sampling: Sampling) -> None:
    sure = sampled({"a": 0.0, "b": 1.0, "c": 0.0}, sampling)
    assert sure == {"a": 0.25, "b": 0.5, "c": 0.25}
    nearly = sampled({"a": 3e-300, "b": 1.0, "c": 1e-300}, sampling)
    assert nearly == pytest.approx({"a": 0.375, "b": 0.5, "c": 0.125})
    assert sampled({"a": 1.0}, sampling) == {"a": 1.0}


def test_thompson_takes_the_chances_as_they_are() -> None:
    assert sampled({"a": 0.7, "b": 0.3}, "thompson") == {"a": 0.7, "b": 0.3}
