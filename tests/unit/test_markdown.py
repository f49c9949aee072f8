"""What the Markdown of a report says, and why something is missing."""

from analysis.reports.markdown import render
from analysis.reports.report import make_report
from analysis.reports.words import cell
from tests.unit.samples import proportion
from tests.unit.test_breakdowns import facts, of_country
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
    assert "b on click cannot be judged: the finished units have no spread" in text
    assert "- b: a lift over a control mean of 0 is not defined." in text


def test_the_conclusion_comes_first_with_how_sure_it_is_and_what_it_stands_on() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}})
    lines = render(found).splitlines()
    assert lines[0] == "# x, run 1"
    assert lines[2] == f"**{found.conclusion}**"
    assert lines[4] == f"- How sure: {found.verdict.how_sure}"
    assert lines[5] == f"- What would change it: {found.verdict.what_would_change_it}"
    assert lines[6].startswith("- Stands on: the any-time reading, which holds however often")


def test_what_the_checks_of_the_data_found_comes_before_the_numbers_but_not_what_is_well() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}}, units={"a": 5_000, "b": 4_000})
    text = render(found)
    assert {check.severity for check in found.quality} > {"critical"}
    assert "- **critical**, sample_ratio (experiment): " in text.split("| variant |")[0]
    assert "**ok**" not in text


def test_each_comparison_is_concluded_in_words() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER, "c": SAME}})
    text = render(found)
    for comparison in found.metrics[0].comparisons:
        assert f"- {comparison.verdict.known} {comparison.verdict.how_sure}" in text


def test_readings_that_the_plan_asks_for_are_named() -> None:
    arms = {"a": CONTROL, "b": SAME}
    planned = render(report({"click": arms}, plan={"reading": "planned", "units": 20_000}))
    assert "- Stands on: the planned looks; alpha 0.05, Holm" in planned
    assert "- b: look 2 at 10,000 finished units, 50 % of the plan: z 0.0" in planned
    assert "chance to win" not in planned
    bayesian = render(report({"click": arms}, plan={"reading": "bayesian"}))
    assert "- Stands on: the posterior, which bounds no error rate." in bayesian
    assert "- b: chance to win 53.98 %, expected loss of shipping 0.00" in bayesian


def test_a_p_value_that_no_float_can_hold_is_shown_by_its_exponent() -> None:
    sure = {"a": proportion(10**6, 1_000), "b": proportion(10**6, 999_000)}
    found = report({"click": sure})
    fixed = found.metrics[0].comparisons[0].fixed
    assert fixed.log10_p_value is not None
    assert fixed.log10_p_value < -100_000
    assert f"| 10^{fixed.log10_p_value:.1f} | below 1e-300 |" in render(found)


def test_a_breakdown_shows_its_segments_and_whether_they_differ() -> None:
    cells = {segment: [CONTROL, BETTER] for segment in of_country('"D|E"', '"AT"')}
    text = render(make_report(facts({"click": cells}, reading="continuous")))
    assert "## click by country" in text
    assert '| "D\\|E" | b | 5,000 | 5,000 | +0.04 [' in text
    assert "- b: do the segments differ? p " in text
    assert "holds at any time, 2 segments" in text


def test_what_comes_from_outside_cannot_break_a_table() -> None:
    assert cell("a|b\n<img>`c`\\|") == "a\\|b &lt;img>\\`c\\`\\\\\\|"
    assert cell("![x](javascript:y)") == "!\\[x\\](javascript:y)"
    assert cell("\x1b]0;a\x07\x9b31m\r\t\x7f") == " \\]0;a  31m   "
