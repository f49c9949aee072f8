"""How soon the guard sees harm, by simulation; `bench/calibration` has its error rates."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.inference.bins import bucket
from analysis.inference.evidence import (
    BlockCell,
    GuardRule,
    GuardState,
    alarms,
    log_evidence,
    start,
    step,
)
from analysis.inference.moments import Moments, of_rows
from analysis.inference.value_counts import Buckets
from tests.unit.samples import proportion

Floats = NDArray[np.float64]


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


def test_errors_a_request_that_jump_after_a_healthy_day_are_seen_within_few_blocks() -> None:
    """1 % of requests fail, and then 30 % of the treatment's, margin 1 point: at 40 units a block,
    with the treatment at a tenth of the traffic and at half of it."""
    rule = GuardRule("ratio", "decrease", margin=0.01, alpha_share=0.01)
    rng = np.random.default_rng(48)
    for share, at_most in ((0.1, 30), (0.5, 8)):
        needed = []
        for _ in range(10):
            state = start(rule)
            for block in range(500):
                arms = []
                for rate, part in ((0.01, 1.0 - share), (0.3 if block >= 400 else 0.01, share)):
                    requests = rng.poisson(3.0, int(rng.binomial(40, part)))
                    rows = np.stack([rng.binomial(requests, rate), requests], axis=1)
                    arms.append(of_rows(rows))
                cell = BlockCell(block, 1, 1.0 - share, share, arms[0], arms[1])
                state = step(rule, state, [cell])
                if alarms(rule, state):
                    break
            needed.append(block - 400 + 1)
        assert min(needed) > 0
        assert np.median(needed) <= at_most


def test_a_tail_of_latency_that_doubles_is_seen_within_few_blocks() -> None:
    """And in a day in which the latency of both swings by a half, nothing is seen before."""
    rule = GuardRule("quantile", "decrease", 0.05, 0.01, relative=True, quantile=0.95)
    rng = np.random.default_rng(49)
    needed = []
    for _ in range(10):
        state = start(rule)
        for block in range(600):
            scale = math.exp(0.4 * math.sin(2.0 * math.pi * block / 500))
            arms = [
                scale * (2.0 if arm and block >= 500 else 1.0) * rng.lognormal(3.0, 0.6, 50)
                for arm in range(2)
            ]
            moments = [Moments(50, (0.0,), (0.0,)) for _ in arms]
            buckets = [_buckets(values) for values in arms]
            cell = BlockCell(block, 1, 0.5, 0.5, moments[0], moments[1], buckets[0], buckets[1])
            state = step(rule, state, [cell])
            if alarms(rule, state):
                break
        needed.append(block - 500 + 1)
    assert min(needed) > 0
    assert np.median(needed) <= 6


def test_a_covariate_makes_the_guard_see_sooner() -> None:
    """Values that are mostly what a unit is used to, and rise by a tenth of their spread."""
    needed: dict[int, list[int]] = {1: [], 2: []}
    rng = np.random.default_rng(50)
    rule = GuardRule("mean", "decrease", margin=0.0, alpha_share=0.01)
    for _ in range(8):
        states = {1: start(rule), 2: start(rule)}
        seen: dict[int, int] = {}
        for block in range(2_000):
            rows = []
            for worse in (0.0, 0.2):
                before = rng.normal(10.0, 2.0, 40)
                rows.append(np.stack([before + worse + rng.normal(0.0, 0.5, 40), before], axis=1))
            for d in states.keys() - seen.keys():
                arms = [of_rows(arm[:, :d]) for arm in rows]
                cell = BlockCell(block, 1, 0.5, 0.5, arms[0], arms[1])
                states[d] = step(rule, states[d], [cell])
                if alarms(rule, states[d]):
                    seen[d] = block
            if len(seen) == len(states):
                break
        for d, blocks in needed.items():
            blocks.append(seen[d])
    assert 3 * np.median(needed[2]) < np.median(needed[1])


def _buckets(values: Floats) -> Buckets:
    numbers, counts = np.unique(bucket(values), return_counts=True)
    return tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
