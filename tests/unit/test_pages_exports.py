"""What is in the files that people take away."""

import csv
import io
import json
from datetime import UTC, datetime

import pytest

from analysis.inference.segments import Segment
from analysis.reports.report import make_report
from analysis.reports.sheet import name_file
from analysis.reports.table import rows, to_csv
from tests.unit.test_breakdowns import facts, of_country
from tests.unit.test_report import BETTER, CONTROL

AT = datetime(2026, 3, 2, 9, 5, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("attribute", "written"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("\tx", "'\tx"),
        ("x;=cmd|' /C calc'!A0", "x;'=cmd|' /C calc'!A0"),
        ("\uff1d1", "'\uff1d1"),
        ("country", "country"),
    ],
)
def test_no_cell_of_a_csv_begins_like_a_formula_that_somebody_else_wrote(
    attribute: str, written: str
) -> None:
    cells = {segment: [BETTER, CONTROL] for segment in of_country('"=1+1"', '"AT"')}
    renamed = {Segment(attribute, segment.value): found for segment, found in cells.items()}
    report = make_report(facts({"click": renamed}))
    table = list(csv.DictReader(io.StringIO(to_csv(report))))
    broken_down = [line for line in table if line["attribute"]]
    assert {line["attribute"] for line in broken_down} == {written}
    # A value is JSON, so text in it begins with a quotation mark.
    assert {line["segment"][0] for line in broken_down} <= {'"', "("}
    assert {row.attribute for row in rows(report)} == {None, attribute}
    below = [line["ci_low"] for line in table if line["ci_low"].startswith(("-", "'"))]
    assert below
    assert all(float(text) < 0 for text in below), "a number is no formula"


def test_a_value_is_no_formula_where_cells_are_parted_at_semicolons() -> None:
    value = "a;=cmd|' /C calc'!A0;b;-1"
    cells = {segment: [BETTER, CONTROL] for segment in of_country(json.dumps(value), '"AT"')}
    text = to_csv(make_report(facts({"click": cells})))
    assert ";=" not in text
    assert ";-" not in text
    found = {line["segment"] for line in csv.DictReader(io.StringIO(text)) if line["segment"]}
    assert value in {json.loads(each) for each in found}, "JSON may write a letter in two ways"


def test_a_file_is_named_by_what_it_is_of_and_when() -> None:
    assert name_file("ranker-v7", 2, AT, "html") == "report-ranker-v7-run2-20260302T0905Z.html"
    assert name_file("..", 1, AT, "markdown") == "report-..-run1-20260302T0905Z.md"
    held = name_file("$holdout", 1, AT, "csv", is_snapshot=True)
    assert held == "snapshot-holdout-run1-20260302T0905Z.csv"
