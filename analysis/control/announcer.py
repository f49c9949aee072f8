"""Tells routers of what was decided, beside the controller: however slow Redis is, the decision on
the next experiment does not wait for it."""

import asyncio
import contextlib

from redis.asyncio import Redis

from experiments.announce import announce


class Announcer:
    """Projects that wait to be announced, one after another, each once however often it changed
    until then; so no more ever wait than there are projects."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def tell(self, project: str) -> None:
        """Have a project announced soon."""
        self._waiting[project] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._announce())

    async def close(self) -> None:
        """Announce no more. It is a hint only: routers poll the versions, too."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _announce(self) -> None:
        while self._waiting:
            project = next(iter(self._waiting))
            del self._waiting[project]
            await announce(self._redis, project)
