"""The guard's error rates and delays, by simulation."""

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

from analysis.inference.evidence import (
    BlockCell,
    GuardRule,
    GuardState,
    alarms,
    log_evidence,
    start,
    step,
)
from analysis.inference.kinds import Goal
from analysis.inference.moments import Moments
from tests.unit.samples import at_most, proportion

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]

ALPHA = 0.05


def alarmed(rule: GuardRule, n: Counts, x: Counts, propensity: Floats) -> bool:
    """Whether a run of blocks of counts, shape (blocks, 2), ever alarms."""
    state = start(rule)
    epoch, before = 0, -1.0
    for block, (units, converted, e1) in enumerate(
        zip(n.tolist(), x.tolist(), propensity.tolist(), strict=True), start=1
    ):
        epoch, before = epoch + (e1 != before), e1
        control, treatment = (proportion(k, c) for k, c in zip(units, converted, strict=True))
        state = step(rule, state, [BlockCell(block, epoch, 1.0 - e1, e1, control, treatment)])
        if alarms(rule, state):
            return True
    return False


def naive_alarms(rule: GuardRule, n: Counts, x: Counts) -> NDArray[np.bool_]:
    """A one-sided z test of the pooled counts at every block, level ALPHA."""
    s = 1.0 if rule.goal == "increase" else -1.0
    units, converted = n.cumsum(axis=1), x.cumsum(axis=1)
    p = converted / np.maximum(units, 1)
    std_error = np.sqrt((p * (1 - p) / np.maximum(units, 1)).sum(axis=2))
    harm = -s * (p[:, :, 1] - p[:, :, 0]) - rule.margin
    enough = units.min(axis=2) >= 100
    crossed: NDArray[np.bool_] = (enough & (harm > stats.norm.isf(ALPHA) * std_error)).any(axis=1)
    return crossed


def false_alarms(
    runs: int, blocks: int, goal: Goal, base: Floats, adaptive: bool, seed: int
) -> tuple[float, float]:
    """A variant exactly at its margin, looked at after every block: (guard, naive)."""
    rule = GuardRule("proportion", goal, margin=0.02, alpha_share=ALPHA)
    rng = np.random.default_rng(seed)
    per_block = 50
    worse = -0.02 if goal == "increase" else 0.02
    n = np.zeros((runs, blocks, 2), dtype=np.int64)
    x = np.zeros_like(n)
    propensity = np.full((runs, blocks), 0.5)
    for block in range(blocks):
        if adaptive and block and block % 10 == 0:
            units, converted = n.sum(axis=1) + 2, x.sum(axis=1) + 1
            p = converted / units
            z = (p[:, 1] - p[:, 0]) / np.sqrt((p * (1 - p) / units).sum(axis=1))
            propensity[:, block:] = (0.05 + 0.9 * ndtr(z))[:, None]
        treated = rng.binomial(per_block, propensity[:, block])
        n[:, block] = np.stack([per_block - treated, treated], axis=1)
        rates = np.stack([np.full(runs, base[block]), np.full(runs, base[block] + worse)], axis=1)
        x[:, block] = rng.binomial(n[:, block], rates)
    crossed = [alarmed(rule, n[i], x[i], propensity[i]) for i in range(runs)]
    return sum(crossed) / runs, float(naive_alarms(rule, n, x).mean())


@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_false_alarms_under_continuous_looks(goal: Goal) -> None:
    runs = 800
    guard, naive = false_alarms(runs, 200, goal, np.full(200, 0.3), adaptive=False, seed=41)
    assert guard <= at_most(ALPHA, runs)
    assert naive > 0.2


def test_false_alarms_under_a_bandit_and_a_drift() -> None:
    """The bandit feeds on the very metric, the base rate triples: pooled counts go astray."""
    runs, blocks = 800, 200
    guard, naive = false_alarms(
        runs, blocks, "decrease", np.linspace(0.1, 0.3, blocks), adaptive=True, seed=42
    )
    assert guard <= at_most(ALPHA, runs)
    assert naive > 0.3


@pytest.mark.calibration
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_false_alarms_at_full_size(goal: Goal, adaptive: bool) -> None:
    runs, blocks = 4_000, 400
    guard, naive = false_alarms(runs, blocks, goal, np.linspace(0.1, 0.3, blocks), adaptive, 43)
    assert guard <= at_most(ALPHA, runs)
    assert naive > 0.2


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.normal(5.0, 1.0, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.lognormal(0.0, 1.0, shape)


def rare_and_skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Revenue a user: 3 % buy, and what they pay is skewed."""
    return (rng.random(shape) < 0.03) * rng.lognormal(0.0, 1.0, shape)


def jump(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Mean and standard deviation are five times as large from the middle on, in both arms."""
    scale = np.where(np.arange(shape[0]) < shape[0] / 2, 1.0, 5.0)
    return rng.normal(5.0, 1.0, shape) * scale[:, None]


def wild_variance(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """The standard deviation goes from 1 to 5 and back, every 15 blocks."""
    sd = np.where(np.arange(shape[0]) % 30 < 15, 1.0, 5.0)
    return 5.0 + rng.normal(0.0, 1.0, shape) * sd[:, None]


def mean_false_alarms(
    draw: Draw, goal: Goal, propensity: float, runs: int, blocks: int, per_block: int
) -> float:
    """Treatment and control alike, margin 0: the edge of the hypothesis."""
    rng = np.random.default_rng(44)
    rule = GuardRule("mean", goal, margin=0.0, alpha_share=ALPHA)
    count = 0
    for _ in range(runs):
        scores = draw(rng, (blocks, per_block))
        treated = rng.random((blocks, per_block)) < propensity
        state = start(rule)
        for block in range(blocks):
            of_block, arm = scores[block], treated[block]
            state = step(
                rule,
                state,
                [
                    BlockCell(
                        block,
                        1,
                        1.0 - propensity,
                        propensity,
                        Moments.of(of_block[~arm]),
                        Moments.of(of_block[arm]),
                    )
                ],
            )
        count += alarms(rule, state)
    return count / runs


@pytest.mark.parametrize("draw", [normal, skewed, rare_and_skewed, jump, wild_variance])
@pytest.mark.parametrize("goal", ["increase", "decrease"])
def test_false_alarms_of_means(draw: Draw, goal: Goal) -> None:
    runs = 100
    rate = mean_false_alarms(draw, goal, 0.1, runs, blocks=120, per_block=40)
    assert rate <= at_most(ALPHA, runs)


@pytest.mark.calibration
@pytest.mark.parametrize("draw", [normal, skewed, rare_and_skewed, jump, wild_variance])
@pytest.mark.parametrize("goal", ["increase", "decrease"])
@pytest.mark.parametrize("propensity", [0.05, 0.5])
def test_false_alarms_of_means_at_full_size(draw: Draw, goal: Goal, propensity: float) -> None:
    runs = 500
    rate = mean_false_alarms(draw, goal, propensity, runs, blocks=300, per_block=50)
    assert rate <= at_most(ALPHA, runs)


def test_a_late_change_is_seen_at_once() -> None:
    """Error rate 1 % → 30 % after 2,000 healthy blocks of 10 units, margin .01.

    The same bets, all placed at block 1 (a cumulative e-process), have to win back first what the
    healthy past cost them.
    """
    rule = GuardRule("proportion", "decrease", margin=0.01, alpha_share=0.01)
    rng = np.random.default_rng(45)
    healthy, longest = 2_000, 400
    for _ in range(5):
        state = start(rule)
        alone = np.zeros(len(rule.bets))
        restarted = cumulative = None
        for block in range(1, healthy + longest + 1):
            treated = int(rng.binomial(10, 0.5))
            rate = 0.01 if block <= healthy else 0.3
            cells = [
                BlockCell(
                    block,
                    1,
                    0.5,
                    0.5,
                    proportion(10 - treated, int(rng.binomial(10 - treated, 0.01))),
                    proportion(treated, int(rng.binomial(treated, rate))),
                )
            ]
            # A fresh state with the same plug-ins shows this block's factors alone.
            fresh = msgspec.structs.replace(
                start(rule), control=state.control, treatment=state.treatment
            )
            alone += _log_factors(step(rule, fresh, cells))
            state = step(rule, state, cells)
            if block > healthy:
                restarted = restarted or (block - healthy if alarms(rule, state) else None)
                crossed = np.logaddexp.reduce(alone) - math.log(alone.size) > -math.log(0.01)
                cumulative = cumulative or (block - healthy if crossed else None)
            else:
                assert not alarms(rule, state)
            if restarted and cumulative:
                break
        assert restarted is not None
        assert restarted <= 40
        assert cumulative is None or cumulative > 3 * restarted


def _log_factors(after_one_block: GuardState) -> Floats:
    """ln F per bet from the stakes F/2 + 1/6 of a state after its first block."""
    stakes = np.exp(np.array(after_one_block.log_stakes))
    result: Floats = np.log((stakes - 1 / 6) * 2)
    return result


def test_harm_from_the_start_is_seen_in_a_few_hundred_units() -> None:
    """Response rates of .555 against .289, as in the audit of legislators."""
    rule = GuardRule("proportion", "increase", margin=0.05, alpha_share=0.01)
    rng = np.random.default_rng(46)
    needed = []
    for _ in range(40):
        state, block = start(rule), 0
        while not alarms(rule, state):
            block += 1
            treated = int(rng.binomial(20, 0.5))
            control = proportion(20 - treated, int(rng.binomial(20 - treated, 0.555)))
            treatment = proportion(treated, int(rng.binomial(treated, 0.289)))
            state = step(rule, state, [BlockCell(block, 1, 0.5, 0.5, control, treatment)])
        needed.append(20 * block)
    assert np.median(needed) < 800
    assert max(needed) < 2_500


def test_a_mean_that_turns_bad_is_seen() -> None:
    """Latency rises by half a standard deviation after 100 blocks; 5 % are tolerated."""
    rule = GuardRule("mean", "decrease", margin=0.05, alpha_share=0.01, relative=True)
    rng = np.random.default_rng(47)
    state = start(rule)
    for block in range(1, 250):
        control, treatment = rng.normal(5.0, 1.0, 20), rng.normal(5.0, 1.0, 20)
        if block > 100:
            treatment += 0.75
        cells = [BlockCell(block, 1, 0.5, 0.5, Moments.of(control), Moments.of(treatment))]
        state = step(rule, state, cells)
        if alarms(rule, state):
            break
    assert 100 < block < 170
    assert log_evidence(state) >= -math.log(0.01)
