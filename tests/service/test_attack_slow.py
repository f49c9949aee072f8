"""Whoever is slow, silent or one too many loses the connection, and others do not notice."""

import asyncio
import gc
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from dashboard.assets import PREFIX
from tests.service.conftest import copy_of
from tests.service.test_lane import PATIENCE, PLAIN, Pair, both, exchange, hang_up, request
from turnout.embedded import LiveServers
from turnout.protocol import Bounds

SHORT = Bounds(
    head_seconds=0.4,
    body_seconds=0.5,
    body_rate=1_000_000,
    body_bytes=1024 * 1024,
    write_seconds=0.5,
    write_rate=1_000,
    connections=150,
)
LANE, FRAMEWORK = 0, 1
ASSET = PREFIX + "vendor/htmx.min.js"


@pytest_asyncio.fixture(scope="module")
async def hurried(
    servers: LiveServers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    """A pair of servers with little patience: one with the fast lane, one without."""
    async with (
        copy_of(template, servers) as url,
        asyncpg.create_pool(url, min_size=1, max_size=5) as pool,
        Redis.from_url(servers.redis_url) as redis,
        both(pool, redis, tmp_path_factory.mktemp("slow"), bounds=SHORT) as pair,
    ):
        yield pair


def key_of(pair: Pair) -> str:
    """The header with a good key."""
    return f"Authorization: Bearer {pair.keys['service']}"


@asynccontextmanager
async def connected(
    pair: Pair, side: int, number: int = 1
) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """So many connections."""
    ends = [await asyncio.open_connection("127.0.0.1", pair.ports[side]) for _ in range(number)]
    try:
        yield ends
    finally:
        for _, writer in ends:
            await hang_up(writer)


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send data byte by byte, as long as somebody takes it."""
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side closes."""
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    except ConnectionError:
        return b""


async def told_while_dripping(pair: Pair, side: int, first: bytes, rest: bytes) -> bytes:
    """What is answered to a request whose rest comes slowly."""
    async with connected(pair, side) as [(reader, writer)]:
        writer.write(first)
        dripping = asyncio.create_task(drip(writer, rest))
        try:
            return await all_of(reader)
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


@asynccontextmanager
async def small(port: int) -> AsyncIterator[socket.socket]:
    """A connection that holds little of what comes."""
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", port))
        yield peer


async def until_cut_off(peer: socket.socket, block: bytes) -> bool:
    """Send a block again and again, and read nothing, until the other side cuts the connection."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                await asyncio.get_running_loop().sock_sendall(peer, block)
    except ConnectionError:
        return True
    except TimeoutError:
        return False


async def until_refused(writer: asyncio.StreamWriter, block: bytes) -> int:
    """How many blocks the other side takes."""
    for number in range(1_000):
        writer.write(block)
        try:
            await asyncio.wait_for(writer.drain(), PATIENCE)
        except ConnectionError:
            return number
    return 1_000


@pytest.mark.parametrize("side", [LANE, FRAMEWORK])
async def test_a_head_that_drips_is_given_up(hurried: Pair, side: int) -> None:
    answer = await told_while_dripping(
        hurried, side, b"POST /v1/assign HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"a" * 2_000
    )
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"type":"timeout"' in answer


@pytest.mark.parametrize("side", [LANE, FRAMEWORK])
@pytest.mark.parametrize("path", ["/v1/assign", "/v1/outcomes"])
async def test_a_body_that_drips_is_given_up(hurried: Pair, side: int, path: str) -> None:
    head = request(path, b"x" * 4_000, key_of(hurried))[:-4_000]
    answer = await told_while_dripping(hurried, side, head, b" " * 4_000)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


async def test_a_body_whose_chunks_are_mostly_wrapping_is_given_up(hurried: Pair) -> None:
    head = request("/v1/outcomes", b"", key_of(hurried), chunks=[])[:-5]
    chunks = b"1;" + b"x" * 40 + b"\r\n \r\n"
    answer = await told_while_dripping(hurried, FRAMEWORK, head, chunks * 100)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


@pytest.mark.parametrize("side", [LANE, FRAMEWORK])
@pytest.mark.parametrize("noise", [b"", b"\r\n" * 500], ids=["silence", "empty lines"])
async def test_who_asks_nothing_is_let_go(hurried: Pair, side: int, noise: bytes) -> None:
    assert await told_while_dripping(hurried, side, b"", noise) == b""


async def test_a_body_that_goes_on_behind_its_refusal_is_not_read_for_ever(hurried: Pair) -> None:
    """Nobody needs a key to send one."""
    async with connected(hurried, FRAMEWORK) as [(reader, writer)]:
        writer.write(request("/v1/outcomes", b"", chunks=[])[:-5])
        chunk = b"%x\r\n%b\r\n" % (60_000, b" " * 60_000)
        assert await until_refused(writer, chunk) < 200
        assert (await all_of(reader))[:20] in {b"", b"HTTP/1.1 401 Unauthor"}


@pytest.mark.parametrize("side", [LANE, FRAMEWORK])
async def test_who_takes_no_answers_is_let_go(hurried: Pair, side: int) -> None:
    asks = request(ASSET, None, method="GET") * 10
    if side == LANE:
        asks = request("/v1/assign", PLAIN, key_of(hurried)) * 100
    async with small(hurried.ports[side]) as peer:
        assert await until_cut_off(peer, asks)


async def test_a_slow_reader_that_goes_on_reading_gets_all(hurried: Pair) -> None:
    asks = request(ASSET, None, "X-Request-Id: r", method="GET") * 99
    asks += request(ASSET, None, "X-Request-Id: r", "Connection: close", method="GET")
    whole = await exchange(hurried.ports[FRAMEWORK], [asks], 100)
    async with small(hurried.ports[FRAMEWORK]) as peer:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(peer, asks)
        got, began = 0, time.monotonic()
        while part := await loop.sock_recv(peer, 20_000):
            got += len(part)
            if time.monotonic() - began < 1.5:  # three times what a standstill may take
                await asyncio.sleep(0.05)
    assert got == len(whole)


async def test_a_hundred_slow_connections_hold_up_nobody(hurried: Pair) -> None:
    ask = request("/v1/assign", PLAIN, key_of(hurried))
    for side in (LANE, FRAMEWORK):
        async with connected(hurried, side, 100) as slow:
            for number, (_, writer) in enumerate(slow):
                writer.write(ask[: 20 + number])
            for _ in range(5):
                answer = await exchange(hurried.ports[side], [ask], 1)
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_connection_too_many_is_told_so_and_there_is_room_again(hurried: Pair) -> None:
    ask = request("/v1/assign", PLAIN, key_of(hurried))
    for side in (LANE, FRAMEWORK):
        async with AsyncExitStack() as stack:
            ends = await stack.enter_async_context(connected(hurried, side, SHORT.connections + 2))
            reader, writer = ends[-2]
            writer.write(request("/healthz", None, method="GET"))
            answer = await all_of(reader)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), "the process lives"
            reader, writer = ends[-1]
            writer.write(ask)
            answer = await all_of(reader)
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n")
            assert b'"type":"unavailable"' in answer
            for silent, _ in ends[:-2]:
                assert await all_of(silent) == b""
        answer = await exchange(hurried.ports[side], [ask], 1)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_what_lasts_by_design_goes_on(hurried: Pair) -> None:
    """An event stream, and a connection that is kept open for the next request."""
    ask = request("/ofrep/v1/events", None, key_of(hurried), method="GET")
    async with connected(hurried, LANE) as [(reader, writer)]:
        writer.write(ask)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        async with connected(hurried, LANE) as [(again, other)]:
            for _ in range(5):
                other.write(request("/v1/assign", PLAIN, key_of(hurried)))
                assert (await again.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK\r\n")
                await asyncio.sleep(0.25)
        assert not writer.transport.is_closing()
        assert not reader.at_eof()


async def test_requests_that_nobody_waits_for_are_held_back(hurried: Pair) -> None:
    """Each that waits for the answers before it takes memory, and no key is needed to send it."""
    async with small(hurried.ports[FRAMEWORK]) as peer:
        sent, asks = 0, b"GET /healthz HTTP/1.1\r\n\r\n" * 1_000
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await asyncio.get_running_loop().sock_sendall(peer, asks)
                    sent += 1_000
        cycles = [o for o in gc.get_objects() if isinstance(o, RequestResponseCycle)]
        assert len(cycles) < 2_000 < sent


@pytest.mark.parametrize("path", ["/healthz", "/v1/experiments"])
async def test_a_thousand_requests_at_once_are_all_answered(hurried: Pair, path: str) -> None:
    asks = [request(path, None, method="GET")] * 500
    asks += [request("/v1/assign", PLAIN, key_of(hurried))] * 500
    random.Random(3).shuffle(asks)  # noqa: S311 - the same in every run
    answer = await exchange(hurried.ports[LANE], [b"".join(asks)], len(asks))
    assert answer.count(b"HTTP/1.1 ") == len(asks)
    assert answer.count(b'"recorded":') == 500
