"""A proposal as it is shown: what it would do, in words or as a diff, and who may answer it.
Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec

from dashboard.experiment import settings_diff
from dashboard.experiment.action_forms import percent_text
from dashboard.experiment.history_settings import ChangeRow, change_row
from dashboard.experiment.people import Who, who
from experiments.definition import examine_patch
from experiments.keys import Principal
from experiments.proposals.model import Proposal
from experiments.records import ExperimentRecord

Verb: TypeAlias = Literal["approve", "reject", "withdraw"]

_TITLES: Final[Mapping[str, str]] = {
    "start": "Start",
    "resume": "Resume",
    "conclude": "Conclude",
    "amend": "Change the settings",
    "allocate": "Set the traffic",
    "jump": "Go to a step of the ramp",
    "overrule": "Overrule the guard's alarm",
    "holdout": "Change the holdout",
    "settings": "Demand less approval",
}
LABELS: Final[Mapping[Verb, str]] = {
    "approve": "Approve",
    "reject": "Reject",
    "withdraw": "Withdraw",
}


class Answer(msgspec.Struct, frozen=True):
    """What this visitor may say to a proposal: a button, which leads to a form."""

    verb: Verb
    label: str
    href: str
    style: Literal["plain", "primary", "danger"]


class Waiting(msgspec.Struct, frozen=True):
    """A proposal that waits.

    Arguments:
        title: what it would do; `words` say more of it, `changes` are the fields that it changes.
        stale: how the experiment has moved on since, so that nobody can approve it; else empty.
        answers: what this visitor may say to it.
        why_not: why they cannot approve it; empty where they can.
    """

    id: int
    experiment: str | None
    title: str
    words: tuple[str, ...]
    changes: tuple[ChangeRow, ...]
    who: Who
    reason: str
    at: datetime
    expires_at: datetime
    stale: str
    answers: tuple[Answer, ...]
    why_not: str


def waiting_view(
    proposal: Proposal,
    record: ExperimentRecord | None,
    principal: Principal,
    notes: Mapping[str, str],
    stale: str,
) -> Waiting:
    """A proposal that waits, as this visitor sees it.

    Args:
        record: the experiment as it stands; None where there is none.
        notes: of keys, by actor.
        stale: how that has moved on since.
    """
    is_own = proposal.proposer == principal.actor
    may = principal.may("administer" if proposal.demand == "approvals" else "write")
    can: dict[Verb, bool] = {
        "approve": may and not is_own and not stale,
        "reject": may and not is_own,
        "withdraw": is_own,
    }
    return Waiting(
        id=proposal.id,
        experiment=proposal.experiment,
        title=title_of(proposal),
        words=_words(proposal),
        changes=_changes(proposal, record),
        who=who(proposal.proposer, "", notes),
        reason=proposal.reason,
        at=proposal.at,
        expires_at=proposal.expires_at,
        stale=stale,
        answers=tuple(_answer(verb, proposal.id) for verb, allowed in can.items() if allowed),
        why_not="It is your own: another has to approve it." if is_own else "",
    )


def title_of(proposal: Proposal) -> str:
    """What a proposal would do, in a few words."""
    body = proposal.body if isinstance(proposal.body, dict) else {}
    match proposal.verb:
        case "start":
            return f"Start run {proposal.run + 1}"
        case "conclude":
            return f"Conclude, and ship {body.get('ship')}"
        case "resume" if body.get("variant"):
            return f"Resume {body['variant']}"
        case "jump":
            return f"Go to step {body.get('step')} of the ramp"
        case _:
            return _TITLES.get(proposal.verb, proposal.verb)


def _words(proposal: Proposal) -> tuple[str, ...]:
    body: dict[str, Any] = proposal.body if isinstance(proposal.body, dict) else {}
    said: list[str] = []
    match proposal.verb:
        case "allocate":
            if body.get("traffic") is not None:
                said.append(f"Traffic: {percent_text(body['traffic'])} % of all units.")
            if body.get("weights"):
                split = ", ".join(f"{k} {percent_text(w)} %" for k, w in body["weights"].items())
                said.append(f"Weights: {split}.")
        case "holdout":
            said.append(f"Held out of all experiments: {percent_text(body['share'])} %.")
            if body.get("metrics") is not None:
                metrics = ", ".join(metric["key"] for metric in body["metrics"]) or "none"
                said.append(f"Metrics of its report, as defined anew: {metrics}.")
            if body.get("record") is not None:
                said.append(f"Attributes that it records: {', '.join(body['record']) or 'none'}.")
        case "settings":
            left = ", ".join(body.get("approvals") or ()) or "nothing"
            said.append(f"Approval would be demanded for: {left}.")
            if "origins" in body:
                origins = ", ".join(body["origins"]) or "none"
                said.append(f"Browsers may call from these origins: {origins}.")
            if "units" in body:
                said.append(f"Units would be stored {body['units']}.")
    return tuple(said)


def _changes(proposal: Proposal, record: ExperimentRecord | None) -> tuple[ChangeRow, ...]:
    """What a change of the settings would change, from how they stand."""
    if proposal.verb != "amend" or record is None:
        return ()
    after, problems = examine_patch(record.definition, proposal.body)
    if problems:
        return ()
    before, now = (
        msgspec.json.decode(msgspec.json.encode(one)) for one in (record.definition, after)
    )
    return tuple(change_row(each) for each in settings_diff.diff(before, now))


def _answer(verb: Verb, number: int) -> Answer:
    style: Literal["plain", "primary", "danger"] = "plain"
    if verb == "approve":
        style = "primary"
    return Answer(verb, LABELS[verb], f"/proposals/{number}/{verb}", style)
