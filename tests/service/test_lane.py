"""The fast lane answers as the framework does, byte for byte."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import httptools
import msgspec
import pytest
import pytest_asyncio
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis

from analysis.planning.api import PlanningPlane
from analysis.reports.api import AnalysisPlane
from dashboard.assets import Assets
from dashboard.plane import PagesPlane
from dashboard.rendering import Renderer
from dashboard.streams import Live as LivePages
from experiments.definition import parse_definition
from experiments.doors import Gate
from experiments.keys import ApiKey, Role, new_key
from experiments.limits import RateLimiter
from experiments.model import State
from experiments.records import Live, Override, Publication
from experiments.webhooks.api import WebhookPlane
from experiments.webhooks.courier import Courier
from experiments.writes import ControlPlane
from router.assign import assign
from router.epochs import Epochs
from router.evaluation import Evaluation
from router.flagd import FlagSets
from router.journal import Journal
from router.local_api import LocalPlane
from router.metrics import RouterMetrics
from router.plane import DataPlane
from router.recording import Recorder
from router.refresher import Refresher
from router.sticky import Sticky
from router.streams import Streams
from tests.lives import live
from tests.service.conftest import copy_of
from tests.service.loop import definition
from turnout.app import Operation, Planes, create_app
from turnout.embedded import LiveServers
from turnout.health import WorkerHealth
from turnout.lane import Lane, LaneProtocol
from turnout.protocol import BOUNDS, BoundedProtocol, Bounds
from turnout.sums import metrics_of
from turnout.telemetry import RequestLog, request_ids

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
RARELY = 0.001
"""Requests a second of a limiter that lets one through."""
PATIENCE = 20.0
SHOP = "shop"
STATES: dict[State, dict[str, Any]] = {
    "running": {},
    "paused": {},
    "concluded": {"ship": "b"},
    "rolled_back": {"ship": "a"},
}


def kind(number: int, key: str, state: State = "running", **others: Any) -> Live:
    """An experiment as a router gets it, in its third epoch."""
    overrides = (
        Override(1, "b", "tester", None, None, NOW, "key:test", "a test"),
        Override(2, "a", None, "email", "qa@example.org", NOW, "key:test", "a test"),
    )
    return live(
        parse_definition(definition(key, **others)),
        experiment=number,
        project=SHOP,
        overrides=overrides if key == "overridden" else (),
        number=3,
        state=state,
        at=NOW,
        **STATES[state],
    )


def publication(keys: tuple[ApiKey, ...]) -> Publication:
    """A project with an experiment of each kind."""
    lives = [
        kind(1, "plain", record=["country", "plan"]),
        kind(2, "small", traffic=0.1),
        kind(3, "targeted", targeting={"in": [{"var": "country"}, ["DE", "AT"]]}),
        kind(4, "failing", targeting={"/": [1, {"var": "n"}]}),
        kind(5, "overridden"),
        kind(6, "by-session", unit={"type": "session", "attribute": "session"}),
        kind(7, "stuck", stickiness="sticky"),
        *(kind(8 + i, state, state) for i, state in enumerate(STATES)),
    ]
    return Publication(SHOP, 7, "user", keys, tuple(lives), None, 0, "a1b2")


class Pair:
    """Two servers with the same planes: one with the lane, one without."""

    def __init__(self, lane: int, framework: int, keys: dict[Role, str], plane: DataPlane) -> None:
        self.ports = (lane, framework)
        self.keys = keys
        self.plane = plane
        self.registries = (CollectorRegistry(), CollectorRegistry())
        self.lane: Lane | None = None

    async def ask(self, pieces: list[bytes], answers: int) -> tuple[bytes, bytes]:
        """What each of the two answers to the same bytes, sent in these pieces."""
        first = await exchange(self.ports[0], pieces, answers)
        return first, await exchange(self.ports[1], pieces, answers)


class Counter:
    """Counts the answers in what comes in, as an HTTP client does."""

    def __init__(self) -> None:
        self.complete = 0
        self._parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        """An answer has ended."""
        self.complete += 1

    def feed(self, data: bytes) -> None:
        """Take in what came."""
        self._parser.feed_data(data)


async def exchange(port: int, pieces: list[bytes], answers: int) -> bytes:
    """Send pieces, each on its own, and read so many answers, or all until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got, counter = b"", Counter()
    try:
        async with asyncio.timeout(PATIENCE):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if len(pieces) > 1:
                    await asyncio.sleep(0.0005)
            while counter.complete < answers:
                data = await reader.read(65_536)
                if not data:
                    break
                got += data
                counter.feed(data)
    except (ConnectionResetError, BrokenPipeError):
        pass  # it has closed before it had read all
    finally:
        writer.close()
    return got


@asynccontextmanager
async def serving(
    app: Any, protocol: Callable[..., asyncio.Protocol], keep_alive: int = 5
) -> AsyncIterator[int]:
    """Serve an app, and close what is idle for so many seconds; the port."""
    made: Any = protocol  # what makes one serves as well as its class
    config = partial(uvicorn.Config, app, http=made, lifespan="off", log_config=None)
    server = uvicorn.Server(
        config(
            access_log=False,
            server_header=False,
            date_header=False,
            port=0,
            timeout_keep_alive=keep_alive,
        )
    )
    task = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it in no other way
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def both(
    pool: asyncpg.Pool,
    redis: Redis,
    folder: Path,
    rate: float | None = None,
    keep_alive: int = 5,
    bounds: Bounds = BOUNDS,
) -> AsyncIterator[Pair]:
    """A pair of servers on one journal."""
    rng = random.Random(7)  # noqa: S311 - the same in every run
    roles: tuple[Role, ...] = ("service", "analyst")
    made = {role: new_key(SHOP, role, "", NOW, rng.randbytes) for role in roles}
    clock: Callable[[], datetime] = lambda: NOW  # noqa: E731 - a clock that stands still
    async with AsyncExitStack() as stack:
        journal = await Journal.begin(folder, clock)
        stack.push_async_callback(journal.close)
        refresher = Refresher(pool, redis, clock)
        await refresher.restore([publication(tuple(key for _, key in made.values()))], NOW)
        metrics = RouterMetrics(CollectorRegistry())
        plane = DataPlane(
            refresher,
            Recorder(journal, metrics),
            metrics,
            clock,
            Sticky(redis, metrics, PATIENCE),
            Streams(refresher, clock),
        )
        pair = Pair(0, 0, {role: text for role, (text, _) in made.items()}, plane)
        ports = []
        for number, registry in enumerate(pair.registries):
            limiter = None if rate is None else RateLimiter(rate, lambda: 0.0)
            gate = Gate(refresher, clock, limiter)
            requests = RequestLog(registry, request_ids("test"))
            health = WorkerHealth(pool)
            control = ControlPlane(pool, redis, clock, rng.randbytes)
            analysis = AnalysisPlane(pool, clock, timedelta(seconds=5))
            planning = PlanningPlane(pool, clock)
            app = create_app(
                Planes(
                    control=control,
                    webhooks=WebhookPlane(None, Courier()),
                    data=plane,
                    local=LocalPlane(plane, FlagSets(), Epochs(pool), pool),
                    analysis=analysis,
                    planning=planning,
                    pages=PagesPlane(
                        control=control,
                        analysis=analysis,
                        planning=planning,
                        gate=gate,
                        renderer=Renderer(Assets()),
                        live=LivePages(pool, clock),
                    ),
                    operation=Operation(health, metrics_of(registry), requests),
                    gate=gate,
                )
            )
            protocol: Callable[..., asyncio.Protocol] = partial(BoundedProtocol, bounds=bounds)
            if number == 0:
                pair.lane = Lane(plane, gate, requests)
                protocol = partial(LaneProtocol, pair.lane, bounds=bounds)
            ports.append(await stack.enter_async_context(serving(app, protocol, keep_alive)))
        pair.ports = (ports[0], ports[1])
        yield pair


@pytest_asyncio.fixture
async def pair(pool: asyncpg.Pool, redis_url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    """A pair of servers without a limit of rate."""
    async with Redis.from_url(redis_url) as redis, both(pool, redis, tmp_path) as servers:
        yield servers


@pytest_asyncio.fixture(scope="module")
async def shared(
    servers: LiveServers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    """A pair for tests that leave nothing behind but records, and count nothing."""
    async with (
        copy_of(template, servers) as url,
        asyncpg.create_pool(url, min_size=1, max_size=5) as pool,
        Redis.from_url(servers.redis_url) as redis,
        both(pool, redis, tmp_path_factory.mktemp("lane")) as pair,
    ):
        yield pair


def request(
    path: str,
    body: bytes | None,
    *headers: str,
    method: str = "POST",
    version: str = "1.1",
    chunks: list[int] | None = None,
) -> bytes:
    """A request as it is sent; in chunks of these sizes, if there are any."""
    lines = [f"{method} {path} HTTP/{version}", "Host: turnout", *headers]
    if body is None:
        return "\r\n".join([*lines, "", ""]).encode()
    if chunks is None:
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
    parts, rest = b"", body
    for size in chunks:
        if part := rest[:size]:
            parts += b"%x\r\n%b\r\n" % (len(part), part)
        rest = rest[size:]
    if rest:
        parts += b"%x\r\n%b\r\n" % (len(rest), rest)
    return (
        "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode() + parts + b"0\r\n\r\n"
    )


def json(value: Any) -> bytes:
    """A value as JSON."""
    return msgspec.json.encode(value)


UNITS = ["u1", "tester", "Zoë", "ユニット", " ", "x" * 256, "x" * 257, "", "a\0b", 7, None, ["u"]]
EXPERIMENTS = [
    "plain",
    "small",
    "targeted",
    "failing",
    "overridden",
    "by-session",
    *STATES,
    "nothing",
    "UPPER",
    "a b",
]
ATTRIBUTES: list[Any] = [
    None,
    {},
    {"country": "DE"},
    {"country": "FR", "n": 0},
    {"country": "AT", "n": 3, "plan": "pro", "session": "s1"},
    {"country": "\0"},
    {"country": 10**30},
    {"email": "qa@example.org"},
    {"email": 1},
    [],
    "DE",
]
BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b'{"experiment": "plain", "unit": "\\ud800"}',
    b'{"context": {"targetingKey": "\\ud800"}}',
    b"[" * 5_000,
    b'{"experiment": "plain"}',
    b'{"unit": "u1"}',
    b'{"experiment": "plain", "unit": "u1", "extra": 1}',
    b'{"experiment": "plain", "unit": "u1", "expose": "yes"}',
    b'{"context": null}',
    b'{"context": {}}',
    b'{"context": {"targetingKey": "u1"}, "other": 1}',
    b'{"experiment": "plain", "unit": "u1"}' + b" " * (64 * 1024 - 37),
    b'{"experiment": "plain", "unit": "u1"}' + b" " * (64 * 1024 - 36),
]


def credentials(keys: dict[Role, str]) -> list[tuple[str, ...]]:
    """Ways to show a key, most of them wrong."""
    good, reader = keys["service"], keys["analyst"]
    return [
        (f"Authorization: Bearer {good}",),
        (f"authorization: bearer {good}",),
        (f"X-API-Key: {good}",),
        (f"Authorization: Basic {good}", f"X-API-Key: {good}"),
        (f"Authorization: Bearer {reader}",),
        (f"Authorization: Bearer {good[:-1]}0",),
        ("Authorization: Bearer to_0_0",),
        ("Authorization: Bearer é",),
        ("Authorization:",),
        (f"Authorization: Bearer {good}", f"Authorization: Bearer {reader}"),
        (),
    ]


def asked(rng: random.Random, keys: dict[Role, str]) -> Iterator[bytes]:
    """Requests at the hot doors: mostly sound, often odd, sometimes wrong."""
    ways = credentials(keys)
    while True:
        headers = list(ways[0] if rng.random() < 0.8 else rng.choice(ways))
        if rng.random() < 0.2:
            headers.append(rng.choice(["X-Request-Id: mine", "X-Request-Id: " + "x" * 129]))
        if rng.random() < 0.1:
            headers.append("Content-Type: application/json")
        experiment, unit = rng.choice(EXPERIMENTS), rng.choice(UNITS[: rng.choice([5, 12])])
        attributes = rng.choice(ATTRIBUTES[: rng.choice([5, 11])])
        if rng.random() < 0.5:
            path = "/v1/assign"
            body = json({"experiment": experiment, "unit": unit, "attributes": attributes})
        else:
            path = f"/ofrep/v1/evaluate/flags/{experiment.replace(' ', '%20')}"
            context = {"targetingKey": unit, **(attributes if isinstance(attributes, dict) else {})}
            body = json({"context": context})
        if rng.random() < 0.15:
            body = rng.choice(BODIES)
        if rng.random() < 0.05:
            path += rng.choice(["/", "?a=b", "/more", "%2f"])
        chunks = None
        if rng.random() < 0.2:
            chunks = [rng.randint(1, 40) for _ in range(rng.randint(1, 5))]
        yield request(path, body, *headers, chunks=chunks)


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """Bytes as they may come in: whole, or torn anywhere."""
    cuts = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.choice([0, 0, 0, 1, 3]))))
    return [data[first:end] for first, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def test_a_thousand_requests_get_the_same_bytes_from_lane_and_framework(pair: Pair) -> None:
    rng = random.Random(20260302)  # noqa: S311 - the same in every run
    requests = asked(rng, pair.keys)
    statuses: dict[bytes, int] = {}
    sent = 0
    while sent < 1_000:
        batch = [next(requests) for _ in range(rng.choice([1, 1, 1, 2, 5]))]
        sent += len(batch)
        lane, framework = await pair.ask(pieces(rng, b"".join(batch)), len(batch))
        assert lane == framework, b"".join(batch)
        for line in lane.split(b"\r\n"):
            if line.startswith(b"HTTP/1.1 "):
                statuses[line[9:12]] = statuses.get(line[9:12], 0) + 1
    assert statuses.keys() >= {b"200", b"400", b"401", b"403", b"404", b"413", b"422"}, statuses
    assert statuses[b"200"] > 200


async def test_a_request_torn_at_any_byte_is_the_same_request(pair: Pair) -> None:
    good = f"Authorization: Bearer {pair.keys['service']}"
    body = json({"experiment": "plain", "unit": "u1", "attributes": {"country": "DE"}})
    for whole in (
        request("/v1/assign", body, good, "X-Request-Id: r"),
        request("/v1/assign", body, good, "X-Request-Id: r", chunks=[3, 17]),
    ):
        answers = {
            await exchange(pair.ports[0], [whole[:cut], whole[cut:]], 1)
            for cut in range(1, len(whole))
        }
        assert answers == {await exchange(pair.ports[1], [whole], 1)}


PLAIN = json({"experiment": "plain", "unit": "u1"})
ODD: dict[str, tuple[Callable[[str], bytes], int]] = {
    "100-continue": (lambda key: request("/v1/assign", PLAIN, key, "Expect: 100-continue"), 2),
    "close": (lambda key: request("/v1/assign", PLAIN, key, "Connection: close"), 1),
    "close first of two": (
        lambda key: (
            request("/v1/assign", PLAIN, key, "Connection: close")
            + request("/v1/assign", PLAIN, key)
        ),
        2,
    ),
    "HTTP/1.0": (lambda key: request("/v1/assign", PLAIN, key, version="1.0"), 1),
    "HTTP/1.0 keep-alive": (
        lambda key: request("/v1/assign", PLAIN, key, "Connection: keep-alive", version="1.0"),
        1,
    ),
    "GET": (lambda key: request("/v1/assign", None, key, method="GET"), 1),
    "PUT": (lambda key: request("/v1/assign", PLAIN, key, method="PUT"), 1),
    "OPTIONS": (lambda key: request("/v1/assign", None, key, method="OPTIONS"), 1),
    "no body": (lambda key: request("/v1/assign", None, key), 1),
    "upgrade": (
        lambda key: request("/v1/assign", PLAIN, key, "Connection: upgrade", "Upgrade: h2c"),
        1,
    ),
    "a header twice": (lambda key: request("/v1/assign", PLAIN, key, "X-A: 1", "X-A: 2"), 1),
    "trailers": (
        lambda key: (
            request("/v1/assign", PLAIN, key, "Trailer: X-T", chunks=[4])[:-2] + b"X-T: 1\r\n\r\n"
        ),
        1,
    ),
    "two lengths": (
        lambda key: request("/v1/assign", PLAIN, key, "Content-Length: 5"),
        1,
    ),
    "no HTTP": (lambda _: b"hello\r\n\r\n", 1),
    "between the framework's": (
        lambda key: (
            request("/healthz", None, method="GET")
            + request("/v1/assign", PLAIN, key)
            + request("/healthz", None, method="GET")
            + request("/ofrep/v1/evaluate/flags/plain", b'{"context":{"targetingKey":"u9"}}', key)
            + request("/v1/outcomes", json({"event": "click", "unit": "u1"}), key)
            + request("/v1/assign", PLAIN, key)
        ),
        6,
    ),
    "before the framework's": (
        lambda key: (
            request("/v1/assign", PLAIN, key)
            + request("/v1/assign", PLAIN, key)
            + request("/problems", None, method="GET")
            + request("/v1/assign", PLAIN, key)
        ),
        4,
    ),
}


@pytest.mark.parametrize("name", ODD)
async def test_what_is_odd_gets_the_same_bytes(shared: Pair, name: str) -> None:
    make, answers = ODD[name]
    lane, framework = await shared.ask(
        [make(f"Authorization: Bearer {shared.keys['service']}")], answers
    )
    assert lane == framework
    assert lane.startswith(b"HTTP/1.1 ")


async def test_a_sticky_answer_that_waits_for_redis_keeps_its_place(pair: Pair) -> None:
    good = f"Authorization: Bearer {pair.keys['service']}"
    asks = b"".join(
        request("/v1/assign", json({"experiment": key, "unit": "u5"}), good, f"X-Request-Id: {i}")
        for i, key in enumerate(["plain", "stuck", "plain", "nothing", "stuck", "small"])
    )
    lane, framework = await pair.ask([asks], 6)
    assert lane == framework


async def test_one_key_too_often_is_refused_alike(
    pool: asyncpg.Pool, redis_url: str, tmp_path: Path
) -> None:
    async with Redis.from_url(redis_url) as redis, both(pool, redis, tmp_path, RARELY) as pair:
        good = f"Authorization: Bearer {pair.keys['service']}"
        flag = request("/ofrep/v1/evaluate/flags/plain", b'{"context":{"targetingKey":"u9"}}', good)
        lane, framework = await pair.ask([request("/v1/assign", PLAIN, good) * 2 + flag], 3)
        assert lane == framework
        assert lane.count(b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1000\r\n") == 2


async def test_the_lane_counts_as_the_framework_does(pair: Pair) -> None:
    rng = random.Random(3)  # noqa: S311 - the same in every run
    requests = asked(rng, pair.keys)
    for _ in range(100):
        await pair.ask([next(requests)], 1)
    lane, framework = (
        {
            line
            for line in generate_latest(registry).decode().splitlines()
            if line.startswith(("turnout_requests_total", "turnout_request_seconds_count"))
        }
        for registry in pair.registries
    )
    assert lane == framework
    assert any('door="/v1/assign",method="POST",status="200"' in line for line in lane)


async def test_garbage_on_the_socket_never_stops_the_server(pair: Pair) -> None:
    rng = random.Random(11)  # noqa: S311 - the same in every run
    good = f"Authorization: Bearer {pair.keys['service']}"
    whole = request("/v1/assign", PLAIN, good) * 3
    for number in count():
        broken = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            at = rng.randrange(len(broken))
            broken[at : at + rng.choice([0, 1, 5])] = rng.randbytes(rng.choice([0, 1, 4]))
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.ports[0])
        for piece in pieces(rng, bytes(broken)):
            writer.write(piece)
        if rng.random() < 0.5:
            writer.write_eof()
            await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        if number == 300:
            break
    lane, framework = await pair.ask([request("/v1/assign", PLAIN, good, "X-Request-Id: r")], 1)
    assert lane == framework
    assert lane.startswith(b"HTTP/1.1 200 OK")


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection, which the other side may have closed already."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def flood(writer: asyncio.StreamWriter, block: bytes, most: int) -> None:
    """Send a block again and again, up to so many bytes, as long as the other side takes them."""
    for _ in range(0, most, len(block)):
        writer.write(block)
        await asyncio.wait_for(writer.drain(), 2.0)


async def test_a_peer_that_takes_no_answers_is_read_no_further(pair: Pair) -> None:
    """What it has coming is bounded by the buffers of both sides, some megabytes."""
    good = f"Authorization: Bearer {pair.keys['service']}"
    _, writer = await asyncio.open_connection("127.0.0.1", pair.ports[0])
    block = request("/v1/assign", PLAIN, good) * 500
    with pytest.raises(TimeoutError):
        await flood(writer, block, 200 * 1024 * 1024)
    writer.transport.abort()
    lane, framework = await pair.ask([request("/v1/assign", PLAIN, good, "X-Request-Id: r")], 1)
    assert lane == framework


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(
    pool: asyncpg.Pool, redis_url: str, tmp_path: Path
) -> None:
    async with (
        Redis.from_url(redis_url) as redis,
        both(pool, redis, tmp_path, keep_alive=1) as pair,
    ):
        ask = request("/v1/assign", PLAIN, f"Authorization: Bearer {pair.keys['service']}")
        other = request("/healthz", None, method="GET")
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.ports[0])
        for number in range(6):
            writer.write(other if number % 3 == 2 else ask)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.4)
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        await hang_up(writer)


async def test_a_server_that_stops_answers_what_waits_for_the_disk(
    pool: asyncpg.Pool, redis_url: str, tmp_path: Path
) -> None:
    async with Redis.from_url(redis_url) as redis, AsyncExitStack() as stack:
        pair = await stack.enter_async_context(both(pool, redis, tmp_path))
        good = f"Authorization: Bearer {pair.keys['service']}"
        connections = []
        for number in range(50):
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.ports[0])
            body = json({"experiment": "plain", "unit": f"late-{number}"})
            writer.write(request("/v1/assign", body, good))
            connections.append((reader, writer))
        closing = asyncio.create_task(stack.aclose())
        answers = [await asyncio.wait_for(r.read(), PATIENCE) for r, _ in connections]
        await closing
        for (_, writer), answer in zip(connections, answers, strict=True):
            await hang_up(writer)
            # Those that the server had not read yet get no answer, and know it; none gets half.
            assert answer == b"" or answer.endswith(b'"recorded":true}')
        assert any(answers)


async def test_garbage_behind_a_request_is_refused_behind_its_answer(pair: Pair) -> None:
    ask = request("/v1/assign", PLAIN, f"Authorization: Bearer {pair.keys['service']}")
    answer = await exchange(pair.ports[0], [ask + ask + b"\0\1garbage\r\n\r\n"], 3)
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"400"]


async def test_requests_of_both_kinds_keep_a_connection_open(
    pool: asyncpg.Pool, redis_url: str, tmp_path: Path
) -> None:
    async with (
        Redis.from_url(redis_url) as redis,
        both(pool, redis, tmp_path, keep_alive=1) as pair,
    ):
        ask = request("/v1/assign", PLAIN, f"Authorization: Bearer {pair.keys['service']}")
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.ports[0])
        for each in (request("/healthz", None, method="GET"), *[ask] * 12):
            writer.write(each)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.2)
        await hang_up(writer)


async def test_what_cannot_be_written_down_leaves_others_their_answers(pair: Pair) -> None:
    """An integer of 100 bits, which no door lets through, beside six sound requests."""
    project = pair.plane.project(SHOP)
    entry = project.entries["plain"]

    def asked(unit: str, attributes: dict[str, Any]) -> Evaluation:
        context = {"targetingKey": unit}
        return Evaluation(project, entry, unit, attributes, True, assign(entry, unit, context))

    sound = [asked(f"s{number}", {"country": "DE"}) for number in range(6)]
    recorded = await asyncio.gather(
        *(pair.plane.recorder.expose(one) for one in [*sound, asked("huge", {"plan": 2**100})])
    )
    assert recorded == [True] * 6 + [False]


async def test_a_head_that_comes_again_is_the_same_head(pair: Pair) -> None:
    """Bodies of one length, good and bad, behind the same head: one by one, torn, and several at
    once, on one connection of each server."""
    rng = random.Random(5)  # noqa: S311 - the same in every run
    requests = asked(rng, pair.keys)
    good = f"Authorization: Bearer {pair.keys['service']}"
    flag = "/ofrep/v1/evaluate/flags/targeted"
    connections = [await asyncio.open_connection("127.0.0.1", port) for port in pair.ports]
    for number in range(400):
        batch: list[bytes] = []
        for _ in range(rng.choice([1, 1, 1, 3])):
            unit, country = rng.choice(UNITS[:5]), rng.choice(["DE", "FR", "\0", 7])
            fields = {"experiment": "targeted", "unit": unit, "attributes": {"country": country}}
            context = {"targetingKey": unit, "country": country}
            path = rng.choice(["/v1/assign", flag])
            body = json(fields if path == "/v1/assign" else {"context": context})
            if rng.random() < 0.1:
                body = rng.choice(BODIES[:-2])[:200]
            batch.append(request(path, body.ljust(200), good))
        if number % 50 == 49:
            batch.append(next(requests))
        sent = pieces(rng, b"".join(batch)) if number % 3 == 0 else [b"".join(batch)]
        answers = []
        for reader, writer in connections:
            for piece in sent:
                writer.write(piece)
                await asyncio.sleep(0.0005 if len(sent) > 1 else 0)
            counter, got = Counter(), b""
            while counter.complete < len(batch):
                data = await asyncio.wait_for(reader.read(65_536), PATIENCE)
                got += data
                counter.feed(data)
            answers.append(got)
        assert answers[0] == answers[1], b"".join(batch)
    for _, writer in connections:
        await hang_up(writer)
    assert pair.lane is not None
    assert len(pair.lane.heads) == 2


async def test_a_known_head_is_no_way_in_for_a_key_that_was_revoked(pair: Pair) -> None:
    ask = request("/v1/assign", PLAIN, f"Authorization: Bearer {pair.keys['service']}")
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.ports[0])
    statuses: list[bytes] = []
    for number in range(6):
        if number == 4:
            await pair.plane.refresher.restore([publication(())], NOW)
        writer.write(ask)
        statuses.append((await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE))[9:12])
    await hang_up(writer)
    assert statuses == [b"200"] * 4 + [b"401"] * 2
