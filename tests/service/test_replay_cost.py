"""What a replay costs does not grow with an experiment's past."""

import asyncpg
import msgspec

from router.replay import EPOCH_AT

_PAST = """
with p as (
    insert into project (key, created_at) values ('p', now()) returning key
), x as (
    insert into experiment (project, key, state, revision, definition, created_at, updated_at)
    select key, 'x', 'running', 1, '{}', now(), now() from p returning id
), r as (
    insert into run (experiment, number, salt, started_at)
    select id, 1, 'x', now() from x returning experiment
)
insert into epoch
    (experiment, number, run, state, salt, allocation, weights, stickiness, resized, at, actor,
     reason)
select experiment, number, 1, 'running', 'x', '{}', '{}', 'slot', false,
       timestamptz '2026-01-01 00:00:00Z' + number * interval '1 minute', 'test', 'test'
from r, generate_series(1, 20_000) as number
"""


async def test_the_epoch_of_a_time_is_found_without_reading_those_after_it(
    pool: asyncpg.Pool,
) -> None:
    async with pool.acquire() as connection:
        await connection.execute(_PAST)
        await connection.execute("analyze epoch")
        experiment = await connection.fetchval("select id from experiment")
        await connection.execute(f"prepare found (bigint, timestamptz) as {EPOCH_AT}")
        text = await connection.fetchval(
            f"explain (analyze, buffers, format json)"
            f" execute found ({experiment}, '2026-01-02 00:00:30Z')"
        )
    (explained,) = msgspec.json.decode(text)
    assert explained["Plan"]["Shared Hit Blocks"] + explained["Plan"]["Shared Read Blocks"] < 10
