"""The first variants of sticky experiments' units, in Redis: what they are called, and how they are
forgotten."""

import asyncio
from collections.abc import Iterable
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from experiments import store
from experiments.problems import ProblemError

REDIS_TIMEOUT: Final = 5.0
# By the epochs, for they pin what a run was; the definition may say something else by now.
_STICKY: Final = """
    select distinct e.experiment, e.run, x.definition #>> '{unit,type}' as unit_type, p.sticky_id
    from epoch e
    join experiment x on x.id = e.experiment
    join project p on p.key = x.project
    where x.project = $1 and e.stickiness = 'sticky'
"""


def first_name(sticky_id: str, experiment: int, run: int, stored: str) -> str:
    """Where the first variant of a unit is kept; the unit as its project stores it."""
    return f"turnout:sticky:{sticky_id}:{experiment}:{run}:{stored}"


async def forget_firsts(
    redis: Redis, connection: store.Connection, project: str, units: Iterable[tuple[str, str]]
) -> None:
    """Remove what is kept of units, given as pairs of unit type and unit as it is stored.

    Raises:
        ProblemError: `unavailable` where Redis does not answer; then some of it may be left.
    """
    wanted = list(units)
    names = [
        first_name(row["sticky_id"].hex, row["experiment"], row["run"], stored)
        for row in await connection.fetch(_STICKY, project)
        for unit_type, stored in wanted
        if unit_type == row["unit_type"]
    ]
    if not names:
        return
    try:
        async with asyncio.timeout(REDIS_TIMEOUT):
            await redis.unlink(*names)
    except (RedisError, OSError, TimeoutError) as error:
        raise ProblemError(
            "unavailable",
            "Redis, which keeps the first variants of sticky experiments, does not answer: the "
            "unit is not forgotten everywhere yet; try again",
            headers={"Retry-After": "5"},
        ) from error
