"""Keeps a router's snapshot up to date: Redis pub/sub is the hint, a poll the truth."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from redis.exceptions import RedisError

from experiments import store
from experiments.announce import CHANNEL
from experiments.doors import Clock
from experiments.keys import ApiKey
from experiments.records import Live, Publication
from router.snapshot import EMPTY, ProjectSnapshot, Snapshot, compile_project

QUERY_TIMEOUT: Final = 10.0
LISTEN_TIMEOUT: Final = 5.0
logger = logging.getLogger(__name__)


class Refresher:
    """Holds the current snapshot and swaps it whole when a project's version has risen.

    What cannot be read is logged, keeps back nothing else, and is tried again with every poll.
    """

    def __init__(
        self,
        pool: store.Pool,
        redis: Redis,
        clock: Clock,
        poll_seconds: float = 2.0,
        keep: Callable[[Publication], None] = lambda publication: None,
    ) -> None:
        """`keep` is given each project as it stands after a swap, whole."""
        self.current: Snapshot = EMPTY
        self.refreshed_at: datetime | None = None
        self.hinted = False
        self.failures = 0
        """How often news could not be loaded, of all projects or of one."""
        self._pool = pool
        self._redis = redis
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._keep = keep
        self._publications: dict[str, Publication] = {}
        self._poll_at = 0.0
        self._loading = asyncio.Lock()
        self._hints: set[str] = set()
        self._news = asyncio.Event()
        self._swapped = asyncio.Event()

    @property
    def age(self) -> timedelta:
        """How long ago all of the snapshot was true; 0 before there is one."""
        return timedelta() if self.refreshed_at is None else self._clock() - self.refreshed_at

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None: the doors' key ring."""
        return self.current.find_key(key_id)

    async def restore(self, publications: Iterable[Publication], as_of: datetime) -> None:
        """Begin with what was known at an earlier time."""
        self._swap({p.project: (p, await compile_project(p)) for p in publications})
        self.refreshed_at = as_of

    async def changed(self, project: str, version: int) -> int:
        """Wait until a project's version differs from this one; the new version."""
        while True:
            swapped = self._swapped
            found = self.current.projects.get(project)
            if found is not None and found.version != version:
                return found.version
            await swapped.wait()

    async def refresh(self) -> None:
        """Load what has changed of the projects whose version differs from the snapshot's."""
        async with self._loading:
            now = self._clock()
            async with asyncio.timeout(QUERY_TIMEOUT), self._pool.acquire() as connection:
                versions = await store.project_versions(connection)
            for project, version in versions.items():
                known = self.current.projects.get(project)
                if known is None or known.version != version or known.unread:
                    await self._try_to_load(project)
            # What was read is at least as new as the time before it was asked for.
            self.refreshed_at = now

    async def _try_to_load(self, project: str) -> None:
        """Load a project. What is wrong with it costs no other project.

        Raises:
            OSError, TimeoutError, store.PostgresError: if nobody answers: then no other could be
                loaded, either.
        """
        try:
            await self._load(project)
        except (OSError, TimeoutError, *store.PostgresError):
            raise
        except Exception:  # a defect, or what a newer release has written
            self.failures += 1
            logger.exception("project not refreshed", extra={"project": project})

    async def _load(self, project: str) -> None:
        before = self.current.projects.get(project)
        async with asyncio.timeout(QUERY_TIMEOUT), self._pool.acquire() as connection:
            known = (None, ()) if before is None else (before.version, before.unread)
            news = await store.load_publication(connection, project, *known)
        if news is None:
            return
        compiled = await compile_project(news, before)
        if (compiled.version, compiled.unread) == known:
            return
        self._swap({project: (_whole(news, self._publications.get(project)), compiled)})

    def _swap(self, changed: dict[str, tuple[Publication, ProjectSnapshot]]) -> None:
        self.current = self.current.with_projects(
            {project: compiled for project, (_, compiled) in changed.items()}
        )
        for project, (publication, _) in changed.items():
            self._publications[project] = publication
            self._keep(publication)
        swapped, self._swapped = self._swapped, asyncio.Event()
        swapped.set()

    async def run(self) -> None:
        """Refresh at every hint and every `poll_seconds`, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            while True:
                try:
                    await self._next()
                except (OSError, TimeoutError, *store.PostgresError) as error:
                    self.failures += 1
                    logger.warning("snapshot not refreshed", extra={"error": error})
                except Exception:  # whatever it is, the last snapshot is there to go on with
                    self.failures += 1
                    logger.exception("snapshot not refreshed")

    async def _next(self) -> None:
        """Wait for news, and load it: what a hint names; when it is time, whatever has changed."""
        loop = asyncio.get_running_loop()
        # To wait for what has come already takes no time, so hints without end would never let it
        # run out.
        if loop.time() < self._poll_at:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._poll_at):
                    await self._news.wait()
        if loop.time() >= self._poll_at:
            self._poll_at = loop.time() + self._poll_seconds
            await self.refresh()
            return
        self._news.clear()
        hints, self._hints = self._hints, set()
        async with self._loading:
            for project in hints:
                await self._try_to_load(project)

    async def _listen(self) -> None:
        while True:
            try:
                async for project in self._heard():
                    self._hints.add(project)
                    self._news.set()
            except (RedisError, OSError) as error:
                logger.warning("no news from Redis", extra={"error": error})
            except Exception:  # hints are a help: what is wrong with them must not end the polls
                logger.exception("no news from Redis")
            finally:
                self.hinted = False
            await asyncio.sleep(self._poll_seconds)

    async def _heard(self) -> AsyncIterator[str]:
        async with self._redis.pubsub() as channel:
            await channel.subscribe(CHANNEL)
            while True:
                message = await channel.get_message(
                    ignore_subscribe_messages=False, timeout=LISTEN_TIMEOUT
                )
                if message is None:
                    continue
                self.hinted = True
                if message["type"] == "message":
                    yield message["data"].decode(errors="replace")


class SnapshotCollector(Collector):
    """How well the snapshot follows what is published, read when Prometheus asks."""

    def __init__(self, refresher: Refresher) -> None:
        self._refresher = refresher

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        projects = self._refresher.current.projects.values()
        yield GaugeMetricFamily(
            "turnout_snapshot_age_seconds",
            "Time since all of the snapshot was known to be true",
            value=self._refresher.age.total_seconds(),
        )
        yield GaugeMetricFamily(
            "turnout_experiments_unread",
            "Experiments that cannot be read as they stand; those that ran answer the control",
            value=float(sum(len(project.unread) for project in projects)),
        )
        yield CounterMetricFamily(
            "turnout_snapshot_failures",
            "Attempts to bring the snapshot, or a project in it, up to date that failed",
            value=float(self._refresher.failures),
        )


def _whole(news: Publication, before: Publication | None) -> Publication:
    """A project as it stands after some news of it."""
    if news.since is None or before is None:
        return news
    lives: dict[str, Live] = {live.record.key: live for live in before.experiments}
    lives |= {live.record.key: live for live in news.experiments}
    without = {*news.gone, *(each.key for each in news.unread)}
    return msgspec.structs.replace(
        news,
        since=None,
        gone=(),
        experiments=tuple(live for key, live in lives.items() if key not in without),
    )
