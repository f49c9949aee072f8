"""The controller: one leader among many processes, a tick every second or so.

A tick takes new definitions in, folds what was shipped, and then decides on each experiment, each
in a transaction of its own, so that one that fails holds up no other. Upkeep comes last, for what
it does not get done keeps no guard from acting.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import asyncpg
import msgspec
from redis.asyncio import Redis

from analysis.control.announcer import Announcer
from analysis.control.decide import decide, finish_run
from analysis.control.intake import take_in
from analysis.control.lease import Lease, LostLeaseError
from analysis.control.sight import look
from analysis.control.telemetry import AnalysisMetrics
from analysis.folding.backfill import backfill
from analysis.folding.fold import BATCH_RECORDS, Folded, fold
from analysis.folding.totals import renew_totals
from analysis.upkeep.retention import Retention, ensure_days, forget
from experiments import store
from experiments.spans import NO_TRACES, Span, Tracer, Value

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
UPKEEP_TIMEOUT: Final = 20.0
UPKEEP_REST: Final = 60.0
"""For how many seconds upkeep that failed is left alone: one that fails by taking too long does not
take that long of every tick."""
ID_LIFE: Final = timedelta(days=7)
_FORGET_EVERY: Final = timedelta(minutes=10)
_LOOK_EVERY: Final = timedelta(seconds=10)

IDLE_TIME: Final = timedelta(milliseconds=250)
"""What a tick spends on experiments in which nothing has finished; the rest of them is for the next
ticks, in turn."""

# What has finished is as `RunMetric.last_closed` says. Cells with a block above 0, and visits, are
# there while their block is open, and only then; a step through the index finds the first one of
# each metric. So what this reads grows with the metrics that have open blocks and the experiments
# that live, however many there were before: `offset 0` keeps the planner from reading all of a
# table to join a few of its rows. Runs that another one followed come last.
_WATCHED = """
    with recursive open_cell (metric, block) as (
        (select metric, block from cell where block > 0 order by metric, block limit 1)
        union all
        select following.metric, following.block
        from open_cell o cross join lateral (
            select c.metric, c.block from cell c where c.metric > o.metric and c.block > 0
            order by c.metric, c.block limit 1
        ) following
    ), open_visit (metric, block) as (
        (select metric, block from visit order by metric, block limit 1)
        union all
        select following.metric, following.block
        from open_visit o cross join lateral (
            select v.metric, v.block from visit v where v.metric > o.metric
            order by v.metric, v.block limit 1
        ) following
    ), finished as (
        select distinct m.experiment, m.run
        from (table open_cell union all table open_visit) o cross join lateral (
            select r.experiment, r.run from run_metric r
            where r.id = o.metric and r.covered is null
              and o.block + r.block_seconds <= extract(epoch from
                  $1::timestamptz - r.window_length - least($2::interval, r.window_length / 2))
            offset 0
        ) m
    ), watched as (
        select x.id, x.project, x.key, f.run, true as finished, f.run <> x.run as followed
        from finished f cross join lateral (
            select e.id, e.project, e.key, e.run from experiment e where e.id = f.experiment
            offset 0
        ) x
        union all
        select x.id, x.project, x.key, x.run, false, false
        from experiment x
        where x.state in ('running', 'paused')
          and not exists (select from finished f where f.experiment = x.id and f.run = x.run)
    )
    select id, project, key, run, finished, followed from watched order by followed, id, run
"""
_WATERMARK = "select watermark from fold_position"
_CLOCK = "select clock_timestamp()"
_FORGET_JOURNALS = "delete from journal where heartbeat_at < clock_timestamp() - interval '7 days'"
_FORGET_IDS = "delete from outcome_id where received_at < $1"
_FORGET_ATTEMPTS = "delete from idempotency where at < $1"
logger = logging.getLogger(__name__)


_CONNECTION_ERRORS: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises on a connection that is gone."""

Time: TypeAlias = Callable[[store.Connection], Awaitable[datetime]]
"""Tells the time by a connection."""


async def database_time(connection: store.Connection) -> datetime:
    """The time by the database's clock."""
    now: datetime = await connection.fetchval(_CLOCK)
    return now


class Pace(msgspec.Struct, frozen=True):
    """How often the controller ticks, how late an outcome's time may be for its block, for how long
    raw events are kept (None for ever), and how often an experiment is looked at in which nothing
    has finished: for what time alone brings."""

    tick: timedelta = timedelta(milliseconds=250)
    lateness: timedelta = timedelta(seconds=5)
    keep: timedelta | None = None
    idle: timedelta = timedelta(seconds=1)


class Controller:
    """Folds and decides, while it holds the lease.

    Args:
        time: tells the time that decisions go by. It is the database's in a service, so that all
            who lead go by one clock, and none by that of a machine of its own.
        elapsed: seconds that only ever grow, for what a tick spends on its parts.
    """

    def __init__(
        self,
        pool: store.Pool,
        redis: Redis,
        time: Time,
        elapsed: Callable[[], float],
        holder: str,
        pace: Pace,
        metrics: AnalysisMetrics,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._pool = pool
        self._tracer = tracer
        self._found_work = False
        self._announcer = Announcer(redis)
        self._time = time
        self._elapsed = elapsed
        self._pace = pace
        self._metrics = metrics
        self._lease = Lease(LEASE_NAME, holder, LEASE_LIFE)
        self._looked: dict[int, float] = {}
        self._lag: timedelta | None = None
        self._lagged_at = -math.inf
        metrics.fold_lag.set_function(self._fold_lag)
        self._forgot_at = -math.inf
        self._saw_at = -math.inf
        self._rests_until: dict[str, float] = {}
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
            self._metrics.leads(False)
            await self._announcer.close()
            async with asyncio.timeout(5), self._pool.acquire() as connection:
                await self._lease.give_up(connection)

    async def _tick_safely(self) -> None:
        try:
            async with asyncio.timeout(TICK_TIMEOUT):
                await self.tick()
        except LostLeaseError:
            self._metrics.leads(False)
        except (OSError, TimeoutError, *store.PostgresError) as error:
            self._metrics.failures.labels("tick").inc()
            logger.warning("tick failed", extra={"error": error})
        except Exception:  # a fault of ours must not stop the routers, which live beside this
            self._metrics.failures.labels("tick").inc()
            logger.exception("tick failed")

    async def tick(self) -> bool:
        """Do all that is due; whether this process leads."""
        async with self._pool.acquire() as connection:
            term = await self._lease.take(connection)
        self._metrics.leads(term is not None)
        if term is None:
            return False
        with self._tracer.span("controller tick", offhand=True) as span:
            self._found_work = False
            await self._renew(term)
            await self._fold_all()
            await self._decide_all()
            await self._keep_up()
            if not self._found_work:
                span.forget()  # there are several a second
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
        begun = self._elapsed()
        more = True
        while more and self._elapsed() - begun < RENEWAL_TIME.total_seconds():
            async with self._leading() as (connection, _):
                more = await renew_totals(connection)
        if not more:
            self._renewed_in = term

    async def _fold_all(self) -> None:
        """Fold what was shipped. Batches that take too long are halved until they do not."""
        begun = self._elapsed()
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
            if folded.complete or self._elapsed() - begun >= FOLD_TIME.total_seconds():
                return

    def _fold_lag(self) -> float:
        """The age of the watermark in seconds: it grows while folding cannot go on."""
        if self._lease.term is None or self._lag is None:
            return 0.0
        return self._lag.total_seconds() + self._elapsed() - self._lagged_at

    async def _fold(self) -> Folded:
        with self._tracer.span("fold", offhand=True) as span:
            async with self._leading() as (connection, _):
                now = await self._time(connection)
                await take_in(connection, now)
                folded = await fold(connection, now, self._batch)
                watermark = await _watermark(connection)
            span.set("turnout.records", folded.records)
            if folded.records:
                self._found_work = True
            else:
                span.forget()
        self._metrics.folded.inc(folded.records)
        self._lag = None if watermark is None else now - watermark
        self._lagged_at = self._elapsed()
        return folded

    async def _decide_all(self) -> None:
        """Decide on every experiment in which something has finished, and then, for a part of a
        tick, on those that only time moves on, the one that has waited longest first."""
        async with self._pool.acquire() as connection:
            # It moves only with a fold, and nobody else folds in this term: it is that of the tick.
            watermark = await _watermark(connection)
            if watermark is None:
                return
            watched = await connection.fetch(_WATCHED, watermark, self._pace.lateness)
        begun = self._elapsed()
        idle_since = begun - self._pace.idle.total_seconds()
        looked = {row["id"]: self._looked.get(row["id"], -math.inf) for row in watched}
        idle = [row for row in watched if not row["finished"] and looked[row["id"]] <= idle_since]
        self._looked = looked
        for row in watched:
            if row["finished"]:
                await self._decide_safely(row, watermark)
        for row in sorted(idle, key=lambda row: looked[row["id"]]):
            if self._elapsed() - begun >= IDLE_TIME.total_seconds():
                return
            await self._decide_safely(row, watermark)

    async def _decide_safely(self, row: asyncpg.Record, watermark: datetime) -> None:
        if not row["followed"]:
            self._looked[row["id"]] = self._elapsed()
        project, key = row["project"], row["key"]
        try:
            about: dict[str, Value] = {"turnout.project": project, "turnout.experiment": key}
            with self._tracer.span("decide", attributes=about, offhand=True) as span:
                await self._decide(project, key, row["run"], watermark, span)
        except (LostLeaseError, OSError, TimeoutError, *_CONNECTION_ERRORS):
            raise
        except Exception:  # whatever it is, the guards of the other experiments go on
            self._found_work = True
            self._metrics.failures.labels("decision").inc()
            logger.exception("decision failed", extra={"project": project, "experiment": key})

    async def _decide(
        self, project: str, key: str, run: int, watermark: datetime, span: Span
    ) -> None:
        """Decide on an experiment; of a run that another one followed, finish what is open."""
        lateness = self._pace.lateness
        async with self._leading() as (connection, term):
            record = await store.get_experiment(connection, project, key, lock=True)
            if record is None:
                span.forget()
                return
            # Whatever clock jumps back, nothing is decided before what was decided last.
            clock = await self._time(connection)
            now = max(clock, record.updated_at)
            if run != record.run:
                await finish_run(
                    connection, record, run, watermark=watermark, lateness=lateness, now=now
                )
                span.forget()
                return
            decided = await decide(
                connection,
                record,
                term=term,
                watermark=watermark,
                lateness=lateness,
                now=now,
                clock=clock,
            )
        if decided:
            self._found_work = True
            self._announcer.tell(project)
        else:
            span.forget()
        for each in decided:
            told = {"turnout.kind": each.kind, "turnout.rule": each.rule, "turnout.code": each.code}
            span.event("decision", {**told, "turnout.experiment": key})
            self._metrics.decided(project, key, each.kind, each.rule, each.code)
            logger.info(
                "decision",
                extra={
                    "project": project,
                    "experiment": key,
                    "kind": each.kind,
                    "rule": each.rule,
                    "code": each.code,
                    "epoch": each.record.epoch,
                },
            )

    async def _keep_up(self) -> None:
        """Do what is due of upkeep. A part that fails rests for a while, and keeps nothing else
        from being done."""
        for name, part in (
            ("backfill", self._backfill),
            ("retention", self._retain),
            ("forgetting", self._forget),
            ("sight", self._look),
        ):
            if self._elapsed() < self._rests_until.get(name, -math.inf):
                continue
            try:
                async with asyncio.timeout(UPKEEP_TIMEOUT):
                    await part()
            except LostLeaseError:
                raise
            except Exception as error:  # whatever it is, guards go on deciding
                self._rests_until[name] = self._elapsed() + UPKEEP_REST
                self._metrics.failures.labels("upkeep").inc()
                if isinstance(error, (OSError, TimeoutError, *store.PostgresError)):
                    logger.warning("upkeep failed", extra={"part": name, "error": error})
                else:
                    logger.exception("upkeep failed", extra={"part": name})

    async def _backfill(self) -> None:
        """Fill new metrics in, for a part of a tick; the rest is for the next ones."""
        begun = self._elapsed()
        more = True
        while more and self._elapsed() - begun < BACKFILL_TIME.total_seconds():
            async with self._leading() as (connection, _):
                more = await backfill(connection)

    async def _retain(self) -> None:
        """Move and drop what is older than it is to be kept, for a part of a tick."""
        if self._retention is None:
            return
        begun = self._elapsed()
        more = True
        while more and self._elapsed() - begun < RETENTION_TIME.total_seconds():
            async with self._leading() as (connection, _):
                more = await self._retention.step(connection, await self._time(connection))

    async def _look(self) -> None:
        if self._elapsed() - self._saw_at < _LOOK_EVERY.total_seconds():
            return
        async with self._pool.acquire() as connection:
            self._metrics.sights.sight = await look(connection)
        self._saw_at = self._elapsed()

    async def _forget(self) -> None:
        if self._elapsed() - self._forgot_at < _FORGET_EVERY.total_seconds():
            return
        async with self._pool.acquire() as connection:
            now = await self._time(connection)
            await connection.execute(_FORGET_JOURNALS)
            for statement in (_FORGET_IDS, _FORGET_ATTEMPTS):
                await connection.execute(statement, now - ID_LIFE)
            await ensure_days(connection, now.date())
            if self._retention is not None:
                await forget(connection)
        self._forgot_at = self._elapsed()


async def _watermark(connection: store.Connection) -> datetime | None:
    """The watermark, or None before any router has shipped."""
    watermark: datetime = await connection.fetchval(_WATERMARK)
    return None if watermark.year == 1 else watermark
