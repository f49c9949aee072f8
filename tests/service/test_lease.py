"""One controller leads, whoever dies, freezes or comes late; what it decides is decided once."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from analysis.control.lease import Lease, LostLeaseError
from analysis.folding.pause import PIECE, Pause
from experiments import store
from tests.service.loop import Service, Visitors, definition, metric, rates

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
_EXPIRE = "update lease set expires_at = clock_timestamp() - interval '1 ms'"


def lease(holder: str, life: timedelta = LONG) -> Lease:
    """The lease as one process sees it."""
    return Lease("controller", holder, life)


async def expire(service: Service) -> None:
    """Let the lease's time run out."""
    await service.execute(_EXPIRE)


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
        async with service.pool.acquire() as connection:
            assert await asyncio.wait_for(second.take(connection), timeout=10) == 2
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
