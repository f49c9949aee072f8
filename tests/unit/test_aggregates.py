"""Per-unit aggregates: whichever order outcomes come in, and in whatever batches, one result."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.folding.aggregates import WIDTH, Aggregate, absorb, score, scores, width

UNITS = 4
AGGREGATES = tuple(WIDTH)
Outcome = tuple[int, float, int]
values = st.one_of(st.just(math.nan), st.integers(-8, 8).map(lambda n: n / 4))
outcomes = st.lists(st.tuples(st.integers(0, UNITS - 1), values, st.integers(1, 6)), max_size=25)


def absorbed(aggregate: Aggregate, *batches: Sequence[Outcome]) -> list[float]:
    """The units' scores after these batches."""
    state = np.zeros((UNITS, WIDTH[aggregate]))
    for batch in batches:
        unit = np.array([item[0] for item in batch], np.int64)
        value = np.array([item[1] for item in batch], np.float64)
        at = np.array([item[2] for item in batch], np.int64)
        absorb(aggregate, state, unit, value, at)
    found: list[float] = score(aggregate, state, np.full(UNITS, np.inf)).tolist()
    return found


def by_hand(aggregate: Aggregate, items: Sequence[Outcome], unit: int) -> float:
    """A unit's score, from its outcomes one by one."""
    own = [(value, at) for owner, value, at in items if owner == unit]
    valued = [(value, at) for value, at in own if not math.isnan(value)]
    match aggregate:
        case "any":
            return float(any(value != 0 for value, _ in own))
        case "count":
            return float(len(own))
        case "sum":
            return math.fsum(value for value, _ in valued)
        case "mean":
            return math.fsum(value for value, _ in valued) / len(valued) if valued else 0.0
        case "max":
            return max((value for value, _ in valued), default=0.0)
        case "last":
            return max(((at, value) for value, at in valued), default=(0, 0.0))[1]
        case _:
            raise AssertionError(aggregate)


HAND_COUNTED: tuple[Aggregate, ...] = ("any", "count", "sum", "mean", "max", "last")


@pytest.mark.parametrize("aggregate", HAND_COUNTED)
@given(outcomes, st.randoms(use_true_random=False), st.integers(0, 25))
def test_a_score_is_that_of_all_outcomes_in_any_order_and_in_any_batches(
    aggregate: Aggregate, items: list[Outcome], random: object, cut: int
) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis' Random has no stub
    expected = [by_hand(aggregate, items, unit) for unit in range(UNITS)]
    assert absorbed(aggregate, items) == expected
    assert absorbed(aggregate, shuffled[:cut], shuffled[cut:]) == expected


def test_a_state_of_zeros_has_seen_nothing() -> None:
    for aggregate in AGGREGATES:
        assert absorbed(aggregate, []) == [0.0] * UNITS


def test_caps_hold_part_by_part() -> None:
    parts: tuple[Aggregate, ...] = ("sum", "mean", "any")
    state = np.array([[7.0, 30.0, 2.0, 4.0], [1.0, 2.0, 2.0, 0.0]])
    assert width(parts) == 4
    caps = np.array([[5.0, 10.0, np.inf], [5.0, 10.0, np.inf]])
    assert scores(parts, state, caps).tolist() == [[5.0, 10.0, 1.0], [1.0, 1.0, 0.0]]
