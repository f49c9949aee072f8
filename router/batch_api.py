"""The door for many units at once."""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any, Final

from litestar import MediaType, Request, Response, post
from litestar.handlers import HTTPRouteHandler

from experiments.doors import principal_of, read_body
from router.api import Data
from router.assign import Assignment, exposures
from router.batch import BatchAnswer, BatchRequest, Met, Plan, decide, read_assign_batch
from router.plane import DataPlane
from router.records import RecordId
from router.snapshot import Entry, ProjectSnapshot

EXPOSURES_A_TURN: Final = 200
"""How many exposures are made before others get their turn, in about a millisecond."""


@post(
    "/v1/assign/batch",
    status_code=200,
    opt={"permission": "evaluate", "takes": BatchRequest, "gives": BatchAnswer},
    tags=["assignment"],
)
async def assign_batch(request: Request[Any, Any, Any], plane: Data) -> Response[bytes]:
    """Which variants many units get, in one experiment or in several; their exposures are on disk
    before the answer."""
    project = plane.project(principal_of(request).project)
    batch = await read_assign_batch(await read_body(request), project)
    plan = await decide(batch, plane.assign, partial(_stick, plane, project, batch.expose))
    recorded = batch.expose and await _record(plane, project, plan)
    for entry, answer, number in plan.counts():
        plane.metrics.assignments.add(
            entry.project, entry.key, answer.arm.key, answer.reason, count=number
        )
    return Response(plan.answer(recorded), media_type=MediaType.JSON)


async def _stick(
    plane: DataPlane,
    project: ProjectSnapshot,
    keep: bool,
    entry: Entry,
    units: Sequence[str],
    answers: Sequence[Assignment],
) -> Sequence[Assignment]:
    return await plane.sticky.settle_all(project, entry, units, answers, keep=keep)


async def _record(plane: DataPlane, project: ProjectSnapshot, plan: Plan) -> bool:
    """Record who met what; whether there was anything, and all of it is on disk."""
    taken: set[RecordId] = set()
    async with asyncio.TaskGroup() as tasks:
        waiting: list[asyncio.Task[bool]] = []
        for entry, of_entry in groupby(plan.met(), key=lambda met: met.entry):
            while some := list(islice(of_entry, EXPOSURES_A_TURN)):
                waiting.append(tasks.create_task(_expose(plane, project, entry, some, taken)))
                await asyncio.sleep(0)
    return bool(waiting) and all(task.result() for task in waiting)


async def _expose(
    plane: DataPlane,
    project: ProjectSnapshot,
    entry: Entry,
    met: Sequence[Met],
    taken: set[RecordId],
) -> bool:
    """Record these, but for what others of the request have `taken`: each of a unit's experiments
    finds the same holdout."""
    # The records are stamped in the turn in which the journal takes them.
    now = plane.clock()
    records = {
        record.id: record
        for each in met
        for record in exposures(project, entry, each.answer, each.unit, each.attributes, now)
    }
    fresh = [record for known_as, record in records.items() if known_as not in taken]
    taken.update(records)
    return not fresh or await plane.recorder.expose_many(fresh, entry, project.erasures)


ROUTES: Final[list[HTTPRouteHandler]] = [assign_batch]
