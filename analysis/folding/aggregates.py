"""Per-unit aggregates: how a unit's outcomes become one number, a batch of them at a time.

What is kept of a unit is one or two numbers, its state. A state that is all zeros has seen nothing;
whichever order outcomes come in, the state is the same (but for the rounding of sums). So new
outcomes are taken in without a look at the old ones.

- `any`: how many outcomes were conversions, their value absent or not 0; the score is 1 or 0.
- `count`: how many outcomes.
- `sum`: the sum of their values, an absent value being 0.
- `total`: the sum of their values, an absent value being 1: of amounts it is the sum, of outcomes
  that merely happen the count. So it goes with a ratio of errors to requests as with one of
  revenue to orders.
- `mean`: sum and number of the values that are there.
- `max`: the greatest value, and how many there are.
- `last`: the value at the latest time, and that time; of two at one time the greater.

A unit without (valued) outcomes scores 0.
"""

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Aggregate: TypeAlias = Literal["any", "count", "sum", "total", "mean", "max", "last"]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

WIDTH: Final[dict[Aggregate, int]] = {
    "any": 1,
    "count": 1,
    "sum": 1,
    "total": 1,
    "mean": 2,
    "max": 2,
    "last": 2,
}
"""How many numbers a unit's state has."""


def width(aggregates: Sequence[Aggregate]) -> int:
    """How many numbers the states of several parts have together."""
    return sum(WIDTH[aggregate] for aggregate in aggregates)


def absorb(
    aggregate: Aggregate, state: Floats, unit: Integers, value: Floats, at: Integers
) -> None:
    """Take outcomes into the units' states, in place.

    Args:
        state: of shape (units, WIDTH[aggregate]).
        unit: for each outcome, the row of its unit.
        value: for each outcome, its value; NaN where it has none.
        at: for each outcome, its time, a positive whole number below 2^53.
    """
    valued = ~np.isnan(value)
    units = len(state)
    match aggregate:
        case "any":
            state[:, 0] += np.bincount(unit[value != 0.0], minlength=units)
        case "count":
            state[:, 0] += np.bincount(unit, minlength=units)
        case "sum":
            state[:, 0] += np.bincount(unit[valued], value[valued], units)
        case "total":
            state[:, 0] += np.bincount(unit, np.where(valued, value, 1.0), units)
        case "mean":
            state[:, 0] += np.bincount(unit[valued], value[valued], units)
            state[:, 1] += np.bincount(unit[valued], minlength=units)
        case "max":
            state[state[:, 1] == 0.0, 0] = -np.inf
            np.maximum.at(state[:, 0], unit[valued], value[valued])
            state[:, 1] += np.bincount(unit[valued], minlength=units)
            state[state[:, 1] == 0.0, 0] = 0.0
        case "last":
            _absorb_last(state, unit[valued], value[valued], at[valued])


def _absorb_last(state: Floats, unit: Integers, value: Floats, at: Integers) -> None:
    order = np.lexsort((value, at, unit))
    unit, value, at = unit[order], value[order], at[order]
    final = np.flatnonzero(np.diff(unit, append=-1))
    unit, value, at = unit[final], value[final], at[final]
    later = (at > state[unit, 1]) | ((at == state[unit, 1]) & (value > state[unit, 0]))
    state[unit[later], 0] = value[later]
    state[unit[later], 1] = at[later]


def score(aggregate: Aggregate, state: Floats, cap: Floats) -> Floats:
    """The units' scores from their states, none above its cap (infinite where there is none)."""
    match aggregate:
        case "any":
            value = (state[:, 0] > 0.0).astype(np.float64)
        case "mean":
            value = state[:, 0] / np.maximum(state[:, 1], 1.0)
        case _:
            value = state[:, 0]
    return np.minimum(value, cap)


def scores(aggregates: Sequence[Aggregate], state: Floats, caps: Floats) -> Floats:
    """The scores of units by all parts of their metric.

    Args:
        state: of shape (units, width(aggregates)).
        caps: of shape (units, len(aggregates)).

    Returns:
        of shape (units, len(aggregates)).
    """
    result = np.empty((len(state), len(aggregates)))
    begin = 0
    for part, aggregate in enumerate(aggregates):
        end = begin + WIDTH[aggregate]
        result[:, part] = score(aggregate, state[:, begin:end], caps[:, part])
        begin = end
    return result
