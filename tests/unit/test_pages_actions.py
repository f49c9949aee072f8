"""What can be done to an experiment, by whom, and what its form says of it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.control.ramp_api import RampView, StepView
from analysis.control.standing import StandingAlarm, StandingAlarms
from analysis.reports.model import Verdict
from dashboard.experiment.action_forms import (
    FormFacts,
    make_form,
    percent_text,
    problem_words,
    read_percent,
)
from dashboard.experiment.actions import DANGEROUS, VERBS, Verb, actions_view, possible
from dashboard.experiment.history import HistoryFacts
from dashboard.experiment.history_allocation import EpochFacts
from dashboard.experiment.history_settings import SettingsFacts
from dashboard.experiment.timeline import TimelineFacts
from experiments.definition import parse_definition
from experiments.keys import Principal, Role
from experiments.model import State
from experiments.problems import ProblemError
from experiments.records import ExperimentRecord

_AT = datetime(2026, 3, 1, tzinfo=UTC)
_RAMP = {"kind": "ramp", "steps": [{"traffic": 0.1, "approval": True}, {"traffic": 1.0}]}


def _record(state: State = "running", **changes: Any) -> ExperimentRecord:
    policy = changes.pop("policy", {"kind": "fixed"})
    definition = parse_definition(
        {
            "key": changes.get("key", "x") if changes.get("key") != "$holdout" else "x",
            "policy": policy,
            "variants": [
                {"key": "v6", "control": True, "weight": 0.5, "value": 1},
                {"key": "v7", "weight": 0.25, "value": 2},
                {"key": "v8", "weight": 0.25, "value": 3},
            ],
        }
    )
    run = 0 if state == "draft" else 1
    fields: dict[str, Any] = {
        "id": 1,
        "project": "p",
        "key": "x",
        "state": state,
        "revision": 3,
        "run": run,
        "epoch": run,
        "definition": definition,
        "ship": None,
        "created_at": _AT,
        "updated_at": _AT,
    }
    return ExperimentRecord(**{**fields, **changes})


def _ramp(**changes: Any) -> RampView:
    steps = (
        StepView(1, "now", 0.1, None, None, True, False),
        StepView(2, "ahead", 1.0, None, None, False, None),
    )
    fields: dict[str, Any] = {
        "experiment": "x",
        "state": "running",
        "run": 1,
        "status": "awaiting_approval",
        "code": "awaiting_approval",
        "reason": "",
        "step": 1,
        "traffic": 0.1,
        "since": _AT,
        "due_at": None,
        "units": None,
        "waits_for": ("approval",),
        "watched": (),
        "paused": False,
        "steps": steps,
    }
    return RampView(**{**fields, **changes})


def _facts(record: ExperimentRecord, ramp: RampView | None = None) -> HistoryFacts:
    return HistoryFacts(
        record=record,
        now=_AT,
        allocation=None,
        posterior=None,
        ramp=ramp,
        timeline=TimelineFacts("changes", (), False, {}, {}),
        settings=SettingsFacts((), {}),
        alarms=StandingAlarms(),
    )


def _epoch(traffic: float = 0.96) -> EpochFacts:
    weights = {"v6": 0.5, "v7": 0.5, "v8": 0.0}
    return EpochFacts(1, 1, _AT, "running", weights, traffic, "controller", "", None, None)


def _form(verb: Verb, record: ExperimentRecord | None = None, **facts: Any) -> Any:
    sent = facts.pop("sent", {})
    known: dict[str, Any] = {"epoch": _epoch(), "ramp": None, "alarms": StandingAlarms()}
    return make_form(verb, FormFacts(record or _record(), **{**known, **facts}), "once", sent)


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        ("draft", {"start", "archive"}),
        ("running", {"pause", "allocate", "conclude", "rollback_variant", "rollback"}),
        ("paused", {"resume", "allocate", "conclude", "rollback_variant", "rollback"}),
        ("concluded", {"start", "archive"}),
        ("rolled_back", {"start", "archive"}),
        ("archived", set()),
    ],
)
def test_a_state_has_the_buttons_that_it_allows(state: State, verbs: set[str]) -> None:
    assert set(possible(_record(state), None, StandingAlarms())) == verbs


@pytest.mark.parametrize(
    ("role", "any_button"),
    [("client", False), ("service", False), ("analyst", False), ("editor", True), ("admin", True)],
)
def test_buttons_are_for_those_who_may_write(role: Role, any_button: bool) -> None:
    shown = actions_view(Principal("k", "p", role), _facts(_record()))
    assert bool(shown.shown or shown.more or shown.ramp) == any_button


def test_every_button_stands_in_one_place_and_dangerous_ones_are_marked() -> None:
    record = _record(rolled_back=("v8",))
    shown = actions_view(Principal("k", "p", "editor"), _facts(record))
    buttons = [*shown.shown, *shown.more]
    verbs = [button.verb for button in buttons]
    assert sorted(verbs) == sorted(possible(record, None, StandingAlarms()))
    assert {b.verb for b in buttons if b.style == "danger"} == DANGEROUS & set(verbs)
    assert [button.verb for button in shown.shown] == ["pause", "conclude"]


def test_the_holdout_has_no_buttons() -> None:
    assert possible(_record(key="$holdout"), None, StandingAlarms()) == ()


def test_a_ramp_that_waits_for_an_approval_asks_for_it_first() -> None:
    record = _record(policy=_RAMP)
    shown = actions_view(Principal("k", "p", "editor"), _facts(record, _ramp()))
    assert [(b.label, b.style) for b in shown.ramp] == [
        ("Approve step 1", "primary"),
        ("Go to a step", "plain"),
        ("Pause the ramp", "plain"),
    ]
    paused = actions_view(
        Principal("k", "p", "editor"), _facts(record, _ramp(paused=True, status="paused"))
    )
    assert [b.verb for b in paused.ramp] == ["approve", "jump", "ramp_resume"]


def test_only_alarms_that_merely_told_can_be_overruled() -> None:
    told = StandingAlarm("errors", "v7", "alert")
    paused = StandingAlarm("errors", "v8", "pause")
    assert "overrule" in possible(_record(), None, StandingAlarms((told,)))
    assert "overrule" not in possible(_record(), None, StandingAlarms((told, paused)))
    assert "overrule" not in possible(_record("concluded"), None, StandingAlarms((told,)))


def test_a_notice_is_of_our_own_words() -> None:
    editor = Principal("k", "p", "editor")
    assert actions_view(editor, _facts(_record()), "pause").notice.startswith("Paused.")
    assert actions_view(editor, _facts(_record()), "<b>you won</b>").notice == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_form_says_what_will_happen(verb: Verb) -> None:
    form = _form(verb, _record(policy=_RAMP, rolled_back=("v8",)), ramp=_ramp())
    assert form.effects
    assert all(text.endswith(".") for text in form.effects)
    assert form.opened == "3.1.running"


def test_a_rollback_of_a_variant_says_how_much_goes_where() -> None:
    form = _form("rollback_variant", _record(rolled_back=("v8",)))
    [option] = form.choice.options
    assert (option.value, option.is_chosen) == ("v7", True)
    assert option.note == "its 48\N{NARROW NO-BREAK SPACE}% of the traffic goes to v6"


@pytest.mark.parametrize(
    ("action", "variant", "chosen"),
    [
        ("ship", "v7", "v7"),
        ("keep_control", None, "v6"),
        ("stop_for_futility", None, "v6"),
        ("keep_running", None, None),
        ("fix_data", None, None),
    ],
)
def test_what_the_report_advises_is_chosen_beforehand(
    action: Any, variant: str | None, chosen: str | None
) -> None:
    verdict = Verdict(action, variant, "Known.", "", "")
    form = _form("conclude", _record(rolled_back=("v8",)), verdict=verdict)
    assert [o.value for o in form.choice.options] == ["v6", "v7"]  # what is rolled back cannot be
    assert next((o.value for o in form.choice.options if o.is_chosen), None) == chosen
    assert form.advice.endswith("Known.")


def test_to_resume_after_the_guard_says_that_it_is_overruled() -> None:
    alarms = StandingAlarms((), paused_by_guard=True)
    assert "overrules its alarm" in _form("resume", _record("paused"), alarms=alarms).effects[-1]
    assert len(_form("resume", _record("paused")).effects) == 1


def test_a_variant_that_is_rolled_back_stays_without_weight() -> None:
    form = _form("allocate", _record(rolled_back=("v8",)), sent={"weights.v7": "70"})
    assert [(p.name, p.value, p.was, p.place) for p in form.weights] == [
        ("weights.v6", "50", "50", 0),
        ("weights.v7", "70", "50", 1),
        ("weights.v8", "0", "0", 2),
    ]
    assert form.traffic is not None
    assert form.traffic.value == "96"


@given(st.floats(0, 1))
def test_a_share_that_was_not_touched_is_sent_as_it_was(share: float) -> None:
    assert read_percent("traffic", percent_text(share)) == share


@pytest.mark.parametrize(
    ("text", "share"), [("12.5", 0.125), (" 12,5 % ", 0.125), ("100%", 1.0), ("33.33", 0.3333)]
)
def test_per_cent_are_read_as_people_write_them(text: str, share: float) -> None:
    assert read_percent("traffic", text) == share


@pytest.mark.parametrize("text", ["", "half", "1e", "--1", "5 0", "nan", "inf", "1e999"])
def test_what_is_no_number_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(ProblemError, match="traffic") as caught:
        read_percent("traffic", text)
    assert caught.value.errors[0].path == "traffic"


def test_a_problem_reads_as_a_sentence() -> None:
    assert problem_words(ProblemError("conflict", "it is over")) == "It is over."
