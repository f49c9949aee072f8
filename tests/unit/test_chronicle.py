"""The chronicle: what a list shows of a report, and which points of a course are kept."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.chronicle.chronicler import LEAST_AGE, Watched, due, rest_after
from analysis.chronicle.course import (
    FIRST_SPACING,
    MOST_POINTS,
    Following,
    beginning,
    figures_of,
    following,
)
from analysis.chronicle.glance import glance_of
from analysis.chronicle.model import Glance, Lead
from analysis.control.ramp_api import RampView, StepView
from analysis.inference.kinds import Bound
from analysis.reports.model import GuardView
from analysis.reports.report import Report
from tests.unit.samples import proportion
from tests.unit.test_report import BETTER, CONTROL, SAME, WORSE, report

AT = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def lead(found: Report) -> Lead:
    """The comparison that stands for an experiment."""
    shown = glance_of(found, AT).lead
    assert shown is not None
    return shown


def test_a_glance_says_what_its_report_says() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}}, hours=3)
    glance = glance_of(found, AT)
    assert (glance.at, glance.run, glance.state) == (AT, 1, "running")
    assert (glance.action, glance.variant) == ("ship", "b")
    assert glance.headline == found.conclusion
    assert glance.units == 10_000
    assert glance.data_until == found.data_until
    [comparison] = found.metrics[0].comparisons
    assert glance.lead is not None
    assert glance.lead.lift == pytest.approx(comparison.fixed.lift)
    assert glance.lead == Lead(
        metric="click",
        kind="proportion",
        goal="increase",
        treatment="b",
        reading="continuous",
        difference=comparison.continuous.difference,
        low=comparison.continuous.reading.ci_low,
        high=comparison.continuous.reading.ci_high,
        lift=glance.lead.lift,
        finding="better",
    )


def test_a_glance_survives_its_way_through_the_database() -> None:
    glance = glance_of(report({"click": {"a": CONTROL, "b": BETTER}}, hours=3), AT, final=True)
    assert msgspec.json.decode(msgspec.json.encode(glance), type=Glance) == glance


def test_health_is_the_worst_of_the_checks_in_its_words() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}}, units={"a": 5_000, "b": 4_000})
    glance = glance_of(found, AT)
    assert glance.health == "critical"
    assert glance.worst == found.quality[0].explanation
    assert glance.worst_action == found.quality[0].action
    assert sum(glance.checks.values()) == len(found.quality)
    assert glance.checks["critical"] >= 1


def test_where_all_is_well_there_is_nothing_to_say_of_health() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}})
    well = tuple(check for check in found.quality if check.severity == "ok")
    glance = glance_of(msgspec.structs.replace(found, quality=well), AT)
    assert (glance.health, glance.worst, glance.worst_subject) == ("ok", "", "")
    assert glance.checks == {"ok": len(well)}


def test_the_lead_is_the_treatment_with_the_largest_gain() -> None:
    arms = {"a": CONTROL, "b": WORSE, "c": SAME}
    assert lead(report({"click": arms})).treatment == "c"
    assert lead(report({"click": arms}, goal="decrease")).treatment == "b"


def test_what_would_be_shipped_leads_on_the_metric_on_which_it_is_better() -> None:
    found = report({"click": {"a": CONTROL, "b": SAME}, "buy": {"a": CONTROL, "b": BETTER}})
    assert found.verdict.action == "ship"
    assert (lead(found).metric, lead(found).finding) == ("buy", "better")


def test_the_lead_has_the_numbers_of_the_plans_reading() -> None:
    arms = {"click": {"a": CONTROL, "b": BETTER}}
    bayesian = report(arms, plan={"reading": "bayesian", "caring": {"absolute": 0.001}})
    read = bayesian.metrics[0].comparisons[0].bayesian
    assert read is not None
    shown = lead(bayesian)
    assert (shown.reading, shown.low, shown.high) == ("bayesian", read.ci_low, read.ci_high)

    planned = report(arms, plan={"reading": "planned", "units": 20_000})
    looks = planned.metrics[0].comparisons[0].planned
    assert looks is not None
    shown = lead(planned)
    assert (shown.reading, shown.low, shown.high) == ("planned", looks.ci_low, looks.ci_high)
    assert shown.difference == looks.looks[-1].difference


def test_before_a_look_was_taken_the_lead_has_no_numbers() -> None:
    shown = lead(
        report({"click": {"a": CONTROL, "b": BETTER}}, plan={"reading": "fixed", "units": 90_000})
    )
    assert (shown.treatment, shown.finding) == ("b", "open")
    assert shown.difference is shown.low is shown.high is None


def test_without_a_primary_metric_nothing_leads() -> None:
    found = report({"click": {"a": CONTROL, "b": BETTER}}, roles={"click": "secondary"})
    assert glance_of(found, AT).lead is None


def test_what_has_no_interval_yet_does_not_lead_however_good_it_looks() -> None:
    few = proportion(60, 50)
    assert lead(report({"click": {"a": CONTROL, "b": few, "c": SAME}})).treatment == "c"
    alone = lead(report({"click": {"a": CONTROL, "b": few}}))
    assert (alone.treatment, alone.difference, alone.lift) == ("b", None, None)


def ramp(**fields: Any) -> RampView:
    """A ramp at the second of three steps, whose hold was over an hour ago."""
    usual: dict[str, Any] = {
        "experiment": "x",
        "state": "running",
        "run": 1,
        "status": "holding",
        "code": None,
        "reason": "",
        "step": 2,
        "traffic": 0.2,
        "since": AT - timedelta(hours=2),
        "due_at": AT - timedelta(hours=1),
        "units": None,
        "waits_for": (),
        "watched": (),
        "paused": False,
        "steps": tuple(
            StepView(n, "now", 0.1 * n, None, None, approval=False, approved=None)
            for n in (1, 2, 3)
        ),
    }
    return RampView(**{**usual, **fields})


@pytest.mark.parametrize(
    ("fields", "waits_for"),
    [
        ({}, None),
        ({"status": "awaiting_approval"}, "approval"),
        ({"status": "inconclusive"}, "evidence"),
        ({"status": "inconclusive", "due_at": AT - timedelta(minutes=1)}, None),
        ({"status": "inconclusive", "due_at": None}, "evidence"),
        ({"status": "paused"}, None),
    ],
)
def test_a_ramp_says_what_it_waits_for_that_does_not_come_by_itself(
    fields: dict[str, Any], waits_for: str | None
) -> None:
    seen = glance_of(report({"click": {"a": CONTROL, "b": SAME}}), AT, ramp=ramp(**fields)).ramp
    assert seen is not None
    assert (seen.step, seen.steps, seen.waits_for) == (2, 3, waits_for)
    assert glance_of(report({"click": {"a": CONTROL, "b": SAME}}), AT).ramp is None


@pytest.mark.parametrize("alarm", [True, False])
def test_alarms_are_counted(alarm: bool) -> None:
    bound: Bound = "exact"
    row = GuardView("errors", "b", "decrease", 0.01, False, 0.01, bound, 9.0, 4.6, 100, alarm)
    found = report({"click": {"a": CONTROL, "b": BETTER}}, guard=[row])
    assert glance_of(found, AT).alarms == int(alarm)


def test_a_point_holds_what_the_report_says_of_every_comparison() -> None:
    arms = {"a": CONTROL, "b": BETTER, "c": proportion(20, 3)}
    found = report({"click": arms, "buy": arms})
    said = figures_of(found)
    assert [*said] == ["click", "buy"]
    for metric in found.metrics:
        for shown, comparison in zip(said[metric.key], metric.comparisons, strict=True):
            reading = comparison.continuous.reading
            assert shown.treatment == comparison.treatment
            assert shown.n_treatment == comparison.continuous.n_treatment
            assert shown.mean_treatment == comparison.fixed.mean_treatment
            assert shown.difference == comparison.continuous.difference
            assert (shown.low, shown.high) == (reading.ci_low, reading.ci_high)
    assert said["click"][1].low is None  # of too few units, and not 0


def kept(times: list[datetime]) -> tuple[list[datetime], Following]:
    """The points that are kept where somebody looks at these times, as the database keeps them."""
    points = times[:1]
    state = beginning(times[0])
    for at in times[1:]:
        if state.due(at):
            if state.full:
                del points[1::2]  # the even places
            state = following(state, at)
            points.append(at)
    return points, state


@given(
    gaps=st.lists(st.floats(0.1, 30.0) | st.floats(1e3, 1e6), max_size=60),
    often=st.integers(1, 200),
)
def test_however_old_a_run_is_it_has_a_bounded_number_of_points(
    gaps: list[float], often: int
) -> None:
    times = [AT]
    for gap in gaps * often:
        times.append(times[-1] + timedelta(seconds=gap))
        if len(times) > 4_000:
            break
    points, state = kept(times)
    assert len(points) == state.points <= MOST_POINTS
    assert points[0] == times[0]
    assert points[-1] == state.last_at
    assert all(after - before >= FIRST_SPACING for before, after in pairwise(points))


def test_a_run_that_is_looked_at_evenly_has_even_points_and_few_writes() -> None:
    state, points, writes = beginning(AT), [AT], 1
    at, month = AT, AT + timedelta(days=30)
    while at < month:
        at = max(at + timedelta(seconds=2), state.last_at + state.spacing)
        if state.full:
            del points[1::2]
        state = following(state, at)
        points.append(at)
        writes += 1
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS
    assert writes < 2_200
    gaps = {after - before for before, after in pairwise(points[:-1])}
    assert max(gaps) <= 2 * state.spacing
    assert state.spacing <= timedelta(days=30) / 120 * 2


def watched(
    id_: int,
    seconds: float | None,
    *,
    changed: bool = False,
    final: bool = False,
    lives: bool = True,
) -> Watched:
    """An experiment whose last glance is so many seconds old."""
    at = None if seconds is None else AT - timedelta(seconds=seconds)
    return Watched(id_, "shop", f"x{id_}", lives, at, final, changed)


def turns(*those: Watched, resting: dict[int, float] | None = None) -> list[int]:
    """The experiments whose turn it is, in order."""
    return [each.id for each in due(those, AT, resting)]


def test_what_was_changed_goes_first_and_then_the_oldest_glance() -> None:
    those = [watched(1, 30), watched(2, 90), watched(3, 1, changed=True), watched(4, None)]
    assert turns(*those) == [3, 4, 2, 1]


def test_a_young_glance_and_a_final_one_and_one_that_failed_are_left_alone() -> None:
    young = LEAST_AGE.total_seconds() / 2
    those = [watched(1, young), watched(2, 900, final=True), watched(3, 900)]
    assert turns(*those, resting={3: 1.0}) == []


def test_a_glance_from_a_clock_that_was_put_back_is_the_oldest() -> None:
    assert turns(watched(1, 600), watched(2, -3_600)) == [2, 1]


def test_what_is_over_and_was_never_seen_keeps_nobody_waiting_for_long() -> None:
    over = [watched(id_, None, changed=True, lives=False) for id_ in (8, 9)]
    those = [*over, watched(1, 30), watched(2, 61), watched(3, 5, changed=True)]
    assert turns(*those) == [3, 2, 8, 9, 1]


@pytest.mark.parametrize(("work", "rest"), [(0.0, 1.0), (0.2, 1.8), (1.0, 9.0), (30.0, 60.0)])
def test_rest_is_nine_times_the_work_within_bounds(work: float, rest: float) -> None:
    assert rest_after(work) == pytest.approx(rest)
