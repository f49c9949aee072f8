"""A database of the first release, with data in place, is brought up to date."""

import shutil
from pathlib import Path

import asyncpg
import msgspec
from redis.asyncio import Redis

from analysis.folding.metrics import run_metric
from experiments import store
from experiments.allocation import initial
from experiments.definition import parse_definition
from experiments.model import Experiment
from tests.service.loop import LATENESS, SHOP, START, Service, after, definition, metric
from tests.service.recount import check
from turnout.migrate import migrate, migrations

# The experiment as the first release wrote it: what writes it today knows columns that came later.
_PROJECT = "insert into project (key, version, created_at) values ('shop', 7, $1)"
_EXPERIMENT = """
    insert into experiment (project, key, state, revision, run, epoch, definition, created_at,
                            updated_at)
    values ('shop', 'x', 'running', 1, 1, 1, $2, $1, $1) returning id
"""
_REVISION = """
    insert into revision (experiment, number, definition, at, actor, reason)
    values ($2, 1, $3, $1, 'k', 'r')
"""
_RUN = """
    insert into run (experiment, number, salt, started_at, analysed_revision)
    values ($2, 1, 'x', $1, 1)
"""
_EPOCH = """
    insert into epoch (experiment, number, run, state, salt, allocation, weights, stickiness,
                       resized, at, actor, reason)
    values ($2, 1, 1, 'running', 'x', $3, '{"a": 0.5, "b": 0.5}', 'slot', true, $1, 'k', 'r')
"""
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


def _first_release(folder: Path) -> Path:
    """The migrations of the first release."""
    first = folder / "first"
    first.mkdir()
    [origin] = [file for file in migrations() if file.name == "0001_the_loop.sql"]
    shutil.copy(Path(__file__).parents[2] / "migrations" / origin.name, first)
    return first


async def _begun(service: Service, old: Experiment) -> int:
    """An experiment that the first release has started and taken in; its id."""
    await service.execute(_PROJECT, START)
    text = msgspec.json.encode(old).decode()
    [row] = await service.fetch(_EXPERIMENT, START, text)
    number: int = row["id"]
    await service.execute(_REVISION, START, number, text)
    await service.execute(_RUN, START, number)
    split = msgspec.json.encode(initial(old.weights, 1.0)).decode()
    await service.execute(_EPOCH, START, number, split)
    return number


async def test_what_the_first_release_kept_is_folded_again_and_nothing_is_late(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    first = _first_release(tmp_path)
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool,
        Redis.from_url(redis_url) as redis,
    ):
        async with pool.acquire() as connection:
            await migrate(connection, first)
        service = Service(pool, redis)
        old = parse_definition(definition("x", metric("click", window="2s")))
        [click] = map(run_metric, old.metrics)
        number = await _begun(service, old)
        closed = click.last_closed(after(100), LATENESS)
        await service.execute(
            _METRIC, number, click.key, click.version, click.window, click.block_seconds, closed
        )
        await service.execute("update fold_position set watermark = $1", after(100))
        await service.execute("select ensure_day($1::date)", START.date())
        [segment] = await service.fetch(_SEGMENT, START)
        await service.execute(_EXPOSURES, segment["id"], number, START)
        await service.execute(_OUTCOMES, segment["id"], START)

        async with pool.acquire() as connection:
            await migrate(connection)
            never = "select watermark = '-infinity' from fold_position"
            assert await connection.fetchval(never)  # so nothing is decided before all is folded
            publication = await store.load_publication(connection, SHOP)
            assert publication is not None
            [live] = publication.experiments
            assert (live.epoch.layer, live.epoch.holdout, live.overrides) == (None, None, ())
            [row] = await service.fetch("select version from experiment")
            assert row["version"] == publication.version == 7
        await service.shipped(after(100))
        await service.tick()
        report = await service.report("x")
        assert report.units == {"a": 5, "b": 5}
        assert report.metrics[0].late_changes == 0
        assert report.metrics[0].comparisons[0].fixed.mean_control == 2 / 5
        async with pool.acquire() as connection:
            await check(connection)
        # and goes on by today's rules
        assert (await service.pause("x")).epoch == 2
        async with pool.acquire() as connection:
            news = await store.load_publication(connection, SHOP, 7)
            assert news is not None
            assert [live.record.key for live in news.experiments] == ["x"]


async def test_a_run_that_had_begun_without_units_is_broken_down_afterwards(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool,
        Redis.from_url(redis_url) as redis,
    ):
        async with pool.acquire() as connection:
            await migrate(connection, _first_release(tmp_path))
        service = Service(pool, redis)
        data = definition("x", metric("click", "primary", window="2s"), record=["country"])
        await _begun(service, parse_definition(data))
        async with pool.acquire() as connection:
            await migrate(connection)
        record = await service.find("x")
        await service.ship(
            [service.exposure(record, "u1", "a", after(1), attributes={"country": "DE"})]
        )
        await service.settle()
        [found] = (await service.report("x")).breakdowns
        assert [c.segment.value for c in found.segments] == ["DE"]
