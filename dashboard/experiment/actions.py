"""What can be done to an experiment by the one who looks at it: buttons.

Which moves a state allows is said by `experiments/states.py`, and who may by the role of the key.
The forms behind the buttons are in `action_forms.py`, and what they do in `acts.py`.
"""

from typing import Final, Literal, TypeAlias, get_args

import msgspec

from analysis.control.ramp_api import RampView
from analysis.control.standing import StandingAlarms
from dashboard.experiment.history import HistoryFacts
from experiments.keys import Principal
from experiments.model import HOLDOUT
from experiments.proposals.model import Demand
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS, allowed

Verb: TypeAlias = Literal[
    "start",
    "pause",
    "resume",
    "conclude",
    "rollback",
    "archive",
    "rollback_variant",
    "resume_variant",
    "allocate",
    "overrule",
    "approve",
    "jump",
    "ramp_pause",
    "ramp_resume",
]
"""What a button does, as decisions name it."""
VERBS: Final[tuple[str, ...]] = get_args(Verb)
RAMP_VERBS: Final[frozenset[Verb]] = frozenset({"approve", "jump", "ramp_pause", "ramp_resume"})
DANGEROUS: Final[frozenset[Verb]] = frozenset(
    {"rollback", "rollback_variant", "conclude", "archive"}
)
Style: TypeAlias = Literal["plain", "primary", "danger"]
_DEMANDS: Final[dict[Verb, Demand]] = {
    "start": "start",
    "allocate": "allocation",
    "jump": "allocation",
    "resume_variant": "allocation",
    "overrule": "allocation",
}

_DONE: Final[dict[str, str]] = {
    "start": "Started. Units are enrolled from now on.",
    "pause": "Paused. The control answers everybody until the experiment is resumed.",
    "resume": "Resumed, slot for slot as before.",
    "conclude": "Concluded. The variant that was chosen answers everybody from now on.",
    "rollback": "Rolled back. The control answers everybody from now on.",
    "archive": "Archived. Its reports stay.",
    "rollback_variant": "Variant rolled back. The control has its traffic.",
    "resume_variant": "Variant resumed. It has its slots again.",
    "allocate": "The traffic was set.",
    "proposed": "Proposed. Nothing is changed until somebody else approves it.",
    "approved": "Approved, and done.",
    "rejected": "Rejected. Nothing was changed.",
    "withdrawn": "Withdrawn. Nothing was changed.",
    "unmoved": "Less than 1 % of the traffic would have moved, so nothing was changed.",
    "overrule": "Overruled. The guard watches in a new generation.",
    "approve": "Approved. The ramp goes on as soon as the step's other conditions are met.",
    "jump": "The ramp is at the step that was chosen.",
    "ramp_pause": "The ramp is paused. The traffic stays as it is.",
    "ramp_resume": "The ramp goes on.",
}


class Button(msgspec.Struct, frozen=True):
    """A button: `href` is the page of its form, which scripts open in a dialog."""

    verb: Verb
    label: str
    href: str
    style: Style = "plain"


class Actions(msgspec.Struct, frozen=True):
    """All that can be done: `shown` at once, `more` behind a menu; `ramp` beside the ramp, where an
    approval that is waited for stands once more. `notice` says what was done just now; empty
    without."""

    shown: tuple[Button, ...] = ()
    more: tuple[Button, ...] = ()
    ramp: tuple[Button, ...] = ()
    notice: str = ""


def actions_view(
    principal: Principal,
    facts: HistoryFacts,
    done: str = "",
    approvals: frozenset[str] = frozenset(),
) -> Actions:
    """What this visitor can do to an experiment as it stands.

    Args:
        done: the page's parameter of the same name: what was done just now.
        approvals: what the project demands that another approves: there a button proposes.
    """
    record = facts.record
    verbs = possible(record, facts.ramp, facts.alarms) if principal.may("write") else ()
    buttons = {
        verb: _button(
            verb,
            record,
            facts.ramp,
            proposes=demand_of(verb, facts.alarms) in approvals,
        )
        for verb in verbs
    }
    first = _first(record, facts.ramp)
    rest = [verb for verb in verbs if verb not in RAMP_VERBS and verb not in first]
    return Actions(
        shown=tuple(buttons[verb] for verb in first if verb in buttons),
        more=tuple(buttons[verb] for verb in rest),
        ramp=tuple(buttons[verb] for verb in verbs if verb in RAMP_VERBS),
        notice=_DONE.get(done, ""),
    )


def possible(
    record: ExperimentRecord, ramp: RampView | None, alarms: StandingAlarms
) -> tuple[Verb, ...]:
    """What the state of an experiment allows, the mildest first."""
    if record.key == HOLDOUT:
        return ()  # it has a page of its own
    moves = allowed(record.state)
    holds = record.state in HOLDS_SLOTS
    control = record.definition.control.key
    others = [key for key in record.definition.weights if key != control]
    can: dict[Verb, bool] = {
        "start": "start" in moves,
        "resume": "resume" in moves,
        "pause": "pause" in moves,
        **_of_ramp(ramp, holds=holds),
        "allocate": holds,
        "overrule": holds and alarms.may_be_overruled,
        "resume_variant": holds and bool(record.rolled_back),
        "conclude": "conclude" in moves,
        "rollback_variant": "rollback" in moves and set(others) != set(record.rolled_back),
        "rollback": "rollback" in moves,
        "archive": "archive" in moves,
    }
    return tuple(verb for verb, may in can.items() if may)


def _of_ramp(ramp: RampView | None, *, holds: bool) -> dict[Verb, bool]:
    if ramp is None or not holds or ramp.step is None:
        return {}
    is_complete = bool(ramp.steps) and ramp.steps[-1].place == "done"
    return {
        "approve": bool(to_approve(ramp)),
        "jump": ramp.status != "rolled_back",
        "ramp_pause": not ramp.paused and not is_complete,
        "ramp_resume": ramp.paused,
    }


def to_approve(ramp: RampView) -> tuple[int, ...]:
    """The steps that wait for an approval, or will."""
    return tuple(
        step.number for step in ramp.steps if step.approved is False and step.place != "done"
    )


def _first(record: ExperimentRecord, ramp: RampView | None) -> tuple[Verb, ...]:
    """What is done most in a state: it stands outside of the menu. What waits for a person comes
    first."""
    match record.state:
        case "running" if is_awaited(ramp):
            return ("approve", "pause", "overrule", "conclude")
        case "running":
            return ("pause", "overrule", "conclude")
        case "paused":
            return ("resume", "conclude")
        case _:
            return ("start",)


def is_awaited(ramp: RampView | None) -> bool:
    """Whether a ramp stands still until a person approves its step."""
    return ramp is not None and ramp.status == "awaiting_approval"


def demand_of(verb: Verb, alarms: StandingAlarms) -> Demand | None:
    """What a project has to demand for a button to propose instead of doing: as the acts have it.
    To conclude is left out, for whether that has to be approved depends on what is shipped."""
    if verb == "resume":  # to overrule the guard, or to go on with what was there
        return "allocation" if alarms.paused_by_guard else None
    return _DEMANDS.get(verb)


def label_of(verb: Verb, record: ExperimentRecord, *, proposes: bool = False) -> str:
    """What a button says."""
    again = record.run > 0
    label = {
        "start": f"Start run {record.run + 1}" if again else "Start",
        "pause": "Pause",
        "resume": "Resume",
        "conclude": "Conclude",
        "rollback": "Roll back",
        "archive": "Archive",
        "rollback_variant": "Roll back a variant",
        "resume_variant": "Resume a variant",
        "allocate": "Set traffic",
        "overrule": "Overrule the alarm",
        "approve": "Approve a step",
        "jump": "Go to a step",
        "ramp_pause": "Pause the ramp",
        "ramp_resume": "Resume the ramp",
    }[verb]
    return f"Propose to {label[:1].lower()}{label[1:]}" if proposes else label


def _button(
    verb: Verb, record: ExperimentRecord, ramp: RampView | None, *, proposes: bool
) -> Button:
    label, style = label_of(verb, record, proposes=proposes), style_of(verb)
    if verb == "approve" and ramp is not None and is_awaited(ramp):
        label, style = f"Approve step {ramp.step}", "primary"
    return Button(verb, label, f"/experiments/{record.key}/actions/{verb}", style)


def style_of(verb: Verb) -> Style:
    """How a button looks: what ends something for good, or takes traffic away, is marked."""
    if verb in DANGEROUS:
        return "danger"
    return "primary" if verb in {"start", "resume", "ramp_resume"} else "plain"
