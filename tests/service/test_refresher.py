"""A router's snapshot follows what is committed: told at once, and found out if nobody told it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import asyncpg
import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from experiments import lifecycle, store
from experiments.announce import CHANNEL, announce
from experiments.keys import new_key
from experiments.model import SLOTS
from experiments.records import Live, Publication
from experiments.units import UnitKey
from router import snapshot
from router.assign import assign
from router.plane import DataPlane
from router.refresher import Refresher, SnapshotCollector
from router.snapshot import Entry
from tests.running import eventually
from tests.service.loop import SHOP, Service, definition
from turnout.service import run
from turnout.settings import Settings

NEVER = 3_600.0


def clock() -> datetime:
    """The time."""
    return datetime.now(UTC)


@asynccontextmanager
async def refreshing(refresher: Refresher) -> AsyncIterator[Refresher]:
    """Let a refresher run, from its first snapshot on."""
    await refresher.refresh()
    task = asyncio.create_task(refresher.run())

    async def listens() -> bool | None:
        return True if refresher.hinted else None

    try:
        await eventually(listens, "subscription")
        yield refresher
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of Redis."""
    async with Redis.from_url(redis_url) as client:
        yield client


async def move(
    service: Service,
    key: str,
    use_case: Callable[..., Awaitable[object]],
    *arguments: object,
) -> None:
    """Change an experiment, and tell nobody."""
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, key, lock=True)
        await use_case(connection, record, *arguments, service.change())


async def started(service: Service, *keys: str) -> None:
    """Define and start experiments."""
    for key in keys:
        await service.draft(definition(key))
        await move(service, key, lifecycle.start)


async def state_of(refresher: Refresher, key: str, wanted: str) -> bool | None:
    """Whether the snapshot has an experiment in a state."""
    entry = refresher.current.projects[SHOP].entries.get(key)
    return True if entry is not None and entry.state == wanted else None


async def test_a_router_that_is_told_of_a_change_loads_it(service: Service, redis: Redis) -> None:
    await started(service, "one")
    async with refreshing(Refresher(service.pool, redis, clock, NEVER)) as refresher:
        await move(service, "one", lifecycle.pause)
        await announce(redis, SHOP)
        await eventually(lambda: state_of(refresher, "one", "paused"), "news of the pause")


async def test_a_change_that_nobody_told_is_found_by_the_poll(
    service: Service, redis: Redis
) -> None:
    await started(service, "one")
    async with refreshing(Refresher(service.pool, redis, clock, 0.1)) as refresher:
        await move(service, "one", lifecycle.pause)
        await eventually(lambda: state_of(refresher, "one", "paused"), "news of the pause")


async def test_hints_without_end_do_not_keep_the_poll_from_its_time(
    service: Service, redis: Redis
) -> None:
    await started(service, "one")
    async with refreshing(Refresher(service.pool, redis, clock, 0.2)) as refresher:
        done = asyncio.Event()

        async def shout() -> None:
            while not done.is_set():
                # To look for so many takes longer than it takes until they are named again.
                async with redis.pipeline(transaction=False) as messages:
                    for number in range(200):
                        messages.publish(CHANNEL, f"another-{number}")
                    await messages.execute()

        shouting = asyncio.create_task(shout())
        await move(service, "one", lifecycle.pause)
        await eventually(lambda: state_of(refresher, "one", "paused"), "news of the pause")
        done.set()
        await shouting


async def test_a_message_that_is_no_text_ends_nothing(service: Service, redis: Redis) -> None:
    await started(service, "one")
    async with refreshing(Refresher(service.pool, redis, clock, NEVER)) as refresher:
        await redis.publish(CHANNEL, b"\xff\xfe")
        await move(service, "one", lifecycle.pause)
        await announce(redis, SHOP)
        await eventually(lambda: state_of(refresher, "one", "paused"), "news of the pause")


BY_A_NEWER_RELEASE: Final = {
    "a policy": """
        update experiment set definition = jsonb_set(definition::jsonb, '{policy}',
                                                     '{"kind": "quantum"}')::json
        where key = 'one'
    """,
    "a state": """
        with moved as (
            update experiment set epoch = epoch where key = 'one' returning id, epoch
        )
        update epoch e set state = 'frozen' from moved
        where e.experiment = moved.id and e.number = moved.epoch
    """,
    "a variant that the definition lacks": """
        with moved as (
            update experiment set epoch = epoch where key = 'one' returning id, epoch
        )
        update epoch e set ship = 'c' from moved
        where e.experiment = moved.id and e.number = moved.epoch
    """,
}
"""What this release cannot read: in the definition, in the epoch, and in how they fit together."""


def reason_of(refresher: Refresher, key: str) -> tuple[str, str]:
    """Which variant a unit of the second arm gets, and why."""
    entry = refresher.current.projects[SHOP].entries[key]
    unit = next(u for u in map(str, range(99)) if entry.slot_of(u) >= SLOTS // 2)
    nothing = cast("Any", None)  # what is not asked for anything
    plane = DataPlane(refresher, nothing, nothing, clock, nothing, nothing)
    answer = plane.assign(entry, unit, {})
    return answer.arm.key, answer.reason


@pytest.mark.parametrize("what", BY_A_NEWER_RELEASE)
async def test_what_cannot_be_read_keeps_back_nothing_else(
    service: Service, redis: Redis, what: str
) -> None:
    await started(service, "one", "two")
    await service.begin(definition("three"), "the-last-project")
    refresher = Refresher(service.pool, redis, clock)
    await refresher.refresh()
    assert reason_of(refresher, "one") == ("b", "split")
    before = refresher.refreshed_at

    await service.execute(BY_A_NEWER_RELEASE[what])
    await move(service, "two", lifecycle.pause)
    await service.pause("three", "the-last-project")
    await refresher.refresh()
    assert before is not None
    assert refresher.refreshed_at is not None
    assert refresher.refreshed_at > before
    assert await state_of(refresher, "two", "paused")
    assert refresher.current.projects["the-last-project"].entries["three"].state == "paused"
    # It may have been rolled back by whoever could write so: nobody meets the second arm.
    assert reason_of(refresher, "one") == ("a", "stale")
    assert unread(refresher) == 1

    fresh = Refresher(service.pool, redis, clock)
    await fresh.refresh()
    assert fresh.current.projects[SHOP].entries.keys() == {"two"}


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_could_not_be_read_is_tried_again_until_it_can(
    service: Service, redis: Redis, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    await started(service, "one", "two")
    kept: list[Publication] = []
    refresher = Refresher(service.pool, redis, clock, keep=kept.append)
    await refresher.refresh()
    compiles = snapshot.compile_entry

    def fails(live: Live, unit_key: UnitKey | None = None) -> Entry:
        if live.record.key == "one":
            raise MemoryError
        return compiles(live, unit_key)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "compile_entry", fails)
        await move(service, "one", lifecycle.roll_back)
        await refresher.refresh()
        assert reason_of(refresher, "one") == ("a", "stale")
        await refresher.refresh()  # and again in vain
        assert reason_of(refresher, "one") == ("a", "stale")
        if restarted:
            refresher = Refresher(service.pool, redis, clock)
            await refresher.restore(kept[-1:], clock())
    assert unread(refresher) == 1
    await refresher.refresh()
    assert reason_of(refresher, "one") == ("a", "rolled_back")
    assert unread(refresher) == 0


def unread(refresher: Refresher) -> float:
    """What the metrics say of it."""
    found = {metric.name: metric for metric in SnapshotCollector(refresher).collect()}
    return found["turnout_experiments_unread"].samples[0].value


async def test_an_old_file_does_not_bring_back_what_cannot_be_read(
    service: Service, redis: Redis
) -> None:
    await started(service, "one", "two")
    kept: list[Publication] = []
    refresher = Refresher(service.pool, redis, clock, keep=kept.append)
    await refresher.refresh()
    await service.execute(BY_A_NEWER_RELEASE["a policy"])
    await refresher.refresh()
    restored = Refresher(service.pool, redis, clock)
    await restored.restore(kept[-1:], clock())
    assert restored.current.projects[SHOP].entries.keys() == {"two"}
    # The release that comes next can read it.
    await service.execute(
        "update experiment set definition = (definition::jsonb - 'policy')::json where key = 'one'"
    )
    await restored.refresh()
    assert reason_of(restored, "one") == ("b", "split")


async def test_a_rollback_by_the_release_before_is_news(service: Service, redis: Redis) -> None:
    """It raises the version of the project alone, for it knows no other."""
    await started(service, "one", "two")
    refresher = Refresher(service.pool, redis, clock)
    await refresher.refresh()
    two = refresher.current.projects[SHOP].entries["two"]
    await service.execute("update project set version = version + 1 where key = $1", SHOP)
    await service.execute(
        """with news as (
               insert into epoch (experiment, number, run, state, salt, allocation, weights,
                                  stickiness, resized, at, actor, reason)
               select experiment, number + 1, run, 'rolled_back', salt, allocation, weights,
                      stickiness, false, at, actor, 'harm'
               from epoch where experiment = (select id from experiment where key = 'one')
               returning experiment, number, state
           )
           update experiment x set state = news.state, epoch = news.number
           from news where x.id = news.experiment"""
    )
    await refresher.refresh()
    assert await state_of(refresher, "one", "rolled_back")
    assert refresher.current.projects[SHOP].entries["two"] is two


async def test_a_router_starts_with_what_it_cannot_read(
    migrated_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with (
        asyncpg.create_pool(migrated_url, min_size=1, max_size=4) as pool,
        Redis.from_url(redis_url) as redis,
    ):
        service = Service(pool, redis)
        await started(service, "one", "two")
        await service.execute(BY_A_NEWER_RELEASE["a policy"])
        text, key = new_key(SHOP, "service", "", clock(), lambda size: b"k" * size)
        async with pool.acquire() as connection, connection.transaction():
            await store.insert_key(connection, key)
    settings = Settings(
        database_url=migrated_url, redis_url=redis_url, data_dir=str(tmp_path), port=0
    )
    lines: list[str] = []
    stop = asyncio.Event()
    serving = asyncio.create_task(run(settings, lines.append, stop, "serve"))

    async def serves() -> str | None:
        if serving.done():
            serving.result()
        found = [line.rpartition(" ")[2] for line in lines if "serves on" in line]
        return found[0] if found else None

    try:
        url = await eventually(serves, "address")
        headers = {"Authorization": f"Bearer {text}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, verify=False) as client:  # noqa: S501 - plain HTTP
            for name, status in (("two", 200), ("one", 404)):
                asked = {"experiment": name, "unit": "u1", "expose": False}
                assert (await client.post("/v1/assign", json=asked)).status_code == status
            metrics = (await client.get("/metrics")).text
        assert "turnout_experiments_unread 1.0" in metrics
    finally:
        stop.set()
        await serving


async def test_a_change_replaces_one_entry_and_leaves_the_others(
    service: Service, redis: Redis
) -> None:
    await started(service, "one", "two", "three")
    refresher = Refresher(service.pool, redis, clock)
    await refresher.refresh()
    before = refresher.current.projects[SHOP]
    await move(service, "two", lifecycle.pause)
    await move(service, "three", lifecycle.conclude, "b")
    await move(service, "three", lifecycle.archive)
    await refresher.refresh()
    after = refresher.current.projects[SHOP]
    assert after.entries["one"] is before.entries["one"]
    assert after.entries.keys() == {"one", "two"}
    assert (before.entries["two"].state, after.entries["two"].state) == ("running", "paused")
    assert after.version > before.version


async def test_what_is_kept_of_a_project_is_whole_whatever_came_in_pieces(
    service: Service, redis: Redis
) -> None:
    await started(service, "one", "two", "three")
    kept: list[Publication] = []
    refresher = Refresher(service.pool, redis, clock, keep=kept.append)
    await refresher.refresh()
    await move(service, "two", lifecycle.pause)
    await refresher.refresh()
    await move(service, "one", lifecycle.conclude, "b")
    await move(service, "one", lifecycle.archive)
    await refresher.refresh()
    async with service.pool.acquire() as connection:
        whole = await store.load_publication(connection, SHOP)
    assert whole is not None
    assert [(p.since, p.gone) for p in kept] == [(None, ())] * 3
    newest = {live.record.key: live for live in kept[-1].experiments}
    assert newest == {live.record.key: live for live in whole.experiments}

    restored = Refresher(service.pool, redis, clock)
    await restored.restore([kept[-1]], clock())
    ours, theirs = (r.current.projects[SHOP] for r in (restored, refresher))
    assert ours.version == theirs.version
    for key, entry in theirs.entries.items():
        for unit in ("u1", "u2", "u3"):
            context = {"targetingKey": unit}
            assert assign(ours.entries[key], unit, context) == assign(entry, unit, context)


async def test_a_revoked_key_is_gone_with_the_next_news(
    service: Service, redis: Redis, pool: asyncpg.Pool
) -> None:
    await started(service, "one")
    text, key = new_key(SHOP, "service", "", clock(), lambda size: b"k" * size)
    async with pool.acquire() as connection, connection.transaction():
        await store.insert_key(connection, key)
    async with refreshing(Refresher(service.pool, redis, clock, NEVER)) as refresher:
        assert refresher.find_key(key.id) == key, text
        async with pool.acquire() as connection, connection.transaction():
            assert await store.revoke_key(connection, SHOP, key.id, clock())
        await announce(redis, SHOP)

        async def is_gone() -> bool | None:
            return True if refresher.find_key(key.id) is None else None

        await eventually(is_gone, "end of the key")


async def test_who_waits_for_a_change_hears_of_the_newest(service: Service, redis: Redis) -> None:
    await started(service, "one")
    refresher = Refresher(service.pool, redis, clock)
    await refresher.refresh()
    version = refresher.current.projects[SHOP].version
    waiting = [asyncio.create_task(refresher.changed(SHOP, version)) for _ in range(3)]
    await asyncio.sleep(0)
    await move(service, "one", lifecycle.pause)
    await move(service, "one", lifecycle.resume)
    await refresher.refresh()
    newest = refresher.current.projects[SHOP].version
    assert newest > version + 1
    assert await asyncio.gather(*waiting) == [newest] * 3
    assert await refresher.changed(SHOP, version) == newest
