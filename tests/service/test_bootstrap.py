"""The first project and its admin key, when others come at the same time."""

import asyncio
import secrets
from datetime import UTC, datetime

import asyncpg

from experiments import store
from experiments.keys import new_key
from turnout.parts import bootstrap


async def test_of_many_first_starts_one_gets_the_key(pool: asyncpg.Pool) -> None:
    keys = await asyncio.gather(*(bootstrap(pool, "shop") for _ in range(4)))
    assert sum(key is not None for key in keys) == 1


async def test_a_key_that_is_made_meanwhile_is_waited_for(pool: asyncpg.Pool) -> None:
    now = datetime.now(UTC)
    _, key = new_key("shop", "service", "", now, secrets.token_bytes)
    async with pool.acquire() as connection:
        async with connection.transaction():  # as `turnout keys create` does
            await store.create_project(connection, "shop", now)
            start = asyncio.create_task(bootstrap(pool, "shop"))
            await asyncio.sleep(0.3)
            await store.insert_key(connection, key)
        assert await start is None
