"""How a row of the list reads."""

import re
from typing import Any

import pytest

from analysis.chronicle.model import Glance, Lead, RampGlance
from dashboard.listing.asked import Asked
from dashboard.listing.order import select
from dashboard.listing.view import Row, interval_bar, row_of
from experiments.search import Found, Split
from tests.unit.test_pages_list_order import NOW, found, glance

HALVES = Split(("a", "b"), {"a": 0.5, "b": 0.5}, None, ())


def row(of: Found, seen: Glance | None = None, split: Split = HALVES) -> Row:
    """The row of an experiment."""
    glances = {} if seen is None else {of.id: seen}
    [listed] = select(Asked(tab=of.state), [of], glances, NOW).listed
    return row_of(listed, split)


def lead(**fields: Any) -> Lead:
    """A comparison on a proportion that is open."""
    usual: dict[str, Any] = {
        "metric": "click",
        "kind": "proportion",
        "goal": "increase",
        "treatment": "b",
        "reading": "continuous",
        "difference": 0.02,
        "low": -0.01,
        "high": 0.05,
        "lift": 0.2,
        "finding": "open",
    }
    return Lead(**{**usual, **fields})


@pytest.mark.parametrize(
    ("state", "seen", "ship", "expected"),
    [
        ("draft", None, None, ("Not started", "neutral")),
        ("running", None, None, ("No report yet", "neutral")),
        ("running", glance(units=0), None, ("No units yet", "neutral")),
        ("running", glance(more_seconds=3 * 86_400), None, ("Keep running, 3 days", "neutral")),
        ("paused", glance(), None, ("Paused too early", "neutral")),
        ("running", glance(action="ship", variant="b"), None, ("Ship b", "ok")),
        ("running", glance(alarms=1), None, ("A guardrail alarms", "critical")),
        ("running", glance(health="critical"), None, ("Fix the data first", "critical")),
        (
            "running",
            glance(ramp=RampGlance(2, 4, "approval", "")),
            None,
            ("Approve step 2 of 4", "info"),
        ),
        (
            "running",
            glance(ramp=RampGlance(2, 4, "evidence", "")),
            None,
            ("Step 2 of 4 is held back", "warning"),
        ),
        ("running", glance(stopped=True), None, ("The data stopped", "warning")),
        ("running", glance(action="stop_for_futility"), None, ("Stop for futility", "info")),
        ("running", glance(action="keep_control"), None, ("Keep the control", "info")),
        ("concluded", glance(), "b", ("b shipped", "neutral")),
        ("concluded", glance(), "a", ("Control kept", "neutral")),
        ("rolled_back", glance(alarms=1), None, ("Rolled back", "critical")),
        ("archived", glance(), None, ("", "neutral")),
    ],
)
def test_the_verdict_says_what_was_done_or_what_to_do(
    state: Any, seen: Glance | None, ship: str | None, expected: tuple[str, str]
) -> None:
    result = row(found(1, state=state), seen, Split(("a", "b"), {}, ship, ())).result
    assert (result.verdict, result.tone) == expected


def test_a_rollback_says_why() -> None:
    seen = glance(headline="Rolled back to a: errors rose: e^9 reached the alarm.")
    result = row(found(1, state="rolled_back"), seen).result
    assert result.why == "errors rose: e^9 reached the alarm."


def test_the_result_is_the_lift_and_in_words_its_difference_and_interval() -> None:
    result = row(found(1), glance(lead=lead())).result
    assert (result.figure, result.of) == ("+20\u202f%", "b")
    assert "difference +2.0\xa0pp, between −1.0 and +5.0\xa0pp" in result.words


def test_a_lift_that_is_not_defined_gives_way_to_the_difference() -> None:
    rate = lead(lift=None)
    assert row(found(1), glance(lead=rate)).result.figure == "+2.0\xa0pp"
    mean = lead(kind="mean", lift=None, difference=1.5, low=0.5, high=2.5)
    assert row(found(1), glance(lead=mean)).result.figure == "+1.5"


def test_without_a_difference_there_is_no_figure_and_no_bar() -> None:
    result = row(found(1), glance(lead=lead(difference=None, low=None, high=None))).result
    assert (result.figure, result.bar) == ("", None)


@pytest.mark.parametrize("low", [-1e30, -0.5, 0.001, None])
@pytest.mark.parametrize("high", [0.002, 1e30, None])
def test_an_interval_is_drawn_within_its_bar_whatever_its_bounds(
    low: float | None, high: float | None
) -> None:
    drawn = interval_bar(lead(low=low, high=high, difference=0.0015))
    line = re.search(r'interval-line" d="M([-\d.]+) \d+H([-\d.]+)"', drawn)
    assert line is not None
    assert 0 <= float(line[1]) <= float(line[2]) <= 84
    if low is not None and low > 0:
        assert float(line[1]) >= 42


def test_health_says_its_worst_finding_and_what_to_do() -> None:
    seen = glance(
        health="warning",
        checks={"warning": 2, "ok": 9},
        worst="Data are late.",
        worst_action="Wait.",
    )
    health = row(found(1), seen).health
    assert health is not None
    assert (health.text, health.words) == ("2 warnings", "Data are late. Wait.")
    assert row(found(1)).health is None


def test_traffic_reads_as_the_split_of_what_is_enrolled() -> None:
    tenth = Split(("a", "b"), {"a": 0.025, "b": 0.075}, None, ())
    assert row(found(1), split=tenth).traffic.words == "25 / 75 of 10\u202f%"
    assert row(found(1)).traffic.words == "50 / 50"
    many = tuple("abcdefghij")
    tenths = Split(many, dict.fromkeys(many, 0.1), None, ())
    assert row(found(1), split=tenths).traffic.words == "10 variants"
    shipped = row(found(1, state="concluded"), split=Split(("a", "b"), {"a": 1.0}, "b", ()))
    assert (shipped.traffic.bar, shipped.traffic.words) == (None, "all get b")
    assert row(found(1, state="draft"), split=Split(("a", "b"), {}, None, ())).traffic.words == ""


def test_a_run_that_goes_on_without_a_variant_says_so() -> None:
    split = Split(("a", "b", "c"), {"a": 0.5, "c": 0.5}, None, ("b",))
    assert row(found(1), split=split).note == "without b"
    assert row(found(1, run=3)).note == "run 3"


def test_before_there_are_units_nothing_is_said_to_be_well() -> None:
    assert row(found(1), glance(units=0)).health is None
    late = row(found(1), glance(units=0, health="warning", checks={"warning": 1})).health
    assert late is not None
    assert late.text == "Warning"
