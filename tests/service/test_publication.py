"""What routers read of a project: all of it, or what is new since a version, exactly."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from analysis.upkeep.erase import Order, erase
from experiments import holdout, lifecycle, overrides, store
from experiments.projects import unit_key
from experiments.records import Live, Publication
from router.records import names_unit
from tests.running import eventually
from tests.service.loop import SHOP, Service, Visitors, definition, metric, rates

Act = Callable[[Service], Awaitable[Any]]


async def published(service: Service, since: int | None = None) -> Publication:
    """What routers read of the shop."""
    async with service.pool.acquire() as connection:
        publication = await store.load_publication(connection, SHOP, since)
    assert publication is not None
    return publication


def keys(publication: Publication) -> list[str]:
    """The experiments in it."""
    return [live.record.key for live in publication.experiments]


async def override(service: Service, key: str, unit: str, variant: str = "b") -> None:
    """Give a unit a variant."""
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find_to_change(connection, SHOP, key)
        wish = overrides.Wish(variant, unit, None, None, "tester", "a test", service.clock.now)
        await overrides.add_override(connection, record, wish)


async def hold_out(service: Service, share: float) -> None:
    """Set the holdout."""
    async with service.pool.acquire() as connection, connection.transaction():
        await holdout.put_holdout(connection, SHOP, holdout.Wish(share), service.change())


async def move(service: Service, key: str, verb: Callable[..., Awaitable[Any]]) -> None:
    """Move an experiment to another state."""
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find_to_change(connection, SHOP, key)
        await verb(connection, record, service.change())


async def archive(service: Service, key: str) -> None:
    """Put an experiment away."""
    await move(service, key, lifecycle.archive)


class Router:
    """A router's memory of a project, brought up to date by what is new alone."""

    def __init__(self) -> None:
        self.version: int | None = None
        self.known: dict[str, Live] = {}
        self.loaded = 0

    def take_in(self, news: Publication) -> None:
        """What is new replaces what was known; what is gone is forgotten."""
        assert news.since == self.version
        self.known |= {live.record.key: live for live in news.experiments}
        for key in news.gone:
            self.known.pop(key, None)
        self.version = news.version
        self.loaded += len(news.experiments)


async def test_all_of_a_project_is_published_but_drafts_and_what_is_put_away(
    service: Service,
) -> None:
    for key in ("x", "y", "z"):
        await service.begin(definition(key))
    await service.draft(definition("draft"))
    await service.conclude("z")
    await service.conclude("y")
    await archive(service, "y")
    publication = await published(service)
    assert keys(publication) == ["x", "z"]
    assert (publication.since, publication.gone, publication.holdout) == (None, (), None)


async def test_a_change_brings_the_changed_experiment_alone(service: Service) -> None:
    for key in ("x", "y", "z"):
        await service.begin(definition(key))
    before = await published(service)
    assert keys(await published(service, before.version)) == []
    await service.pause("y")
    news = await published(service, before.version)
    assert (keys(news), news.gone, news.since) == (["y"], (), before.version)
    assert news.experiments[0].epoch.state == "paused"
    assert news.version > before.version
    assert keys(await published(service, news.version)) == []


CHANGES: Final[dict[str, Act]] = {
    "a pause": lambda s: s.pause("x"),
    "a conclusion": lambda s: s.conclude("x"),
    "weights": lambda s: s.allocate("x", {"a": 0.2, "b": 0.8}),
    "a definition": lambda s: s.amend("x", {"record": ["country"]}),
    "targeting": lambda s: s.amend("x", {"targeting": {"==": [{"var": "plan"}, "pro"]}}),
    "when it is stale": lambda s: s.amend("x", {"when_stale": {"after": "1m", "do": "control"}}),
    "an override": lambda s: override(s, "x", "ann"),
    "a rollback": lambda s: move(s, "x", lifecycle.roll_back),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_is_news(service: Service, change: str) -> None:
    await service.begin(definition("x"))
    await service.begin(definition("y"))
    before = await published(service)
    await CHANGES[change](service)
    assert keys(await published(service, before.version)) == ["x"]


async def test_a_holdout_is_news_of_all_that_pin_it(service: Service) -> None:
    for key in ("x", "y", "z"):
        await service.begin(definition(key))
    await service.pause("y")
    await service.conclude("z")
    before = await published(service)
    await hold_out(service, 0.1)
    news = await published(service, before.version)
    assert keys(news) == ["x", "y"]
    assert news.holdout is not None
    assert news.holdout.record.key == "$holdout"
    assert {live.epoch.holdout.epoch for live in news.experiments if live.epoch.holdout} == {1}
    await hold_out(service, 0)
    assert (await published(service, news.version)).holdout is None


async def test_what_the_controller_does_is_news(service: Service) -> None:
    await service.begin(definition("x", metric("ok", "guardrail")))
    await service.begin(definition("y", metric("ok", "guardrail")))
    before = await published(service)
    visitors = Visitors(service, "x", seed=1)
    for _ in range(40):
        await visitors.come(100, {"ok": rates(a=0.9, b=0.1)})
        await service.tick()
    news = await published(service, before.version)
    assert [(live.record.key, live.record.state) for live in news.experiments] == [
        ("x", "rolled_back")
    ]


async def test_what_was_put_away_is_gone(service: Service) -> None:
    await service.begin(definition("x"))
    await service.conclude("x")
    before = await published(service)
    await archive(service, "x")
    news = await published(service, before.version)
    assert (keys(news), news.gone) == ([], ("x",))
    assert (await published(service, news.version)).gone == ()


async def test_an_erased_unit_is_gone_from_the_overrides(service: Service) -> None:
    for key in ("x", "y", "z"):
        await service.begin(definition(key))
    for key, unit in (("x", "ann"), ("y", "ann"), ("z", "ben")):
        await override(service, key, unit)
    await override(service, "x", "ann", "a")  # and so the first one is ended
    before = await published(service)
    async with service.pool.acquire() as connection, connection.transaction():
        secret = await unit_key(connection, SHOP, bytes)
        order = Order(SHOP, [("session", "ben"), ("user", "ann")], "tester", "a request")
        await erase(connection, order, secret, service.clock, names_unit)
    news = await published(service, before.version)
    assert keys(news) == ["x", "y"]
    assert [live.overrides for live in news.experiments] == [(), ()]
    left = await service.fetch("select unit from override")
    assert [row["unit"] for row in left] == ["ben"]


async def test_a_version_that_there_never_was_brings_everything(service: Service) -> None:
    """A database may have been restored from yesterday's backup."""
    await service.begin(definition("x"))
    publication = await published(service, 1_000)
    assert (publication.since, keys(publication)) == (None, ["x"])


async def test_a_change_that_was_not_committed_is_no_news(service: Service) -> None:
    await service.begin(definition("x"))
    before = await published(service)
    async with service.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        record = await lifecycle.find_to_change(connection, SHOP, "x")
        await lifecycle.pause(connection, record, service.change())
        during = await published(service, before.version)
        assert (keys(during), during.version) == ([], before.version)
        await transaction.rollback()
    assert (await published(service, before.version)).version == before.version
    await service.pause("x")
    assert keys(await published(service, before.version)) == ["x"]


async def test_no_version_is_seen_before_a_lower_one_is_committed(service: Service) -> None:
    """What changes second waits for the first, whichever experiments they are of: otherwise a
    router that saw the second's version would never ask for the first."""
    await service.begin(definition("x"))
    await service.begin(definition("y"))
    before = await published(service)
    async with service.pool.acquire() as connection:
        first = connection.transaction()
        await first.start()
        record = await lifecycle.find_to_change(connection, SHOP, "x")
        await lifecycle.pause(connection, record, service.change())
        second = asyncio.create_task(service.pause("y"))
        await _waits_for_a_lock(service)
        assert (await published(service)).version == before.version
        assert not second.done()
        await first.commit()
    await second
    assert sorted(keys(await published(service, before.version))) == ["x", "y"]
    versions = await service.fetch("select version from experiment order by key")
    assert versions[0]["version"] < versions[1]["version"]


async def _waits_for_a_lock(service: Service) -> None:
    waiting = """
        select pid from pg_stat_activity
        where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0
    """

    async def somebody_waits() -> bool | None:
        return True if await service.fetch(waiting) else None

    await eventually(somebody_waits, "wait for a lock")


async def test_a_router_that_reads_the_news_alone_knows_all_there_is(service: Service) -> None:
    """Writers at once, of every kind, and a router that reads in between: at the end it knows what
    one knows that reads everything."""
    names = [f"e{number}" for number in range(6)]
    for key in names:
        await service.begin(definition(key))
    generator = random.Random(11)  # noqa: S311 - a test
    router, done = Router(), asyncio.Event()

    async def write(number: int) -> None:
        key = generator.choice(names)
        acts: list[Act] = [
            lambda s: s.allocate(key, {"a": 0.5 - number / 100, "b": 0.5 + number / 100}),
            lambda s: s.amend(key, {"tags": [f"t{number}"]}),
            lambda s: override(s, key, f"unit-{number}"),
            lambda s: hold_out(s, number / 1000),
        ]
        await generator.choice(acts)(service)

    async def write_all() -> None:
        async with asyncio.TaskGroup() as writers:
            for lane in range(3):
                writers.create_task(_in_turn(write, range(lane, 36, 3)))
        done.set()

    async def read() -> None:
        while not done.is_set():
            router.take_in(await published(service, router.version))
        router.take_in(await published(service, router.version))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write_all())
        tasks.create_task(read())
    for key in names[:2]:
        await service.conclude(key)
        await archive(service, key)
    router.take_in(await published(service, router.version))
    everything = await published(service)
    assert router.known == {live.record.key: live for live in everything.experiments}
    assert router.version == everything.version
    assert sorted(router.known) == names[2:]


async def _in_turn(act: Callable[[int], Awaitable[None]], numbers: range) -> None:
    for number in numbers:
        await act(number)


async def test_everything_else_has_its_turn_while_hundreds_of_experiments_are_read(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await service.begin(definition("x"))
    copies = 300
    await service.execute(
        """insert into experiment (project, key, state, revision, run, epoch, definition,
                                   created_at, updated_at, version)
           select project, key || g, state, revision, run, epoch, definition, created_at,
                  updated_at, version
           from experiment, generate_series(1, $1) g""",
        copies,
    )
    for table in ("run", "epoch"):
        columns = await service.fetch(
            "select column_name from information_schema.columns where table_name = $1", table
        )
        others = ", ".join(r["column_name"] for r in columns if r["column_name"] != "experiment")
        await service.execute(
            f"""insert into {table} (experiment, {others})
                select x.id, {", ".join("t." + name for name in others.split(", "))}
                from {table} t, experiment x where t.experiment = $1 and x.id <> $1""",  # noqa: S608
            record.id,
        )
    stretch, longest, read = 0, 0, store._experiment

    def counted(*arguments: Any) -> Any:
        nonlocal stretch, longest
        stretch += 1
        longest = max(longest, stretch)
        return read(*arguments)

    async def turn() -> None:
        nonlocal stretch
        while True:
            stretch = 0
            await asyncio.sleep(0)

    monkeypatch.setattr(store, "_experiment", counted)
    turning = asyncio.create_task(turn())
    publication = await published(service)
    turning.cancel()
    assert len(publication.experiments) == copies + 1
    assert 1 < longest <= store.SLICE
