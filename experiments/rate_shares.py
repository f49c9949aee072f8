"""The exchange of demands by which the processes of a Turnout share the limits of keys.

    turnout:limits     a hash in Redis: for each process how often each key called it

What a process writes has a number that grows with each exchange. The others take it for alive as
long as the number moves, by their own clocks: no two clocks have to agree. Who says nothing more is
left out after some seconds, and put away after a minute.
"""

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from experiments.limits import Peers, RateLimiter

NAME: Final = "turnout:limits"
EXCHANGE_SECONDS: Final = 0.25
IDLE_SECONDS: Final = 1.0
"""Between two exchanges of a process that no limited key has called."""
ALIVE_SECONDS: Final = 5.0
PUT_AWAY_SECONDS: Final = 60.0
PATIENCE: Final = 1.0
MOST_KEYS: Final = 10_000
"""Keys of which a process tells: those that call most."""
_EXPIRE_SECONDS: Final = 3_600

logger = logging.getLogger(__name__)


class Told(msgspec.Struct, frozen=True, array_like=True):
    """What a process tells of itself."""

    number: int
    demand: dict[str, float]


class _Heard(msgspec.Struct, frozen=True):
    """What was heard of another process last, and when it was first heard."""

    text: bytes
    at: float


class Exchange:
    """Tells the others of a process's demands, and hears theirs."""

    def __init__(
        self,
        redis: Redis,
        limiter: RateLimiter,
        identity: str,
        seconds: Callable[[], float],
        is_gone: Callable[[str], bool] = lambda key_id: False,
    ) -> None:
        """`identity` is no other process's, now or later; `is_gone` says of the id of a key whether
        it was revoked."""
        self._redis = redis
        self._limiter = limiter
        self._identity = identity.encode()
        self._seconds = seconds
        self._is_gone = is_gone
        self._number = 0
        self._heard: dict[bytes, _Heard] = {}
        self._answers = True

    async def run(self) -> None:
        """Exchange several times a second, until cancelled; then the others are told at once that
        this process is no more."""
        try:
            while True:
                await self._try_once()
                await asyncio.sleep(EXCHANGE_SECONDS if self._limiter.is_used else IDLE_SECONDS)
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await asyncio.wait_for(_done(self._redis.hdel(NAME, self._name)), PATIENCE)

    async def _try_once(self) -> None:
        try:
            await self.once()
        except (RedisError, OSError, TimeoutError) as error:
            if self._answers:  # once for each time that Redis goes away
                logger.warning("rate limits stay as shared last", extra={"error": error})
            self._answers = False
        except Exception:  # a defect here must cost no router its doors
            logger.exception("rate limits not shared")
        else:
            self._answers = True

    async def once(self) -> None:
        """Tell, hear, and go on with the shares that follow.

        Raises:
            RedisError, OSError, TimeoutError: if Redis does not answer in time: the shares stay.
        """
        self._limiter.forget(self._is_gone)
        demand = self._limiter.demands()
        if len(demand) > MOST_KEYS:
            demand = dict(heapq.nlargest(MOST_KEYS, demand.items(), key=lambda item: item[1]))
        self._number += 1
        text = msgspec.msgpack.encode(Told(self._number, demand))
        async with asyncio.timeout(PATIENCE), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hset(NAME, self._name, cast("Any", text))
            pipeline.expire(NAME, _EXPIRE_SECONDS)
            pipeline.hgetall(NAME)
            *_, everybody = await pipeline.execute()
        gone = self._hear(everybody)
        if gone:
            async with asyncio.timeout(PATIENCE):
                await _done(self._redis.hdel(NAME, *gone))

    @property
    def _name(self) -> str:
        return self._identity.decode()

    def _hear(self, everybody: Mapping[bytes, bytes]) -> list[str]:
        """Take in what all have written; who is to be put away."""
        now = self._seconds()
        heard: dict[bytes, _Heard] = {}
        for name, text in everybody.items():
            before = self._heard.get(name)
            if name != self._identity:
                is_same = before is not None and before.text == text
                heard[name] = before if before and is_same else _Heard(text, now)
        self._heard = heard
        alive = [
            told
            for each in heard.values()
            if now - each.at < ALIVE_SECONDS and (told := _read(each.text)) is not None
        ]
        demand: dict[str, float] = {}
        for told in alive:
            for key_id, rate in told.demand.items():
                demand[key_id] = demand.get(key_id, 0.0) + rate
        self._limiter.hear(Peers(len(alive), demand))
        return [
            name.decode(errors="replace")
            for name, each in heard.items()
            if now - each.at >= PUT_AWAY_SECONDS
        ]


def _read(text: bytes) -> Told | None:
    """What a process has written; None where a newer release writes something else."""
    try:
        return msgspec.msgpack.decode(text, type=Told)
    except msgspec.MsgspecError:
        return None


async def _done(answer: Any) -> None:
    await answer
