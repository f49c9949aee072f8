"""How far a ramp is, step by step, and what it waits for."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec
from markupsafe import Markup

from analysis.control.ramp_api import RampView, StepView
from dashboard.charts.model import ProgressStep
from dashboard.charts.small import progress
from dashboard.experiment.history_allocation import share_words

Standing: TypeAlias = Literal["done", "now", "waiting", "overdue", "halted", "ahead"]

_STATUS: Final = {
    "advancing": "Goes on at the next tick",
    "holding": "Holding",
    "awaiting_approval": "Waiting for approval",
    "inconclusive": "Held back by the evidence",
    "paused": "Paused",
    "rolled_back": "Rolled back",
    "complete": "Complete",
    "not_started": "Not started",
    "ended": "Ended",
}
_TONES: Final = {
    "advancing": "ok",
    "holding": "info",
    "awaiting_approval": "warning",
    "inconclusive": "warning",
    "paused": "warning",
    "rolled_back": "critical",
    "complete": "ok",
}
_STANDINGS: Final[dict[Standing, str]] = {
    "done": "done",
    "now": "now",
    "waiting": "waiting",
    "overdue": "overdue",
    "halted": "halted",
    "ahead": "to come",
}


class StepRow(msgspec.Struct, frozen=True):
    """A step. `conditions` are what it takes to leave it; `note` what of it is missing, or when it
    is due."""

    number: int
    traffic: str
    standing: Standing
    standing_words: str
    conditions: str
    note: str


class WatchedRow(msgspec.Struct, frozen=True):
    """A guardrail that gates the step."""

    guardrail: str
    variant: str
    said: str
    tone: str


class RampProgress(msgspec.Struct, frozen=True):
    """How far a ramp is. `reason` is the controller's own answer, given now; `is_past_due` says
    whether the step's time has passed."""

    status: str
    tone: str
    reason: str
    bar: Markup
    steps: tuple[StepRow, ...]
    watched: tuple[WatchedRow, ...]
    since: datetime | None
    due_at: datetime | None
    is_past_due: bool


def make(view: RampView, now: datetime) -> RampProgress:
    """How far a ramp is. Pure."""
    rows = tuple(_row(view, step, now) for step in view.steps)
    return RampProgress(
        status=_STATUS[view.status],
        tone=_TONES.get(view.status, "none"),
        reason=view.reason[:1].upper() + view.reason[1:],
        bar=progress(_drawn(rows, view)),
        steps=rows,
        watched=tuple(
            WatchedRow(
                watched.guardrail,
                watched.variant,
                _watched_words(seen=watched.seen, alarmed=watched.alarmed),
                "critical" if watched.alarmed else "ok" if watched.seen else "info",
            )
            for watched in view.watched
        ),
        since=view.since if view.step is not None else None,
        due_at=view.due_at,
        is_past_due=view.due_at is not None and view.due_at <= now,
    )


def _watched_words(*, seen: bool, alarmed: bool) -> str:
    if alarmed:
        return "evidence of harm"
    return "no harm seen in this step" if seen else "has not seen enough of this step yet"


def _row(view: RampView, step: StepView, now: datetime) -> StepRow:
    standing = _standing(view, step, now)
    return StepRow(
        number=step.number,
        traffic=share_words(step.traffic),
        standing=standing,
        standing_words=_STANDINGS[standing],
        conditions=_conditions(step),
        note=_note(view, step, standing),
    )


def _standing(view: RampView, step: StepView, now: datetime) -> Standing:
    if step.place != "now":
        return step.place
    if view.status in {"rolled_back", "paused"}:
        return "halted"
    if view.waits_for == ("approval",):
        return "waiting"
    overdue = view.due_at is not None and view.due_at < now and view.status == "inconclusive"
    return "overdue" if overdue else "now"


def _conditions(step: StepView) -> str:
    wanted = []
    if step.hold is not None:
        wanted.append(f"{step.hold} long")
    if step.units is not None:
        wanted.append(f"{step.units:,} new units")
    if step.approval:
        wanted.append("an approval")
    return ", ".join(wanted) or "as soon as the guard has seen it"


def _note(view: RampView, step: StepView, standing: Standing) -> str:
    said = []
    if step.place == "now":
        if "units" in view.waits_for and step.units is not None:
            said.append(f"{view.units or 0:,} of {step.units:,} units came")
        if standing == "overdue":
            said.append("its time is over; the evidence is not there yet")
    if step.approved:
        said.append("approved")
    elif step.approval and standing == "waiting":
        said.append("waits for an approval")
    return "; ".join(said)


def _drawn(rows: Sequence[StepRow], view: RampView) -> tuple[ProgressStep, ...]:
    states: dict[Standing, Literal["done", "now", "ahead", "failed"]] = {
        "done": "done",
        "now": "now",
        "waiting": "now",
        "overdue": "now",
        "halted": "failed" if view.status == "rolled_back" else "now",
        "ahead": "ahead",
    }
    return tuple(
        ProgressStep(label=row.traffic, state=states[row.standing], note=row.standing_words)
        for row in rows
    )
