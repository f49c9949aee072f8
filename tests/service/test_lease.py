"""One controller leads, whoever dies, freezes or comes late; what it decides is decided once."""

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from analysis.control import controller as control
from analysis.control.controller import Controller, Pace, database_time
from analysis.control.decide import decide
from analysis.control.lease import Lease, LostLeaseError
from analysis.control.telemetry import AnalysisMetrics
from analysis.folding.pause import PIECE, Pause
from experiments import store
from tests.service.loop import LATENESS, Service, Visitors, definition, metric, rates
from turnout import backends

SHORT = timedelta(seconds=1)
LONG = timedelta(seconds=30)
# A slow fold is one in which the lease runs out.
_SLOW = """
    create function outlive() returns trigger language plpgsql as $$ begin
        update lease set expires_at = clock_timestamp() - interval '1 ms';
        return new;
    end $$;
    create trigger outlive after update on segment for each row execute function outlive()
"""
_WAITS = """
    select exists (select from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock') as waits
"""
_EXPIRE = "update lease set expires_at = clock_timestamp() - interval '1 ms'"


def lease(holder: str, life: timedelta = LONG) -> Lease:
    """The lease as one process sees it."""
    return Lease("controller", holder, life)


async def expire(service: Service) -> None:
    """Let the lease's time run out."""
    await service.execute(_EXPIRE)


async def takeover(service: Service, other: Lease) -> int:
    """The term in which another process leads, once it does."""
    async with asyncio.timeout(10), service.pool.acquire() as connection:
        while (term := await other.take(connection)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the other side sets no event that we could wait for
        return term


async def note(connection: store.Connection, text: str) -> None:
    """Do something that only a leader may do."""
    await connection.execute(
        "insert into project (key, created_at) values ($1, clock_timestamp())", text
    )


async def notes(service: Service) -> list[str]:
    """What leaders did."""
    return [row["key"] for row in await service.fetch("select key from project order by key")]


async def test_one_of_many_leads_and_goes_on_leading(service: Service) -> None:
    controllers = [service.new_controller(f"process {i}") for i in range(5)]
    rounds = [await asyncio.gather(*(c.tick() for c in controllers)) for _ in range(10)]
    assert [sum(leads) for leads in rounds] == [1] * 10
    assert all(leads == rounds[0] for leads in rounds)
    [row] = await service.fetch("select term from lease")
    assert row["term"] == 1


async def test_another_process_takes_over_after_the_expiry_in_a_higher_term(
    service: Service,
) -> None:
    first, second = lease("first"), lease("second")
    async with service.pool.acquire() as connection:
        assert await first.take(connection) == 1
        assert await second.take(connection) is None
        assert await first.take(connection) == 1
        await expire(service)
        assert await second.take(connection) == 2
        assert await first.take(connection) is None
        with pytest.raises(LostLeaseError):
            async with connection.transaction():
                await first.hold(connection)
        async with connection.transaction():
            assert await second.hold(connection) == 2


async def test_a_leader_that_comes_back_after_its_expiry_begins_a_new_term(
    service: Service,
) -> None:
    first = lease("first")
    async with service.pool.acquire() as connection:
        await first.take(connection)
        await expire(service)
        with pytest.raises(LostLeaseError):
            await first.hold(connection)
        assert await first.take(connection) == 2


async def test_who_gives_up_lets_another_lead_at_once(service: Service) -> None:
    first, second = lease("first"), lease("second")
    async with service.pool.acquire() as connection:
        await first.take(connection)
        await first.give_up(connection)
        assert await second.take(connection) == 2
        await first.give_up(connection)  # it has nothing left to give up
        assert await second.take(connection) == 2


async def test_a_transaction_of_a_deposed_leader_leaves_nothing_behind(service: Service) -> None:
    first, second = lease("first"), lease("second")

    async def work(one: store.Connection, other: store.Connection) -> None:
        async with one.transaction():
            await note(one, "first")
            await expire(service)
            await second.take(other)
            await first.hold(one)

    async with service.pool.acquire() as one, service.pool.acquire() as other:
        await first.take(one)
        with pytest.raises(LostLeaseError):
            await work(one, other)
    assert await notes(service) == []


async def test_no_term_begins_while_a_transaction_of_the_last_one_is_at_work(
    service: Service,
) -> None:
    first, second = lease("first"), lease("second")
    async with service.pool.acquire() as one, service.pool.acquire() as other:
        await first.take(one)
        async with one.transaction():
            await first.hold(one)
            await one.execute(_EXPIRE)
            takeover = asyncio.create_task(second.take(other))
            await asyncio.sleep(0.2)
            assert not takeover.done()
            await note(one, "first")
        assert await takeover == 2
    assert await notes(service) == ["first"]


async def test_a_term_lives_from_when_its_row_is_free(service: Service) -> None:
    """Not from when it was asked for: whoever waits would begin a term that is nearly over."""
    first, second = lease("first"), lease("second")
    async with service.pool.acquire() as one, service.pool.acquire() as other:
        await first.take(one)
        async with one.transaction():
            await first.hold(one)
            await one.execute(_EXPIRE)
            takeover = asyncio.create_task(second.take(other))
            async with asyncio.timeout(10):
                while not (await service.fetch(_WAITS))[0]["waits"]:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.01)
            freed_at = await one.fetchval("select clock_timestamp()")
        assert await takeover == 2
        assert await other.fetchval("select expires_at from lease") >= freed_at + LONG


async def test_a_process_that_freezes_in_a_transaction_is_cut_off(
    service: Service, migrated_url: str
) -> None:
    first, second = lease("first", SHORT), lease("second")
    frozen = await asyncpg.connect(migrated_url)
    try:
        await first.take(frozen)
        await frozen.execute("begin")
        await first.hold(frozen)
        await note(frozen, "first")
        assert await takeover(service, second) == 2
        assert await notes(service) == []
    finally:
        frozen.terminate()


async def test_who_works_long_between_statements_is_not_taken_for_frozen(
    service: Service,
) -> None:
    first = lease("first", SHORT)
    async with service.pool.acquire() as connection:
        await first.take(connection)
        async with connection.transaction():
            await first.hold(connection)
            pause = Pause(connection)
            for _ in range(5):
                await asyncio.sleep(SHORT.total_seconds() / 3)
                await pause.after(PIECE)
            await note(connection, "first")
    assert await notes(service) == ["first"]


async def test_each_transaction_prolongs_the_lease(service: Service) -> None:
    """So that in a tick that takes long the last of many experiments has its turn, too."""
    first = lease("first")
    async with service.pool.acquire() as connection:
        await first.take(connection)
        await service.execute("update lease set expires_at = clock_timestamp() + interval '5 s'")
        async with connection.transaction():
            await first.hold(connection)
    [row] = await service.fetch(
        "select expires_at > clock_timestamp() + $1 as long from lease", SHORT * 20
    )
    assert row["long"]


async def test_a_transaction_that_takes_longer_than_a_lease_lives_does_not_end_the_term(
    service: Service,
) -> None:
    """Else a fold that takes long would cost the tick its decisions, each time anew."""
    first, second = lease("first", SHORT), lease("second")
    async with service.pool.acquire() as one, service.pool.acquire() as other:
        assert await first.take(one) == 1
        async with one.transaction():
            await first.hold(one)
            await one.execute("select pg_sleep(1.2)")
            takeover = asyncio.create_task(second.take(other))
            await first.prolong(one)
        assert await takeover is None
        async with one.transaction():
            assert await first.hold(one) == 1


async def test_in_a_tick_whose_fold_takes_long_decisions_are_taken_all_the_same(
    service: Service,
) -> None:
    await service.begin(definition("x", metric("ok", "guardrail")))
    visitors = Visitors(service, "x", seed=1)
    for _ in range(12):
        await visitors.come(40, {"ok": rates(a=0.9, b=0.1)})
    await service.execute(_SLOW)
    await service.settle()
    assert [epoch.state for epoch in await service.epochs("x")] == ["running", "rolled_back"]


async def test_however_many_controllers_tick_harm_is_rolled_back_once(service: Service) -> None:
    await service.begin(definition("x", metric("ok", "guardrail")))
    visitors = Visitors(service, "x", seed=1)
    for _ in range(12):
        await visitors.come(40, {"ok": rates(a=0.9, b=0.1)})
    controllers = [service.new_controller(f"process {i}") for i in range(4)]
    for _ in range(3):
        service.clock.advance(3)
        await service.shipped()
        await asyncio.gather(*(controller.tick() for controller in controllers))
        await expire(service)
    assert len(await service.decisions("x")) == 1
    assert [epoch.state for epoch in await service.epochs("x")] == ["running", "rolled_back"]
    [row] = await service.fetch("select count(*) as units from enrolment")
    assert row["units"] == 12 * 40
    assert (await service.report("x")).units.keys() == {"a", "b"}
    assert sum((await service.report("x")).units.values()) == 12 * 40


async def test_a_process_that_freezes_while_it_reads_an_answer_is_cut_off(
    service: Service, migrated_url: str
) -> None:
    """The server is not idle then: it waits until the rest of the answer can be sent."""
    first, second = lease("first", SHORT), lease("second", SHORT)
    frozen = await asyncpg.connect(migrated_url)
    reading: asyncio.Future[Any] | None = None
    try:
        await first.take(frozen)
        await frozen.execute("begin")
        await first.hold(frozen)
        await note(frozen, "first")
        # asyncpg has no door for it: a process that reads nothing more.
        transport = frozen._transport  # type: ignore[attr-defined]
        reading = asyncio.ensure_future(
            frozen.fetch("select repeat('x', 1000000) from generate_series(1, 100)")
        )
        await asyncio.sleep(0)
        transport.pause_reading()
        assert await takeover(service, second) == 2
        assert await notes(service) == []
    finally:
        frozen.terminate()
        if reading is not None:
            await asyncio.gather(reading, return_exceptions=True)


async def test_a_lease_from_a_clock_that_was_put_back_is_over(service: Service) -> None:
    """Else nobody would lead until the clock is where it was once more."""
    first, second = lease("first"), lease("second")
    async with service.pool.acquire() as connection:
        await first.take(connection)
        await service.execute("update lease set expires_at = clock_timestamp() + interval '1 hour'")
        assert await second.take(connection) == 2
        with pytest.raises(LostLeaseError):
            await first.hold(connection)


async def test_a_leader_does_not_go_on_in_a_database_that_is_an_older_backup(
    service: Service,
) -> None:
    """Its term is not among those of the backup, whose own leader is long gone."""
    first = lease("first")
    async with service.pool.acquire() as connection:
        for _ in range(5):
            await first.take(connection)
            await expire(service)
        assert await first.take(connection) == 6
        await service.execute(
            "update lease set holder = 'of then', term = 2, expires_at = now() - interval '1 day'"
        )
        with pytest.raises(LostLeaseError):
            await first.hold(connection)
        assert await first.take(connection) == 3
        assert await first.hold(connection) == 3


async def harm(service: Service) -> None:
    """A variant that does harm, of which all is shipped and nothing is folded."""
    await service.begin(definition("x", metric("ok", "guardrail")))
    visitors = Visitors(service, "x", seed=1)
    for _ in range(12):
        await visitors.come(40, {"ok": rates(a=0.9, b=0.1)})
    service.clock.advance(3)
    await service.shipped()


async def found_once(service: Service) -> None:
    """The harm was found, once, and each unit was counted once."""
    assert [d.kind for d in await service.ledger("x")] == ["start", "rollback"]
    assert [epoch.state for epoch in await service.epochs("x")] == ["running", "rolled_back"]
    [row] = await service.fetch("select count(*) as units from enrolment")
    assert row["units"] == 12 * 40


async def goes_on(controller: Controller) -> None:
    """A tick in which a process finds that another leads, if there is something left to do."""
    with suppress(LostLeaseError, *store.PostgresError):
        await controller.tick()


class Gate:
    """Stops whoever comes first, as SIGSTOP would, until it is opened; all others pass."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def __call__(self) -> None:
        """Come to the gate."""
        if not self.reached.is_set():
            self.reached.set()
            await self._opened.wait()

    def open(self) -> None:
        """SIGCONT."""
        self._opened.set()


async def stopped_at(service: Service, gate: Gate) -> None:
    """The leader is stopped at a gate; another leads, and does what there is to do; then the first
    one goes on."""
    first = asyncio.ensure_future(goes_on(service.controller))
    await gate.reached.wait()
    second = service.new_controller("second")
    async with asyncio.timeout(10):
        while not await second.tick():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    await found_once(service)
    gate.open()
    await first
    await found_once(service)


async def test_a_leader_that_is_stopped_between_folding_and_deciding_decides_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LEASE_LIFE", SHORT)
    service.controller = service.new_controller("first")
    await harm(service)
    gate = Gate()
    fold = service.controller._fold_all

    async def stopping() -> None:
        await fold()
        await gate()

    monkeypatch.setattr(service.controller, "_fold_all", stopping)
    await stopped_at(service, gate)


async def test_a_leader_that_is_stopped_in_the_midst_of_a_decision_decides_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lease's row, the experiment's, and evidence that it has not committed."""
    monkeypatch.setattr(control, "LEASE_LIFE", SHORT)
    service.controller = service.new_controller("first")
    await harm(service)
    gate = Gate()

    async def stopping(connection: store.Connection, record: Any, **others: Any) -> Any:
        decided = await decide(connection, record, **others)
        await gate()
        return decided

    monkeypatch.setattr(control, "decide", stopping)
    await stopped_at(service, gate)


async def test_a_door_that_is_stopped_in_the_midst_of_a_change_does_not_keep_harm_from_being_found(
    service: Service, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock on the experiment that is to be rolled back."""
    ours = backends._CONNECTION["server_settings"]
    patience = "idle_in_transaction_session_timeout"
    assert ours[patience] == "10s"
    monkeypatch.setitem(ours, patience, "1s")
    await harm(service)
    async with backends.database_at(migrated_url) as database:
        await database.open()
        connection = await database.pool.acquire()
        await connection.execute("begin")
        assert await store.get_experiment(connection, "shop", "x", lock=True) is not None
        async with asyncio.timeout(10):
            await service.tick()
        await found_once(service)
        with pytest.raises(store.PostgresError):
            await store.touch_project(connection, "shop")


async def test_leaders_that_are_forced_from_their_seats_at_any_moment_decide_once(
    service: Service,
) -> None:
    await harm(service)
    dice = random.Random(7)  # noqa: S311 - a simulation
    controllers = [service.new_controller(f"process {i}") for i in range(3)]
    numbers = count(1)

    async def usurp() -> None:
        """Others take the lease again and again, by force, and let it go."""
        while True:
            await asyncio.sleep(dice.random() * 0.03)
            await service.execute(
                """update lease set holder = $1, term = term + 1,
                                    expires_at = clock_timestamp() + interval '1 ms'""",
                f"usurper {next(numbers)}",
            )

    async def go_on(controller: Controller) -> None:
        while (await service.find("x")).state == "running":
            try:
                await controller.tick()
            except LostLeaseError:
                await asyncio.sleep(dice.random() * 0.01)

    usurper = asyncio.create_task(usurp())
    try:
        async with asyncio.timeout(20):
            await asyncio.gather(*(go_on(each) for each in controllers))
    finally:
        usurper.cancel()
        await asyncio.gather(usurper, return_exceptions=True)
    assert next(numbers) > 2
    await found_once(service)


async def test_on_a_database_that_takes_seconds_for_a_statement_one_decides_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a lease lives, while another waits to lead."""
    monkeypatch.setattr(control, "LEASE_LIFE", SHORT)
    await harm(service)
    await service.execute(
        """create function dawdle() returns trigger language plpgsql as $$ begin
               perform pg_sleep(1.5); return new;
           end $$;
           create trigger dawdle before insert on decision for each row
           execute function dawdle()"""
    )
    first, second = (service.new_controller(name) for name in ("first", "second"))
    await asyncio.gather(first.tick(), second.tick())
    await found_once(service)


@pytest.mark.parametrize(
    "watch",
    [lambda: 0.0, lambda: math.inf, count(0, -1).__next__, count(0, 3_600).__next__],
    ids=["stopped", "no number", "backwards", "an hour at each look"],
)
async def test_whatever_a_leaders_own_watch_says_harm_is_rolled_back_once(
    service: Service, redis_url: str, watch: Callable[[], float]
) -> None:
    """Decisions go by the database's clock, and the lease does: what a process thinks of the time
    only says how much it does in one tick."""
    await harm(service)
    async with Redis.from_url(redis_url) as redis:
        for _ in range(3):
            controller = Controller(
                service.pool,
                redis,
                database_time,
                watch,
                "first",
                Pace(lateness=LATENESS),
                AnalysisMetrics(CollectorRegistry()),
            )
            assert await controller.tick()
    await found_once(service)
    [decision] = await service.decisions("x")
    [row] = await service.fetch("select clock_timestamp() as now")
    assert timedelta(0) <= row["now"] - decision.at < timedelta(minutes=1)
