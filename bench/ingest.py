"""How fast outcomes come in, and what a report costs once twenty million of them have.

    make bench-ingest                       # about eight minutes
    make bench-ingest EVENTS=1000000        # shorter

One Postgres, one router and one worker on this machine, with their usual settings, every outcome on
disk before it is acknowledged. A million units are enrolled; then outcomes come in batches, without
and with ids of the client, of units that come alike or as a power law. What it is compared with is
the plain COPY of the same rows into a table without an index, between the runs. `accepted` is what
the doors acknowledge, `folded` is the whole way, from the first request until every outcome is in
the moments.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import httpx
import msgspec

from bench.turnout_processes import Running, cpu_seconds, memory_mib, turnout
from router.journal import Journal
from router.records import ExposureRecord, OutcomeRecord, Record

UNITS: Final = 1_000_000
BATCH: Final = 5_000
CONNECTIONS: Final = 4
COPIED: Final = 200_000
EPOCHS: Final = 50_000
SMALL: Final = 10_000
REPORTS: Final = 300

_COPIED_COLUMNS: Final = (
    "segment",
    "ordinal",
    "id",
    "project",
    "event",
    "unit_type",
    "unit",
    "value",
    "at",
    "received_at",
)
_PROJECT: Final = "default"
_LEFT: Final = "select count(*) from segment where folded_at is null"
_FOLDED: Final = "select sum(records) from segment where folded_at is not null"
# What a user would write who keeps events only: the first exposure of each unit, its outcomes in
# the window, and the moments by variant.
_SCAN: Final = """
    select variant, count(*), avg(value), var_samp(value)
    from (
        select e.unit, e.variant, coalesce(sum(o.value), 0) as value
        from (
            select distinct on (unit) unit, variant, at from exposure
            where experiment = $1 order by unit, at
        ) e
        left join outcome o
            on o.unit = e.unit and o.event = 'buy'
           and o.at >= e.at and o.at < e.at + interval '7 days'
        group by e.unit, e.variant
    ) as of_unit
    group by variant
"""
_MANY_EPOCHS: Final = """
    insert into epoch (experiment, number, run, state, salt, allocation, weights, targeting, layer,
                       holdout, stickiness, ship, resized, at, actor, reason, decision)
    select experiment, g, run, state, salt, allocation, weights, targeting, layer, holdout,
           stickiness, ship, false, at + g * interval '1 ms', actor, reason, decision
    from epoch, generate_series(2, $2::int) g where experiment = $1 and number = 1
"""


class Way(NamedTuple):
    """How outcomes come: with ids or without, of which units."""

    name: str
    with_ids: bool
    pick: Callable[[random.Random], int]


WAYS: Final = (
    Way("no ids, units uniform", False, lambda r: r.randrange(UNITS)),
    Way("no ids, units skewed", False, lambda r: int(UNITS * r.random() ** 8)),
    Way("ids on all, units uniform", True, lambda r: r.randrange(UNITS)),
    Way("ids on all, units skewed", True, lambda r: int(UNITS * r.random() ** 8)),
)


class Figures(NamedTuple):
    """What one way came to: outcomes a second, and processor time of each, in microseconds."""

    accepted: float
    folded: float
    router: float
    worker: float
    postgres: float


def _definition(key: str, event: str) -> dict[str, Any]:
    return {
        "key": key,
        "variants": [
            {"key": "a", "value": "a", "weight": 0.5, "control": True},
            {"key": "b", "value": "b", "weight": 0.5},
        ],
        "metrics": [
            {"key": "spent", "role": "primary", "kind": "mean", "event": event, "window": "7d"}
        ],
    }


async def begin(running: Running, key: str, event: str) -> int:
    """Define an experiment, and start it; its number in the database."""
    await running.call("POST", "/v1/experiments", _definition(key, event))
    await running.call("POST", f"/v1/experiments/{key}/start", {"reason": "to be measured"})
    number: int = await running.pool.fetchval("select id from experiment where key = $1", key)
    return number


async def leave_behind(running: Running, records: AsyncIterator[Sequence[Record]]) -> None:
    """Write records into a journal of a process that is gone, which the router takes over."""
    journal = await Journal.begin(
        running.folder / "data" / "journals", lambda: datetime.now(UTC), durability="written"
    )
    async for some in records:
        await journal.append(some)
    await journal.close()


async def exposures(experiment: int, unit: str, units: int, epochs: int = 1) -> AsyncIterator[Any]:
    """Units that meet the variants in turn, over these epochs."""
    now = datetime.now(UTC)
    for begin_at in range(0, units, BATCH):
        yield [
            ExposureRecord(
                uuid4().bytes,
                _PROJECT,
                experiment,
                1,
                number * epochs // units + 1,
                "ab"[number % 2],
                "user",
                f"{unit}{number}",
                now,
                now,
            )
            for number in range(begin_at, min(begin_at + BATCH, units))
        ]


async def outcomes(event: str, unit: str, units: int) -> AsyncIterator[Any]:
    """An outcome of each of these units."""
    now = datetime.now(UTC)
    for begin_at in range(0, units, BATCH):
        yield [
            OutcomeRecord(None, _PROJECT, event, (("user", f"{unit}{number}"),), 2.5, now, now)
            for number in range(begin_at, min(begin_at + BATCH, units))
        ]


def bodies(way: Way, events: int, generator: random.Random) -> list[bytes]:
    """Requests' bodies with so many outcomes, made beforehand."""
    made = []
    for begin_at in range(0, events, BATCH):
        items: list[dict[str, object]] = [
            {"event": "buy", "unit": f"user-{way.pick(generator)}", "value": number % 97 / 4}
            for number in range(min(BATCH, events - begin_at))
        ]
        if way.with_ids:
            for item in items:
                item["id"] = generator.randbytes(12).hex()
        made.append(msgspec.json.encode(items))
    return made


async def send(running: Running, requests: Sequence[bytes]) -> None:
    """Send all, over a few connections, each as soon as its last one was answered."""
    waiting = iter(requests)
    host, port = running.url.removeprefix("http://").split(":")

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for body in waiting:
            writer.write(
                b"POST /v1/outcomes HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
                b"X-API-Key: %b\r\nContent-Length: %d\r\n\r\n" % (running.key.encode(), len(body))
            )
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if b" 200 " not in head.split(b"\r\n")[0] or b'"errors":[]' not in answer:
                raise RuntimeError(f"refused: {answer[:200]!r}")
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))


async def until_folded(running: Running, records: int) -> None:
    """Wait until so many records are in the moments, and none is left."""
    left = True
    while left:  # other processes set no event that we could wait for
        await asyncio.sleep(0.1)
        left = await running.pool.fetchval(_LEFT) or (await folded(running)) < records


async def folded(running: Running) -> int:
    """The records that were folded so far."""
    return int(await running.pool.fetchval(_FOLDED) or 0)


async def measure(running: Running, way: Way, events: int, generator: random.Random) -> Figures:
    """Send outcomes one way, and wait until they are in the moments."""
    requests = bodies(way, events, generator)
    target = await folded(running) + events
    processes = (running.router, running.worker, running.postgres)
    before = [cpu_seconds(process) for process in processes]
    begun = time.perf_counter()
    await send(running, requests)
    sent = time.perf_counter() - begun
    await until_folded(running, target)
    whole = time.perf_counter() - begun
    router, worker, postgres = (
        (cpu_seconds(process) - cpu) / events * 1e6
        for process, cpu in zip(processes, before, strict=True)
    )
    return Figures(events / sent, events / whole, router, worker, postgres)


async def plain_copy(running: Running, generator: random.Random) -> float:
    """Rows a second of a COPY of such outcomes into a table without an index."""
    now = datetime.now(UTC)
    rows = [
        (1, n, None, _PROJECT, "buy", "user", f"user-{generator.randrange(UNITS)}", 1.5, now, now)
        for n in range(COPIED)
    ]
    async with running.pool.acquire() as connection:
        await connection.execute("create table copied (like outcome)")
        begun = time.perf_counter()
        await connection.copy_records_to_table("copied", columns=_COPIED_COLUMNS, records=rows)
        spent = time.perf_counter() - begun
        await connection.execute("drop table copied")
    return COPIED / spent


async def report_times(running: Running, keys: Sequence[str]) -> dict[str, float]:
    """The median time of a report in seconds, by experiment; they take turns."""
    times: dict[str, list[float]] = {key: [] for key in keys}
    async with httpx.AsyncClient(
        base_url=running.url, headers={"Authorization": f"Bearer {running.key}"}, timeout=60
    ) as client:
        for turn in range(REPORTS):
            for key in keys:
                begun = time.perf_counter()
                answer = await client.get(f"/v1/experiments/{key}/report")
                answer.raise_for_status()
                if turn:  # the first one loads what the others use
                    times[key].append(time.perf_counter() - begun)
    return {key: statistics.median(spent) for key, spent in times.items()}


@asynccontextmanager
async def watched(processes: Sequence[int]) -> AsyncIterator[list[list[float]]]:
    """The memory of processes, every second, in MiB."""
    seen: list[list[float]] = []

    async def watch() -> None:
        while True:
            seen.append([memory_mib(process) for process in processes])
            await asyncio.sleep(1)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()


async def run(events: int, seed: int) -> None:
    """Measure everything, and print it."""
    generator = random.Random(seed)  # noqa: S311 - a load, no secret
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder:
        async with turnout(Path(folder)) as running:
            experiments = {
                "large": await begin(running, "large", "buy"),
                "small": await begin(running, "small", "small.buy"),
                "epochs": await begin(running, "epochs", "epochs.buy"),
            }
            begun = time.perf_counter()
            await leave_behind(running, exposures(experiments["large"], "user-", UNITS))
            await until_folded(running, UNITS)
            spent = time.perf_counter() - begun
            print(f"{UNITS:,} exposures written, shipped, enrolled: {UNITS / spent:,.0f}/s")
            await _ingestion(running, events, generator)
            await _reports(running, experiments, events)


async def _ingestion(running: Running, events: int, generator: random.Random) -> None:
    print(f"\n{'outcomes a second':28}{'accepted':>10}{'folded':>10}{'of plain COPY':>15}", end="")
    print(f"{'CPU us: router':>16}{'worker':>8}{'Postgres':>10}")
    copies = [await plain_copy(running, generator)]
    async with watched([running.router, running.worker]) as memory:
        for way in WAYS:
            found = await measure(running, way, events // len(WAYS), generator)
            copies.append(await plain_copy(running, generator))
            copy = statistics.mean(copies[-2:])
            print(
                f"{way.name:28}{found.accepted:10,.0f}{found.folded:10,.0f}"
                f"{found.accepted / copy:8.2f}, {found.folded / copy:.2f}"
                f"{found.router:16.1f}{found.worker:8.1f}{found.postgres:10.1f}",
                flush=True,
            )
    print(f"{'plain COPY of such rows':28}{statistics.median(copies):10,.0f}")
    for name, column in zip(("router", "worker"), zip(*memory, strict=True), strict=True):
        quarters = [max(column[i * len(column) // 4 :][: len(column) // 4 or 1]) for i in range(4)]
        peaks = ", ".join(f"{mib:.0f}" for mib in quarters)
        print(f"memory of the {name}, peaks of the quarters of the run: {peaks} MiB")


async def _reports(running: Running, experiments: dict[str, int], events: int) -> None:
    await leave_behind(running, exposures(experiments["small"], "small-", SMALL))
    await leave_behind(running, outcomes("small.buy", "small-", SMALL))
    await running.pool.execute(_MANY_EPOCHS, experiments["epochs"], EPOCHS)
    await running.pool.execute(
        "update experiment set epoch = $2 where id = $1", experiments["epochs"], EPOCHS
    )
    target = await folded(running) + 2 * SMALL + 6 * EPOCHS
    await leave_behind(running, exposures(experiments["epochs"], "epochs-", 4 * EPOCHS, EPOCHS))
    await leave_behind(running, outcomes("epochs.buy", "epochs-", 2 * EPOCHS))
    await until_folded(running, target)
    await running.pool.execute("vacuum analyze")
    times = await report_times(running, [*experiments])
    begun = time.perf_counter()
    await running.pool.fetch(_SCAN, experiments["large"], timeout=600)
    scan = time.perf_counter() - begun
    small = times["small"]
    print(f"\na report over {2 * SMALL:,} events: {small * 1e3:.2f} ms")
    print(f"over {events + UNITS:,} events: {times['large'] / small:.2f} times that")
    print(f"over {EPOCHS:,} epochs: {times['epochs'] / small:.2f} times that")
    print(f"the same from the raw events by SQL: {scan / times['large']:,.0f} times slower")


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(run(options.events, options.seed))


if __name__ == "__main__":
    main()
