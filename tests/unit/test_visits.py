"""Visits without a database: who met what, and what a log comes to."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from analysis.folding.meetings import Epochs, met_last, still_meets
from analysis.folding.metrics import run_metric
from analysis.folding.visits import PIECE, settled
from experiments.model import MeanMetric, Metric, RatioMetric

EPOCH_OF = {11: 1, 12: 1, 21: 2, 22: 2, 31: 3}
"""Arms, and their epochs."""
Times = st.integers(0, 5)
Units = st.integers(1, 3)
Met = st.tuples(Units, Times, st.sampled_from([*EPOCH_OF]))


def integers(*values: int) -> NDArray[np.int64]:
    """An array."""
    return np.array(values, np.int64)


@given(
    meetings=st.lists(Met, max_size=12, unique=True),
    outcomes=st.lists(st.tuples(Units, Times), max_size=12),
)
def test_an_outcome_belongs_to_the_last_meeting_that_is_not_after_it(
    meetings: list[tuple[int, int, int]], outcomes: list[tuple[int, int]]
) -> None:
    columns = np.array(meetings, np.int64).reshape(-1, 3)
    found = met_last(
        integers(*(unit for unit, _ in outcomes)),
        integers(*(at for _, at in outcomes)),
        integers(*(100 + unit for unit, _ in outcomes)),
        {"ordinal": columns[:, 0], "at": columns[:, 1], "arm": columns[:, 2]},
        EPOCH_OF,
    )
    for (unit, at), arm in zip(outcomes, found.tolist(), strict=True):
        met = [(when, EPOCH_OF[which], which) for who, when, which in meetings if who == unit]
        before = [each for each in met if each[0] <= at]
        assert arm == (max(before)[2] if before else 100 + unit)


def epochs(*at: int, keeps: tuple[int, ...] = ()) -> Epochs:
    """Epochs 3, 4, … that begin at these times."""
    number = integers(*range(3, 3 + len(at)))
    return Epochs(number, integers(*at), np.isin(number, keeps))


def test_an_epoch_is_met_until_the_next_one_is_in_force() -> None:
    in_force = epochs(0, 100, 200)
    met = still_meets(integers(3, 3, 3, 4, 5), integers(50, 99, 100, 150, 150), in_force)
    assert met.tolist() == [True, True, False, True, True]


def test_where_units_keep_what_they_met_an_earlier_epoch_is_met_still() -> None:
    in_force = epochs(0, 100, 200, keeps=(3, 4))
    met = still_meets(integers(3, 3, 3), integers(50, 150, 250), in_force)
    assert met.tolist() == [True, True, False]


def test_before_all_epochs_nothing_has_ended() -> None:
    assert still_meets(integers(3), integers(-5), epochs(0)).tolist() == [True]
    assert still_meets(integers(3), integers(5), epochs()).tolist() == [True]


Pieces = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0, 11, 12]), st.integers(0, 3)), max_size=30
)


@given(log=Pieces)
def test_a_log_comes_to_what_was_said_of_each_unit_since_it_was_last_made_anew(
    log: list[tuple[int, int, int]],
) -> None:
    pieces = np.array(
        [(unit, arm, value if arm else 0.0, 1.0 if arm else 0.0) for unit, arm, value in log], PIECE
    )
    expected: dict[tuple[int, int], tuple[float, float]] = {}
    for unit, arm, value in log:
        if arm == 0:
            expected = {place: sums for place, sums in expected.items() if place[0] != unit}
            continue
        x, y = expected.get((unit, arm), (0.0, 0.0))
        expected[unit, arm] = (x + value, y + 1.0)
    visits = settled(pieces)
    found = {(visit[0], visit[1]): (visit[2], visit[3]) for visit in visits.tolist()}
    assert found == expected
    assert len(visits) == len(expected)


ERRORS = RatioMetric(
    key="errors",
    role="guardrail",
    window="1s",
    numerator="error",
    denominator="request",
    goal="decrease",
)
LATENCY = MeanMetric(key="ms", role="guardrail", window="1s", event="ms", cap=500.0)


@pytest.mark.parametrize("metric", [ERRORS, LATENCY], ids=["ratio", "mean"])
def test_a_metric_of_another_scope_is_another_version_of_itself(metric: Metric) -> None:
    visits = run_metric(msgspec.structs.replace(metric, scope="exposure"))
    assert visits.version != run_metric(metric).version
    assert visits.kind == "ratio"
    assert (visits.window, visits.block_seconds) == (
        run_metric(metric).window,
        run_metric(metric).block_seconds,
    )
