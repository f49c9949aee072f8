"""The chronicler: makes the report of each experiment in turn, and keeps what pages need of it.

Any number of processes may have one. Each looks for what is due, takes an experiment that nobody
else is at, and does all of it in one transaction: the lock, the reading, and what is kept. A
process that dies leaves nothing behind, and nothing is done twice: the transaction sees one moment
of the database, and cannot write over what came after that.

What it costs is bounded, not how old a glance may become: after `t` seconds of work, each process
rests for `9 t`. So a glance is as old as it takes to go round; where an experiment was changed, a
new one is due before all others.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

import asyncpg
import msgspec

from analysis.chronicle.course import figures_of
from analysis.chronicle.glance import glance_of
from analysis.chronicle.kept import add_point, keep_glance
from analysis.chronicle.telemetry import ChronicleMetrics
from analysis.control import ramp_api
from analysis.control.controller import Time
from analysis.reports.facts import read_facts
from analysis.reports.report import make_report
from experiments import store
from experiments.model import RampPolicy

REST_OF_WORK: Final = 9.0
"""Seconds of rest for each of work: a tenth of a core, at most."""
LEAST_REST: Final = 1.0
MOST_REST: Final = 60.0
SLICE: Final = 0.2
"""Seconds of work, one glance at least, after which a rest is due."""
LEAST_AGE: Final = timedelta(seconds=2)
"""A glance that is younger will do, unless its experiment was changed."""
PATIENCE: Final = 60.0
"""Seconds that a glance may take; and for so long one that failed is left alone."""
SWEEP_EVERY: Final = 60.0
"""Seconds between two looks at all experiments, for those that ended before anybody looked."""
SETTLED: Final = timedelta(minutes=1)
"""Of data behind the end of a run, before no block that opens is to be expected: by then routers
have heard of it."""
_LEFT_BEHIND: Final = 60.0
_LOG_EVERY: Final = 60.0
_LOCK_CLASS: Final = 0x74756363  # the number only has to be ours

# Those that live, by an index, and those whose data still come in. All others only when asked for.
_WATCHED: Final = """
    with watched as (
        select id from experiment where state in ('running', 'paused')
        union
        select experiment from glance where not final
        union
        select x.id from experiment x left join glance g on g.experiment = x.id
        where $1 and x.run > 0 and (
            g.experiment is null or g.run <> x.run or g.state <> x.state
            or g.revision <> x.revision
        )
    )
    select x.id, x.project, x.key, x.state in ('running', 'paused') as lives,
           g.at, coalesce(g.final, false) as final,
           coalesce(g.run <> x.run or g.state <> x.state or g.revision <> x.revision
                    or g.rolled_back <> x.rolled_back, true) as changed
    from watched join experiment x using (id) left join glance g on g.experiment = x.id
    where x.run > 0
"""
_PATIENT: Final = "set local idle_in_transaction_session_timeout = '60s'"
"""So that a process which freezes does not hold an experiment for ever."""
_TAKE: Final = "select pg_try_advisory_xact_lock($1, hashtext($2::bigint::text))"
_GLANCED: Final = "select at from glance where experiment = $1"
# What waits for its window, or to be filled in, is to come.
_SETTLED: Final = """
    select $4 not in ('running', 'paused')
           and f.watermark >= coalesce(r.ended_at, r.started_at) + $3::interval
           and not exists (
               select from run_metric m
               where m.experiment = $1 and m.run = $2 and (
                   m.covered is not null
                   or exists (select from cell c where c.metric = m.id and c.block > 0)
                   or exists (select from visit v where v.metric = m.id)
               )
           )
    from run r cross join fold_position f where r.experiment = $1 and r.number = $2
"""
logger = logging.getLogger(__name__)


class Watched(msgspec.Struct, frozen=True):
    """An experiment, and when it was last glanced at: None, never. `changed` says that it is not
    as it was then, `final` that its run was over and its data had come. It `lives` while its run
    goes on."""

    id: int
    project: str
    key: str
    lives: bool
    at: datetime | None
    final: bool
    changed: bool


def due(
    watched: Sequence[Watched], now: datetime, resting: Mapping[int, float] | None = None
) -> list[Watched]:
    """Those whose turn it is: first those that were changed, then the oldest glance first.

    What ended before anybody looked, such as all that a release without a chronicle has left
    behind, counts as a minute old: it comes, and does not keep those that live waiting for longer.

    Args:
        now: by the clock of the glances. One that lies ahead was dated by a clock that was put back
            since: it is as old as can be.
        resting: experiments that are left alone.
    """

    def turn(each: Watched) -> tuple[bool, float, int]:
        left_behind = each.at is None and not each.lives
        if left_behind:
            age = _LEFT_BEHIND
        elif each.at is None or each.at > now:
            age = math.inf
        else:
            age = (now - each.at).total_seconds()
        return left_behind or not each.changed, -age, each.id

    least = LEAST_AGE.total_seconds()
    turns = [
        (turn(each), each)
        for each in watched
        if each.id not in (resting or {}) and (each.changed or not each.final)
    ]
    return [
        each
        for place, each in sorted(turns, key=lambda found: found[0])
        if each.changed or -place[1] >= least
    ]


def rest_after(seconds: float) -> float:
    """How long to rest after so much work."""
    return min(max(REST_OF_WORK * seconds, LEAST_REST), MOST_REST)


class Chronicler:
    """Looks at experiments in turn, while it runs.

    Args:
        time: tells the time of glances: the database's in a service.
        elapsed: seconds that only ever grow, for what the work takes.
        lateness: how late the controller lets an outcome come.
    """

    def __init__(
        self,
        pool: store.Pool,
        time: Time,
        elapsed: Callable[[], float],
        lateness: timedelta,
        metrics: ChronicleMetrics,
    ) -> None:
        self._pool = pool
        self._time = time
        self._elapsed = elapsed
        self._lateness = lateness
        self._metrics = metrics
        self._resting: dict[int, float] = {}
        self._swept_at = -math.inf
        self._logged_at = -math.inf

    async def run(self) -> None:
        """Look around and rest until cancelled. A report that is being made then comes to its end
        beside us, and leaves nothing behind."""
        failed = 0
        while True:
            begun = self._elapsed()
            failed = 0 if await self._look_safely() else failed + 1
            rest = rest_after(self._elapsed() - begun)
            await asyncio.sleep(min(rest * 2**failed, MOST_REST) if failed < 6 else MOST_REST)

    async def _look_safely(self) -> bool:
        """Look around; whether the database answered."""
        try:
            await self.look_around()
        except (OSError, TimeoutError, *store.PostgresError) as error:
            self._metrics.failures.labels("round").inc()
            logger.warning("the chronicle waits", extra={"error": error})
            return False
        except Exception:  # a fault of ours must not stop the routers, which live beside this
            self._metrics.failures.labels("round").inc()
            logger.exception("the chronicle waits")
            return False
        return True

    async def look_around(self) -> int:
        """Take experiments whose turn it is, for a slice of work; how many were glanced at."""
        begun = self._elapsed()
        self._resting = {id_: until for id_, until in self._resting.items() if until > begun}
        sweeps = begun - self._swept_at >= SWEEP_EVERY
        async with self._borrow() as connection:
            rows = await connection.fetch(_WATCHED, sweeps)
            now = await self._time(connection)
        watched = [Watched(**dict(row)) for row in rows]
        ages = (now - each.at for each in watched if each.at is not None and not each.final)
        self._metrics.oldest.set(max((age.total_seconds() for age in ages), default=0.0))
        glanced = 0
        waiting = deque(due(watched, now, self._resting))
        while waiting:
            glanced += await self._glance_safely(waiting.popleft())
            if self._elapsed() - begun >= SLICE:
                break
        if sweeps and not any(each.changed and not each.lives for each in waiting):
            self._swept_at = begun  # otherwise there is more that only a sweep finds
        return glanced

    async def _glance_safely(self, each: Watched) -> bool:
        """Glance at an experiment; whether that was done. One that fails is left alone for a while,
        and holds up no other."""
        begun = self._elapsed()
        try:
            async with self._borrow() as connection:
                done = await self._glance(connection, each)
        except asyncpg.TransactionRollbackError:  # somebody else has done it since
            return False
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            # It may be that this one always takes too long.
            self._resting[each.id] = self._elapsed() + PATIENCE
            raise
        except Exception as error:
            if isinstance(
                error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError
            ):
                raise
            self._resting[each.id] = self._elapsed() + PATIENCE
            self._metrics.failures.labels("experiment").inc()
            if self._elapsed() - self._logged_at >= _LOG_EVERY:
                self._logged_at = self._elapsed()
                about = {"project": each.project, "experiment": each.key}
                logger.exception("no glance at an experiment", extra=about)
            return False
        if done:
            self._metrics.seconds.observe(self._elapsed() - begun)
        return done

    async def _glance(self, connection: store.Connection, each: Watched) -> bool:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute(_PATIENT)
            if not await connection.fetchval(_TAKE, _LOCK_CLASS, each.id):
                return False
            if await connection.fetchval(_GLANCED, each.id) != each.at:
                return False  # somebody else has just done it
            record = await store.get_experiment(connection, each.project, each.key)
            if record is None or record.run == 0:
                return False
            at = await self._time(connection)
            facts = await read_facts(connection, record, at, self._lateness, broken_down=False)
            final = await connection.fetchval(
                _SETTLED, record.id, record.run, SETTLED, record.state
            )
            report = await asyncio.to_thread(make_report, facts)
            ramp = None
            if isinstance(record.definition.policy, RampPolicy):
                ramp = await ramp_api.view(connection, record, at)
            await keep_glance(connection, record, glance_of(report, at, final=final, ramp=ramp))
            await add_point(connection, record, at, figures_of(report), last=final)
        return True

    @asynccontextmanager
    async def _borrow(self) -> AsyncIterator[store.Connection]:
        """A connection for as long as a glance may take."""
        async with asyncio.timeout(PATIENCE), store.borrow(self._pool) as connection:
            yield connection
