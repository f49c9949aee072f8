"""Epochs that are not in the snapshot: loaded, remembered within bounds, and missed in time."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import asyncpg
import pytest

from router.elsewhere import ExposureItem, examine
from router.epochs import AT_ONCE, Epochs
from router.snapshot import ProjectSnapshot
from tests.running import Turnout

PoolOf: TypeAlias = Callable[[], AbstractAsyncContextManager[asyncpg.Pool]]


def project_without_experiments(name: str) -> ProjectSnapshot:
    """The snapshot of a router that has not heard of any experiment yet."""
    return ProjectSnapshot(
        project=name,
        version=1,
        default_unit_type="user",
        entries={},
        keys=(),
        recorded_attributes=frozenset(),
        unit_key=None,
        erasures=0,
        sticky_id="a1b2",
        holdout=None,
    )


@contextlib.asynccontextmanager
async def pool_of_nobody() -> AsyncIterator[asyncpg.Pool]:
    """A pool to where no Postgres listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"postgres://nobody@127.0.0.1:{taken.getsockname()[1]}/none"
        pool = asyncpg.create_pool(address, min_size=0)
        async with pool:
            yield pool


@contextlib.asynccontextmanager
async def pool_of_the_silent() -> AsyncIterator[asyncpg.Pool]:
    """A pool to where somebody takes connections and never says a word."""
    done = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = f"postgres://nobody@127.0.0.1:{port}/none?sslmode=disable"
    pool = asyncpg.create_pool(address, min_size=0)
    try:
        async with pool:
            yield pool
    finally:
        done.set()
        server.close()
        await server.wait_closed()


async def test_an_epoch_is_found_whether_it_is_in_force_or_not(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.allocate(key, weights={"old": 0.2, "new": 0.8})
    epochs = Epochs(turnout.host.pool)
    wanted = [(key, 1), (key, 2), (key, 3), ("nowhere", 1)]
    found, untold = await epochs.of(turnout.project, wanted)
    assert set(found) == {(key, 1), (key, 2)}
    assert untold == frozenset()
    shares = [[arm.propensity for arm in found[key, epoch].entry.arms] for epoch in (1, 2)]
    assert shares == [[0.5, 0.5], [0.2, 0.8]]
    assert (await epochs.of("another", [(key, 1)]))[0] == {}


async def test_epochs_are_remembered_the_longest_unused_forgotten(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.allocate(key, weights={"old": 0.2, "new": 0.8})
    epochs = Epochs(turnout.host.pool, limit=1)
    first, _ = await epochs.of(turnout.project, [(key, 1)])
    again, _ = await epochs.of(turnout.project, [(key, 1)])
    assert again[key, 1] is first[key, 1]
    await epochs.of(turnout.project, [(key, 2)])
    anew, _ = await epochs.of(turnout.project, [(key, 1)])
    assert anew[key, 1] is not first[key, 1]


@pytest.mark.parametrize("pool_of", [pool_of_nobody, pool_of_the_silent])
async def test_without_postgres_nothing_is_taken_for_wrong(pool_of: PoolOf) -> None:
    item = ExposureItem(experiment="x", unit="u1", epoch=1, variant="new")
    async with pool_of() as pool:
        epochs = Epochs(pool, patience=0.3)
        findings = await examine(project_without_experiments("p"), {4: item}, epochs)
    assert (findings.told, findings.suspects, findings.not_enrolled) == ([], [], 0)
    assert [(error.index, error.type) for error in findings.errors] == [(4, "unavailable")]


async def test_one_batch_may_have_so_many_epochs_looked_up(turnout: Turnout) -> None:
    wanted = [("nowhere", number) for number in range(1, AT_ONCE + 3)]
    found, untold = await Epochs(turnout.host.pool).of(turnout.project, wanted)
    assert found == {}
    assert untold == {*wanted[AT_ONCE:]}
