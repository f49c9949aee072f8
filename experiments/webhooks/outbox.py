"""Deliveries on their way, in Postgres. Each function is one statement in a transaction of its own,
so that a process which freezes holds no lock that a decision waits for.

Times are the database's: the clocks of several processes need not agree.

A lane is taken by a claim, which puts off when it is due and has a number; what follows names that
number. So a lane whose process died is due again by itself, and what a process says that was frozen
meanwhile is not heard.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec

from experiments.allocation import Allocation, propensities, traffic_of
from experiments.model import State
from experiments.spans import TraceContext, read_context
from experiments.store import Connection
from experiments.webhooks.model import Format, Side, Story

CLAIM_LIFE: Final = timedelta(seconds=30)
"""For how long a lane belongs to who has claimed it: far longer than an attempt may take."""
EXPIRY: Final = timedelta(days=3)
"""A delivery that waited for so long, since its webhook was disabled or nobody has its key, is
given up."""
KEPT: Final = timedelta(days=7)
"""For how long it is kept what became of a delivery."""
_STEP: Final = 1_000
_STEPS: Final = 50
"""So many of each kind are done at a time, so that tidying up ends."""

_CLAIM: Final = """
    with due as (
        select l.webhook, l.experiment
        from delivery_lane l join webhook w on w.id = l.webhook
        where l.waiting > 0 and l.due_at <= clock_timestamp()
          and w.enabled and w.key_id = $1 and l.webhook <> all($2::text[])
        order by l.due_at limit 1
        for update of l skip locked
    )
    update delivery_lane l
    set claim = l.claim + 1, due_at = clock_timestamp() + $3::interval
    from due where l.webhook = due.webhook and l.experiment = due.experiment
    returning l.webhook, l.experiment, l.claim
"""
# A statement of its own: one that claims sees deliveries as they were before it had the lane.
_HEAD: Final = """
    select d.id, d.attempts, clock_timestamp() - d.offered_at as age, d.decision,
           d.traceparent, d.tracestate, w.format, w.address, w.generation, w.rotated_at,
           x.project, x.key, c.run, c.kind, c.rule, c.code, c.reason, c.actor, c.at,
           b.number as before_epoch, b.state as before_state, b.allocation as before_allocation,
           a.number as after_epoch, a.state as after_state, a.allocation as after_allocation
    from delivery_lane l
    join webhook w on w.id = l.webhook
    join delivery d
      on d.webhook = l.webhook and d.experiment = l.experiment and d.finished_at is null
    join decision c on c.id = d.decision
    join experiment x on x.id = d.experiment
    left join epoch b on b.experiment = c.experiment and b.number = c.epoch_before
    left join epoch a on a.experiment = c.experiment and a.number = c.epoch_after
    where l.webhook = $1 and l.experiment = $2 and l.claim = $3 and w.enabled
    order by d.decision limit 1
"""
_FINISH: Final = """
    with lane as (
        update delivery_lane set waiting = waiting - 1, due_at = clock_timestamp()
        where webhook = $1 and experiment = $2 and claim = $3 and waiting > 0
          and exists (select from delivery where id = $4 and finished_at is null)
        returning true
    )
    update delivery
    set attempts = attempts + 1, tried_at = clock_timestamp(), finished_at = clock_timestamp(),
        delivered = $5, status = $6, error = $7
    where id = $4 and exists (select from lane)
    returning true
"""
_PUT_OFF: Final = """
    with lane as (
        update delivery_lane set due_at = clock_timestamp() + $5::interval
        where webhook = $1 and experiment = $2 and claim = $3
        returning true
    )
    update delivery
    set attempts = attempts + 1, tried_at = clock_timestamp(), status = $6, error = $7
    where id = $4 and finished_at is null and exists (select from lane)
    returning true
"""
_ARRIVES: Final = """
    update webhook set failing_since = null where id = $1 and failing_since is not null
"""
_FAILS: Final = """
    update webhook set failing_since = coalesce(failing_since, clock_timestamp()) where id = $1
    returning clock_timestamp() - failing_since as failing
"""
_DISABLE: Final = """
    update webhook set enabled = false, why_disabled = $2 where id = $1 and enabled returning true
"""
# One lane at a time, and the lane before its deliveries, as everywhere: a decision may be waiting
# for one lane while it holds another.
_EXPIRE: Final = """
    with old as (
        select webhook, experiment from delivery
        where finished_at is null and offered_at < clock_timestamp() - $1::interval
        order by offered_at limit 1
    ), lane as (
        select l.webhook, l.experiment
        from delivery_lane l
        join old on old.webhook = l.webhook and old.experiment = l.experiment
        for update of l skip locked
    ), expired as (
        update delivery d
        set finished_at = clock_timestamp(),
            error = case when d.error = '' then $2 else d.error end
        from lane
        where d.webhook = lane.webhook and d.experiment = lane.experiment
          and d.finished_at is null and d.offered_at < clock_timestamp() - $1::interval
        returning d.webhook, d.experiment
    )
    update delivery_lane l set waiting = l.waiting - gone.number, claim = l.claim + 1
    from (select webhook, experiment, count(*)::int as number from expired group by 1, 2) gone
    where l.webhook = gone.webhook and l.experiment = gone.experiment
    returning gone.number
"""
_FORGET: Final = """
    delete from delivery where id in (
        select id from delivery
        where finished_at < clock_timestamp() - $1::interval order by finished_at limit $2
    )
"""
# What was of a deleted webhook, in this order; the times let decisions end that still refer to it.
_SWEEP_DELIVERIES: Final = """
    delete from delivery where id in (
        select d.id from delivery d join webhook w on w.id = d.webhook
        where w.deleted_at is not null limit $1
    )
"""
_SWEEP_LANES: Final = """
    delete from delivery_lane l using webhook w
    where w.id = l.webhook and w.deleted_at < clock_timestamp() - interval '1 minute'
      and not exists (select from delivery d where d.webhook = l.webhook)
"""
_SWEEP_WEBHOOKS: Final = """
    delete from webhook w
    where w.deleted_at < clock_timestamp() - interval '1 hour'
      and not exists (select from delivery_lane l where l.webhook = w.id)
      and not exists (select from delivery d where d.webhook = w.id)
"""
_BACKLOG: Final = """
    select coalesce(sum(l.waiting), 0)::bigint as waiting,
           coalesce((
               select extract(epoch from clock_timestamp() - d.offered_at)
               from delivery d join webhook o on o.id = d.webhook and o.enabled
               where d.finished_at is null order by d.offered_at limit 1
           ), 0)::float8 as oldest,
           (select count(*) from webhook
            where deleted_at is null and not enabled and why_disabled <> '') as disabled
    from delivery_lane l join webhook w on w.id = l.webhook and w.enabled
    where l.waiting > 0
"""
_EXPIRED_UNTRIED: Final = "given up: nobody sent it in time"


class Claim(msgspec.Struct, frozen=True):
    """A lane that is ours for a while."""

    webhook: str
    experiment: int
    number: int


class Head(msgspec.Struct, frozen=True):
    """The first delivery of a lane, and all that sending it takes."""

    delivery: int
    attempts: int
    age: timedelta
    format: Format
    address: bytes
    generation: int
    rotated_at: datetime | None
    story: Story
    trace: TraceContext | None = None
    """Where the decision was made, if anybody traced that."""


class Attempt(msgspec.Struct, frozen=True):
    """What came of an attempt: the status of the answer, None where none came; what was wrong,
    empty where nothing was; and how long the receiver asked us to stay away."""

    status: int | None
    error: str
    retry_after: timedelta | None = None

    @property
    def arrived(self) -> bool:
        """Whether the receiver has it."""
        return not self.error


class Backlog(msgspec.Struct, frozen=True):
    """What waits, the age of the oldest of it in seconds, and the webhooks that were disabled."""

    waiting: int
    oldest: float
    disabled: int


async def claim(connection: Connection, key_id: str, busy: Collection[str]) -> Claim | None:
    """Take the lane that has been due for longest, of a webhook of this key that is not busy."""
    row = await connection.fetchrow(_CLAIM, key_id, [*busy], CLAIM_LIFE)
    return None if row is None else Claim(row["webhook"], row["experiment"], row["claim"])


async def head_of(connection: Connection, lane: Claim) -> Head | None:
    """What is to be sent first; None where the lane is not ours any more."""
    row = await connection.fetchrow(_HEAD, lane.webhook, lane.experiment, lane.number)
    if row is None:
        return None
    story = Story(
        decision=row["decision"],
        project=row["project"],
        experiment=row["key"],
        run=row["run"],
        kind=row["kind"],
        rule=row["rule"],
        code=row["code"],
        reason=row["reason"],
        actor=row["actor"],
        at=row["at"],
        before=_side(row, "before"),
        after=_side(row, "after"),
    )
    return Head(
        delivery=row["id"],
        attempts=row["attempts"],
        age=row["age"],
        format=row["format"],
        address=row["address"],
        generation=row["generation"],
        rotated_at=row["rotated_at"],
        story=story,
        trace=_trace(row),
    )


async def finish(connection: Connection, lane: Claim, head: Head, attempt: Attempt) -> bool:
    """Note that a delivery arrived, or was given up: the next one is due. Whether that was noted:
    who has lost the lane is not heard."""
    noted = await connection.fetchval(
        _FINISH,
        lane.webhook,
        lane.experiment,
        lane.number,
        head.delivery,
        attempt.arrived,
        attempt.status,
        attempt.error,
    )
    return bool(noted)


async def put_off(
    connection: Connection, lane: Claim, head: Head, attempt: Attempt, pause: timedelta
) -> bool:
    """Note that an attempt failed, and when the next one is due. Whether that was noted."""
    noted = await connection.fetchval(
        _PUT_OFF,
        lane.webhook,
        lane.experiment,
        lane.number,
        head.delivery,
        pause,
        attempt.status,
        attempt.error,
    )
    return bool(noted)


async def note_arrival(connection: Connection, webhook: str) -> None:
    """Note that something has arrived at a webhook."""
    await connection.execute(_ARRIVES, webhook)


async def note_failure(connection: Connection, webhook: str) -> timedelta:
    """Note that something has not arrived; for how long nothing has."""
    failing: timedelta | None = await connection.fetchval(_FAILS, webhook)
    return failing or timedelta()


async def disable(connection: Connection, webhook: str, why: str) -> bool:
    """Tell a webhook nothing any more, until somebody enables it; whether it was told before."""
    return bool(await connection.fetchval(_DISABLE, webhook, why))


async def tidy(connection: Connection) -> int:
    """Give up what has waited too long, and drop what is old or of deleted webhooks; how many
    deliveries were given up. It leaves nothing, unless there is very much: then the next call goes
    on."""
    given_up = 0
    for _ in range(_STEPS):
        of_lane: int | None = await connection.fetchval(_EXPIRE, EXPIRY, _EXPIRED_UNTRIED)
        if of_lane is None:  # no lane is left, or somebody is at work on the next
            break
        given_up += of_lane
    await _in_steps(connection, _FORGET, KEPT, _STEP)
    await _in_steps(connection, _SWEEP_DELIVERIES, _STEP)
    await connection.execute(_SWEEP_LANES)
    await connection.execute(_SWEEP_WEBHOOKS)
    return given_up


async def _in_steps(connection: Connection, statement: str, *arguments: Any) -> None:
    """Delete step by step, each in a transaction of its own, until a step is not full."""
    for _ in range(_STEPS):
        if await connection.execute(statement, *arguments) != f"DELETE {_STEP}":
            break


async def backlog(connection: Connection) -> Backlog:
    """What waits now."""
    row = await connection.fetchrow(_BACKLOG)
    assert row is not None, "an aggregate has a row"  # noqa: S101 - an invariant
    return Backlog(row["waiting"], row["oldest"], row["disabled"])


def _trace(row: asyncpg.Record) -> TraceContext | None:
    """Where a decision was made. It is our own work, whoever asked for it."""
    found = read_context(row["traceparent"] or "", row["tracestate"] or "")
    return None if found is None else msgspec.structs.replace(found, remote=False)


def _side(row: asyncpg.Record, of: str) -> Side | None:
    number: int | None = row[f"{of}_epoch"]
    if number is None:
        return None
    state: State = row[f"{of}_state"]
    allocation = msgspec.json.decode(row[f"{of}_allocation"], type=Allocation)
    return Side(number, state, traffic_of(allocation), propensities(allocation))
