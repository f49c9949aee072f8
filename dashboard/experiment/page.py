"""The page of an experiment."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from msgspec import structs

from analysis.chronicle.kept import read_course
from analysis.chronicle.model import Course
from analysis.reports.facts import read_facts
from analysis.reports.model import Facts
from analysis.reports.report import make_report
from dashboard.experiment.actions import actions_view, is_awaited
from dashboard.experiment.choice import Choice, choice_of
from dashboard.experiment.history import HistoryFacts, make_history, read_history
from dashboard.experiment.lightening import MOST_AT_ONCE, segments_of, without_segments
from dashboard.experiment.people import Who, read_notes, who
from dashboard.experiment.results import results_view
from dashboard.experiment.results_course import drawn_of
from dashboard.plane import Pages
from dashboard.proposals.page import read_waiting
from dashboard.snapshots import read_share
from experiments import lifecycle, store
from experiments.doors import PathKey, principal_of
from experiments.model import HOLDOUT, State
from experiments.projects import approvals_of
from experiments.records import ExperimentRecord
from experiments.store import Connection

_Text = Annotated[str, QueryParameter(max_length=200)]
_STOPPED: Final[dict[State, str]] = {
    "paused": "Paused",
    "concluded": "Concluded",
    "rolled_back": "Rolled back",
    "archived": "Archived",
}


class Standing(msgspec.Struct, frozen=True):
    """Since when an experiment no longer enrols, by whom, and why."""

    what: str
    at: datetime
    who: Who
    reason: str
    ship: str | None


@get("/experiments/{key:str}", include_in_schema=False, opt={"permission": "read"})
async def experiment_page(
    request: Request[Any, Any, Any],
    pages: Pages,
    key: PathKey,
    reading: _Text = "",
    metric: _Text = "",
    by: _Text = "",
    decisions: _Text = "",
    done: _Text = "",
) -> Response[bytes]:
    """An experiment: what is known, whether it is healthy, what happened."""
    caller = principal_of(request)
    choice = choice_of(key, reading, metric, by)
    async with (
        store.borrow(pages.control.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        now = pages.analysis.clock()
        record = await lifecycle.find(connection, caller.project, key)
        facts = await read_facts(connection, record, now, pages.analysis.lateness)
        course = await read_course(
            connection, record, metrics=drawn_of(record.definition.metrics, choice)
        )
        history = await read_history(connection, record, now, decisions)
        share = await read_share(connection, record)
        approvals = await approvals_of(connection, caller.project)
        waiting = await read_waiting(connection, pages, caller, record.key)
        standing = await _standing(connection, record, by_guard=bool(facts.by_guard))
    context = {
        "record": record,
        "standing": standing,
        "share": share,
        "actions": actions_view(caller, history, done, approvals),
        "waiting": waiting,
        "may_write": caller.may("write") and record.key != HOLDOUT,
        "awaited": _awaited(history),
    }
    # What follows takes a tenth of a second and more, in which others are answered.
    return await asyncio.to_thread(
        _render, request, pages, record, facts, course, history, choice, context
    )


def _render(
    request: Request[Any, Any, Any],
    pages: Pages,
    record: ExperimentRecord,
    facts: Facts,
    course: Course,
    history: HistoryFacts,
    choice: Choice,
    context: dict[str, Any],
) -> Response[bytes]:
    segments = segments_of(facts)
    if segments > MOST_AT_ONCE and choice.attribute is None:
        facts = without_segments(facts)
        choice = structs.replace(choice, defers=segments)
    results = results_view(record.definition, make_report(facts), course, choice)
    return pages.renderer.page(
        request,
        "experiment/page.html",
        results=results,
        history=make_history(history),
        **context,
    )


def _awaited(history: HistoryFacts) -> str:
    """What the experiment waits for that only a person does; empty where nothing."""
    ramp = history.ramp
    if ramp is None or not is_awaited(ramp):
        return ""
    return f"step {ramp.step} of the ramp goes on when somebody approves it."


async def _standing(
    connection: Connection, record: ExperimentRecord, *, by_guard: bool
) -> Standing | None:
    """How an experiment came to stop; None while it runs, or never has.

    Args:
        by_guard: whether the guard rolled it back: then the conclusion gives the reason, in rates.
    """
    what = _STOPPED.get(record.state)
    if what is None or not record.epoch:
        return None
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    notes = await read_notes(connection, record.project, [epoch.actor])
    reason = "" if by_guard and epoch.state == "rolled_back" else epoch.reason
    return Standing(what, epoch.at, who(epoch.actor, "", notes), reason, record.ship)


ROUTES: Final[list[HTTPRouteHandler]] = [experiment_page]
