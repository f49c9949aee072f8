"""The timeline of decisions: what rules and hands did to an experiment, the newest first."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec
from markupsafe import Markup

from analysis.control.recorded import DecisionView
from dashboard.charts.small import share_bar
from dashboard.experiment.history_allocation import (
    EpochFacts,
    decision_link,
    read_epochs,
    shares_of,
    split_words,
)
from dashboard.experiment.people import Who, read_notes, who
from experiments import store
from experiments.model import RampPolicy, ThompsonPolicy
from experiments.records import Decision, ExperimentRecord
from experiments.store import Connection

PAGE: Final = 10
MANUAL: Final = "manual"
CHANGES: Final = "changes"
ALL: Final = "all"
Tone: TypeAlias = Literal["none", "ok", "info", "warning", "critical"]

FILTERS: Final[Mapping[str, str]] = {
    CHANGES: "Moves and alerts",
    MANUAL: "By hand",
    "guard": "Guard",
    "health": "Health",
    "ramp": "Ramp",
    "bandit": "Bandit",
    "stop": "Stop rule",
    ALL: "All, with holds",
}
"""Which decisions are shown, by the word in an address. A rule's are those in which it did
something."""

WORDS: Final[Mapping[str, tuple[str, Tone]]] = {
    "start": ("Started", "ok"),
    "pause": ("Paused", "warning"),
    "resume": ("Resumed", "ok"),
    "conclude": ("Concluded", "info"),
    "rollback": ("Rolled back", "critical"),
    "archive": ("Archived", "none"),
    "amend": ("Settings changed", "none"),
    "allocate": ("Traffic set", "none"),
    "rollback_variant": ("Variant rolled back", "critical"),
    "resume_variant": ("Variant resumed", "ok"),
    "overrule": ("Alarm overruled", "warning"),
    "reallocate": ("Traffic moved", "none"),
    "advance": ("Step advanced", "ok"),
    "approve": ("Step approved", "ok"),
    "jump": ("Step jumped to", "none"),
    "ramp_pause": ("Ramp paused", "warning"),
    "ramp_resume": ("Ramp resumed", "ok"),
    "holdout": ("Holdout changed", "none"),
    "alert": ("Alert", "warning"),
    "advise": ("Advice", "info"),
    "hold": ("Holds", "none"),
}
"""What each kind of decision did, in words, and how it is marked."""


class TimelineFacts(msgspec.Struct, frozen=True):
    """A page of decisions, the epochs around them, by number, and the notes of keys."""

    shown: str
    decisions: tuple[Decision, ...]
    more: bool
    epochs: Mapping[int, EpochFacts]
    notes: Mapping[str, str]


class Split(msgspec.Struct, frozen=True):
    """How an epoch split the traffic: as a small bar, and in words."""

    epoch: int
    bar: Markup
    words: str


class Row(msgspec.Struct, frozen=True):
    """A decision in the timeline.

    Arguments:
        what: it did, in words; `tone` is how it is marked.
        before, after: the split that it changed; None of one that changed nothing, or has none.
        link: where it stands by itself, with its evidence.
        is_move: whether it is one of a bandit's many moves, for which a line is enough.
    """

    id: int
    run: int
    at: datetime
    who: Who
    what: str
    tone: Tone
    reason: str
    before: Split | None
    after: Split | None
    link: str
    is_move: bool


class Filter(msgspec.Struct, frozen=True):
    """A choice of decisions: `page` is the experiment's page with it, `part` the list alone."""

    name: str
    page: str
    part: str
    is_chosen: bool


class Timeline(msgspec.Struct, frozen=True):
    """A page of the timeline; `older` leads on, empty at the end, and `newest` back. There is
    nothing to choose from before the first run."""

    rows: tuple[Row, ...]
    filters: tuple[Filter, ...]
    older: str
    newest: str


async def read(
    connection: Connection, record: ExperimentRecord, shown: str, before: int | None = None
) -> TimelineFacts:
    """A page of decisions.

    Args:
        shown: a word of `FILTERS`; any other is taken for `changes`.
        before: the decision behind which the page begins.
    """
    if shown not in FILTERS:
        shown = CHANGES
    found = await store.list_decisions(
        connection,
        record.id,
        PAGE + 1,
        before,
        rule=None if shown in {CHANGES, ALL} else shown,
        holds=shown == ALL,
    )
    decisions = tuple(found[:PAGE])
    numbers = {
        number
        for decision in decisions
        if decision.epoch_before != decision.epoch_after
        for number in (decision.epoch_before, decision.epoch_after)
        if number
    }
    return TimelineFacts(
        shown=shown,
        decisions=decisions,
        more=len(found) > PAGE,
        epochs=await read_epochs(connection, record, numbers),
        notes=await read_notes(connection, record.project, {d.actor for d in decisions}),
    )


def make(record: ExperimentRecord, facts: TimelineFacts) -> Timeline:
    """A page of the timeline. Pure."""
    older = ""
    if facts.more:
        last = facts.decisions[-1].id
        older = f"/experiments/{record.key}/decisions?decisions={facts.shown}&before={last}"
    return Timeline(
        rows=tuple(row(record, d, facts.epochs, facts.notes) for d in facts.decisions),
        filters=tuple(
            Filter(
                name=name,
                page=f"/experiments/{record.key}?decisions={word}#decisions",
                part=f"/experiments/{record.key}/decisions?decisions={word}",
                is_chosen=word == facts.shown,
            )
            for word, name in FILTERS.items()
            if record.run and _applies(word, record)
        ),
        older=older,
        newest=f"/experiments/{record.key}/decisions?decisions={facts.shown}",
    )


def _applies(word: str, record: ExperimentRecord) -> bool:
    """Whether an experiment can have such decisions: a policy that was changed leaves some, which
    all others show."""
    policy = record.definition.policy
    if word == "ramp":
        return isinstance(policy, RampPolicy)
    if word in {"bandit", "stop"}:
        return isinstance(policy, ThompsonPolicy) and (word == "bandit" or policy.stop is not None)
    return True


def row(
    record: ExperimentRecord,
    decision: Decision | DecisionView,
    epochs: Mapping[int, EpochFacts],
    notes: Mapping[str, str],
) -> Row:
    """A decision in the timeline. Pure."""
    what, tone = WORDS.get(decision.kind, (decision.kind, "none"))
    variants = tuple(record.definition.weights)
    moved = decision.epoch_before != decision.epoch_after
    return Row(
        id=decision.id,
        run=decision.run,
        at=decision.at,
        who=who(decision.actor, decision.rule, notes),
        what=what,
        tone=tone,
        reason=decision.reason,
        before=_split(variants, epochs.get(decision.epoch_before)) if moved else None,
        after=_split(variants, epochs.get(decision.epoch_after)) if moved else None,
        link=decision_link(record.key, decision.id),
        is_move=decision.kind == "reallocate" and moved,
    )


def _split(variants: Sequence[str], epoch: EpochFacts | None) -> Split | None:
    if epoch is None:
        return None
    shares = epoch.shares(variants)
    return Split(
        epoch.number, share_bar(shares_of(variants, shares)), split_words(variants, shares)
    )
