"""From the journal to Postgres: each sealed segment goes in once, in one transaction, by COPY."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from experiments.projects import fix_units
from experiments.spans import NO_TRACES, Tracer
from experiments.units import SHIPPING_LOCK, UnitKey
from router.journal import Journal, JournalWriteError, Segment
from router.load import Entry, Letter, Load, prepare
from router.records import RecordId
from router.rows import EXPOSURES, OUTCOME_IDS, OUTCOMES, Table, copy_ids, copy_rows
from router.units import Tombstone, oldest, settle

logger = logging.getLogger(__name__)


_ENSURE_DAYS = "select ensure_day(day) from unnest($1::date[]) as day"

# A journal is shipped in the order of its numbers, so what is below those that are remembered was
# shipped, too, and has been forgotten since.
_TAKE_SEGMENT = """
insert into segment (journal, number, first, records, shipped_at, received_from, received_to)
select $1, $2, $3, $4, $5, $6, $7
where $2 >= coalesce((select min(number) from segment where journal = $1), $2)
on conflict (journal, number, first) do nothing
returning id
"""
_KNOWN = "select coalesce(sum(records), 0)::int from segment where journal = $1 and number = $2"
_TAKE_IDS = """
insert into outcome_id (id, received_at) select id, $2 from unnest($1::uuid[]) as id
on conflict (id) do nothing
returning id
"""
# The lock is taken before the tombstones are read: an erasure that comes later finds the rows.
_SHARE_SHIPPING = "select pg_advisory_xact_lock_shared($1)"
_TOMBSTONES = "select project, unit_type, unit_hash, erased_at from erasure where erased_at >= $1"
_KEYS = "select key, unit_key from project where key = any($1)"
_SET_ASIDE = "insert into dead_letter (segment, ordinal, reason, record) values ($1, $2, $3, $4)"

# A heartbeat is compared across machines, so it is told by the database's clock.
_ANNOUNCE = """
insert into journal (id, shipped_through, heartbeat_at) values ($1, $2, now())
on conflict (id) do update set heartbeat_at = excluded.heartbeat_at
returning clock_timestamp()
"""
_ADVANCE = """
insert into journal (id, shipped_through, heartbeat_at) values ($1, $2, now())
on conflict (id) do update set
    shipped_through = greatest(journal.shipped_through, excluded.shipped_through),
    heartbeat_at = excluded.heartbeat_at
"""
_BEAT = "update journal set heartbeat_at = now() where id = $1"
_WITHDRAW = "delete from journal where id = $1"

# A session that was lost in silence keeps its locks, and the segment's row, until Postgres hears of
# it, which can take hours. So a session says which journal it ships, and after a failure the next
# one ends what is left of the last.
_NAME_SESSION = "select set_config('application_name', $1, true)"
_END_SESSIONS = """
select pg_terminate_backend(pid) from pg_stat_activity
where application_name = $1 and pid <> pg_backend_pid()
"""

# What a record can be to blame for: refused by Postgres, or by asyncpg before it is sent.
_DATA_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    TypeError,
    OverflowError,
)
_IDS_AT_ONCE = 1_000
_REASON_LENGTH = 1_000


class Pace(msgspec.Struct, frozen=True):
    """How often to ship, how long to wait after failures, and how long one query may take.

    The longest wait is well below the silence after which a journal is taken for dead, so that the
    watermark does not pass a router that has only waited.
    """

    interval: float = 1.0
    longest_wait: float = 10.0
    timeout: float = 15.0


DEFAULT_PACE = Pace()


class Shipper:
    """Ships one journal, and tells Postgres how far it has come.

    A journal's `shipped_through` says that what was received before it is in Postgres. That holds
    if `received_at` is stamped by the same clock and in the same turn of the event loop as the
    record is appended.

    The pool's connections have a command time-out, which bounds the beginning and the end of
    transactions.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        journal: Journal,
        clock: Callable[[], datetime],
        generator: random.Random,
        pace: Pace = DEFAULT_PACE,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        """`clock` is the one by which `received_at` is stamped; `generator` gives the jitter."""
        self._tracer = tracer
        self._pool = pool
        self._journal = journal
        self._clock = clock
        self._random = generator
        self._pace = pace
        # How the units of the projects met so far are stored: fixed by then, so asked for once.
        self._unit_keys: dict[str, UnitKey | None] = {}
        self.segments = 0
        """Segments shipped since the start; so are the counts below."""
        self.records = 0
        self.duplicates = 0
        """Outcomes left out, since their id was there before."""
        self.letters = 0
        """Records set aside as dead letters."""
        self.failures = 0
        self._session = f"turnout ships {journal.id}"
        self.shipped_through: datetime | None = None
        self.clock_offset = timedelta(0)
        """How far this process's clock is ahead of the database's. Records bear its time, so one
        that is behind holds the watermark back, and one that is ahead keeps its units open."""

    async def run(self) -> None:
        """Ship for ever, until cancelled. A failure is logged in one line, and tried again."""
        failed = 0
        while True:
            try:
                if failed:
                    await self._execute(_END_SESSIONS, self._session)
                await self.announce()
                await self.ship_once()
            except Exception as error:  # whatever it is, what was acknowledged must get through
                failed += 1
                self.failures += 1
                wait = self._backoff(failed)
                logger.warning(
                    "shipping failed",
                    extra={
                        "journal": str(self._journal.id),
                        "error": error,
                        "attempt": failed,
                        "retry_in": round(wait, 2),
                    },
                )
            else:
                failed = 0
                wait = self._pace.interval
            await asyncio.sleep(wait)

    async def announce(self) -> None:
        """Tell Postgres that this journal is alive, so that the watermark waits for it, whether
        shipping works or not."""
        through = self._journal.oldest_at or self._clock()
        timeout = self._pace.timeout
        async with self._pool.acquire(timeout=timeout) as connection:
            before = self._clock()
            told = await connection.fetchval(_ANNOUNCE, self._journal.id, through, timeout=timeout)
            after = self._clock()
        # It lies between these two. What is known stands while it does: half of a slow answer's
        # time is no news of a clock.
        self.clock_offset = min(max(self.clock_offset, before - told), after - told)

    async def ship_once(self) -> None:
        """Ship all that was appended before this call, and advance the journal's mark to it.

        Raises:
            JournalError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError: if it fails. What
                was shipped until then stays shipped, and the rest stays in the journal.
        """
        # The time is taken first, and `rotate` queues its wish before it waits: a record that was
        # appended by then is in a sealed segment afterwards.
        through = self._clock()
        refused: JournalWriteError | None = None
        try:
            await self._journal.rotate()
        except JournalWriteError as error:
            refused = error  # what is sealed can go, which is what a full disk needs
        await self._ship_all(self._journal.sealed())
        if refused is not None:
            raise refused
        await self._execute(_ADVANCE, self._journal.id, through)
        self.shipped_through = through

    async def finish(self) -> None:
        """Ship what is left and withdraw the journal, so that the watermark does not wait for it.

        Call it when nothing is appended any more. If it fails, the journal stays announced, and
        whoever opens its folder next ships the rest.

        Raises:
            JournalError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError: as `ship_once`.
        """
        await self._execute(_END_SESSIONS, self._session)
        await self.ship_once()
        if not self._journal.depth:
            await self._execute(_WITHDRAW, self._journal.id)

    def _backoff(self, failed: int) -> float:
        """Doubled each time up to the longest, of which a random half keeps routers apart."""
        wait = min(self._pace.longest_wait, self._pace.interval * 2.0 ** min(failed - 1, 16))
        return wait * self._random.uniform(0.5, 1.0)

    async def _execute(self, query: str, *arguments: object) -> None:
        async with self._pool.acquire(timeout=self._pace.timeout) as connection:
            await connection.execute(query, *arguments, timeout=self._pace.timeout)

    async def _ship_all(self, segments: Iterable[Segment]) -> None:
        """Ship segments one by one. While Postgres stores one, the next is made ready."""
        waiting = iter(segments)
        reading = asyncio.create_task(self._read(next(waiting, None)))
        try:
            while (ready := await reading) is not None:
                reading = asyncio.create_task(self._read(next(waiting, None)))
                segment, load = ready
                told = {"turnout.records": load.records, "turnout.segment": segment.number}
                with self._tracer.span("ship segment", attributes=told):
                    await self._ship(segment, load)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, segment: Segment | None) -> tuple[Segment, Load] | None:
        if segment is None:
            return None
        return segment, await prepare(await self._journal.read(segment))

    async def _ship(self, segment: Segment, load: Load) -> None:
        first = 0
        while not await self._take(segment, first, load):
            # It was shipped before, and only its file was not removed; or a copy of it was, that
            # was made when it was shorter: then the rest is new.
            known = await self._pool.fetchval(
                _KNOWN, self._journal.id, segment.number, timeout=self._pace.timeout
            )
            payloads = await self._journal.read(segment)
            if not first < known < len(payloads):
                break
            first = known
            load = await prepare(payloads[first:])
        await self._journal.remove(segment)

    async def _take(self, segment: Segment, first: int, load: Load) -> bool:
        """Store the records of a segment from this ordinal on; False if somebody did so before."""
        async with self._pool.acquire(timeout=self._pace.timeout) as connection:
            await self._ensure_days(connection, load.days)
            await self._fix_units(connection, load.projects)
            async with connection.transaction(), _ended_by_silence(connection):
                await connection.execute(_NAME_SESSION, self._session, timeout=self._pace.timeout)
                await connection.execute(_SHARE_SHIPPING, SHIPPING_LOCK, timeout=self._pace.timeout)
                row = await connection.fetchrow(
                    _TAKE_SEGMENT,
                    self._journal.id,
                    segment.number,
                    first,
                    load.records,
                    self._clock(),
                    *load.received_between,
                    timeout=self._pace.timeout,
                )
                # A long backlog takes longer than a journal may be silent.
                await connection.execute(_BEAT, self._journal.id, timeout=self._pace.timeout)
                if row is None:
                    return False
                settled = await self._settled(connection, load)
                duplicates, letters = await self._store(connection, row["id"], settled)
        self.segments += 1
        self.records += load.records
        self.duplicates += duplicates
        self.letters += letters
        return True

    async def _ensure_days(self, connection: PoolConnectionProxy, days: list[date]) -> None:
        """Make the partitions of these days.

        In a transaction of its own: making one locks the parent tables until the commit, and
        nobody should wait for a COPY.
        """
        if days:
            await connection.execute(_ENSURE_DAYS, days, timeout=self._pace.timeout)

    async def _fix_units(self, connection: PoolConnectionProxy, projects: set[str]) -> None:
        """Find out how the units of these projects are stored, which cannot change any more."""
        if unknown := projects - self._unit_keys.keys():
            self._unit_keys |= await fix_units(connection, unknown, self._pace.timeout)

    async def _settled(self, connection: PoolConnectionProxy, load: Load) -> Load:
        """The load as it may be stored: until this is committed, no other unit is erased."""
        since = oldest(load)
        if since is None:
            return load
        timeout = self._pace.timeout
        rows = await connection.fetch(_TOMBSTONES, since, timeout=timeout)
        tombstones = [Tombstone(*row) for row in rows]
        keys: dict[str, UnitKey] = {}
        if concerned := load.projects & {tombstone.project for tombstone in tombstones}:
            rows = await connection.fetch(_KEYS, concerned, timeout=timeout)
            keys = {row["key"]: UnitKey(row["unit_key"]) for row in rows}
        return await settle(load, self._unit_keys, tombstones, keys)

    async def _store(
        self, connection: PoolConnectionProxy, segment: int, load: Load
    ) -> tuple[int, int]:
        """Put a load into its tables; how many were duplicates, how many became letters."""
        known = await self._take_ids(connection, load)
        outcomes = [entry for entry in load.outcomes if entry.id not in known]
        letters = [
            *load.letters,
            *await self._copy(connection, segment, EXPOSURES, load.exposures),
            *await self._copy(connection, segment, OUTCOMES, outcomes),
        ]
        if letters:
            logger.error("records set aside", extra={"segment": segment, "count": len(letters)})
            await connection.executemany(
                _SET_ASIDE,
                [(segment, item.ordinal, _storable(item.reason), item.payload) for item in letters],
                timeout=self._pace.timeout,
            )
        return load.duplicates + len(load.outcomes) - len(outcomes), len(letters)

    async def _take_ids(self, connection: PoolConnectionProxy, load: Load) -> set[RecordId]:
        """Take the ids of a load; those that others took before. What is taken stays taken if its
        outcome becomes a letter."""
        if not load.ids:
            return set()
        received_at = load.received[-1]  # the latest: no id is forgotten too early
        # Nearly always all of them are new, and a COPY is the cheapest way to find out.
        with contextlib.suppress(asyncpg.UniqueViolationError):
            async with connection.transaction():
                await self._copy_in(connection, OUTCOME_IDS, copy_ids(load.ids, received_at))
            return set()
        known = set(load.ids)
        for start in range(0, len(load.ids), _IDS_AT_ONCE):
            rows = await connection.fetch(
                _TAKE_IDS,
                [UUID(bytes=key) for key in load.ids[start : start + _IDS_AT_ONCE]],
                received_at,
                timeout=self._pace.timeout,
            )
            known.difference_update(row["id"].bytes for row in rows)
        return known

    async def _copy(
        self,
        connection: PoolConnectionProxy,
        segment: int,
        table: Table,
        entries: Sequence[Entry],
    ) -> list[Letter]:
        """Store records by COPY; where one is at fault, halve until it stands alone."""
        if not entries:
            return []
        rows = [row for entry in entries for row in entry.rows]
        try:
            async with connection.transaction():
                await self._copy_in(connection, table, copy_rows(segment, table, rows))
        except _DATA_ERRORS as error:
            if isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None:
                raise  # the day's partition was dropped just now: the next try makes it again
            if len(entries) == 1:
                return [Letter(entries[0].ordinal, entries[0].payload, _line(error))]
        else:
            return []
        middle = len(entries) // 2
        return [
            *await self._copy(connection, segment, table, entries[:middle]),
            *await self._copy(connection, segment, table, entries[middle:]),
        ]

    async def _copy_in(
        self, connection: PoolConnectionProxy, table: Table, data: Iterator[bytes]
    ) -> None:
        await connection.copy_to_table(
            table.name,
            columns=table.columns,
            source=_in_turns(data),
            format="binary",
            timeout=self._pace.timeout,
        )


async def _in_turns(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same; the event loop gets its turns."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _ended_by_silence(connection: PoolConnectionProxy) -> AsyncIterator[None]:
    """A connection that did not answer in time is given up: to roll back on it would be to wait for
    another time-out."""
    try:
        yield
    except TimeoutError:
        connection.terminate()
        raise


def _line(error: Exception) -> str:
    """An error in one line, with its kind, for some say nothing else."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _storable(reason: str) -> str:
    return reason.replace("\0", "\\0")[:_REASON_LENGTH]
