"""Retention: raw events are dropped by the day of receipt; what they came to stays.

Before a day's partitions are dropped, their rows are moved, some at a time: what they came to is
taken into the opening balances of their units, and they are deleted, in one transaction. So at any
moment an event stands either in a raw table or in an opening balance, and a unit's state is its
opening balance and the raw events that are left. Balances do not depend on the order of events, so
it does not matter when a day is moved, nor that a part of it comes in later.

Only events that were folded are moved, and only while no metric is being filled in, for that needs
the raw events. A metric that joins later counts the units that were enrolled later
(`metrics.add_metric`). An outcome counts for the enrolment that its unit has when it is dropped.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import asyncpg

from analysis.folding.enrol import Batch, meet
from analysis.folding.fold import BY_INDEX, read_standing
from analysis.folding.position import hold_moments
from analysis.folding.values import open_with
from experiments.store import Connection

ROWS: Final = 20_000
"""Raw rows that one step moves, and the rest of their last segment."""
SEGMENTS: Final = 20_000
"""Segments that are forgotten at once."""
PAUSE: Final = timedelta(minutes=1)
"""For how long nothing is tried again, where somebody else has to do his part first."""

_OLDEST_DAY = """
    select min(to_date(right(c.relname, 8), 'YYYYMMDD'))
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent in ('exposure'::regclass, 'outcome'::regclass)
"""
_FILLING_IN = "select exists (select from run_metric where covered is not null)"
_KEPT_FROM = "update fold_position set kept_from = $1 where kept_from < $1"
_OUTCOMES_LEFT = """
    select distinct segment from (
        select o.segment from outcome o join segment s on s.id = o.segment
        where o.received_at >= $1 and o.received_at <= $2 and o.segment > $3
          and s.folded_at is not null
        order by o.segment limit $4
    ) as first
"""
_EXPOSURES_LEFT = """
    select distinct segment from (
        select x.segment from exposure x join segment s on s.id = x.segment
        where x.received_at >= $1 and x.received_at <= $2 and x.segment > $3
          and s.folded_at is not null
        order by x.segment limit $4
    ) as first
"""
_OPEN_ENROLMENTS = """
    update enrolment e
    set opening_arm = o.arm, opening_at = o.at, opening_several = o.several
    from (
        select k.experiment, k.run, k.unit, first.arm, first.at,
               m.several or coalesce(k.opening_several or old.variant <> m.variant, false)
                   as several
        from met m
        join enrolment k
            on k.unit = m.unit and k.experiment + 0 = m.experiment and k.run + 0 = m.run
        cross join lateral (
            select a.id, a.epoch, a.variant from arm a
            where a.experiment = m.experiment and a.epoch = m.epoch and a.variant = m.variant
            offset 0
        ) as new
        left join arm old on old.id = k.opening_arm
        cross join lateral (
            select * from (values (m.at, new.epoch, new.variant, new.id),
                                  (k.opening_at, old.epoch, old.variant, old.id))
                as both_of_them (at, epoch, variant, arm)
            where arm is not null
            order by at, epoch, variant limit 1
        ) as first
    ) as o
    where e.unit = o.unit and e.experiment + 0 = o.experiment and e.run + 0 = o.run
"""
_DELETE_OUTCOMES = """
    delete from outcome where segment = any($1) and received_at >= $2 and received_at <= $3
"""
_DELETE_EXPOSURES = """
    delete from exposure where segment = any($1) and received_at >= $2 and received_at <= $3
"""
_ANY_LEFT = """
    select exists (select from outcome where received_at >= $1 and received_at <= $2)
        or exists (select from exposure where received_at >= $1 and received_at <= $2)
"""
# Writers queue behind whoever waits for the lock: not for long.
_LOCK_TIMEOUT = "set local lock_timeout = '1s'"
_DROP = "select drop_day($1)"
_ENSURE_DAYS = "select ensure_day($1), ensure_day($1 + 1)"
# A journal's last segment is remembered: only that can be shipped once more, by a router that died
# before it had removed the file. A segment's records were received before it was shipped, by clocks
# that may differ; hence the day.
_FORGET_LETTERS = """
    delete from dead_letter d using segment s
    where s.id = d.segment and s.shipped_at < $1::date - 1
"""
_FORGET_SEGMENTS = """
    delete from segment where id in (
        select s.id from segment s
        where s.shipped_at < $1::date - 1 and s.folded_at is not null
          and exists (
              select from segment later
              where later.journal = s.journal and later.number > s.number
          )
          and not exists (
              select from segment same
              where same.journal = s.journal and same.number = s.number
                and same.shipped_at >= $1::date - 1
          )
        order by s.shipped_at limit $2
    )
"""


class Retention:
    """Moves and drops the days that are older than raw events are kept.

    What it remembers only saves work: how far it has come in a day, and that it has to wait.
    """

    def __init__(self, keep: timedelta) -> None:
        """`keep` is for how long whole days are kept."""
        self._keep = keep
        self._wait_until: datetime | None = None
        self._begin_again()

    def _begin_again(self) -> None:
        self._outcomes_passed = self._exposures_passed = 0

    async def step(self, connection: Connection, now: datetime) -> bool:
        """Move some rows of the oldest day, or drop it; whether there is more to do now.

        The caller's transaction makes it one.
        """
        if self._wait_until is not None and now < self._wait_until:
            return False
        await hold_moments(connection)
        day: date | None = await connection.fetchval(_OLDEST_DAY)
        if day is None or day >= (now - self._keep).date():
            return False
        more = not await connection.fetchval(_FILLING_IN) and await self._step(connection, day)
        self._wait_until = None if more else now + PAUSE
        return more

    async def _step(self, connection: Connection, day: date) -> bool:
        begin = datetime.combine(day, time(), UTC)
        end = begin + timedelta(days=1)
        await connection.execute(_KEPT_FROM, end)
        await connection.execute(BY_INDEX)
        times = (begin, end - timedelta(microseconds=1))
        if await self._move_outcomes(connection, times):
            return True
        if await self._move_exposures(connection, times):
            return True
        if self._outcomes_passed or self._exposures_passed:
            # A segment that was folded since then may have a lower number, and so may one whose
            # step was undone.
            self._begin_again()
            return True
        if await connection.fetchval(_ANY_LEFT, *times):
            return False
        return await _drop(connection, day)

    async def _move_outcomes(
        self, connection: Connection, times: tuple[datetime, datetime]
    ) -> bool:
        """Move the next outcomes that were received between two times; whether there were any."""
        rows = await connection.fetch(_OUTCOMES_LEFT, *times, self._outcomes_passed, ROWS)
        if not rows:
            return False
        batch = Batch([row["segment"] for row in rows], *times)
        await open_with(connection, *await read_standing(connection, batch))
        await connection.execute(_DELETE_OUTCOMES, *batch)
        self._outcomes_passed = max(batch.segments)
        return True

    async def _move_exposures(
        self, connection: Connection, times: tuple[datetime, datetime]
    ) -> bool:
        """Move the next exposures that were received between two times; whether there were any."""
        rows = await connection.fetch(_EXPOSURES_LEFT, *times, self._exposures_passed, ROWS)
        if not rows:
            return False
        batch = Batch([row["segment"] for row in rows], *times)
        await meet(connection, batch)
        await connection.execute(_OPEN_ENROLMENTS)
        await connection.execute(_DELETE_EXPOSURES, *batch)
        self._exposures_passed = max(batch.segments)
        return True


async def forget(connection: Connection) -> None:
    """Forget segments and dead letters of days that were dropped, some at a time."""
    oldest = await connection.fetchval(_OLDEST_DAY)
    if oldest is not None:
        await connection.execute(_FORGET_LETTERS, oldest)
        await connection.execute(_FORGET_SEGMENTS, oldest, SEGMENTS)


async def ensure_days(connection: Connection, today: date) -> None:
    """Make the partitions of today and tomorrow, so that no router has to."""
    await connection.execute(_ENSURE_DAYS, today)


async def _drop(connection: Connection, day: date) -> bool:
    """Drop a day; whether it is gone. It stays while somebody reads it, or wrote to it just now."""
    try:
        async with connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            dropped: bool = await connection.fetchval(_DROP, day)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return False
    return dropped
