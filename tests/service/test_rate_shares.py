"""The limit of a key over several processes, reconciled through Redis."""

import secrets
from datetime import UTC, datetime

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from experiments.doors import Gate
from experiments.keys import ApiKey, new_key
from experiments.limits import RateLimiter
from experiments.problems import ProblemError
from experiments.rate_shares import ALIVE_SECONDS, NAME, PUT_AWAY_SECONDS, Exchange
from tests.running import Turnout, eventually, problem

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 100


class Process:
    """A gate with a limiter, and its exchange with the others, on a clock that tests move."""

    def __init__(self, redis: Redis, key: ApiKey, clock: list[float]) -> None:
        self.key = key
        self.limiter = RateLimiter(0, lambda: clock[0])
        self.name = secrets.token_hex(8)
        self.exchange = Exchange(redis, self.limiter, self.name, lambda: clock[0])
        self.gate = Gate(self, lambda: NOW, self.limiter)

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None."""
        return self.key if key_id == self.key.id else None

    def calls(self, text: str, count: int) -> int:
        """How many of these are let in."""
        admitted = 0
        for _ in range(count):
            try:
                self.gate.admit(text, "record")
                admitted += 1
            except ProblemError:
                continue
        return admitted


async def settle(clock: list[float], processes: list[Process], text: str, *calls: int) -> int:
    """Ten seconds of so many calls a second to each process; how many were let in."""
    admitted = 0
    for _ in range(100):
        clock[0] += 0.1
        for process, count in zip(processes, calls, strict=True):
            admitted += process.calls(text, count // 10)
        for process in processes:
            await process.exchange.once()
    return admitted


async def test_two_gates_share_the_limit_of_a_key(redis_url: str) -> None:
    text, key = new_key("shop", "service", "", NOW, secrets.token_bytes, rate_limit=LIMIT)
    clock = [0.0]
    async with Redis.from_url(redis_url) as redis:
        both = [Process(redis, key, clock) for _ in range(2)]
        for process in both:
            await process.exchange.once()
        await settle(clock, both, text, 100, 40)
        assert await settle(clock, both, text, 100, 40) == pytest.approx(10 * LIMIT, rel=0.05)
        lone = await settle(clock, both, text, 200, 0)
        assert 8.5 * LIMIT <= lone <= 10 * LIMIT, "a lone busy process has nearly all of it"


async def test_who_says_nothing_more_is_left_out_and_put_away(redis_url: str) -> None:
    text, key = new_key("shop", "service", "", NOW, secrets.token_bytes, rate_limit=LIMIT)
    clock = [0.0]
    async with Redis.from_url(redis_url) as redis:
        lives, dies = (Process(redis, key, clock) for _ in range(2))
        await dies.exchange.once()
        lives.calls(text, 1)
        await lives.exchange.once()
        bucket = lives.limiter.bucket_of(key)
        assert bucket is not None
        assert bucket.rate < LIMIT
        clock[0] += ALIVE_SECONDS
        await lives.exchange.once()
        assert bucket.rate == LIMIT
        clock[0] += PUT_AWAY_SECONDS
        await lives.exchange.once()
        assert await redis.hkeys(NAME) == [lives.name.encode()]


async def test_what_another_release_writes_there_is_passed_over(redis_url: str) -> None:
    text, key = new_key("shop", "service", "", NOW, secrets.token_bytes, rate_limit=LIMIT)
    async with Redis.from_url(redis_url) as redis:
        process = Process(redis, key, [0.0])
        for name, value in {"a": b"", "b": msgspec.msgpack.encode({"shares": 1})}.items():
            await redis.hset(NAME, name, value)
        await process.exchange.once()
        assert process.calls(text, 2 * LIMIT) == LIMIT


async def test_without_redis_the_shares_stay(redis_url: str) -> None:
    text, key = new_key("shop", "service", "", NOW, secrets.token_bytes, rate_limit=LIMIT)
    clock = [0.0]
    async with Redis.from_url(redis_url) as redis, Redis.from_url("redis://127.0.0.1:1") as nobody:
        one = Process(redis, key, clock)
        two = Process(redis, key, clock)
        for process in (two, one):
            await process.exchange.once()
        one.exchange = Exchange(nobody, one.limiter, one.name, lambda: clock[0])
        one.calls(text, 1)
        bucket = one.limiter.bucket_of(key)
        assert bucket is not None
        last = bucket.rate
        for _ in range(20):
            clock[0] += 1
            with pytest.raises(RedisError):
                await one.exchange.once()
            assert one.calls(text, LIMIT) == int(last)
        assert bucket.rate == last == LIMIT / 2


async def test_a_key_that_calls_too_often_is_told_when_to_come_again(turnout: Turnout) -> None:
    made = await turnout.client("admin").post("/v1/keys", json={"role": "analyst", "rate_limit": 1})
    headers = {"X-API-Key": made.json()["key"]}

    async def knows() -> bool | None:
        answer = await turnout.client(None).get("/v1/project", headers=headers)
        return True if answer.status_code != 401 else None

    await eventually(knows, "use for a new key")

    async def refused() -> bool | None:
        answer = await turnout.client(None).get("/v1/project", headers=headers)
        if answer.status_code == 200:
            return None
        problem(answer, 429, "rate-limited")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["ratelimit-policy"] == '"key";q=1;w=1'
        return True

    await eventually(refused, "refusal")
    assert (await turnout.client("analyst").get("/v1/project")).status_code == 200, "another key"


async def test_what_pages_ask_for_counts_with_their_key(turnout: Turnout) -> None:
    made = (
        await turnout.client("admin").post("/v1/keys", json={"role": "analyst", "rate_limit": 2})
    ).json()
    client = turnout.client(None)

    async def signed_in() -> str | None:
        answer = await client.post("/sign-in", data={"key": made["key"]})
        return answer.headers["set-cookie"].partition(";")[0] if answer.is_redirect else None

    cookies = {"Cookie": await eventually(signed_in, "session")}

    async def refused() -> bool | None:
        answer = await client.get("/experiments", headers=cookies)
        return True if answer.status_code == 429 and "retry-after" in answer.headers else None

    await eventually(refused, "refusal of a page")
