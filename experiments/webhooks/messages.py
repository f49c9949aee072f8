"""What is said of a decision: the body of Standard Webhooks, or a text that Slack shows."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from experiments.webhooks.model import TEST, Format, Side, Story, event_type

_LONGEST_TEXT: Final = 2_500
"""Slack takes 3,000 characters in a block, and refuses all of a message that has more."""
_WHAT: Final[Mapping[str, str]] = {
    "start": "started",
    "pause": "paused",
    "resume": "resumed",
    "conclude": "concluded",
    "rollback": "rolled back",
    "archive": "archived",
    "amend": "changed",
    "allocate": "given another allocation",
    "reallocate": "reallocated",
    "advance": "moved to the next step of its ramp",
    "approve": "approved for the next step of its ramp",
    "jump": "moved to another step of its ramp",
    "ramp_pause": "kept at the step of its ramp",
    "ramp_resume": "let go on with its ramp",
    "holdout": "given another holdout",
    "overrule": "let go on against the guard's alarm",
    "alert": "found to need a look",
    "clear": "cleared of a finding",
    "advise": "found ready to be concluded",
    "hold": "left as it is",
}
_WHO: Final[Mapping[str, str]] = {
    "guard": "the guard",
    "health": "the health checks",
    "ramp": "its ramp",
    "bandit": "the bandit",
    "stop": "the stop rule",
}
"""Rules in words; what a hand does is its actor's."""
_ALARMING: Final = frozenset({"rollback", "rollback_variant", "pause", "alert"})


class Paths(msgspec.Struct, frozen=True):
    """Where to read on; whole addresses where the installation knows its own. `page` is for people,
    the others answer programs that send a key."""

    page: str
    experiment: str
    report: str
    decisions: str


class Data(msgspec.Struct, frozen=True):
    """The `data` of a message about a decision."""

    decision: int
    project: str
    experiment: str
    run: int
    kind: str
    rule: str
    code: str
    reason: str
    actor: str
    at: datetime
    before: Side | None
    after: Side | None
    links: Paths


class Message(msgspec.Struct, frozen=True):
    """The body of a message in the standard form."""

    type: str
    timestamp: datetime
    data: Data


def body_of(story: Story, form: Format, public_url: str) -> bytes:
    """What is sent about a decision.

    Args:
        public_url: where people reach this Turnout; empty where nobody has said.
    """
    if form == "slack":
        return msgspec.json.encode(_slack(_sentence(story), _context(story), story, public_url))
    fields = {name: getattr(story, name) for name in Story.__struct_fields__}
    data = Data(**fields, links=_links(story, public_url))
    return msgspec.json.encode(Message(event_type(story.kind, story.rule), story.at, data))


def test_body(project: str, form: Format, at: datetime) -> bytes:
    """What is sent to try a webhook out."""
    if form == "slack":
        return msgspec.json.encode(
            {"text": f"Turnout can reach you. This is a test from project {_escaped(project)}."}
        )
    return msgspec.json.encode({"type": TEST, "timestamp": at, "data": {"project": project}})


def _links(story: Story, public_url: str) -> Paths:
    base = public_url.rstrip("/")
    experiment = f"{base}/v1/experiments/{story.experiment}"
    page = f"{base}/experiments/{story.experiment}#decision-{story.decision}"
    return Paths(page, experiment, f"{experiment}/report", f"{experiment}/decisions")


def _slack(sentence: str, context: str, story: Story, public_url: str) -> dict[str, Any]:
    """A text for notifications, and the same as blocks."""
    line, context = _shortened(sentence), _shortened(context)
    if public_url:
        context += f" · <{_links(story, public_url).page}|open>"
    return {
        "text": line,
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": line}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": context}]},
        ],
    }


def _sentence(story: Story) -> str:
    """What was done to which experiment, by whom, and why."""
    sign = ":rotating_light: " if story.kind in _ALARMING and story.rule != "manual" else ""
    who = _WHO.get(story.rule, story.actor)
    said = f"{sign}{_what(story)} by {_escaped(who)}: "
    return said + _escaped(story.reason)


def _what(story: Story) -> str:
    """What was done to what."""
    experiment = f"*{_escaped(story.experiment)}*"
    before, after = _variants(story.before), _variants(story.after)
    if story.kind == "rollback_variant":
        return f"{_named(before - after)} of {experiment} was rolled back"
    if story.kind == "resume_variant":
        return f"{_named(after - before)} of {experiment} was resumed"
    name = event_type(story.kind, story.rule).removeprefix("experiment.")
    return f"{experiment} was {_WHAT.get(name, name)}"


def _variants(side: Side | None) -> set[str]:
    """Those that have traffic."""
    return set() if side is None else {*side.weights}


def _named(variants: set[str]) -> str:
    return f"variant {', '.join(sorted(variants))}" if variants else "a variant"


def _context(story: Story) -> str:
    parts = [f"project {story.project}", f"run {story.run}", f"decision {story.decision}"]
    moved = _moved(story.before, story.after)
    return " · ".join([*parts, *([moved] if moved else [])])


def _moved(before: Side | None, after: Side | None) -> str:
    """The shares of all traffic that changed, in words; empty where none did."""
    shares = [{} if side is None else _shares(side) for side in (before, after)]
    names = [*shares[0], *(name for name in shares[1] if name not in shares[0])]
    return ", ".join(
        f"{name} {shares[0].get(name, 0):.1%} → {shares[1].get(name, 0):.1%}"
        for name in names
        if shares[0].get(name, 0) != shares[1].get(name, 0)
    )


def _shares(side: Side) -> dict[str, float]:
    return {name: weight * side.traffic for name, weight in side.weights.items()}


def _escaped(text: str) -> str:
    """A text in which nothing is a command of Slack's."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} …"
