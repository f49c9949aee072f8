"""The history on an experiment's page: which epochs are drawn, how changes and evidence read."""

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.control.bandit_rule import StaleMoments
from analysis.control.ramp import Observed, Outcome, RampEvidence
from analysis.control.ramp_api import RampView, StepView, WatchedView
from analysis.control.recorded import WholeDecision
from analysis.inference.bandit import Inputs
from analysis.inference.epoch_sums import EpochSums
from analysis.inference.health_findings import Finding, HealthEvidence, HealthRule, HealthSeen
from analysis.inference.ratio_watch import RatioWatch
from analysis.inference.stopping import StopInputs, StopReading
from dashboard.experiment import evidence, history_ramp
from dashboard.experiment.history_allocation import (
    MOST_DRAWN,
    EpochFacts,
    cause_of,
    split_words,
    thinned,
)
from dashboard.experiment.history_settings import change_row
from dashboard.experiment.people import who
from dashboard.experiment.settings_diff import diff
from dashboard.experiment.timeline import FILTERS, WORDS
from experiments.model import RampPolicy, RampStep
from experiments.ramp import RampState
from experiments.records import DecisionKind, RuleName
from experiments.seals import plain

NOW = datetime(2026, 3, 1, 13, tzinfo=UTC)
_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(st.integers(1, 50_000), st.integers(0, 40_000), st.lists(st.integers(1, 90_000)))
def test_of_many_epochs_a_bounded_number_is_drawn(first: int, more: int, kept: list[int]) -> None:
    last = first + more
    drawn = thinned(first, last, kept)
    assert len(drawn) <= min(MOST_DRAWN, more + 1)
    assert (drawn[0], drawn[-1]) == (first, last)
    assert list(drawn) == sorted(set(drawn))
    within = sorted(each for each in kept if first <= each <= last)
    assert set(within[-100:]) <= set(drawn)


def test_few_epochs_are_all_drawn() -> None:
    assert thinned(7, 9) == (7, 8, 9)


def test_every_kind_of_decision_and_every_rule_has_words() -> None:
    assert set(WORDS) == set(get_args(DecisionKind))
    assert {"manual", *get_args(RuleName)} <= set(FILTERS)


@pytest.mark.parametrize(
    ("kind", "rule", "cause"),
    [
        ("start", "manual", "start"),
        ("allocate", "manual", "hand"),
        ("rollback", "guard", "guard"),
        ("pause", "health", "guard"),
        ("advance", "ramp", "ramp"),
        ("reallocate", "bandit", "bandit"),
        ("conclude", "stop", "stop"),
        ("", "", "hand"),
    ],
)
def test_an_epoch_is_marked_by_whoever_made_it(kind: str, rule: str, cause: str) -> None:
    epoch = EpochFacts(2, 1, _AT, "running", {}, 1.0, "key:1", "", None, None, kind, rule)
    assert cause_of(epoch) == cause


def test_a_split_names_what_is_not_enrolled() -> None:
    words = split_words(("a", "b", "c"), (0.25, 0.125, 0.0))
    assert (
        words.replace("\N{NARROW NO-BREAK SPACE}", " ") == "a 25 %, b 12.5 %, 62.5 % not enrolled"
    )
    assert "not enrolled" not in split_words(("a",), (1.0,))


def test_a_rule_is_named_and_a_hand_by_its_note() -> None:
    assert who("controller", "guard", {}).name == "Guard"
    assert who("key:ab12", "manual", {"key:ab12": "Ada"}).name == "Ada"
    assert who("key:ab12", "manual", {}).name == "ab12"


def test_what_was_null_before_is_new_and_what_says_nothing_is_left_out() -> None:
    metric: dict[str, Any] = {
        "key": "orders",
        "margin": None,
        "tags": [],
        "cap": 1e30,
    }
    before: dict[str, Any] = {
        "metrics": [],
        "targeting": None,
        "layer": {"key": "x"},
        "name": "Old",
    }
    after = {"metrics": [metric], "targeting": {"in": [1]}, "layer": None, "name": ""}
    rows = [change_row(change) for change in diff(before, after)]
    assert [(r.path, r.kind, r.before, r.after) for r in rows] == [
        ("metrics[orders]", "added", "", "{key: orders, cap: 1.0e+30}"),
        ("targeting", "added", "", "{in: [1]}"),
        ("layer", "removed", "{key: x}", ""),
        ("name", "changed", "Old", "''"),
    ]


def _decision(evidence_of: Any, **changes: Any) -> WholeDecision:
    fields: dict[str, Any] = {
        "id": 7,
        "experiment": "x",
        "run": 1,
        "kind": "pause",
        "rule": "manual",
        "code": "pause",
        "epoch_before": 2,
        "epoch_after": 2,
        "term": None,
        "at": _AT,
        "actor": "key:1",
        "reason": "",
        "evidence": evidence_of,
        "basis": None,
        "seal": None,
        "before": None,
        "after": None,
        "slots_before": None,
        "slots_after": None,
        "move": None,
        "history": [],
    }
    return WholeDecision(**{**fields, **changes})


def test_what_a_hand_asked_for_is_told() -> None:
    asked = {"type": "manual", "asked": {"weights": {"a": 0.5}, "traffic": None}}
    shown = evidence.make(_decision(asked), ("a",))
    assert [(fact.name, fact.value) for fact in shown.facts] == [
        ("Asked: weights", '{"a":0.5}'),
        ("Asked: traffic", "null"),
    ]
    assert (shown.verdict, shown.tone) == ("Computed again just now: the same, bit by bit.", "ok")
    assert shown.command == "turnout replay-decision 7"


@pytest.mark.parametrize("kept", [{"type": "newer", "odds": 3}, {"type": "alarm"}, [1], None, "x"])
def test_evidence_that_this_release_does_not_know_is_shown_as_it_is(kept: Any) -> None:
    shown = evidence.make(_decision(kept), ("a",))
    assert "Cannot be computed again" in shown.verdict
    assert shown.facts
    assert not shown.tables


_BANDIT = Inputs(
    metric="click",
    version="1",
    kind="proportion",
    goal="increase",
    floor=0.05,
    warmup=100,
    max_step=0.2,
    finished=EpochSums(),
    weights={"b": 0.5, "a": 0.5},
    alarmed=("b",),
)
_RATIO = RatioWatch({"b": 7, "a": 5}, {"a": 6.0, "b": 6.0})
_HEALTH = HealthEvidence(
    rule=HealthRule("alert", "pause", "ignore", 60.0, 0.05),
    seen=HealthSeen(
        RatioWatch({"b": 7, "a": 5}, {"a": 6.0, "b": 6.0}), 12, 1, None, False, _AT, _AT
    ),
    stood=False,
    finding=Finding("no_data", True, "pause", 90.0, 60.0),
)
_STOP = StopReading(StopInputs(_BANDIT, "a", 0.01, True), "loss_too_large", "b", 0.1, {"b": 0.2})
_LOSS = "1 % of the control's mean"
_STEPS = RampPolicy(steps=(RampStep(traffic=0.1, hold="20s", units=50, approval=True),))
_OBSERVED = Observed(_AT, 1, 0, 0, 0, None, (), has_treatment=True, findings=("no_data",))
_RAMP_STATE = RampState(entered_at=_AT, epoch=1)
_WAITING = Outcome("waiting_time", _RAMP_STATE)


@pytest.mark.parametrize(
    ("kept", "facts", "rows"),
    [
        (_BANDIT, {"Evidence of harm": "b", "Floor": "5\N{NARROW NO-BREAK SPACE}%"}, ["a", "b"]),
        (_HEALTH, {"Check": "no data", "Limit": "60", "Last unit": "–"}, ["a", "b"]),
        (
            StopReading(
                StopInputs(_BANDIT, "a", 0.01, True), "loss_too_large", "b", 0.1, {"b": 0.2}
            ),
            {
                "What it says": "loss too large",
                "Loss that does not matter": "1 % of the control's mean",
            },
            ["b"],
        ),
        (
            RampEvidence(_STEPS, _RAMP_STATE, _OBSERVED, _WAITING),
            {"Approved": "not yet", "New units": "0 of 50", "Findings about the data": "no_data"},
            [],
        ),
        (StaleMoments(_AT, NOW), {"Behind by": "60 minutes"}, []),
    ],
)
def test_evidence_of_every_rule_reads_as_facts_and_tables(
    kept: Any, facts: dict[str, str], rows: list[str]
) -> None:
    shown = evidence.make(_decision(plain(kept)), ("a", "b"))
    told = {fact.name: fact.value for fact in shown.facts}
    assert {name: told.get(name) for name in facts} == facts
    assert [row[0] for table in shown.tables for row in table.rows] == rows  # by the definition


def test_a_changed_row_is_seen_to_be_another() -> None:
    asked = {"type": "manual", "asked": {}}
    shown = evidence.make(_decision(asked, seal="0" * 64), ())
    assert shown.tone == "critical"
    [found] = [check for check in shown.checks if not check.is_same]
    assert found.of == "seal"


def _ramp(**changes: Any) -> RampView:
    steps = (
        StepView(1, "done", 0.1, "20s", None, False, None),
        StepView(2, "now", 0.5, None, 1000, True, False),
        StepView(3, "ahead", 1.0, "1h", None, False, None),
    )
    fields: dict[str, Any] = {
        "experiment": "x",
        "state": "running",
        "run": 1,
        "status": "holding",
        "code": "waiting_units",
        "reason": "step 2 of 3 waits for 1,000 units; 300 came",
        "step": 2,
        "traffic": 0.5,
        "since": _AT,
        "due_at": None,
        "units": 300,
        "waits_for": ("units", "approval"),
        "watched": (WatchedView("errors", "new", False, True),),
        "paused": False,
        "steps": steps,
    }
    return RampView(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ({}, "now"),
        ({"status": "awaiting_approval", "waits_for": ("approval",)}, "waiting"),
        ({"status": "paused"}, "halted"),
        ({"status": "rolled_back"}, "halted"),
        ({"status": "inconclusive", "waits_for": (), "due_at": _AT}, "overdue"),
    ],
)
def test_a_step_says_how_it_stands(changes: dict[str, Any], standing: str) -> None:
    shown = history_ramp.make(_ramp(**changes), NOW)
    assert [step.standing for step in shown.steps] == ["done", standing, "ahead"]
    assert shown.steps[1].conditions == "1,000 new units, an approval"
    assert shown.watched[0].said == "evidence of harm"


def test_units_that_a_step_waits_for_are_counted() -> None:
    shown = history_ramp.make(_ramp(), NOW)
    assert shown.steps[1].note == "300 of 1,000 units came"
    assert shown.reason == "Step 2 of 3 waits for 1,000 units; 300 came"
