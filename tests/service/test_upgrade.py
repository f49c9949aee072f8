"""A database of the first release, with data in place, is brought up to date."""

import shutil
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from analysis.metrics import run_metric
from tests.service.loop import LATENESS, START, Service, after, definition, metric
from tests.service.recount import check
from turnout.migrate import migrate, migrations

_METRIC = """
    insert into run_metric (experiment, run, key, version, kind, event, aggregate, window_length,
                            block_seconds, closed_through, backfilled, late)
    values ($1, 1, $2, $3, 'proportion', $2, 'any', $4, $5, $6, true, 0)
"""
_SEGMENT = """
    insert into segment (journal, number, records, shipped_at, folded_at)
    values (gen_random_uuid(), 1, 20, $1, $1) returning id
"""
_EXPOSURES = """
    insert into exposure (segment, id, project, experiment, run, epoch, variant, unit_type, unit,
                          at, received_at)
    select $1, gen_random_uuid(), 'shop', $2, 1, 1, case when g % 2 = 0 then 'a' else 'b' end,
           'user', 'u' || g, $3::timestamptz + g * interval '1 s', $3
    from generate_series(1, 10) g
"""
_OUTCOMES = """
    insert into outcome (segment, ordinal, project, event, unit_type, unit, at, received_at)
    select $1, g, 'shop', 'click', 'user', 'u' || g, $2::timestamptz + g * interval '1 s', $2
    from generate_series(1, 5) g
"""


async def test_what_the_first_release_kept_is_folded_again_and_nothing_is_late(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    first.mkdir()
    [origin] = [file for file in migrations() if file.name == "0001_the_loop.sql"]
    shutil.copy(Path(__file__).parents[2] / "migrations" / origin.name, first)
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool,
        Redis.from_url(redis_url) as redis,
    ):
        async with pool.acquire() as connection:
            await migrate(connection, first)
        service = Service(pool, redis)
        record = await service.begin(definition("x", metric("click", window="2s")))
        [click] = map(run_metric, record.definition.metrics)
        closed = click.last_closed(after(100), LATENESS)
        await service.execute(
            _METRIC, record.id, click.key, click.version, click.window, click.block_seconds, closed
        )
        await service.execute("update run set analysed_revision = $1", record.revision)
        await service.execute("update fold_position set watermark = $1", after(100))
        await service.execute("select ensure_day($1::date)", START.date())
        [segment] = await service.fetch(_SEGMENT, START)
        await service.execute(_EXPOSURES, segment["id"], record.id, START)
        await service.execute(_OUTCOMES, segment["id"], START)

        async with pool.acquire() as connection:
            await migrate(connection)
            never = "select watermark = '-infinity' from fold_position"
            assert await connection.fetchval(never)  # so nothing is decided before all is folded
        await service.shipped(after(100))
        await service.tick()
        report = await service.report("x")
        assert report.units == {"a": 5, "b": 5}
        assert report.metrics[0].late_changes == 0
        assert report.metrics[0].comparisons[0].fixed.mean_control == 2 / 5
        async with pool.acquire() as connection:
            await check(connection)
