"""The controller's ticks: what is looked at, when, and by which clock."""

import asyncio
import socket
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from analysis.control.controller import _WATCHED, Controller, Pace, database_time
from analysis.control.decide import decide
from analysis.control.telemetry import AnalysisMetrics
from experiments.announce import CHANNEL
from router.records import Record
from tests.running import eventually
from tests.service.loop import LATENESS, SHOP, Service, Visitors, definition, metric, rates
from tests.service.test_cost import rows_read


def guarded(key: str, **others: Any) -> dict[str, Any]:
    """An experiment with a guardrail."""
    return definition(key, metric("error", "guardrail", goal="decrease"), **others)


def leader(service: Service, redis: Redis, pace: Pace, seconds: float = 0.0) -> Controller:
    """A controller that goes by the database's clock, and each of whose looks at its watch takes so
    many seconds."""
    watch = count()
    return Controller(
        service.pool,
        redis,
        database_time,
        lambda: next(watch) * seconds,
        "leader",
        pace,
        AnalysisMetrics(CollectorRegistry()),
    )


async def harm(service: Service, key: str, project: str = SHOP) -> None:
    """A variant does harm, all of which is shipped, and none of it folded."""
    record = await service.begin(guarded(key), project)
    records: list[Record] = []
    for number in range(400):
        unit, variant = f"u{number}", "ab"[number % 2]
        at = service.clock.now + timedelta(milliseconds=20 * number)
        records.append(service.exposure(record, unit, variant, at))
        if variant == "b":
            records.append(service.outcome("error", unit, at, project=project))
    await service.ship(records)
    service.clock.advance(20)
    await service.shipped()


@pytest_asyncio.fixture
async def looked(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The experiments of this service that are looked at, in order."""
    keys: list[str] = []
    which = "select current_database()"
    [(database,)] = await service.fetch(which)

    async def noted(connection: Any, record: Any, **others: Any) -> Any:
        if await connection.fetchval(which) == database:  # other Turnouts may run in this process
            keys.append(record.key)
        return await decide(connection, record, **others)

    monkeypatch.setattr("analysis.control.controller.decide", noted)
    return keys


async def test_an_experiment_in_which_something_finished_is_looked_at_first(
    service: Service, looked: list[str]
) -> None:
    for key in "abc":
        await service.begin(guarded(key))
    await service.tick()
    await Visitors(service, "b", seed=1).come(50, {"error": rates(a=0.1, b=0.1)})
    await service.tick()  # it is folded, and nothing of it has finished
    looked.clear()
    await service.settle(10)
    assert looked == ["b", "a", "c"]


async def test_those_that_only_time_moves_on_take_turns(
    service: Service, redis_url: str, looked: list[str]
) -> None:
    keys = [f"x{number}" for number in range(6)]
    for key in keys:
        await service.begin(guarded(key))
    await service.shipped()
    async with Redis.from_url(redis_url) as redis:
        slow = leader(service, redis, Pace(idle=timedelta(0)), seconds=0.03)
        assert await slow.tick()
        assert 0 < len(looked) < len(keys)
        for _ in range(5):
            assert await slow.tick()
    first = looked[: len(keys)]
    assert sorted(first) == keys
    assert looked[len(keys) : 2 * len(keys)] == first


async def test_one_in_which_nothing_finished_is_not_looked_at_in_every_tick(
    service: Service, redis_url: str, looked: list[str]
) -> None:
    await service.begin(guarded("x"))
    await service.shipped()
    async with Redis.from_url(redis_url) as redis:
        quick = leader(service, redis, Pace(idle=timedelta(seconds=1)), seconds=0.001)
        for _ in range(10):
            assert await quick.tick()
    assert looked == ["x"]


async def test_what_a_tick_reads_to_know_what_finished_does_not_grow_with_history(
    service: Service,
) -> None:
    """Neither with experiments that are over, nor with the open blocks of one that lives."""
    await service.begin(guarded("lives"))
    visitors = Visitors(service, "lives", seed=1)
    read = []
    for over in ((), [f"over-{number}" for number in range(6)]):
        for key in over:
            await service.begin(guarded(key))
            await Visitors(service, key, seed=1).come(5, {})
        if over:
            await service.settle(30)
            for key in over:
                await service.conclude(key)
            await visitors.come(200, {}, seconds=100)
        await visitors.come(20, {}, seconds=1)
        await service.tick()
        [cells] = await service.fetch("select count(*) from cell where block > 0")
        async with service.pool.acquire() as connection, connection.transaction():
            await connection.execute("set local enable_seqscan = off")  # tables as small as these
            watch = partial(connection.fetch, _WATCHED, service.clock.now, LATENESS)
            read.append((cells["count"], await rows_read(connection, watch)))
    (few, before), (many, after) = read
    assert few * 2 < many
    assert after == before


@pytest.mark.parametrize("part", ["backfill", "ensure_days"])
async def test_upkeep_that_fails_keeps_no_guard_from_acting(
    service: Service, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    await service.begin(guarded("x"))
    monkeypatch.setattr(f"analysis.control.controller.{part}", broken)
    visitors = Visitors(service, "x", seed=1)
    for _ in range(40):
        await visitors.come(40, {"error": rates(a=0.05, b=0.9)})
        assert await service.controller.tick()
        if await service.decisions("x"):
            break
    assert [decision.kind for decision in await service.decisions("x")] == ["rollback"]
    assert service.failures() == 1  # it rests
    service.clock.advance(61)
    assert await service.controller.tick()
    assert service.failures() == 2


async def test_routers_are_told_of_a_decision(service: Service, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis, redis.pubsub() as channel:
        await channel.subscribe(CHANNEL)
        await harm(service, "x")
        await service.tick()
        async with asyncio.timeout(5):
            while (message := await channel.get_message(timeout=1)) is None or (
                message["type"] != "message"
            ):
                pass
    assert message["data"] == SHOP.encode()


async def test_a_redis_that_does_not_answer_puts_no_decision_off(service: Service) -> None:
    """Several experiments turn bad at once: the last is rolled back as soon as if it was alone."""
    keys = ["x", "y", "z"]
    for key in keys:
        await harm(service, key, project=f"project-{key}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with Redis(port=silent.getsockname()[1]) as redis:
            slow = leader(service, redis, Pace(lateness=LATENESS))
            running = asyncio.create_task(slow.run())

            async def all_decided() -> list[datetime] | None:
                found = [await service.decisions(key, f"project-{key}") for key in keys]
                return [each[0].at for each in found] if all(found) else None

            at = await eventually(all_decided, "decision on each of them")
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
    # An announcement is given up after a second.
    assert max(at) - min(at) < timedelta(seconds=1)


async def test_decisions_go_by_the_clock_of_the_database_and_never_back(
    service: Service, redis_url: str
) -> None:
    """No process that leads has a say in what time it is; and where the database's clock was ahead
    and was put right, what follows is not dated before what it follows."""
    policy = {"kind": "thompson", "metric": "click", "every": "1s", "warmup": 10, "max_step": 1}
    await service.begin(definition("x", metric("click", "primary"), policy=policy))
    await Visitors(service, "x", seed=1).come(400, {"click": rates(a=0.1, b=0.9)})
    service.clock.advance(60)
    await service.shipped()
    now = await service.fetch("select clock_timestamp() as now")
    ahead = now[0]["now"] + timedelta(hours=1)
    await service.execute("update experiment set updated_at = $1", ahead)
    async with Redis.from_url(redis_url) as redis:
        assert await leader(service, redis, Pace(lateness=LATENESS)).tick()
    epochs = await service.epochs("x")
    decisions = await service.ledger("x")
    assert {decision.at for decision in decisions if decision.rule == "bandit"} == {ahead}
    assert epochs[-1].at <= ahead
