"""How soon the guard sees harm, by simulation; `bench/calibration` has its error rates."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.inference.evidence import (
    BlockCell,
    GuardRule,
    GuardState,
    alarms,
    log_evidence,
    start,
    step,
)
from analysis.inference.moments import Moments
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
