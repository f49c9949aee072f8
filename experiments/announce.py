"""Tells routers that a project changed. It is a hint only: they poll the versions, too."""

import asyncio
import logging
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

CHANNEL: Final = "turnout:changed"
logger = logging.getLogger(__name__)


async def announce(redis: Redis, project: str) -> None:
    """Publish the key of a project that changed. A lost message costs a router one poll."""
    try:
        await asyncio.wait_for(redis.publish(CHANNEL, project), timeout=1.0)
    except (RedisError, OSError, TimeoutError) as error:
        logger.warning("announcement lost", extra={"project": project, "error": error})
