"""How soon a change is live on every router, and what compiling many experiments costs.

    make bench-snapshot

Four routers, each a process, on one Postgres and one Redis. A change is made as doors and
controller make it: committed, then announced. From the commit on every router is asked again and
again, until it answers from the new epoch. The same changes without the announcement show what the
poll alone would give.
"""

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httptools
from redis.asyncio import Redis

from bench.turnout_processes import Running, serving, turnout
from experiments import lifecycle, store
from experiments.announce import announce
from experiments.definition import parse_definition
from experiments.keys import new_key
from experiments.lifecycle import Change
from router.refresher import Refresher

PROJECT = "bench"
PAUSE_SECONDS = 0.002
PATIENCE_SECONDS = 30.0


def definition(key: str) -> dict[str, Any]:
    """An experiment with a targeting rule and a metric."""
    return {
        "key": key,
        "targeting": {"in": [{"var": "country"}, ["DE", "AT"]]},
        "record": ["country"],
        "variants": [
            {"key": "old", "control": True, "weight": 0.5, "value": {"model": "ranker/6"}},
            {"key": "new", "weight": 0.5, "value": {"model": "ranker/7"}},
        ],
        "metrics": [
            {"key": "click", "role": "primary", "kind": "proportion", "event": "click"}
            | {"window": "1d"}
        ],
    }


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def change() -> Change:
    """Who changes something now, and why."""
    return Change("bench", "a measurement", now())


async def populate(pool: store.Pool, number: int) -> str:
    """A project with so many running experiments; the text of a key of it."""
    text, key = new_key(PROJECT, "service", "", now(), secrets.token_bytes)
    async with pool.acquire() as connection:
        async with connection.transaction():
            await store.create_project(connection, PROJECT, now())
            await store.insert_key(connection, key)
        for each in range(number):
            async with connection.transaction():
                defined = parse_definition(definition(f"experiment-{each}"))
                record = await lifecycle.define(connection, PROJECT, defined, change())
                await lifecycle.start(connection, record, change())
    return text


async def longest_turn(done: asyncio.Event) -> float:
    """The longest time for which the event loop did not come round, in seconds."""
    longest, last = 0.0, time.perf_counter()
    while not done.is_set():
        await asyncio.sleep(0)
        here = time.perf_counter()
        longest, last = max(longest, here - last), here
    return longest


async def compile_all(pool: store.Pool, redis: Redis) -> tuple[float, float]:
    """Seconds to load and compile everything, and the longest turn meanwhile."""
    done = asyncio.Event()
    watch = asyncio.create_task(longest_turn(done))
    began = time.perf_counter()
    await Refresher(pool, redis, now).refresh()
    seconds = time.perf_counter() - began
    done.set()
    return seconds, await watch


class Probe:
    """Asks a router for the epoch of an experiment, over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: bytes):
        self._reader, self._writer, self._ask = reader, writer, ask
        self._body = b""
        self._complete = False

    def on_body(self, body: bytes) -> None:
        """Take a part of an answer."""
        self._body += body

    def on_message_complete(self) -> None:
        """Take the end of an answer."""
        self._complete = True

    async def epoch(self) -> int:
        """The epoch from which the router answers."""
        self._body, self._complete = b"", False
        self._writer.write(self._ask)
        parser = httptools.HttpResponseParser(self)
        while not self._complete:
            data = await self._reader.read(65_536)
            if not data:
                raise ConnectionError("the router closed the connection")
            parser.feed_data(data)
        return int(json.loads(self._body).get("epoch", 0))

    async def sees(self, epoch: int, since: float) -> float:
        """Seconds from a moment until the router answers from this epoch."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.epoch() < epoch:  # noqa: ASYNC110 - the router is another process
                await asyncio.sleep(PAUSE_SECONDS)
        return time.perf_counter() - since


async def probe(url: str, key: str, experiment: str) -> Probe:
    """A probe of a router."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({"experiment": experiment, "unit": "u", "expose": False}).encode()
    head = f"POST /v1/assign HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
    ask = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return Probe(reader, writer, ask)


async def live_after(
    pool: store.Pool, redis: Redis | None, probes: Sequence[Probe], changes: int
) -> list[float]:
    """For each change and router the seconds from the commit until it was live there."""
    rng = random.Random(1)  # noqa: S311 - moments of changes
    found: list[float] = []
    for number in range(changes):
        weight = 0.3 if number % 2 else 0.7
        async with pool.acquire() as connection:
            async with connection.transaction():
                record = await lifecycle.find(connection, PROJECT, "experiment-0", lock=True)
                changed = await lifecycle.allocate(
                    connection, record, {"old": weight, "new": 1 - weight}, None, change()
                )
            since = time.perf_counter()
        watching = [asyncio.create_task(each.sees(changed.epoch, since)) for each in probes]
        if redis is not None:
            await announce(redis, PROJECT)
        found += await asyncio.gather(*watching)
        await asyncio.sleep(rng.uniform(0, 0.05))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def show(name: str, values: Sequence[float]) -> None:
    """Print how long changes took to be live."""
    parts = (median(values), percentile(values, 0.99), max(values))
    p50, p99, most = (f"{1_000 * part:.1f}" for part in parts)
    print(f"{name}: p50 {p50} ms, p99 {p99} ms, most {most} ms ({len(values)} measurements)")


async def measure(experiments: int, changes: int, routers: int) -> None:
    """Print all figures."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        running: Running = await stack.enter_async_context(turnout(folder))
        redis = await stack.enter_async_context(Redis.from_url(running.redis_url))
        print(f"defining and starting {experiments} experiments", file=sys.stderr)
        key = await populate(running.pool, experiments)
        seconds, turn = zip(
            *[await compile_all(running.pool, redis) for _ in range(5)], strict=True
        )
        print(
            f"{experiments} experiments loaded and compiled in {median(seconds):.3f} s, the longest"
            f" turn of the event loop {1_000 * median(turn):.1f} ms (medians of 5)"
        )
        urls = [running.url]
        for number in range(1, routers):
            each = await stack.enter_async_context(serving(running, folder / f"router-{number}"))
            urls.append(each)
        probes = [await probe(url, key, "experiment-0") for url in urls]
        await asyncio.gather(*(each.sees(1, time.perf_counter()) for each in probes))
        print(f"a change of one of {experiments} experiments, live on each of {routers} routers:")
        show("  announced  ", await live_after(running.pool, redis, probes, changes))
        show("  only polled", await live_after(running.pool, None, probes, max(changes // 20, 5)))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=1_000)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--routers", type=int, default=4)
    options = parser.parse_args()
    asyncio.run(measure(options.experiments, options.changes, options.routers))


if __name__ == "__main__":
    main()
