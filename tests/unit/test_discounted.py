"""Evidence that fades: against a recount from single units, and by simulation."""

import math
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import pytest

from analysis.inference.bandit import Inputs, propose
from analysis.inference.discounted import (
    Discounted,
    ScoredCell,
    effective_units,
    follow,
    posteriors,
    start,
)
from analysis.inference.epoch_sums import EpochSums, Population, of_epoch
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.thompson import next_weights, probability_best
from analysis.inference.trail import PLUG_IN_UNITS
from tests.unit.samples import at_most, proportion

HALF_LIFE = 10.0
"""Seconds; blocks are one long."""

Rates = Callable[[int], Mapping[str, float]]


def drawn(
    rng: np.random.Generator,
    block: int,
    shares: Mapping[str, float],
    rates: Mapping[str, float],
    units: int,
) -> ScoredCell:
    """A block, which is an epoch by itself, of so many units."""
    counts = rng.multinomial(units, list(shares.values())).tolist()
    arms = {
        key: proportion(n, int(rng.binomial(n, rates[key])))
        for key, n in zip(shares, counts, strict=True)
        if n
    }
    return ScoredCell(block, block, dict(shares), arms)


def followed(cells: list[ScoredCell], half_life: float = HALF_LIFE) -> Discounted:
    state = start("a", ["b", "c"])
    for cell in cells:
        state = follow(state, [cell], half_life)
    return state


def changing(blocks: int, seed: int = 51) -> list[ScoredCell]:
    """Three arms whose shares go up and down, as does the base rate; some blocks have no units."""
    rng = np.random.default_rng(seed)
    cells = []
    for block in range(0, 3 * blocks, 3):
        shares = dict(zip("abc", rng.dirichlet([4, 4, 4]).tolist(), strict=True))
        level = 0.1 + 0.3 * block / (3 * blocks)
        units = int(rng.integers(20, 200))
        cells.append(drawn(rng, block, shares, {"a": level, "b": level, "c": 2 * level}, units))
    return cells


def test_a_state_is_what_single_units_come_to() -> None:
    """Each unit scored by itself, with the plug-ins and the age that it had."""
    cells = changing(40)
    state = followed(cells)
    last = cells[-1].block
    past: dict[str, list[tuple[int, float]]] = {"a": [], "b": [], "c": []}
    weights, scores = [], {"a": list[float](), "b": list[float]()}
    squares = {"a": 0.0, "b": 0.0}
    for cell in cells:
        if min(len(past["a"]), len(past["b"])) >= PLUG_IN_UNITS:
            plug_in = {
                arm: np.average(
                    [y for _, y in past[arm]],
                    weights=[2.0 ** ((at - cell.block) / HALF_LIFE) for at, _ in past[arm]],
                )
                for arm in "ab"
            }
            age = 2.0 ** ((cell.block - last) / HALF_LIFE)
            for own, seen in cell.arms.items():
                ones = round(seen.n * seen.mean[0])
                for y in [1.0] * ones + [0.0] * (seen.n - ones):
                    weights.append(age)
                    for arm in "ab":
                        e = cell.propensities[arm]
                        off = (y - plug_in[arm]) / e if own == arm else 0.0
                        scores[arm].append(plug_in[arm] + off)
                        squares[arm] += (age * off) ** 2
        for own, seen in cell.arms.items():
            ones = round(seen.n * seen.mean[0])
            past[own] += [(cell.block, 1.0)] * ones + [(cell.block, 0.0)] * (seen.n - ones)
    pair = state.pairs["b"]
    assert pair.weight == pytest.approx(sum(weights))
    for arm, side in (("a", pair.control), ("b", pair.treatment)):
        assert side.mean == pytest.approx(np.average(scores[arm], weights=weights))
        assert side.square == pytest.approx(squares[arm])
        assert state.memories[arm].seen == len(past[arm])


def test_a_half_life_ago_counts_a_half() -> None:
    cells = changing(30)
    state = followed(cells)
    cell = msgspec.structs.replace(cells[-1], block=cells[-1].block + int(HALF_LIFE))
    later = follow(state, [cell], HALF_LIFE)
    assert later.pairs["b"].weight == pytest.approx(state.pairs["b"].weight / 2 + cell.units)
    assert effective_units(later)["b"] < sum(seen.arms["b"].n for seen in [*cells, cell])


def test_an_arm_that_was_away_is_compared_over_its_own_times() -> None:
    """While c has no traffic the rate of all doubles; c is no worse for that."""
    rng = np.random.default_rng(52)
    away = {"a": 0.5, "b": 0.5}
    here = {"a": 0.4, "b": 0.4, "c": 0.2}
    cells = [
        drawn(rng, block, away if 20 <= block < 60 else here, rates, 2_000)
        for block in range(60)
        for rates in [dict.fromkeys("abc", 0.2 if block < 20 else 0.4)]
    ]
    found = posteriors(followed(cells, half_life=1_000.0), "proportion", 100)
    assert found is not None
    assert found["a"].mean == pytest.approx(0.33, abs=0.01)
    assert found["c"].mean == pytest.approx(found["a"].mean, abs=3 * found["c"].sd)
    assert found["c"].sd > found["b"].sd
    without = posteriors(followed(cells, 1_000.0), "proportion", 100, left_out=["c"])
    assert without is not None
    assert list(without) == ["a", "b"]


def test_what_was_scored_long_ago_is_forgotten_without_a_trace() -> None:
    cells = changing(30)
    state = followed(cells)
    far = msgspec.structs.replace(cells[-1], block=10**9)
    alone = follow(state, [far], HALF_LIFE)
    assert alone.pairs["b"].weight == far.units
    found = posteriors(alone, "proportion", 100)
    assert found is not None
    assert all(math.isfinite(arm.sd) for arm in found.values())
    nobody = follow(state, [ScoredCell(10**9, 7, {"a": 1.0}, {"a": EMPTY})], HALF_LIFE)
    assert posteriors(nobody, "proportion", 100) is None  # nothing is known of now


def test_an_arm_that_met_nobody_lately_is_not_certain() -> None:
    rng = np.random.default_rng(53)
    shares = {"a": 0.495, "b": 0.495, "c": 0.01}
    cells = [drawn(rng, block, shares, dict.fromkeys("abc", 0.1), 1_000) for block in range(10)]
    silent = [
        ScoredCell(block, block, shares, {"a": proportion(500, 50), "b": proportion(500, 50)})
        for block in range(10, 30)
    ]
    found = posteriors(followed([*cells, *silent], half_life=1.0), "proportion", 10)
    assert found is not None
    assert found["c"].sd > 5 * found["b"].sd


def test_there_is_no_posterior_before_the_warm_up() -> None:
    assert posteriors(start("a", ["b"]), "proportion", 2) is None
    cells = changing(40)
    state = followed(cells)
    scored = min(
        side.units for pair in state.pairs.values() for side in (pair.control, pair.treatment)
    )
    assert posteriors(state, "proportion", scored) is not None
    assert posteriors(state, "proportion", scored + 1) is None
    flat = followed(
        [
            ScoredCell(t, t, {"a": 0.5, "b": 0.3, "c": 0.2}, dict.fromkeys("abc", same))
            for t, same in enumerate([Moments.of([3.0] * 50)] * 5)
        ]
    )
    assert posteriors(flat, "mean", 20) is None


def test_a_state_goes_through_json_bit_by_bit() -> None:
    cells = changing(30)
    state = followed(cells)
    kept = msgspec.json.decode(msgspec.json.encode(state), type=Discounted)
    assert kept == state
    assert posteriors(kept, "proportion", 50) == posteriors(state, "proportion", 50)


@pytest.mark.parametrize(
    ("cells", "half_life", "why"),
    [
        ([ScoredCell(5, 1, {"a": 1.0}, {})], 0.0, "half-life"),
        ([ScoredCell(5, 1, {"a": 1.0}, {}), ScoredCell(6, 2, {"a": 1.0}, {})], 1.0, "one block"),
        ([ScoredCell(5, 1, {"a": 1.0}, {}), ScoredCell(5, 1, {"a": 1.0}, {})], 1.0, "twice"),
        ([ScoredCell(4, 1, {"a": 1.0}, {})], 1.0, "does not come after"),
        ([ScoredCell(5, 1, {"a": 1.5}, {})], 1.0, "outside"),
    ],
)
def test_what_a_step_refuses(cells: list[ScoredCell], half_life: float, why: str) -> None:
    state = follow(start("a", ["b"]), [ScoredCell(4, 1, {"a": 1.0}, {"a": EMPTY})], 1.0)
    with pytest.raises(ValueError, match=why):
        follow(state, cells, half_life)
    assert follow(state, [], half_life) == state


RUNS = 120


def test_where_nothing_drifts_its_posterior_covers_and_is_not_overconfident() -> None:
    """A bandit that moves by its own posterior, at a floor of 5 %, over three half-lives."""
    rng = np.random.default_rng(54)
    missed = [0, 0]
    sure = 0
    for _ in range(RUNS):
        shares = {"a": 0.5, "b": 0.5}
        state = start("a", ["b"])
        found = None
        for block in range(30):
            cell = drawn(rng, block, shares, dict.fromkeys("ab", 0.1), 60)
            state = follow(state, [cell], HALF_LIFE)
            found = posteriors(state, "proportion", 50)
            if found is not None and block % 3 == 0:
                best = probability_best(found, "increase")
                shares = next_weights(best, shares, 0.05, 0.5)
        assert found is not None
        off = found["b"].mean - found["a"].mean
        missed[0] += abs(off) > 1.96 * math.hypot(found["a"].sd, found["b"].sd)
        missed[1] += abs(found["a"].mean - 0.1) > 1.96 * found["a"].sd
        sure += probability_best(found, "increase")["b"] > 0.95
    assert max(missed) / RUNS <= at_most(0.05, RUNS)
    assert sure / RUNS <= at_most(0.05, RUNS)


def test_discounted_counts_credit_the_favourite_with_good_days() -> None:
    """Between equals, the rate of all rising while b has been made the favourite: pooled counts,
    discounted alike, are sure that b is better; scores are not."""
    rng = np.random.default_rng(55)
    wrong = {"pooled": 0, "scores": 0}
    runs = 60
    for _ in range(runs):
        state = start("a", ["b"])
        pooled = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
        for block in range(30):
            b = 0.1 + 0.8 * block / 30
            cell = drawn(rng, block, {"a": 1 - b, "b": b}, dict.fromkeys("ab", b / 2), 400)
            state = follow(state, [cell], HALF_LIFE)
            fade = 2.0 ** (-1 / HALF_LIFE)
            for key, (n, x) in pooled.items():
                seen = cell.arms.get(key, EMPTY)
                pooled[key] = [n * fade + seen.n, x * fade + seen.n * seen.mean[0]]
        found = posteriors(state, "proportion", 50)
        assert found is not None
        off = found["b"].mean - found["a"].mean
        wrong["scores"] += abs(off) > 1.96 * math.hypot(found["a"].sd, found["b"].sd)
        (n0, x0), (n1, x1) = pooled["a"], pooled["b"]
        p0, p1 = x0 / n0, x1 / n1
        wrong["pooled"] += abs(p1 - p0) > 1.96 * math.sqrt(p0 * (1 - p0) / n0 + p1 * (1 - p1) / n1)
    assert wrong["scores"] / runs <= at_most(0.05, runs)
    assert wrong["pooled"] / runs > 0.5


def test_after_a_swap_of_the_best_arm_a_half_life_loses_less() -> None:
    def lost(rng: np.random.Generator, rates: Rates, *, forgets: bool) -> float:
        shares, total = {"a": 0.5, "b": 0.5}, 0.0
        state, summed = start("a", ["b"]), Population()
        for block in range(60):
            now = rates(block)
            cell = drawn(rng, block, shares, now, 150)
            total += sum(seen.n * (max(now.values()) - now[key]) for key, seen in cell.arms.items())
            state = follow(state, [cell], HALF_LIFE)
            summed += of_epoch(cell.arms, ["a", "b"], "a", "proportion")
            proposal = propose(
                Inputs(
                    metric="click",
                    version="",
                    kind="proportion",
                    goal="increase",
                    floor=0.05,
                    warmup=50,
                    max_step=0.2,
                    finished=EpochSums() if forgets else summed.together,
                    weights=shares,
                    control="a",
                    discounted=state if forgets else None,
                )
            )
            shares = shares if proposal is None else proposal.weights
        return total

    def swaps(block: int) -> dict[str, float]:
        return {"a": 0.2, "b": 0.1} if block < 30 else {"a": 0.1, "b": 0.2}

    rng = np.random.default_rng(56)
    pairs = [[lost(rng, swaps, forgets=forgets) for forgets in (True, False)] for _ in range(7)]
    saved = np.array([without - with_ for with_, without in pairs])
    assert saved.mean() > 5 * saved.std(ddof=1) / math.sqrt(len(saved))
    assert np.mean([with_ for with_, _ in pairs]) < 0.7 * np.mean([w for _, w in pairs])
