"""Bodies and heads that are made to break a parser are refused, alike by the lane and by the
framework, and nobody is asked twice."""

import gzip
from collections.abc import AsyncIterator
from typing import Final

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.service.conftest import copy_of
from tests.service.test_lane import PLAIN, Pair, both, exchange, request
from turnout.embedded import LiveServers

OPEN: Final = b'{"experiment":"plain","unit":"u","attributes":{"n":'
BODIES: Final[dict[str, bytes]] = {
    "nested": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "nested lists": b"[" * 30_000 + b"]" * 30_000,
    "a number beyond all": OPEN + b"1e400}}",
    "a number of 50,000 digits": OPEN + b"9" * 50_000 + b"}}",
    "NaN": OPEN + b"NaN}}",
    "half a pair": OPEN + b'"\\ud800"}}',
    "half a pair in bytes": OPEN + b'"\xed\xa0\x80"}}',
    "UTF-16": OPEN.decode().encode("utf-16"),
    "a mark of byte order": b"\xef\xbb\xbf" + PLAIN,
    "compressed, and not said to be": gzip.compress(PLAIN),
    "too large": b" " * 70_000 + PLAIN,
}
LANE: Final = ("/v1/assign", "/ofrep/v1/evaluate/flags/plain")
TAIL: Final = b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLED: Final[dict[str, bytes]] = {
    "a length and chunks": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0" + TAIL,
    "two lengths": b"Content-Length: 0\r\nContent-Length: 5" + TAIL,
    "a negative length": b"Content-Length: -1" + TAIL,
    "a length with a sign": b"Content-Length: +0" + TAIL,
    "a length beyond all": b"Content-Length: 99999999999999999999" + TAIL,
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0" + TAIL,
    "chunks that are none": b"Transfer-Encoding: xchunked\r\n\r\n0" + TAIL,
    "a space before the colon": b"Content-Length : 0" + TAIL,
    "a folded line": b"X-A: 1\r\n Content-Length: 0" + TAIL,
    "a bare line feed": b"X-A: 1\nContent-Length: 0" + TAIL,
    "a chunk of no size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + TAIL,
    "a NUL": b"X-A: \0" + TAIL,
}


@pytest_asyncio.fixture(scope="module")
async def attacked(
    servers: LiveServers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    """A pair of servers: one with the fast lane, one without."""
    async with (
        copy_of(template, servers) as url,
        asyncpg.create_pool(url, min_size=1, max_size=5) as pool,
        Redis.from_url(servers.redis_url) as redis,
        both(pool, redis, tmp_path_factory.mktemp("attacked")) as pair,
    ):
        yield pair


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_made_to_break_a_parser_is_refused(attacked: Pair, name: str) -> None:
    key = f"Authorization: Bearer {attacked.keys['service']}"
    for path in LANE:
        ask = request(path, BODIES[name], key, "X-Request-Id: r")
        lane, framework = await attacked.ask([ask], 1)
        assert lane.partition(b"\r\n\r\n")[2] == framework.partition(b"\r\n\r\n")[2]
        assert lane[:12] == framework[:12]
        assert lane[9:12] in {b"400", b"413", b"422"}


@pytest.mark.parametrize("path", [*LANE, "/v1/outcomes", "/v1/experiments", "/v1/assign/batch"])
async def test_a_compressed_body_is_refused_in_words(attacked: Pair, path: str) -> None:
    key = f"Authorization: Bearer {attacked.keys['service']}"
    for encoding in ("gzip", "br", "identity, deflate"):
        ask = request(path, gzip.compress(PLAIN), key, f"Content-Encoding: {encoding}")
        for answer in await attacked.ask([ask], 1):
            if answer[9:12] == b"403":
                continue  # before a body is looked at
            assert answer.startswith(b"HTTP/1.1 415 Unsupported Media Type\r\n"), answer
            assert b"accept-encoding: identity\r\n" in answer
            assert b"no Content-Encoding is taken but identity" in answer
    plain = request("/v1/assign", PLAIN, key, "Content-Encoding: identity")
    for answer in await attacked.ask([plain], 1):
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_of_a_name_that_stands_twice_the_last_counts_alike(attacked: Pair) -> None:
    """To look for one takes several times as long as to read the body."""
    key = f"Authorization: Bearer {attacked.keys['service']}"
    body = PLAIN[:-1] + b',"unit":"other","expose":false}'
    once = request("/v1/assign", b'{"experiment":"plain","unit":"other","expose":false}', key)
    answers = {
        answer.partition(b"\r\n\r\n")[2]
        for ask in (request("/v1/assign", body, key), once)
        for answer in await attacked.ask([ask], 1)
    }
    assert len(answers) == 1


@pytest.mark.parametrize("path", LANE)
async def test_thousands_of_headers_are_no_way_around(attacked: Pair, path: str) -> None:
    """As many as a head has room for, each a byte long; and one key among them."""
    key = f"Authorization: Bearer {attacked.keys['service']}"
    many = [f"{chr(97 + number % 26)}:" for number in range(9_000)]
    lane, framework = await attacked.ask([request(path, PLAIN, *many, key)], 1)
    assert lane[9:12] == framework[9:12]
    assert lane[9:12] in {b"200", b"400"}
    for answer in await attacked.ask([request(path, PLAIN, *many * 3, key)], 1):
        assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "target", ["http://evil.example/v1/keys", "//evil.example/v1/keys", "*", "/v1/../v1/keys", "?"]
)
async def test_a_target_of_another_form_opens_no_door(attacked: Pair, target: str) -> None:
    key = f"Authorization: Bearer {attacked.keys['service']}"
    lane, framework = await attacked.ask([request(target, None, key, method="GET")], 1)
    assert lane[:12] == framework[:12]
    assert lane[9:10] == b"4", lane
    assert b"evil" not in lane + framework


@pytest.mark.parametrize("name", SMUGGLED)
async def test_no_request_is_smuggled_in_another(attacked: Pair, name: str) -> None:
    """What a proxy in front could read in another way is refused, and the connection closed."""
    head = f"POST /v1/assign HTTP/1.1\r\nHost: x\r\nX-API-Key: {attacked.keys['service']}\r\n"
    for port in attacked.ports:
        answer = await exchange(port, [head.encode() + SMUGGLED[name]], 3)
        assert b" 404 " not in answer
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer[:200]
        assert answer.count(b"HTTP/1.1 ") == 1
