"""What Redis keeps of sticky experiments' units, and what answers cost while it is slow."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

import router.sticky
from experiments.allocation import initial
from experiments.firsts import first_name
from router.assign import Assignment, assign
from router.metrics import RouterMetrics
from router.snapshot import Entry, ProjectSnapshot
from router.sticky import KEPT_SECONDS, TRIPS, Sticky
from tests.running import PATIENCE, Turnout, eventually
from tests.unit.entries import entry, project
from turnout.backends import sticky_client

UNITS = [f"u{number}" for number in range(200)]
EARLIER = entry(stickiness="sticky", number=1)
LATER = entry(
    allocation=initial({"a": 0.1, "b": 0.1, "c": 0.8}, 1.0), stickiness="sticky", number=2
)
SHOP = project(EARLIER)

RouterOf = Callable[..., Awaitable["Asking"]]


class Asking:
    """A router's questions about first variants, and how often the slot had to answer."""

    def __init__(self, redis: Redis, patience: float) -> None:
        self.redis = redis
        self.metrics = RouterMetrics(CollectorRegistry())
        self.sticky = Sticky(redis, self.metrics, patience)

    async def settle(
        self, of: Entry, unit: str, *, shop: ProjectSnapshot = SHOP, keep: bool = True
    ) -> Assignment:
        """What a unit gets."""
        return await self.sticky.settle(shop, of, unit, assign(of, unit, {}), keep=keep)

    async def all(self, of: Entry) -> list[Assignment]:
        """What all units get, asked at once and one by one."""
        return await asyncio.gather(*(self.settle(of, unit) for unit in UNITS))

    async def batch(self, of: Entry) -> list[Assignment]:
        """What all units get, asked as a batch."""
        answers = [assign(of, unit, {}) for unit in UNITS]
        return await self.sticky.settle_all(SHOP, of, UNITS, answers, keep=True)

    @property
    def fallbacks(self) -> float:
        """How often the slot answered, for Redis did not."""
        [family] = self.metrics.unstuck.collect()
        return sum(sample.value for sample in family.samples)


class Wire:
    """The way to a Redis: it counts what comes by, and can be slow or held up."""

    def __init__(self, redis_url: str) -> None:
        self.delay = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self.connections = 0
        self.trips = 0
        self._redis = urlsplit(redis_url)
        self._links: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self.connections += 1
        if self._redis.scheme == "unix":
            back, forth = await asyncio.open_unix_connection(self._redis.path)
        else:
            back, forth = await asyncio.open_connection(self._redis.hostname, self._redis.port)
        for source, sink in ((reader, forth), (back, writer)):
            link = asyncio.create_task(self._pass(source, sink, counts=sink is forth))
            self._links.add(link)

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(sink):
            while data := await source.read(65_536):
                if counts:
                    self.trips += data.count(b"\r\nEVAL\r\n")
                else:
                    await asyncio.sleep(self.delay)
                await self.open.wait()
                sink.write(data)
                await sink.drain()

    async def close(self) -> None:
        """Cut all connections."""
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)


@pytest_asyncio.fixture
async def wire(redis_url: str) -> AsyncIterator[Wire]:
    """A wire to an empty Redis."""
    made = Wire(redis_url)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def router_on(wire: Wire) -> AsyncIterator[RouterOf]:
    """Makes routers that ask over the wire and wait for so many seconds."""
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.start_server(wire.accept, "127.0.0.1", 0)
        await stack.enter_async_context(server)
        port = server.sockets[0].getsockname()[1]

        async def make(patience: float = PATIENCE, redis: Redis | None = None) -> Asking:
            if redis is None:
                redis = sticky_client(f"redis://127.0.0.1:{port}", patience)
                stack.push_async_callback(redis.aclose)
            asking = Asking(redis, patience)
            stack.push_async_callback(asking.sticky.close)
            return asking

        yield make


def given(answers: list[Assignment]) -> list[tuple[str, int, float | None]]:
    """What units were given."""
    return [(answer.arm.key, answer.epoch, answer.propensity) for answer in answers]


async def test_of_two_routers_the_first_decides_for_both(router_on: RouterOf) -> None:
    """Also where the one has heard of a new epoch already, and the other has not."""
    one, other = await router_on(), await router_on()
    first, second = await asyncio.gather(one.all(EARLIER), other.all(LATER))
    assert given(first) == given(second)
    assert {answer.epoch for answer in first} <= {1, 2}
    assert given(first) == given(await one.batch(LATER)) == given(await other.batch(EARLIER))
    assert one.fallbacks == other.fallbacks == 0


@pytest.mark.parametrize(("first", "then"), [(EARLIER, LATER), (LATER, EARLIER)])
async def test_the_first_variant_stays_whoever_asks_next(
    router_on: RouterOf, first: Entry, then: Entry
) -> None:
    one, other = await router_on(), await router_on()
    before = given(await one.batch(first))
    assert before == given([assign(first, unit, {}) for unit in UNITS])
    assert given(await other.all(then)) == before


async def test_who_only_looks_leaves_nothing(router_on: RouterOf) -> None:
    asking = await router_on()
    await asking.settle(EARLIER, "u1", keep=False)
    assert (await asking.settle(LATER, "u1")).epoch == 2


async def test_the_questions_of_a_turn_share_a_trip(router_on: RouterOf, wire: Wire) -> None:
    asking = await router_on()
    await asking.all(EARLIER)
    assert wire.trips < len(UNITS) / 20
    assert wire.connections <= TRIPS
    assert asking.fallbacks == 0


async def test_more_than_there_are_connections_for_wait_their_turn(
    router_on: RouterOf, wire: Wire
) -> None:
    asking = await router_on()
    wire.delay = 0.02
    first, *more = await asyncio.gather(*(asking.batch(EARLIER) for _ in range(3 * TRIPS)))
    assert given(await asking.all(LATER)) == given(first)
    assert all(given(other) == given(first) for other in more)
    assert asking.fallbacks == 0
    assert wire.connections <= TRIPS


async def test_a_unit_that_is_asked_for_twice_in_a_turn_gets_one_variant(
    router_on: RouterOf,
) -> None:
    asking = await router_on()
    for unit in UNITS[:20]:
        pair = await asyncio.gather(asking.settle(EARLIER, unit), asking.settle(LATER, unit))
        assert given([pair[0]]) == given([pair[1]])


async def test_a_slow_redis_costs_no_connections_and_mixes_up_no_answers(
    router_on: RouterOf, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.sticky, "PAUSE", 0.0)
    firsts = given(await (await router_on()).all(EARLIER))
    asking = await router_on(patience=0.02)
    before = wire.connections
    wire.delay = 0.1
    slow = [*await asking.all(LATER), *await asking.batch(LATER)]
    assert given(slow) == given([assign(LATER, unit, {}) for unit in UNITS]) * 2
    assert asking.fallbacks == 2 * len(UNITS)
    wire.delay = 0.0
    patient = await router_on(redis=asking.redis)  # on the connections that were slow
    for unit, first in zip(UNITS, firsts, strict=True):
        assert given([await patient.settle(LATER, unit)]) == [first]
    assert wire.connections - before <= TRIPS


async def test_an_answer_that_never_came_is_never_taken_for_another(
    router_on: RouterOf, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.sticky, "LONGEST_TRIP", 0.1)
    monkeypatch.setattr(router.sticky, "PAUSE", 0.0)
    firsts = given(await (await router_on()).all(EARLIER))
    asking = await router_on(patience=0.05)
    await asking.all(EARLIER)
    wire.open.clear()
    assert given(await asking.all(LATER)) == given([assign(LATER, unit, {}) for unit in UNITS])
    await asyncio.sleep(0.3)
    await asking.all(EARLIER)
    await asking.sticky.close()  # one way or the other all is given up, with its connection
    wire.open.set()
    patient = await router_on(redis=asking.redis)
    assert given(await patient.all(LATER)) == firsts
    assert patient.fallbacks == 0


async def test_after_a_while_without_answers_nobody_asks(
    router_on: RouterOf, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.sticky, "PAUSE", 3_600.0)
    asking = await router_on(patience=0.01)
    wire.open.clear()
    await asking.settle(EARLIER, "u1")
    await asyncio.sleep(0.05)
    await asking.settle(EARLIER, "u1")
    await asking.sticky.close()
    wire.open.set()
    asked = wire.trips
    answers = [*await asking.all(LATER), *await asking.batch(LATER)]
    assert given(answers) == given([assign(LATER, unit, {}) for unit in UNITS]) * 2
    assert wire.trips == asked
    assert asking.fallbacks == 2 + 2 * len(UNITS)


async def test_after_the_pause_it_is_asked_again(
    router_on: RouterOf, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.sticky, "PAUSE", 0.2)
    firsts = given(await (await router_on()).all(EARLIER))
    asking = await router_on(patience=0.1)
    wire.open.clear()
    for _ in range(6):
        await asking.all(LATER)
    wire.open.set()

    async def sticks() -> bool | None:
        return True if given(await asking.all(LATER)) == firsts else None

    await eventually(sticks, "first variants again")


async def test_an_answer_that_came_while_the_router_was_busy_counts(redis_url: str) -> None:
    patience = 0.2
    async with contextlib.aclosing(sticky_client(redis_url, patience)) as redis:
        await Asking(redis, PATIENCE).settle(EARLIER, "u1")
        asking = Asking(redis, patience)
        await redis.client_pause(100)  # milliseconds, in which nobody is answered
        waiting = asyncio.create_task(asking.settle(LATER, "u1"))
        await asyncio.sleep(0.02)  # the question is on its way
        time.sleep(0.5)  # noqa: ASYNC251 - the router is busy
        assert (await waiting).epoch == 1
        assert asking.fallbacks == 0


async def test_those_who_wait_are_bounded(
    router_on: RouterOf, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.sticky, "MAX_WAITING", 10)
    asking = await router_on()
    wire.open.clear()
    waiting = asyncio.gather(*(asking.settle(EARLIER, f"w{number}") for number in range(50)))
    await asyncio.sleep(0.05)
    assert asking.fallbacks == 40
    wire.open.set()
    assert len(await waiting) == 50


async def test_databases_on_one_redis_do_not_meet(router_on: RouterOf) -> None:
    """Their experiments have the same numbers, and their units the same names."""
    asking = await router_on()
    ours, theirs = project(EARLIER, sticky_id="11"), project(LATER, sticky_id="22")
    for unit in UNITS[:50]:
        await asking.settle(LATER, unit, shop=theirs)
        answer = await asking.settle(EARLIER, unit, shop=ours)
        assert (answer.epoch, answer.reason) == (1, "split")


async def kept_under(turnout: Turnout, key: str, unit: str, run: int = 1) -> str:
    """The name under which a unit's first variant is kept."""
    [row] = await turnout.rows(
        """select x.id, p.sticky_id from experiment x join project p on p.key = x.project
           where x.project = $1 and x.key = $2""",
        key,
    )
    return first_name(row["sticky_id"].hex, row["id"], run, unit)


async def test_what_redis_keeps_of_a_unit_is_its_first_answer(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    answer = await turnout.assign(key, "u1")
    name, redis = await kept_under(turnout, key, "u1"), turnout.host.redis
    assert await redis.get(name) == f'["{answer["variant"]}",1,0.5]'.encode()
    for damaged in (b"", b"nonsense", b'["nobody",1,0.5]'):
        await redis.set(name, damaged)
        assert (await turnout.assign(key, "u1"))["variant"] == answer["variant"]


async def test_projects_keep_under_names_of_their_own(turnout: Turnout, stranger: Turnout) -> None:
    ids = [
        (await each.rows("select sticky_id from project where key = $1"))[0]["sticky_id"]
        for each in (turnout, stranger)
    ]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("door", ["single", "batch"])
async def test_a_unit_that_comes_back_is_kept_from_then_on(turnout: Turnout, door: str) -> None:
    key = await turnout.start(stickiness="sticky")
    await turnout.assign(key, "u1")
    name, redis = await kept_under(turnout, key, "u1"), turnout.host.redis
    await redis.expire(name, 100)
    if door == "single":
        await turnout.assign(key, "u1")
    else:
        sent: dict[str, Any] = {"experiments": [key], "units": ["u1"]}
        answer = await turnout.client("service").post("/v1/assign/batch", json=sent)
        assert answer.status_code == 200, answer.text
    assert await redis.ttl(name) > KEPT_SECONDS - 100
