"""The report as flat records, and as CSV."""

import csv
import io

import msgspec
import pytest

from analysis.inference.segments import Segment
from analysis.reports.report import Report, make_report
from analysis.reports.table import Row, rows, to_csv
from tests.unit.samples import proportion
from tests.unit.test_breakdowns import facts, of_country
from tests.unit.test_report import BETTER, CONTROL, SAME, report


def of(found: Report, reading: str) -> list[Row]:
    """The rows of a reading."""
    return [row for row in rows(found) if row.reading == reading]


def test_each_comparison_has_a_row_for_each_reading_that_there_is() -> None:
    arms = {"a": CONTROL, "b": BETTER, "c": SAME}
    continuous = report({"click": arms})
    assert [(row.treatment, row.reading, row.concludes) for row in rows(continuous)] == [
        ("b", "fixed", False),
        ("b", "continuous", True),
        ("c", "fixed", False),
        ("c", "continuous", True),
    ]
    planned = report({"click": arms}, plan={"reading": "planned", "units": 30_000})
    assert [row.concludes for row in of(planned, "planned")] == [True, True]
    assert [row.concludes for row in of(planned, "continuous")] == [False, False]
    bayesian = report({"click": arms}, plan={"reading": "bayesian"})
    assert [row.concludes for row in of(bayesian, "bayesian")] == [True, True]


def test_of_a_fixed_plan_the_row_fixed_is_the_look_that_concludes() -> None:
    arms = {"a": CONTROL, "b": BETTER}
    before = report({"click": arms}, plan={"reading": "fixed", "units": 30_000})
    assert [(row.reading, row.concludes) for row in rows(before)] == [
        ("fixed", False),
        ("continuous", False),
    ]
    [fixed, _] = rows(report({"click": arms}, plan={"reading": "fixed", "units": 10_000}))
    textbook = before.metrics[0].comparisons[0].fixed
    assert (fixed.reading, fixed.concludes) == ("fixed", True)
    assert fixed.ci_low == pytest.approx(textbook.ci_low)
    assert (fixed.lift_ci_low, fixed.log10_p_value) == (
        textbook.lift_ci_low,
        textbook.log10_p_value,
    )


def test_a_lift_has_no_interval_of_a_single_look_beside_that_of_many() -> None:
    plan = {"reading": "planned", "units": 20_000}
    [row] = of(report({"click": {"a": CONTROL, "b": BETTER}}, plan=plan), "planned")
    assert row.lift is not None
    assert (row.lift_ci_low, row.lift_ci_high, row.log10_p_value) == (None, None, None)


def test_no_conclusion_stands_on_a_secondary_metric() -> None:
    arms = {"a": CONTROL, "b": BETTER}
    found = report({"click": arms, "buy": arms}, roles={"buy": "secondary"})
    assert {row.metric for row in rows(found) if row.concludes} == {"click"}


def test_the_numbers_are_those_of_the_report() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}})
    comparison = found.metrics[0].comparisons[0]
    [fixed], [continuous] = of(found, "fixed"), of(found, "continuous")
    assert fixed.difference == comparison.fixed.difference
    assert fixed.p_adjusted == comparison.fixed_p_adjusted
    assert fixed.log10_p_value == comparison.fixed.log10_p_value
    assert fixed.detectable_effect == comparison.detectable_effect
    assert continuous.ci_low == comparison.continuous.reading.ci_low
    assert continuous.p_adjusted == comparison.continuous.p_adjusted
    assert {row.action for row in (fixed, continuous)} == {"ship"}


def test_csv_has_stable_names_and_reads_back_to_the_same_numbers() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}})
    back = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert tuple(back[0]) == Row.__struct_fields__
    for line, row in zip(back, rows(found), strict=True):
        for name, value in msgspec.structs.asdict(row).items():
            assert line[name] == ("" if value is None else str(value))


@pytest.mark.parametrize("reading", ["fixed", "continuous"])
def test_breakdowns_have_rows_of_their_segments_adjusted_for_the_reading_of_the_plan(
    reading: str,
) -> None:
    cells = {segment: [CONTROL, BETTER] for segment in of_country('"DE"', '"AT"')}
    cells[Segment("country", None, other=True)] = [CONTROL, SAME]
    found = make_report(facts({"click": cells}, reading=reading))
    broken_down = [row for row in rows(found) if row.attribute is not None]
    assert [row.segment for row in broken_down[::2]] == ['"DE"', '"AT"', "(others)"]
    assert not any(row.concludes for row in broken_down)
    for row in broken_down:
        assert (row.p_adjusted is not None) is (row.reading == reading)
    [(segment, *_)] = [found.breakdowns[0].segments]
    assert broken_down[0].difference == segment.fixed.difference


def test_what_is_not_defined_is_an_empty_cell() -> None:
    found = report({"click": {"a": proportion(0, 0), "b": proportion(1, 1)}})
    [line, *_] = csv.DictReader(io.StringIO(to_csv(found)))
    assert (line["difference"], line["p_value"], line["lift"]) == ("", "", "")
    assert line["notes"] == "no_common_epoch"
