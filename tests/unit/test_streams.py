"""Event streams without a server: tickets, and what a stream says to a client that we play."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from redis.asyncio import Redis

from experiments import store
from experiments.keys import ApiKey, Role, new_key
from experiments.problems import ProblemError
from experiments.records import Publication
from router import streams
from router.refresher import Refresher
from router.streams import TICKET_SECONDS, Streams, address, check_ticket, new_ticket

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def make_key(role: Role = "client", life: timedelta | None = None, seed: int = 1) -> ApiKey:
    """A key; another seed makes another."""
    expires_at = None if life is None else NOW + life
    return new_key("shop", role, "", NOW, lambda size: bytes([seed]) * size, expires_at)[1]


KEY = make_key()


class Ring:
    """The keys that live."""

    def __init__(self, *keys: ApiKey) -> None:
        self._keys = {key.id: key for key in keys}

    def find_key(self, key_id: str) -> ApiKey | None:
        """A key by its id."""
        return self._keys.get(key_id)


# Tickets.


def test_a_ticket_is_good_for_one_to_two_spans_and_the_same_within_one() -> None:
    span = timedelta(seconds=TICKET_SECONDS)
    begin = datetime.fromtimestamp(int(NOW.timestamp()) // TICKET_SECONDS * TICKET_SECONDS, UTC)
    last = begin + span - timedelta(seconds=1)
    assert new_ticket(KEY, begin) == new_ticket(KEY, last)
    assert new_ticket(KEY, begin + span) != new_ticket(KEY, begin)
    for made in (begin, last):
        ticket = new_ticket(KEY, made)
        assert check_ticket(ticket, Ring(KEY), made + span) == KEY
        assert check_ticket(ticket, Ring(KEY), begin + 2 * span) is None


def test_a_ticket_is_good_for_as_long_as_its_key() -> None:
    assert check_ticket(new_ticket(KEY, NOW), Ring(), NOW) is None
    short = make_key(life=timedelta(minutes=5))
    ticket = new_ticket(short, NOW)
    assert check_ticket(ticket, Ring(short), NOW + timedelta(minutes=4)) == short
    assert check_ticket(ticket, Ring(short), NOW + timedelta(minutes=5)) is None
    reader = make_key("analyst")
    assert check_ticket(new_ticket(reader, NOW), Ring(reader), NOW) is None


def test_a_ticket_cannot_be_made_without_the_key_or_changed() -> None:
    ticket = new_ticket(KEY, NOW)
    key_id, ends, seal = ticket.split(".")
    other = make_key(seed=2)
    forged = [
        f"{key_id}.{int(ends) + TICKET_SECONDS}.{seal}",
        f"{other.id}.{ends}.{seal}",
        f"{key_id}.{ends}.{new_ticket(other, NOW).split('.')[2]}",
        f"{key_id}.{ends}.",
        f"{key_id}.{ends}.{seal}.",
        f"{key_id}.{ends}.é\ud800",
        f"{key_id}.+{ends}.{seal}",
        f"{key_id}.{'9' * 5000}.{seal}",
        f"{key_id}.².{seal}",
        "",
        "..",
    ]
    assert check_ticket(ticket, Ring(KEY, other), NOW) == KEY
    assert [text for text in forged if check_ticket(text, Ring(KEY, other), NOW)] == []


def test_a_ticket_shows_nothing_of_the_key_but_its_id() -> None:
    assert KEY.secret_hash.hex() not in new_ticket(KEY, NOW)
    assert re.fullmatch(r"/ofrep/v1/events\?token=[\w.-]+&since=7", address(KEY, 7, NOW))


# Streams.


class Client:
    """A client of a stream: what it was sent; it may take nothing for a while, or leave."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.left = asyncio.Event()
        self.over = asyncio.Event()
        self._asked = False
        self._news = asyncio.Event()

    async def receive(self) -> Any:
        """ASGI: the request, then that the client has left."""
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """ASGI: take a message."""
        await self.takes.wait()
        self.sent.append(message)
        self._news.set()

    @property
    def text(self) -> str:
        """All that was said."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def ids(self) -> list[int]:
        """The ids of the events."""
        return [int(number) for number in re.findall(r"event: message\nid: (\d+)\n", self.text)]

    async def until(self, condition: Callable[["Client"], bool]) -> None:
        """Wait until what was said is as it should be."""
        async with asyncio.timeout(15):
            while not condition(self):
                await self._news.wait()
                self._news.clear()


class House:
    """A refresher that is told what is published, and streams that follow it."""

    def __init__(self, heartbeat: float = 60.0, limit: int = 10) -> None:
        self.now = NOW
        nobody = (cast("store.Pool", None), cast("Redis", None))  # what is not asked for anything
        self.refresher = Refresher(*nobody, self.clock)
        self.streams = Streams(self.refresher, self.clock, limit, heartbeat)

    def clock(self) -> datetime:
        """The time."""
        return self.now

    async def publish(self, version: int, *keys: ApiKey) -> None:
        """A new version of the project, with these keys."""
        published = Publication("shop", version, "user", keys, (), None, 0, "a1b2")
        await self.refresher.restore([published], self.now)

    @asynccontextmanager
    async def client(self, seen: int | None = 1, key: ApiKey = KEY) -> AsyncIterator[Client]:
        """A client that has read what a stream says first; the stream ends with the block."""
        client = Client()
        stream = asyncio.create_task(self.streams.serve(key, seen, client.receive, client.send))
        stream.add_done_callback(lambda _: client.over.set())
        try:
            await client.until(lambda client: "retry: " in client.text)
            yield client
        finally:
            client.takes.set()
            client.left.set()
            await stream


async def house_at(version: int, **options: Any) -> House:
    """A house whose project has this version."""
    house = House(**options)
    await house.publish(version, KEY)
    return house


async def test_a_stream_says_what_is_new_and_only_that() -> None:
    house = await house_at(4)
    async with house.client(seen=4) as client:
        start = client.sent[0]
        assert (start["status"], dict(start["headers"])[b"content-type"]) == (
            200,
            b"text/event-stream; charset=utf-8",
        )
        assert re.fullmatch(r"retry: \d{4}\nid: 4\n\n", client.text)
        await house.publish(5, KEY)
        await client.until(lambda client: client.ids == [5])
        said = client.text.split("\n\n")[1]
        assert said.splitlines()[:2] == ["event: message", "id: 5"]
        assert msgspec.json.decode(said.splitlines()[2].removeprefix("data: ")) == {
            "type": "refetchEvaluation",
            "etag": "5",
        }


@pytest.mark.parametrize("seen", [3, 0, None])
async def test_who_has_missed_something_is_told_at_once(seen: int | None) -> None:
    house = await house_at(4)
    async with house.client(seen) as client:
        await client.until(lambda client: client.ids == [4])


async def test_who_knows_more_than_this_router_hears_of_what_is_newer_still() -> None:
    house = await house_at(4)
    async with house.client(seen=6) as client:
        for version in (5, 6, 7):
            await house.publish(version, KEY)
        await client.until(lambda client: client.ids == [7])


async def test_who_knows_more_than_there_is_hears_so_after_a_while() -> None:
    house = await house_at(4, heartbeat=0.01)  # as after the restoration of an old database
    async with house.client(seen=6) as client:
        await client.until(lambda client: client.ids == [4])


async def test_a_slow_client_gets_the_newest_version_only() -> None:
    house = await house_at(1)
    async with house.client() as client:
        client.takes.clear()
        await house.publish(2, KEY)
        for _ in range(5):
            await asyncio.sleep(0)
        for version in range(3, 50):
            await house.publish(version, KEY)
        client.takes.set()
        await client.until(lambda client: client.ids[-1:] == [49])
        assert client.ids in ([49], [2, 49])


async def test_a_silent_stream_says_that_it_lives() -> None:
    house = await house_at(1, heartbeat=0.01)
    async with house.client() as client:
        await client.until(lambda client: client.text.count("\n\n:\n\n:") > 0)
        assert client.ids == []


async def ends(house: House, act: Callable[[], Awaitable[None]], key: ApiKey = KEY) -> None:
    """A stream ends in order after what is done, while its client would stay."""
    async with house.client(key=key) as client:
        await act()
        await client.until(lambda client: not client.sent[-1].get("more_body", True))
    assert house.streams.open == 0


async def test_a_stream_ends_when_its_key_is_revoked() -> None:
    house = await house_at(1)
    await ends(house, lambda: house.publish(2))


async def test_a_stream_ends_when_its_key_expires() -> None:
    key = make_key(life=timedelta(minutes=5))
    house = House(heartbeat=0.01)
    await house.publish(1, key)

    async def wait() -> None:
        house.now += timedelta(minutes=5)

    await ends(house, wait, key)


async def test_all_streams_end_when_the_process_stops_and_no_more_begin() -> None:
    house = await house_at(1)

    async def close() -> None:
        house.streams.close()

    async with house.client() as other:
        await ends_with_others(house, close)
        await other.until(lambda client: not client.sent[-1].get("more_body", True))
    with pytest.raises(ProblemError) as refused:
        await house.streams.serve(KEY, 1, Client().receive, Client().send)
    assert refused.value.type == "unavailable"


async def ends_with_others(house: House, act: Callable[[], Awaitable[None]]) -> None:
    """One more stream that ends."""
    async with house.client() as client:
        await act()
        await client.until(lambda client: not client.sent[-1].get("more_body", True))


async def test_there_are_only_so_many_streams() -> None:
    house = await house_at(1, limit=2)
    async with house.client(), house.client():
        client = Client()
        with pytest.raises(ProblemError) as refused:
            await house.streams.serve(KEY, 1, client.receive, client.send)
        assert (refused.value.status, client.sent) == (503, [])
        assert int(refused.value.headers["Retry-After"]) > 0
        assert house.streams.open == 2
    async with house.client():
        assert house.streams.open == 1


async def test_no_project_can_take_all_streams() -> None:
    stranger = msgspec.structs.replace(make_key(seed=2), project="cafe")
    house = await house_at(1, limit=10)
    published = Publication("cafe", 1, "user", (stranger,), (), None, 0, "c3d4")
    await house.refresher.restore([published], NOW)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(house.client())
        with pytest.raises(ProblemError) as refused:
            async with asyncio.timeout(15):
                await house.streams.serve(KEY, 1, Client().receive, Client().send)
        assert refused.value.type == "unavailable"
        await stack.enter_async_context(house.client(key=stranger))
    async with house.client():
        assert house.streams.open == 1


async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SEND_SECONDS", 0.01)
    house = await house_at(1)
    async with house.client() as client:
        client.takes.clear()
        await house.publish(2, KEY)
        async with asyncio.timeout(15):
            await client.over.wait()
        assert (house.streams.open, client.ids) == (0, [])


async def test_many_streams_all_hear_of_a_change() -> None:
    house = await house_at(1, limit=125)
    all_listen = asyncio.Barrier(101)
    async with asyncio.timeout(15), asyncio.TaskGroup() as group:

        async def follow() -> None:
            async with house.client() as client:
                await all_listen.wait()
                await client.until(lambda client: client.ids == [2])

        for _ in range(100):
            group.create_task(follow())
        await all_listen.wait()
        await house.publish(2, KEY)
