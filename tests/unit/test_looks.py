import pytest

from analysis.control.looks import information_of, shares_of
from analysis.inference.planned import EQUAL_LOOKS
from experiments.model import AnalysisPlan

PLANNED = AnalysisPlan(reading="planned", units=1_000)


def test_a_reading_looks_where_its_plan_says() -> None:
    assert shares_of(PLANNED) == EQUAL_LOOKS
    assert shares_of(AnalysisPlan(reading="planned", units=10, looks=(0.5, 1.0))) == (0.5, 1.0)
    assert shares_of(AnalysisPlan(reading="fixed", units=10)) == (1.0,)
    assert shares_of(AnalysisPlan()) == ()
    assert shares_of(AnalysisPlan(reading="bayesian")) == ()


@pytest.mark.parametrize(
    ("finished", "looked_at", "expected"),
    [
        ([199], 0.0, None),
        ([200], 0.0, 0.2),
        ([230, 215], 0.0, 0.215),  # the slowest metric counts
        ([399], 0.215, None),
        ([930], 0.215, 0.93),  # late: one look for three shares
        ([999], 0.93, None),
        ([1_000], 0.93, 1.0),
        ([1_700], 0.93, 1.0),
        ([5_000], 1.0, None),
        ([5_000], 0.0, 1.0),
        ([], 0.0, None),
    ],
)
def test_a_look_is_due_when_a_share_has_finished(
    finished: list[int], looked_at: float, expected: float | None
) -> None:
    assert information_of(PLANNED, finished, looked_at) == expected


def test_a_fixed_reading_is_one_look_at_all_of_its_units() -> None:
    plan = AnalysisPlan(reading="fixed", units=1_000)
    assert information_of(plan, [999], 0.0) is None
    assert information_of(plan, [1_200], 0.0) == 1.0
    assert information_of(plan, [1_200], 1.0) is None
