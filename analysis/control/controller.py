"""The controller: one leader among many processes, a tick every second or so.

A tick takes new definitions in, folds what was shipped, and then decides on each experiment, each
in a transaction of its own, so that one that fails holds up no other.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import msgspec
from redis.asyncio import Redis

from analysis.control.decide import decide
from analysis.control.intake import take_in
from analysis.control.lease import Lease, LostLeaseError
from analysis.control.telemetry import AnalysisMetrics
from analysis.folding.backfill import backfill
from analysis.folding.fold import BATCH_RECORDS, Folded, fold
from analysis.folding.totals import renew_totals
from analysis.upkeep.retention import Retention, ensure_days, forget
from experiments import store
from experiments.announce import announce
from experiments.model import ThompsonPolicy, parse_duration
from experiments.records import ExperimentRecord

LEASE_NAME: Final = "controller"
LEASE_LIFE: Final = timedelta(seconds=8)
TICK_TIMEOUT: Final = 60.0
FOLD_TIMEOUT: Final = 20.0
FIRST_BATCH: Final = 20_000
"""Records that a new leader folds at first; batches are doubled as long as all goes well."""
FOLD_TIME: Final = timedelta(seconds=5)
"""What a tick spends on folding a backlog, and one fold at least: decisions do not wait for all."""
RENEWAL_TIME: Final = timedelta(seconds=1)
"""What a tick spends on making sums of an older release anew, and one of them at least."""
BACKFILL_TIME: Final = timedelta(seconds=1)
"""What a tick spends on filling new metrics in, and one step at least."""
RETENTION_TIME: Final = timedelta(seconds=1)
"""What a tick spends on dropping old raw events, and one step at least."""
ID_LIFE: Final = timedelta(days=7)
_FORGET_EVERY: Final = timedelta(minutes=10)

_WATCHED = """
    select x.project, x.key from experiment x
    where x.state in ('running', 'paused')
       or exists (
           select from run_metric m join cell c on c.metric = m.id and c.block > 0
           where m.experiment = x.id and m.run = x.run
       )
    order by x.id
"""
_WATERMARK = "select watermark from fold_position"
_FORGET_JOURNALS = "delete from journal where heartbeat_at < clock_timestamp() - interval '7 days'"
_FORGET_IDS = "delete from outcome_id where received_at < $1"
_FORGET_ATTEMPTS = "delete from idempotency where at < $1"
logger = logging.getLogger(__name__)


class Pace(msgspec.Struct, frozen=True):
    """How often the controller ticks, how late an outcome's time may be for its block, and for how
    long raw events are kept; None for ever."""

    tick: timedelta = timedelta(seconds=1)
    lateness: timedelta = timedelta(seconds=5)
    keep: timedelta | None = None


class Controller:
    """Folds and decides, while it holds the lease."""

    def __init__(
        self,
        pool: store.Pool,
        redis: Redis,
        clock: Callable[[], datetime],
        holder: str,
        pace: Pace,
        metrics: AnalysisMetrics,
    ) -> None:
        self._pool = pool
        self._redis = redis
        self._clock = clock
        self._pace = pace
        self._metrics = metrics
        self._lease = Lease(LEASE_NAME, holder, LEASE_LIFE)
        self._considered: dict[int, datetime] = {}
        self._watermark: datetime | None = None
        metrics.fold_lag.set_function(self._fold_lag)
        self._forgot_at: datetime | None = None
        self._retention = None if pace.keep is None else Retention(pace.keep)
        self._batch = FIRST_BATCH
        self._behind = False
        self._renewed_in: int | None = None

    async def run(self) -> None:
        """Tick until cancelled; then let another process lead at once."""
        try:
            while True:
                await self._tick_safely()
                await asyncio.sleep(0 if self._behind else self._pace.tick.total_seconds())
        finally:
            self._metrics.leader.set(0)
            async with asyncio.timeout(5), self._pool.acquire() as connection:
                await self._lease.give_up(connection)

    async def _tick_safely(self) -> None:
        try:
            async with asyncio.timeout(TICK_TIMEOUT):
                await self.tick()
        except LostLeaseError:
            self._metrics.leader.set(0)
        except (OSError, TimeoutError, *store.PostgresError) as error:
            self._metrics.failures.labels("tick").inc()
            logger.warning("tick failed", extra={"error": repr(error)})
        except Exception:  # a fault of ours must not stop the routers, which live beside this
            self._metrics.failures.labels("tick").inc()
            logger.exception("tick failed")

    async def tick(self) -> bool:
        """Do all that is due; whether this process leads."""
        async with self._pool.acquire() as connection:
            term = await self._lease.take(connection)
        self._metrics.leader.set(term is not None)
        if term is None:
            return False
        await self._renew(term)
        await self._fold_all()
        await self._backfill()
        await self._retain()
        for project, key in await self._watched():
            await self._decide_safely(project, key)
        await self._forget()
        return True

    @asynccontextmanager
    async def _leading(self) -> AsyncIterator[tuple[store.Connection, int]]:
        """A transaction that only the leader of this term can commit, and the term. The lease lives
        on after it, however long it took.

        Raises:
            LostLeaseError: if another process leads.
        """
        async with self._pool.acquire() as connection, connection.transaction():
            term = await self._lease.hold(connection)
            yield connection, term
            await self._lease.prolong(connection)

    async def _renew(self, term: int) -> None:
        """Make sums of an older release anew, for a part of a tick, until none is left in a term:
        what this release makes afterwards is of its own form."""
        if self._renewed_in == term:
            return
        begun = self._clock()
        more = True
        while more and self._clock() - begun < RENEWAL_TIME:
            async with self._leading() as (connection, _):
                more = await renew_totals(connection)
        if not more:
            self._renewed_in = term

    async def _fold_all(self) -> None:
        """Fold what was shipped. Batches that take too long are halved until they do not."""
        begun = self._clock()
        self._behind = False
        while True:
            try:
                async with asyncio.timeout(FOLD_TIMEOUT):
                    folded = await self._fold()
            except LostLeaseError:
                raise
            except Exception:  # whatever it is, a smaller batch asks less of everybody
                self._batch = max(self._batch // 2, 1)
                raise
            self._batch = min(self._batch * 2, BATCH_RECORDS)
            self._behind = not folded.complete
            if folded.complete or self._clock() - begun >= FOLD_TIME:
                return

    def _fold_lag(self) -> float:
        """The age of the watermark in seconds: it grows while folding cannot go on."""
        if self._lease.term is None or self._watermark is None:
            return 0.0
        return (self._clock() - self._watermark).total_seconds()

    async def _fold(self) -> Folded:
        now = self._clock()
        async with self._leading() as (connection, _):
            await take_in(connection, now)
            folded = await fold(connection, now, self._batch)
            watermark = await _watermark(connection)
        self._metrics.folded.inc(folded.records)
        self._watermark = watermark
        return folded

    async def _backfill(self) -> None:
        """Fill new metrics in, for a part of a tick; the rest is for the next ones."""
        begun = self._clock()
        more = True
        while more and self._clock() - begun < BACKFILL_TIME:
            async with self._leading() as (connection, _):
                more = await backfill(connection)

    async def _retain(self) -> None:
        """Move and drop what is older than it is to be kept, for a part of a tick."""
        if self._retention is None:
            return
        begun = self._clock()
        more = True
        while more and self._clock() - begun < RETENTION_TIME:
            async with self._leading() as (connection, _):
                more = await self._retention.step(connection, self._clock())

    async def _watched(self) -> list[tuple[str, str]]:
        async with self._pool.acquire() as connection:
            return [(row["project"], row["key"]) for row in await connection.fetch(_WATCHED)]

    async def _decide_safely(self, project: str, key: str) -> None:
        try:
            await self._decide(project, key)
        except (LostLeaseError, OSError, TimeoutError, asyncpg.InterfaceError):
            raise
        except Exception:  # whatever it is, the guards of the other experiments go on
            self._metrics.failures.labels("decision").inc()
            logger.exception("decision failed", extra={"project": project, "experiment": key})

    async def _decide(self, project: str, key: str) -> None:
        now = self._clock()
        async with self._leading() as (connection, term):
            watermark = await _watermark(connection)
            record = await store.get_experiment(connection, project, key, lock=True)
            if record is None or watermark is None:
                return
            decided = await decide(
                connection,
                record,
                term=term,
                watermark=watermark,
                lateness=self._pace.lateness,
                now=now,
                bandit_due=self._bandit_due(record, now),
            )
        if decided is not None:
            self._metrics.decisions.labels(project, key, decided.kind).inc()
            logger.info(
                "decision",
                extra={
                    "project": project,
                    "experiment": key,
                    "kind": decided.kind,
                    "epoch": decided.record.epoch,
                },
            )
            await announce(self._redis, project)

    def _bandit_due(self, record: ExperimentRecord, now: datetime) -> bool:
        policy = record.definition.policy
        if not isinstance(policy, ThompsonPolicy):
            return False
        # A leader that is new waits, too: restarts must not make the steps follow faster.
        last = self._considered.get(record.id, record.updated_at)
        if now - last < parse_duration(policy.every):
            return False
        self._considered[record.id] = now
        return True

    async def _forget(self) -> None:
        now = self._clock()
        if self._forgot_at is not None and now - self._forgot_at < _FORGET_EVERY:
            return
        self._forgot_at = now
        async with self._pool.acquire() as connection:
            await connection.execute(_FORGET_JOURNALS)
            for statement in (_FORGET_IDS, _FORGET_ATTEMPTS):
                await connection.execute(statement, now - ID_LIFE)
            await ensure_days(connection, now.date())
            if self._retention is not None:
                await forget(connection)


async def _watermark(connection: store.Connection) -> datetime | None:
    """The watermark, or None before any router has shipped."""
    watermark: datetime = await connection.fetchval(_WATERMARK)
    return None if watermark.year == 1 else watermark
