"""From the journal to Postgres: each sealed segment goes in once, in one transaction, by COPY."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import date, datetime
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy

from router.journal import Journal, JournalWriteError, Segment
from router.load import EXPOSURE_COLUMNS, OUTCOME_COLUMNS, Entry, Letter, Load, Row, prepare

logger = logging.getLogger(__name__)


# Routers that see a new day at once would both make its partitions; the number has to be ours only.
_DAYS_LOCK = 0x7475726E6F757402
_LOCK_DAYS = "select pg_advisory_xact_lock($1)"
_ENSURE_DAYS = "select ensure_day(day) from unnest($1::date[]) as day"

_TAKE_SEGMENT = """
insert into segment (journal, number, records, shipped_at) values ($1, $2, $3, $4)
on conflict (journal, number) do nothing
returning id
"""
_TAKE_IDS = """
insert into outcome_id (id, received_at) select * from unnest($1::uuid[], $2::timestamptz[])
on conflict (id) do nothing
returning id
"""
_SET_ASIDE = "insert into dead_letter (segment, ordinal, reason, record) values ($1, $2, $3, $4)"

# A heartbeat is compared across machines, so it is told by the database's clock.
_ANNOUNCE = """
insert into journal (id, shipped_through, heartbeat_at) values ($1, $2, now())
on conflict (id) do update set heartbeat_at = excluded.heartbeat_at
"""
_ADVANCE = """
insert into journal (id, shipped_through, heartbeat_at) values ($1, $2, now())
on conflict (id) do update set
    shipped_through = greatest(journal.shipped_through, excluded.shipped_through),
    heartbeat_at = excluded.heartbeat_at
"""
_BEAT = "update journal set heartbeat_at = now() where id = $1"
_WITHDRAW = "delete from journal where id = $1"

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
_ROWS_AT_ONCE = 500
_REASON_LENGTH = 1_000


class Pace(msgspec.Struct, frozen=True):
    """How often to ship, how long to wait after failures, and how long one query may take.

    The longest wait is well below the silence after which a journal is taken for dead, so that the
    watermark does not pass a router that has only waited.
    """

    interval: float = 1.0
    longest_wait: float = 10.0
    timeout: float = 30.0


DEFAULT_PACE = Pace()


class Shipper:
    """Ships one journal, and tells Postgres how far it has come.

    A journal's `shipped_through` says that what was received before it is in Postgres. That holds
    if `received_at` is stamped by the same clock and in the same turn of the event loop as the
    record is appended.

    The pool's connections take jsonb as text, as asyncpg does unless told otherwise, and have a
    command time-out, which bounds the beginning and the end of transactions.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        journal: Journal,
        clock: Callable[[], datetime],
        generator: random.Random,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        """`clock` is the one by which `received_at` is stamped; `generator` gives the jitter."""
        self._pool = pool
        self._journal = journal
        self._clock = clock
        self._random = generator
        self._pace = pace
        self._announced = False
        self.segments = 0
        """Segments shipped since the start; so are the counts below."""
        self.records = 0
        self.duplicates = 0
        """Outcomes left out, since their id was there before."""
        self.letters = 0
        """Records set aside as dead letters."""
        self.failures = 0
        self.shipped_through: datetime | None = None

    async def run(self) -> None:
        """Ship for ever, until cancelled. A failure is logged in one line, and tried again."""
        failed = 0
        while True:
            try:
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
                        "error": _line(error),
                        "attempt": failed,
                        "retry_in": round(wait, 2),
                    },
                )
            else:
                failed = 0
                wait = self._pace.interval
            await asyncio.sleep(wait)

    async def announce(self) -> None:
        """Tell Postgres, once, of this journal, so that the watermark waits for it."""
        if self._announced:
            return
        through = self._journal.oldest_at or self._clock()
        await self._execute(_ANNOUNCE, self._journal.id, through)
        self._announced = True

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
        for segment in self._journal.sealed():
            await self._ship(segment)
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
        await self.ship_once()
        if not self._journal.depth:
            await self._execute(_WITHDRAW, self._journal.id)
            self._announced = False

    def _backoff(self, failed: int) -> float:
        """Doubled each time up to the longest, of which a random half keeps routers apart."""
        wait = min(self._pace.longest_wait, self._pace.interval * 2.0 ** min(failed - 1, 16))
        return wait * self._random.uniform(0.5, 1.0)

    async def _execute(self, query: str, *arguments: object) -> None:
        async with self._pool.acquire(timeout=self._pace.timeout) as connection:
            await connection.execute(query, *arguments, timeout=self._pace.timeout)

    async def _ship(self, segment: Segment) -> None:
        payloads = await self._journal.read(segment)
        load = await asyncio.to_thread(prepare, payloads)
        async with self._pool.acquire(timeout=self._pace.timeout) as connection:
            await self._ensure_days(connection, load.days)
            async with connection.transaction():
                row = await connection.fetchrow(
                    _TAKE_SEGMENT,
                    self._journal.id,
                    segment.number,
                    len(payloads),
                    self._clock(),
                    timeout=self._pace.timeout,
                )
                # A long backlog takes longer than a journal may be silent.
                await connection.execute(_BEAT, self._journal.id, timeout=self._pace.timeout)
                # No row: it was shipped before, and only its file was not removed.
                duplicates, letters = (
                    (0, 0) if row is None else await self._store(connection, row["id"], load)
                )
        if row is not None:
            self.segments += 1
            self.records += len(payloads)
            self.duplicates += duplicates
            self.letters += letters
        await self._journal.remove(segment)

    async def _ensure_days(self, connection: PoolConnectionProxy, days: list[date]) -> None:
        """Make the partitions of these days.

        In a transaction of its own: making one locks the parent tables until the commit, and
        nobody should wait for a COPY.
        """
        if days:
            async with connection.transaction():
                await connection.execute(_LOCK_DAYS, _DAYS_LOCK, timeout=self._pace.timeout)
                await connection.execute(_ENSURE_DAYS, days, timeout=self._pace.timeout)

    async def _store(
        self, connection: PoolConnectionProxy, segment: int, load: Load
    ) -> tuple[int, int]:
        """Put a load into its tables; how many were duplicates, how many became letters."""
        fresh = await self._take_ids(connection, load.ids)
        outcomes: list[Entry] = []
        for entry in load.outcomes:
            if entry.id is not None:
                if entry.id not in fresh:
                    continue
                fresh.remove(entry.id)  # the next one of this segment is a duplicate
            outcomes.append(entry)
        letters = [
            *load.letters,
            *await self._copy(connection, segment, "exposure", EXPOSURE_COLUMNS, load.exposures),
            *await self._copy(connection, segment, "outcome", OUTCOME_COLUMNS, outcomes),
        ]
        if letters:
            logger.error("records set aside", extra={"segment": segment, "count": len(letters)})
            await connection.executemany(
                _SET_ASIDE,
                [(segment, item.ordinal, _storable(item.reason), item.payload) for item in letters],
                timeout=self._pace.timeout,
            )
        return len(load.outcomes) - len(outcomes), len(letters)

    async def _take_ids(
        self, connection: PoolConnectionProxy, ids: Sequence[tuple[UUID, datetime]]
    ) -> set[UUID]:
        """Those ids that nobody took before. They stay taken if their outcome becomes a letter."""
        fresh: set[UUID] = set()
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            rows = await connection.fetch(
                _TAKE_IDS,
                [item[0] for item in some],
                [item[1] for item in some],
                timeout=self._pace.timeout,
            )
            fresh.update(row["id"] for row in rows)
        return fresh

    async def _copy(
        self,
        connection: PoolConnectionProxy,
        segment: int,
        table: str,
        columns: tuple[str, ...],
        entries: Sequence[Entry],
    ) -> list[Letter]:
        """Store records by COPY; where one is at fault, halve until it stands alone."""
        if not entries:
            return []
        try:
            async with connection.transaction():
                await connection.copy_records_to_table(
                    table,
                    columns=columns,
                    records=_rows(segment, entries),
                    timeout=self._pace.timeout,
                )
        except _DATA_ERRORS as error:
            if len(entries) == 1:
                return [Letter(entries[0].ordinal, entries[0].payload, _line(error))]
        else:
            return []
        middle = len(entries) // 2
        return [
            *await self._copy(connection, segment, table, columns, entries[:middle]),
            *await self._copy(connection, segment, table, columns, entries[middle:]),
        ]


async def _rows(segment: int, entries: Sequence[Entry]) -> AsyncIterator[Row]:
    """Rows with their segment. asyncpg encodes them in the event loop, so that gets its turns."""
    for start in range(0, len(entries), _ROWS_AT_ONCE):
        for entry in entries[start : start + _ROWS_AT_ONCE]:
            for row in entry.rows:
                yield (segment, *row)
        await asyncio.sleep(0)


def _line(error: Exception) -> str:
    """An error in one line, with its kind, for some say nothing else."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _storable(reason: str) -> str:
    return reason.replace("\0", "\\0")[:_REASON_LENGTH]
