"""The ramp as a pure state machine: what a step waits for, and what never happens to it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.control import ramp as control
from analysis.control.ramp import (
    Code,
    Observed,
    Outcome,
    RampEvidence,
    Watched,
    reason,
    recompute,
    step,
)
from experiments import ramp
from experiments.model import RampPolicy, RampStep
from experiments.ramp import RampState

START = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ROW = 7


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def policy(*steps: RampStep) -> RampPolicy:
    return RampPolicy(steps=steps)


def steps_of(*holds: str) -> RampPolicy:
    """A ramp whose steps are held so long, and a last one that is not held."""
    shares = [(number + 1) / 10 for number in range(len(holds) + 1)]
    return policy(
        *(RampStep(traffic=share, hold=hold) for share, hold in zip(shares, holds, strict=False)),
        RampStep(traffic=shares[-1]),
    )


def watched(**others: Any) -> Watched:
    fields = {"row": ROW, "control": 100, "treatment": 100, "bets": True, "alarmed": False} | others
    return Watched(guardrail="errors", variant="b", **fields)


class Course:
    """A ramp that is consulted at times that a test chooses."""

    def __init__(self, steps: RampPolicy) -> None:
        self.policy = steps
        self.state = ramp.begin(START, 1)
        self.epoch = 1

    def observed(self, seconds: float, *gate: Watched, **others: Any) -> Observed:
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "enrolled": 0,
            "looked_through": 0,
            "arrived": 0,
            "last_arrival": None,
            "has_treatment": True,
        }
        return Observed(now=at(seconds), watched=gate or (watched(),), **(fields | others))

    def tick(self, seconds: float, *gate: Watched, **others: Any) -> str:
        """Consult the ramp; its code. All evidence is there unless told otherwise."""
        outcome = step(self.policy, self.state, self.observed(seconds, *gate, **others))
        self.state = outcome.state
        self.epoch += outcome.code == "advance"
        return outcome.code


NOTHING = {"control": 0, "treatment": 0}
UNSEEN = watched(**NOTHING)


def test_a_step_is_held_for_its_time_and_then_the_next_one_begins() -> None:
    course = Course(steps_of("10s", "20s"))
    assert [course.tick(s) for s in (1, 9.9, 10, 11, 29.9, 30)] == [
        "waiting_time",
        "waiting_time",
        "advance",
        "waiting_time",
        "waiting_time",
        "advance",
    ]
    assert course.state.step == 3
    assert course.tick(31) == "complete"


def test_a_step_waits_for_units_that_were_enrolled_in_it() -> None:
    course = Course(policy(RampStep(traffic=0.1, units=100), RampStep(traffic=1.0)))
    assert course.tick(1, arrived=60, last_arrival=at(0.9)) == "waiting_units"
    assert course.tick(2, arrived=39, last_arrival=at(1.9)) == "waiting_units"
    assert course.tick(3, arrived=1, last_arrival=at(2.5)) == "advance"
    assert course.state.begins == timedelta(seconds=2.5)
    assert course.state.units == 0


def test_an_approval_is_asked_for_once_the_guard_has_seen_the_step() -> None:
    course = Course(policy(RampStep(traffic=0.1, approval=True), RampStep(traffic=1.0)))
    assert course.tick(1, UNSEEN) == "inconclusive"
    assert course.tick(2) == "awaiting_approval"
    course.state = ramp.approve(course.state, 1, at(3))
    assert course.tick(4) == "advance"
    assert course.state.begins == timedelta(seconds=3)


def test_an_approval_that_comes_early_counts_for_its_own_step_alone() -> None:
    asks = [RampStep(traffic=share, approval=True) for share in (0.1, 0.2, 0.3)]
    course = Course(policy(*asks, RampStep(traffic=1.0)))
    course.state = ramp.approve(course.state, 2, at(0))
    assert course.tick(1) == "awaiting_approval"
    course.state = ramp.approve(course.state, 1, at(2))
    assert [course.tick(s) for s in (3, 4, 5)] == ["advance", "advance", "awaiting_approval"]
    assert course.state.step == 3


@pytest.mark.parametrize(
    ("gate", "others", "code"),
    [
        (UNSEEN, {}, "inconclusive"),
        (watched(row=None), {}, "inconclusive"),
        (watched(bets=False), {}, "inconclusive"),
        (watched(alarmed=True), {}, "alarmed"),
        (watched(), {"stale": True}, "stale"),
        (watched(), {"findings": ("sample_ratio",)}, "unhealthy"),
        (watched(), {"released": "must be at most 0.5"}, "no_slots"),
    ],
)
def test_without_evidence_a_step_that_is_due_is_inconclusive_until_it_comes(
    gate: Watched, others: dict[str, Any], code: Code
) -> None:
    course = Course(steps_of("10s", "10s"))
    assert course.tick(9, gate, **others) == "waiting_time"
    assert course.tick(11, gate, **others) == code
    assert course.tick(60, gate, **others) == code
    assert control.STATUS[code] == "inconclusive"
    assert course.tick(61) == "advance"


def test_one_guardrail_that_has_seen_nothing_is_enough_to_hold() -> None:
    course = Course(steps_of("10s"))
    assert course.tick(10, watched(), watched(row=8, **NOTHING)) == "inconclusive"
    assert course.tick(11, UNSEEN, watched(row=8)) == "advance"


def test_a_step_is_seen_once_a_hundred_units_of_each_arm_were_bet_on() -> None:
    """Block by block, and however long ago the step was due."""
    course = Course(steps_of("10s", "10s"))
    assert course.tick(500, watched(control=1, treatment=1)) == "inconclusive"
    assert course.tick(501, watched(control=5_000, treatment=60)) == "inconclusive"
    assert course.tick(502, watched(control=50, treatment=900, bets=False)) == "inconclusive"
    assert course.state.bet_on == {ROW: (100, 61)}  # no more than it takes: the state comes to rest
    seen = course.observed(503, watched(control=0, treatment=38))
    outcome = step(course.policy, course.state, seen)
    assert reason(course.policy, outcome, seen) == (
        "step 1 of 3: the guard has not seen enough of it yet: errors of b (99 of 100 units)"
    )
    assert course.tick(503, watched(control=0, treatment=39)) == "advance"
    assert course.state.bet_on == {}


def test_a_ramp_that_an_older_release_stored_has_to_see_its_step_again() -> None:
    stored = (
        b'{"entered_at": "2026-03-02T12:00:00Z", "epoch": 1, "running_since": '
        b'"2026-03-02T12:00:00Z", "seen": [7]}'
    )
    course = Course(steps_of("10s"))
    course.state = msgspec.json.decode(stored, type=RampState)
    assert course.tick(10, UNSEEN) == "inconclusive"
    assert course.tick(11) == "advance"


def test_what_the_guard_saw_of_a_step_says_nothing_of_the_next_one() -> None:
    course = Course(steps_of("10s", "10s"))
    assert course.tick(10) == "advance"
    assert course.tick(20, UNSEEN) == "inconclusive"


def test_a_row_of_a_new_generation_has_to_see_the_step_itself() -> None:
    course = Course(steps_of("10s"))
    course.tick(5)
    assert course.tick(10, watched(row=8, **NOTHING)) == "inconclusive"


def test_overdue_steps_catch_up_one_in_a_tick_and_each_under_the_guards_eye() -> None:
    course = Course(steps_of("10s", "10s", "10s", "10s"))
    late = [
        course.tick(1_000),
        course.tick(1_001, UNSEEN),
        course.tick(1_002),
        course.tick(1_003, UNSEEN),
        course.tick(1_004),
    ]
    assert late == ["advance", "inconclusive", "advance", "inconclusive", "advance"]
    # Each was waited for by a second: the schedule is that of the clock, and a second later each.
    assert course.state.begins == timedelta(seconds=32)


def test_a_night_without_evidence_is_no_time_that_is_caught_up() -> None:
    course = Course(steps_of("10s", "10s"))
    assert course.tick(5, UNSEEN) == "waiting_time"
    assert course.tick(10, UNSEEN) == "inconclusive"
    assert course.tick(30_000, UNSEEN) == "inconclusive"
    assert course.tick(30_001) == "advance"
    assert course.tick(30_005) == "waiting_time"
    assert course.tick(30_011) == "advance"


def test_evidence_that_was_missing_before_the_step_was_due_costs_nothing() -> None:
    course = Course(steps_of("10s", "10s"))
    course.tick(1, UNSEEN)
    course.tick(2)
    assert course.tick(12) == "advance"
    assert course.state.begins == timedelta(seconds=10)


def test_time_in_which_the_ramp_or_the_experiment_is_paused_does_not_count() -> None:
    course = Course(steps_of("10s", "10s"))
    course.state = ramp.pause(course.state, at(4))
    assert course.tick(50) == "paused"
    course.state = ramp.resume(course.state, at(100), runs=True)
    course.state = ramp.stop(course.state, at(103))
    assert course.tick(150, experiment_paused=True) == "experiment_paused"
    course.state = ramp.go_on(course.state, at(200))
    assert course.tick(202.9) == "waiting_time"
    assert course.tick(203) == "advance"


def test_a_ramp_that_was_paused_by_hand_does_not_go_on_with_the_experiment() -> None:
    course = Course(steps_of("10s"))
    course.state = ramp.stop(ramp.pause(course.state, at(1)), at(2))
    course.state = ramp.go_on(course.state, at(3))
    assert course.tick(100) == "paused"
    course.state = ramp.resume(course.state, at(100), runs=False)
    assert course.tick(150, experiment_paused=True) == "experiment_paused"
    course.state = ramp.go_on(course.state, at(200))
    assert course.tick(208) == "waiting_time"
    assert course.tick(209) == "advance"


def test_a_clock_that_is_set_back_takes_no_time_back() -> None:
    state = ramp.stop(ramp.begin(START, 1), at(-50))
    assert state.clock(at(10)) == timedelta(0)


def test_without_a_treatment_the_ramp_waits_and_then_begins_its_step_anew() -> None:
    asks = RampStep(traffic=0.2, hold="10s", approval=True)
    course = Course(policy(RampStep(traffic=0.1, hold="10s"), asks, RampStep(traffic=1.0)))
    assert course.tick(10) == "advance"
    course.state = ramp.approve(course.state, 2, at(11))
    assert course.tick(12, has_treatment=False) == "rolled_back"
    assert course.tick(500, has_treatment=False) == "rolled_back"
    assert course.tick(501, UNSEEN) == "waiting_time"
    assert course.state.entered_at == at(501)
    assert course.tick(511, UNSEEN) == "inconclusive"
    assert course.tick(512) == "awaiting_approval"


def test_the_last_step_is_complete_once_its_conditions_are_met() -> None:
    course = Course(policy(RampStep(traffic=0.5, hold="5s"), RampStep(traffic=1.0, hold="10s")))
    assert course.tick(5) == "advance"
    assert course.tick(14) == "waiting_time"
    assert course.tick(15, UNSEEN) == "complete"
    assert course.tick(99, UNSEEN, stale=True) == "complete"


def test_steps_that_are_added_to_a_ramp_that_is_complete_are_held_from_then_on() -> None:
    course = Course(policy(RampStep(traffic=0.1, hold="10s")))
    assert course.tick(10) == "complete"
    course.policy = steps_of("10s", "10s")
    course.state = ramp.amend(course.state, at(1_000))
    assert course.tick(1_001) == "advance"
    assert course.tick(1_009) == "waiting_time"
    assert course.tick(1_010) == "advance"


def test_a_hold_that_is_made_shorter_does_not_make_the_next_step_overdue() -> None:
    course = Course(steps_of("1d", "10m"))
    assert course.tick(72_000) == "waiting_time"
    course.policy = steps_of("1h", "10m")
    course.state = ramp.amend(course.state, at(72_000))
    assert course.tick(72_001) == "advance"
    assert course.tick(72_599) == "waiting_time"


def test_more_units_than_before_may_be_asked_for() -> None:
    course = Course(policy(RampStep(traffic=0.1, units=10, hold="1h"), RampStep(traffic=1.0)))
    course.tick(1, arrived=10, last_arrival=at(1))
    course.policy = policy(RampStep(traffic=0.1, units=20), RampStep(traffic=1.0))
    assert course.tick(2) == "waiting_units"
    assert course.tick(3, arrived=10, last_arrival=at(3)) == "advance"


def test_a_jump_begins_its_step_anew_and_going_back_takes_approvals_back() -> None:
    asks = [RampStep(traffic=share, hold="10s", approval=True) for share in (0.1, 0.2, 0.3)]
    course = Course(policy(*asks, RampStep(traffic=1.0)))
    for number in (1, 2, 3):
        course.state = ramp.approve(course.state, number, at(0))
    course.state = ramp.jump(course.state, 3, at(5), epoch=2, enrolled=40)
    assert course.state.approvals.keys() == {1, 2, 3}
    assert course.tick(14.9, UNSEEN) == "waiting_time"
    assert course.tick(15, UNSEEN) == "inconclusive"
    course.state = ramp.jump(course.state, 2, at(20), epoch=3, enrolled=50)
    assert course.state.approvals.keys() == {1}
    assert (course.state.looked_through, course.state.bet_on) == (50, {})
    assert course.tick(30) == "awaiting_approval"


def test_reasons_name_the_step_and_its_numbers() -> None:
    course = Course(policy(RampStep(traffic=0.1, units=1_000), RampStep(traffic=1.0)))
    seen = course.observed(1, UNSEEN, arrived=312, last_arrival=at(1))
    outcome = step(course.policy, course.state, seen)
    text = reason(course.policy, outcome, seen)
    assert text == "step 1 of 2 waits for 1,000 units; 312 came"
    unguarded = msgspec.structs.replace(seen, arrived=1_000, watched=())
    outcome = step(course.policy, course.state, unguarded)
    text = reason(course.policy, outcome, unguarded)
    assert text == "step 2 of 2: traffic 1; no guardrail watches this ramp"
    held = steps_of("90s")
    outcome = step(held, course.state, seen)
    assert reason(held, outcome, seen) == "step 1 of 2 is held until 2026-03-02 12:01:30 UTC"


# Whatever happens, and whenever the controller dies


EVENTS = ("tick", "tick", "tick", "approve", "pause", "resume", "halt", "go", "harm", "back")
Event = tuple[str, int, bool, bool]
"""What happens, seconds later, whether the guard sees a block by then, and whether the controller
is another one from then on."""

events = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 40), st.booleans(), st.booleans()),
    min_size=10,
    max_size=60,
)
conditions = st.builds(
    lambda hold, approval: (hold if hold or not approval else "", approval),
    st.sampled_from(["", "5s", "20s", "1m"]),
    st.booleans(),
)
policies = st.lists(conditions, min_size=2, max_size=6).map(
    lambda found: policy(
        *(
            RampStep(traffic=(number + 1) / 10, hold=hold or None, approval=approval)
            for number, (hold, approval) in enumerate(found)
        )
    )
)


class Life:
    """A ramp to which anything happens; what it did, and, counted apart from it, what it may do."""

    def __init__(self, steps: RampPolicy, *, restarts: bool) -> None:
        self.course = Course(steps)
        self.restarts = restarts
        self.now = 0
        self.halted = self.harmed = False
        self.did: list[tuple[int, str, int]] = []
        self.active = 0  # seconds in which neither the experiment nor the ramp was paused
        self.held = 0.0  # the holds of all steps that were left
        self.saw = False
        self.approved: set[int] = set()

    def happen(self, event: Event) -> None:
        what, seconds, saw, dies = event
        course, before = self.course, self.course.state
        if not (self.halted or before.paused):
            self.active += seconds
        self.now += seconds
        now = at(self.now)
        match what:
            case "approve":
                course.state = ramp.approve(before, before.step, now)
                self.approved.add(before.step)
            case "pause":
                course.state = ramp.pause(before, now)
            case "resume" if before.paused:
                course.state = ramp.resume(before, now, runs=not self.halted)
            case "halt":
                course.state, self.halted = ramp.stop(before, now), True
            case "go":
                course.state, self.halted = ramp.go_on(before, now), False
            case "harm" | "back":
                self.harmed = what == "harm"
            case "tick":
                self.tick(saw)
        if dies and self.restarts:
            course.state = msgspec.json.decode(msgspec.json.encode(course.state), type=RampState)

    def tick(self, saw: bool) -> None:
        """The controller looks."""
        course, before = self.course, self.course.state
        seen = course.observed(
            self.now,
            watched() if saw else UNSEEN,
            has_treatment=not self.harmed,
            experiment_paused=self.halted,
        )
        outcome = step(course.policy, before, seen)
        evidence = RampEvidence(course.policy, before, seen, outcome)
        stored = msgspec.json.decode(msgspec.json.encode(evidence), type=RampEvidence)
        assert recompute(stored) == outcome == stored.outcome
        if before.rolled_back and not self.harmed:
            self.saw, self.approved = False, self.approved - {before.step}
        elif not self.harmed:
            self.saw |= saw
        self.check(before, outcome)
        course.state = outcome.state
        course.epoch += outcome.code == "advance"
        self.did.append((self.now, outcome.code, outcome.state.step))

    def check(self, before: RampState, outcome: Outcome) -> None:
        """No step is left before its time, unseen, unapproved, or while anything is paused."""
        left = outcome.state.step - before.step
        assert left == (outcome.code == "advance")
        if not left:
            return
        conditions = self.course.policy.steps[before.step - 1]
        self.held += control.hold_of(self.course.policy, before).total_seconds()
        assert self.active >= self.held
        assert self.saw
        assert before.step in self.approved or not conditions.approval
        assert not self.halted
        assert not before.paused
        assert not self.harmed
        self.saw = False


@settings(deadline=None, max_examples=150)
@given(policies, events)
def test_no_step_is_left_before_its_time_unseen_or_unapproved_and_restarts_change_nothing(
    steps: RampPolicy, happenings: Sequence[Event]
) -> None:
    one, other = Life(steps, restarts=False), Life(steps, restarts=True)
    for event in happenings:
        one.happen(event)
        other.happen(event)
    assert one.did == other.did
    assert one.course.state == other.course.state
    assert all(later[2] - earlier[2] in {0, 1} for earlier, later in pairwise(one.did))


@settings(deadline=None, max_examples=60)
@given(policies, st.integers(1, 500))
def test_a_ramp_that_is_left_alone_is_as_far_after_an_outage_as_without_one(
    steps: RampPolicy, outage: int
) -> None:
    """As soon as the guard has seen what it has to see: a tick for each step here."""
    courses = Course(steps), Course(steps)
    for course in courses:
        for number in range(1, len(steps.steps) + 1):
            course.state = ramp.approve(course.state, number, at(0))
    for second in range(outage):
        courses[0].tick(second)
    for course in courses:
        for tick in range(len(steps.steps) + 1):
            course.tick(outage + tick / 1_000)
    assert courses[0].state.step == courses[1].state.step
    assert courses[0].state.completed == courses[1].state.completed
