"""Keeps a router's snapshot up to date: Redis pub/sub is the hint, a poll the truth."""

import asyncio
import logging
from datetime import datetime

from redis.asyncio import Redis
from redis.exceptions import RedisError

from experiments import store
from experiments.announce import CHANNEL
from experiments.doors import Clock
from experiments.keys import ApiKey
from router.snapshot import EMPTY, ProjectSnapshot, Snapshot, compile_project

QUERY_TIMEOUT = 10.0
logger = logging.getLogger(__name__)


class Refresher:
    """Holds the current snapshot and swaps it whole when a project's version has risen."""

    def __init__(
        self,
        pool: store.Pool,
        redis: Redis,
        clock: Clock,
        poll_seconds: float = 2.0,
    ) -> None:
        self.current: Snapshot = EMPTY
        self.refreshed_at: datetime | None = None
        self._pool = pool
        self._redis = redis
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._news = asyncio.Event()

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None: the doors' key ring."""
        return self.current.find_key(key_id)

    async def refresh(self) -> None:
        """Load the projects whose version differs from the snapshot's."""
        async with asyncio.timeout(QUERY_TIMEOUT), self._pool.acquire() as connection:
            versions = await store.project_versions(connection)
            known = self.current.versions()
            changed: dict[str, ProjectSnapshot] = {}
            for project, version in versions.items():
                if known.get(project) != version:
                    publication = await store.load_publication(connection, project)
                    if publication is not None:
                        changed[project] = compile_project(publication)
        if changed:
            self.current = self.current.with_projects(changed)
        self.refreshed_at = self._clock()

    async def run(self) -> None:
        """Refresh at every hint and every `poll_seconds`, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            while True:
                try:
                    await self.refresh()
                except (OSError, TimeoutError, *store.PostgresError) as error:
                    logger.warning("snapshot not refreshed", extra={"error": str(error)})
                except Exception:  # whatever it is, the last snapshot is there to go on with
                    logger.exception("snapshot not refreshed")
                try:
                    await asyncio.wait_for(self._news.wait(), self._poll_seconds)
                except TimeoutError:
                    continue
                self._news.clear()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(CHANNEL)
                    while True:
                        message = await channel.get_message(
                            ignore_subscribe_messages=True, timeout=5.0
                        )
                        if message is not None:
                            self._news.set()
            except (RedisError, OSError) as error:
                logger.warning("no news from Redis", extra={"error": str(error)})
                await asyncio.sleep(self._poll_seconds)
