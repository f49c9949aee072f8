"""Outages: what stands behind the routers is away, slow or full, and nobody who asks them suffers.

Nothing that was acknowledged is lost or doubled by any of them.
"""

import asyncio
import contextlib
import os
import random
import re
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import asyncpg
import pytest

from router.journal import Journal
from router.records import OutcomeRecord
from router.shipper import Pace, Shipper
from tests.e2e.crash.audit import figures
from tests.e2e.crash.figures import FIGURES, RecordProperty
from tests.e2e.crash.fleet import (
    PARTS,
    TWO_WORKERS,
    Fleet,
    Layout,
    Member,
    running_fleet,
    running_servers,
)
from tests.e2e.crash.load import Ledger
from tests.e2e.crash.programs import PATIENCE, Postgres, Turnout, Valkey, until
from tests.e2e.crash.proxy import Proxy, Trap, proxy_to
from tests.e2e.crash.small_disk import SmallDisk, with_small_disk
from turnout.backends import utc_now
from turnout.migrate import migrate

SEED: Final = "outages"
SMALL_DISK: Final = Layout([Member("serve", "small")], [Member("worker", "other")])
SLOWER: Final = 4.0
"""As much longer an answer may take, as a ratio of medians, before it is said to be slowed."""


class Scene(NamedTuple):
    """Where an outage happens. The fleet is under load; `proxy` is its way to Postgres."""

    postgres: Postgres
    valkey: Valkey
    proxy: Proxy
    fleet: Fleet
    ledger: Ledger


@contextlib.asynccontextmanager
async def scene(
    folder: Path,
    record_property: RecordProperty,
    layout: Layout = PARTS,
    *,
    through_proxy: bool = False,
    within: Callable[[Path], Sequence[str]] = lambda _: (),
) -> AsyncIterator[Scene]:
    """A fleet under load. In the end all that was acknowledged has to be there, once."""
    ledger = Ledger()
    async with (
        running_servers(folder) as servers,
        proxy_to(servers.postgres.port) as proxy,
        running_fleet(
            folder,
            layout,
            servers,
            postgres_port=proxy.port if through_proxy else None,
            within=within,
        ) as fleet,
    ):
        async with fleet.load(ledger, SEED):
            await ledger.grow(500)
            yield Scene(*servers, proxy, fleet, ledger)
            await ledger.grow(500)
        findings = await fleet.settle(ledger)
        record_property(FIGURES, figures(ledger, findings))
        assert findings == {}


async def until_refused(ledger: Ledger, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Wait until outcomes are refused, and assignments answered that are not recorded."""
    outcomes, assignments = ledger.refusals + 20, ledger.unrecorded + 20

    async def refused() -> bool:
        meanwhile()
        return ledger.refusals >= outcomes and ledger.unrecorded >= assignments

    await until(refused, "outcomes are refused, and exposures not recorded")


def assert_all_was_taken(ledger: Ledger) -> None:
    """Every request of the data plane was answered, and everything recorded."""
    assert (ledger.unanswered, ledger.refusals, ledger.unrecorded) == (0, 0, 0)


async def readiness(router: Turnout) -> tuple[int, Any]:
    """What a router says of itself."""
    async with aiohttp.request("GET", f"{router.url}/readyz") as answer:
        return answer.status, await answer.json()


async def test_on_a_full_disk_outcomes_are_refused_and_assignments_go_on(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property, SMALL_DISK, within=with_small_disk) as at:
        (router,) = at.fleet.routers
        disk = SmallDisk(router.pid, router.data_dir)
        # Whoever fills it takes what shipping frees, too.
        await until_refused(at.ledger, meanwhile=disk.fill)

        async def told() -> bool:
            disk.fill()
            status, state = await readiness(router)
            return (status, state["ready"], state["degraded"]) == (200, True, True)

        await until(told, "it says that it is degraded")
        disk.free()
    assert at.ledger.unanswered == 0


async def test_a_disk_that_the_journal_filled_is_freed_by_shipping(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property, SMALL_DISK, within=with_small_disk) as at:
        await at.postgres.stop()
        await until_refused(at.ledger)
        await at.postgres.start()
    assert at.ledger.unanswered == 0


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.crash)])
async def test_while_postgres_is_stopped_all_is_taken_and_the_lag_is_told(
    seconds: float, tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property) as at:
        await at.postgres.stop()
        await asyncio.sleep(seconds)
        for router in at.fleet.routers:
            for lag in ("journal_age", "shipping_lag"):
                assert await router.metric(f"turnout_{lag}_seconds") > seconds - 2
            assert await router.metric("turnout_journal_bytes") > 0
            assert (await readiness(router))[0] == 200
        for worker in at.fleet.workers:
            assert await worker.metric("turnout_fold_lag_seconds") > seconds - 2
        await at.postgres.start()
    assert_all_was_taken(at.ledger)


async def test_cut_connections_to_postgres_cost_nothing(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property) as at:

        async def cut() -> bool:
            return await at.postgres.cut_connections() > 0

        for _ in range(20):
            await at.ledger.grow(100)
            await until(cut, "some connection is there to cut, for a pool may be between two")
        for _ in range(3):
            await at.ledger.grow(100)
            await at.postgres.stop()
            await at.postgres.start()
            await at.postgres.until_ready()
    assert_all_was_taken(at.ledger)


class Medians(NamedTuple):
    """How long answers take, in seconds."""

    assignment: float
    receipt: float

    def __str__(self) -> str:
        return f"medians of {1000 * self.assignment:.1f} and {1000 * self.receipt:.1f} ms"

    def slowed(self, before: "Medians") -> bool:
        """Whether either takes clearly longer than it did before."""
        return any(now > SLOWER * then for now, then in zip(self, before, strict=True))


async def medians(ledger: Ledger, answers: int = 300) -> Medians:
    """How long the next answers take."""
    ledger.assignments.clear()
    ledger.receipts.clear()

    async def enough() -> bool:
        return min(len(ledger.assignments), len(ledger.receipts)) >= answers

    await until(enough, f"{answers} answers")
    return Medians(statistics.median(ledger.assignments), statistics.median(ledger.receipts))


async def test_a_slow_postgres_slows_no_answer(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property, through_proxy=True) as at:
        for _ in range(3):  # at most: the machine may have other things to do for a while
            at.proxy.delay = 0
            before = await medians(at.ledger)
            at.proxy.delay = 0.1
            slow = await medians(at.ledger)
            if not slow.slowed(before):
                break
        at.proxy.delay = 0
        record_property(FIGURES, f"{before}, with a slow Postgres {slow}")
        assert not slow.slowed(before)
    assert_all_was_taken(at.ledger)


@pytest.mark.parametrize("seconds", [12, pytest.param(45, marks=pytest.mark.crash)])
async def test_a_postgres_that_falls_silent_slows_no_answer(
    seconds: float, tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property, through_proxy=True) as at:
        before = await medians(at.ledger)
        at.proxy.hold_up()
        end = time.monotonic() + seconds
        silent: list[Medians] = []
        while time.monotonic() < end:
            silent.append(await medians(at.ledger))
        at.proxy.let_go()
        record_property(FIGURES, f"{before}, with a silent Postgres {min(silent)}")
        assert not all(now.slowed(before) for now in silent)
    assert_all_was_taken(at.ledger)


async def test_without_redis_assignments_and_changes_go_on(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property) as at:
        await at.valkey.kill()
        epochs = {exposure.epoch for exposure in at.ledger.exposed}
        changes = len(at.ledger.changes)

        async def followed() -> bool:
            new = {exposure.epoch for exposure in at.ledger.exposed} - epochs
            return len(at.ledger.changes) >= changes + 4 and len(new) >= 2

        await until(followed, "changes are made, and routers follow them")
        await at.valkey.start()
    assert_all_was_taken(at.ledger)


@pytest.mark.crash
async def test_a_leader_that_freezes_is_replaced_and_does_no_harm_when_it_wakes(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property, TWO_WORKERS) as at:
        one, two = at.fleet.workers
        leads = await one.metric("turnout_leader") == 1
        frozen, other = (one, two) if leads else (two, one)

        async def replaced() -> bool:
            return await other.metric("turnout_leader") == 1

        with frozen_process(frozen.pid):
            await until(replaced, "the other leads")
            await at.ledger.grow(500)
    assert_all_was_taken(at.ledger)


@pytest.mark.crash
async def test_a_router_that_was_taken_for_dead_loses_nothing(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    async with scene(tmp_path, record_property) as at:
        with frozen_process(at.fleet.routers[0].pid):
            await asyncio.sleep(40)  # longer than a silent router holds the watermark back


@contextlib.contextmanager
def frozen_process(pid: int) -> Iterator[None]:
    """It does nothing, and answers nobody, but has not ended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


MID_COPY: Final = Trap(re.compile(b'COPY "outcome"'), bytes_more=50_000)
AT_COMMIT: Final = Trap(re.compile(b'COPY "outcome".*COMMIT', re.DOTALL))


@pytest.mark.parametrize("moment", [MID_COPY, AT_COMMIT], ids=["in the copy", "at its commit"])
@pytest.mark.parametrize("way_back", [Proxy.let_go, Proxy.forget], ids=["it comes", "new ones do"])
async def test_a_segment_goes_in_once_though_postgres_falls_silent(
    moment: Trap, way_back: Callable[[Proxy], None], tmp_path: Path
) -> None:
    """It is silent for longer than the shipper waits, which cannot know what became of it."""
    async with (
        running_servers(tmp_path) as servers,
        proxy_to(servers.postgres.port) as proxy,
        asyncpg.create_pool(
            servers.postgres.url_at(proxy.port), min_size=1, max_size=2, command_timeout=1
        ) as pool,
    ):
        # Only what ships is in such a hurry, and a machine may be busy.
        connection = await servers.postgres.connect()
        try:
            await migrate(connection)
        finally:
            await connection.close()
        journal = await Journal.open(tmp_path / "journal", utc_now)
        generator = random.Random(SEED)  # noqa: S311 - jitter, not secrets
        pace = Pace(interval=0.05, longest_wait=0.2, timeout=1)
        shipper = Shipper(pool, journal, utc_now, generator, pace)
        await journal.append([outcome(number) for number in range(5_000)])
        proxy.set_trap(moment)
        shipping = asyncio.create_task(shipper.run())
        try:
            await asyncio.wait_for(proxy.held_up.wait(), PATIENCE)

            async def given_up() -> bool:
                return shipper.failures >= 2

            async def shipped() -> bool:
                return journal.depth == 0

            await until(given_up, "the shipper has given up and tried again")
            way_back(proxy)
            await until(shipped, "it is shipped")
        finally:
            shipping.cancel()
            await asyncio.gather(shipping, return_exceptions=True)
            await journal.close()
        rows = await pool.fetch("select value from outcome order by value", timeout=PATIENCE)
        assert [row["value"] for row in rows] == list(range(5_000))


def outcome(number: int) -> OutcomeRecord:
    """An outcome, of which every other one has an id."""
    now = utc_now()
    name = number.to_bytes(16) if number % 2 else None
    return OutcomeRecord(name, "shop", "click", (("user", "u1"),), number, now, now)
