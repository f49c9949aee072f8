"""What the Markdown of a report says, and why something is missing."""

from analysis.reports.markdown import render
from tests.unit.samples import proportion
from tests.unit.test_report import BETTER, CONTROL, SAME, report


def test_the_numbers_that_the_conclusion_stands_on_are_in_the_table() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER, "c": SAME}})
    comparison = found.metrics[0].comparisons[0]
    adjusted = comparison.continuous.p_adjusted
    assert adjusted is not None
    row = next(line for line in render(found).splitlines() if line.startswith("| b | 0.1 "))
    assert f"| {adjusted:.4g} |" in row
    assert row.count("| +0.04 [") == 2


def test_a_sample_ratio_that_was_not_checked_is_not_said_to_fit() -> None:
    found = report({"click": {"a": proportion(3, 1), "b": proportion(4, 1)}})
    assert "Sample ratio: too few units to check." in render(found)
    assert "- b: the any-time reading needs 100 finished units of each." in render(found)
    wrong = report({"click": {"a": CONTROL, "b": SAME}}, units={"a": 5_000, "b": 4_000})
    assert "Sample ratio: MISMATCH" in render(wrong)
    assert "Sample ratio: fits (p = 1)." in render(report({"click": {"a": CONTROL, "b": SAME}}))


def test_what_is_missing_is_explained() -> None:
    text = render(report({"click": {"a": proportion(500, 0), "b": proportion(500, 0)}}))
    assert "- b: neither variant's values vary, so there is no interval." in text
    assert "- b: a lift over a control mean of 0 is not defined." in text
