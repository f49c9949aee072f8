"""The guard's alpha: how it is shared out within a generation, and what the next one takes over.
Pure.

A generation is a stretch of a run in which the guard keeps one promise: the chance that it ever
acts on a harmless variant is at most alpha. It ends when a hand resumes what the guard has stopped.
Then the same alpha is promised anew, and the evidence begins afresh: what was seen before has been
acted on, and a person has overruled it.
"""

import sys
from typing import Final

import msgspec

from analysis.inference.evidence import GuardRule, GuardState, start

_EXHAUSTED: Final = 1e-9


def share_of(alpha: float, comers: int, spent: float, least: float | None) -> float:
    """What each of those that come to a generation is given: half of what is unspent, in equal
    parts. So there is always something left, and the sum never exceeds alpha.

    After some thirty times a difference of floats says no more what is unspent; then a third of the
    least share so far is surely less than that.

    Arguments:
        alpha: of the whole generation, in (0, 1).
        comers: how many come, at least one.
        spent: the sum of the shares given before.
        least: the smallest of them; None before the first.
    """
    unspent = alpha - spent
    if least is None or unspent > _EXHAUSTED * alpha:
        return unspent / 2 / comers
    return max(least / 3 / comers, sys.float_info.min)


def carried_over(rule: GuardRule, state: GuardState) -> GuardState:
    """The state in which a generation begins that follows on this one: no evidence, but all that
    was learned for plug-ins and sizes of bets, which may be of any past."""
    fresh = start(rule)
    return msgspec.structs.replace(
        state,
        blocks=fresh.blocks,
        log_stakes=fresh.log_stakes,
        log_peak=fresh.log_peak,
        burn_in_units=state.units,
    )
