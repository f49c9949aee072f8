"""The guard's alpha within a generation, and what the next one takes over."""

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.inference.evidence import BlockCell, GuardRule, GuardState, alarms, start, step
from analysis.inference.generations import carried_over, share_of
from tests.unit.samples import at_most, proportion

RULE = GuardRule(kind="proportion", goal="increase", margin=0.05, alpha_share=0.1)
UNITS = 40
"""Of each arm and block."""


def block(number: int, rates: tuple[float, float], generator: random.Random) -> tuple[BlockCell]:
    """A block of units with these rates of the control and the treatment."""
    control, treatment = (
        proportion(UNITS, sum(generator.random() < rate for _ in range(UNITS))) for rate in rates
    )
    return (BlockCell(number, 1, 0.5, 0.5, control, treatment),)


def after(
    state: GuardState, first: int, blocks: int, rates: tuple[float, float], seed: int
) -> GuardState:
    """The evidence after so many blocks more."""
    generator = random.Random(seed)  # noqa: S311 - a simulation
    for number in range(first, first + blocks):
        state = step(RULE, state, block(number, rates, generator))
    return state


@given(st.lists(st.integers(1, 9), min_size=1, max_size=200), st.floats(1e-6, 0.5))
def test_the_shares_of_a_generation_never_exceed_its_alpha(comers: list[int], alpha: float) -> None:
    given_away: list[float] = []
    for number in comers:
        share = share_of(alpha, number, math.fsum(given_away), min(given_away, default=None))
        assert share > 0
        given_away += [share] * number
    assert math.fsum(given_away) <= alpha


def test_no_evidence_is_carried_over_and_all_that_was_learned_is() -> None:
    before = after(start(RULE), 1, 30, (0.6, 0.3), seed=1)
    assert alarms(RULE, before)
    fresh = carried_over(RULE, before)
    assert not alarms(RULE, fresh)
    assert (fresh.blocks, fresh.log_stakes, fresh.log_peak) == (0, start(RULE).log_stakes, 0.0)
    assert (fresh.control, fresh.treatment, fresh.units) == (
        before.control,
        before.treatment,
        before.units,
    )
    assert fresh.last_block == before.last_block
    assert msgspec.json.decode(msgspec.json.encode(fresh), type=GuardState) == fresh


def test_a_mean_that_was_burnt_in_is_so_in_the_next_generation() -> None:
    rule = GuardRule(kind="mean", goal="increase", margin=0.0, alpha_share=0.01)
    generator = random.Random(2)  # noqa: S311 - a simulation
    state = start(rule)
    for number in range(1, 21):
        state = step(rule, state, block(number, (0.5, 0.5), generator))
    fresh = carried_over(rule, state)
    bet = step(rule, fresh, block(21, (0.5, 0.5), generator))
    assert (bet.blocks, bet.burn_in_units) == (1, fresh.units)
    assert step(rule, start(rule), block(21, (0.5, 0.5), generator)).blocks == 0


def test_a_harmless_variant_is_stopped_in_a_generation_as_often_as_its_share_at_most() -> None:
    """It did harm before, was mended, and meets its margin exactly from then on. Beside it the
    evidence that is not begun afresh, which goes on from what it had."""
    runs, blocks = 150, 40
    false = naive = 0
    for seed in range(runs):
        before = after(start(RULE), 1, 10, (0.5, 0.35), seed)
        mended = after(carried_over(RULE, before), 11, blocks, (0.5, 0.45), 10_000 + seed)
        false += alarms(RULE, mended)
        going_on = msgspec.structs.replace(before, log_peak=0.0)
        naive += alarms(RULE, after(going_on, 11, blocks, (0.5, 0.45), 10_000 + seed))
    assert false / runs <= at_most(RULE.alpha_share, runs)
    assert naive / runs > at_most(RULE.alpha_share, runs)


def test_what_harms_again_is_seen_again() -> None:
    before = after(start(RULE), 1, 10, (0.5, 0.3), seed=5)
    again = after(carried_over(RULE, before), 11, 25, (0.5, 0.3), seed=6)
    assert alarms(RULE, again)


def test_shares_are_half_of_what_is_left() -> None:
    assert share_of(0.08, 4, 0.0, None) == pytest.approx(0.01)
    assert share_of(0.08, 2, 0.04, 0.01) == pytest.approx(0.01)
    assert 0 < share_of(0.08, 1, 0.08, 1e-12) < 1e-12
