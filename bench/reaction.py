"""From a variant's first errors to its traffic being gone from every router: how long, and at what
price.

    make bench-reaction                 # about six minutes
    make bench-reaction DRILLS=40

Four routers and a worker, each a process with its usual settings, serve 1,000 requests a second of
as many units, on one machine with the Postgres and the Redis that they meet in. First a healthy day
is told and folded: an error rate of 1 % in both variants, in blocks of a second, so that the guard
stands where a day of looks leaves it. Then, at a random moment, the treatment fails: 30 % of its
units meet an error. The margin is 1 point, the window of the guardrail 1 second.

`gone` is the time from the fault to the last answer of any router that named the failing variant.
`reaction` is that from the moment at which the evidence sufficed: the end of the window of the
block that carried it over the threshold, found by computing the decision again from what is stored
with it. Every drill after the first begins with the evidence as the healthy day left it, in a run
of its own.

Beside it stands what others would have taken on the same stream: a cumulative confidence sequence,
which has the whole day to win back, and the rule of progressive delivery, a threshold on an
interval of a minute, with its false alarms.
"""

import argparse
import asyncio
import contextlib
import math
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec

from analysis.control.guard import Alarm
from analysis.inference.evidence import BlockCell, GuardRule, GuardState, alarms, start, step
from analysis.inference.moments import Moments
from analysis.inference.sequence import always_valid
from bench.turnout_processes import Running, turnout
from router.journal import Journal
from router.records import ExposureRecord, OutcomeRecord, Record

ROUTERS: Final = 4
RATE: Final = 1_000
"""Requests a second, of all routers together."""
HEALTHY: Final = 0.01
FAILING: Final = 0.30
MARGIN: Final = 0.01
DAY: Final = 86_400
TOLD_RATE: Final = 10
"""Units a second of the day that is told: the guard bets once a block, whatever is in it."""
ALPHA: Final = 0.01
LANES: Final = 4
"""Connections to each router."""
PATIENCE: Final = 60.0
_BATCH: Final = 5_000
_PROJECT: Final = "default"

_BACKDATE = "update run set started_at = $2 where experiment = $1 and number = 1"
_SET_BACK = "update fold_position set watermark = $1"
_LEFT = "select count(*) from segment where folded_at is null"
_SHIPPED = "select coalesce(sum(records), 0) from segment"
_CLOSED = """
    select min(closed_through) from run_metric m join experiment x on x.id = m.experiment
    where x.key = $1 and m.run = x.run
"""
_STATE = """
    select g.id, g.state from guard_ledger g join experiment x on x.id = g.experiment
    where x.key = $1 and g.run = x.run and g.closed_at is null
"""
_SET_STATE = "update guard_ledger set state = $2 where id = $1"


class Drill(msgspec.Struct, frozen=True):
    """What came of one fault, in seconds, and what it cost."""

    gone: float
    reaction: float
    blocks: int
    units: int
    errors: int


class Lane(asyncio.Protocol):
    """A connection to a router: one request at a time, the next when its answer is whole."""

    def __init__(self, free: "asyncio.Queue[Lane]") -> None:
        self._free = free
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for the first request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - an invariant of asyncio
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take an answer in."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) >= length and self._answer is not None:
            self._received = b""
            answer, self._answer = self._answer, None
            if head.startswith(b"HTTP/1.1 200"):
                answer.set_result(body)
            else:
                answer.set_exception(RuntimeError(f"refused: {head[:80]!r} {body[:200]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits for an answer."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("a router closed the connection"))

    async def ask(self, request: bytes) -> bytes:
        """The body of an answer."""
        assert self._transport is not None, "asked once connected"  # noqa: S101 - an invariant
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


class Load:
    """Units that come to all routers at a steady rate, and meet errors as their variant has it."""

    def __init__(self, running: Running, urls: Sequence[str], generator: random.Random) -> None:
        self.experiment = ""
        self.failing_from = math.inf
        """On the clock of `time.time`."""
        self.last_failing = 0.0
        self.failed_units = 0
        self.errors = 0
        self._running = running
        self._urls = urls
        self._generator = generator
        self._asked: set[asyncio.Task[None]] = set()
        self.fault: BaseException | None = None

    async def run(self) -> None:
        """Send requests until cancelled, each at its time, whether earlier ones were answered or
        not."""
        async with AsyncExitStack() as stack:
            free = [await self._connect(stack, url) for url in self._urls]
            begun = time.perf_counter()
            number = 0
            while True:
                wait = begun + number / RATE - time.perf_counter()
                if wait > 0:
                    await asyncio.sleep(wait)
                lane = await free[number % len(free)].get()
                task = asyncio.create_task(self._unit(lane, free[number % len(free)]))
                self._asked.add(task)
                task.add_done_callback(self._done)
                number += 1

    async def _connect(self, stack: AsyncExitStack, url: str) -> "asyncio.Queue[Lane]":
        free: asyncio.Queue[Lane] = asyncio.Queue()
        host, port = url.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        for _ in range(LANES):
            _, lane = await loop.create_connection(lambda: Lane(free), host, int(port))
            stack.callback(lane.close)
            free.put_nowait(lane)
        return free

    def _done(self, task: asyncio.Task[None]) -> None:
        self._asked.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.fault = self.fault or task.exception()

    async def _unit(self, lane: Lane, free: "asyncio.Queue[Lane]") -> None:
        try:
            unit = self._generator.randbytes(8).hex()
            experiment = self.experiment
            answer = await lane.ask(
                self._post("/v1/assign", {"experiment": experiment, "unit": unit})
            )
            met = msgspec.json.decode(answer, type=dict[str, Any])
            now = time.time()
            fails = met["variant"] == "new" and now >= self.failing_from
            if fails:
                self.last_failing = now
                self.failed_units += 1
            if self._generator.random() < (FAILING if fails else HEALTHY):
                self.errors += fails
                outcome = {"event": "error", "units": {"request": unit}}
                await lane.ask(self._post("/v1/outcomes", outcome))
        finally:
            free.put_nowait(lane)

    def _post(self, path: str, body: object) -> bytes:
        content = msgspec.json.encode(body)
        return (
            b"POST %b HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"X-API-Key: %b\r\nContent-Length: %d\r\n\r\n"
            % (path.encode(), self._running.key.encode(), len(content))
        ) + content


def definition(key: str) -> dict[str, Any]:
    """Two variants and a guardrail that is known within a second."""
    return {
        "key": key,
        "unit": {"type": "request"},
        "variants": [
            {"key": "old", "value": "old", "weight": 0.5, "control": True},
            {"key": "new", "value": "new", "weight": 0.5},
        ],
        "metrics": [
            {
                "key": "error",
                "role": "guardrail",
                "kind": "proportion",
                "event": "error",
                "window": "1s",
                "goal": "decrease",
                "margin": {"absolute": MARGIN},
            }
        ],
        "guard": {"alpha": ALPHA, "action": "rollback"},
    }


async def healthy_day(experiment: int, end: datetime, seed: int) -> AsyncIterator[Sequence[Record]]:
    """A day of units in both variants, one in a hundred of which meets an error, until `end`."""
    generator = random.Random(seed)  # noqa: S311 - a load, no secret
    records: list[Record] = []
    for number in range(DAY * TOLD_RATE):
        at = end - timedelta(seconds=DAY - number / TOLD_RATE)
        unit = f"day-{number}"
        variant = "new" if generator.random() < 0.5 else "old"
        records.append(
            ExposureRecord(
                uuid4().bytes, _PROJECT, experiment, 1, 1, variant, "request", unit, at, at
            )
        )
        if generator.random() < HEALTHY:
            records.append(
                OutcomeRecord(None, _PROJECT, "error", (("request", unit),), None, at, at)
            )
        if len(records) >= _BATCH:
            yield records
            records = []
    yield records


async def tell_the_day(running: Running, seed: int) -> str:
    """Ship, fold and close a healthy day; the evidence as it leaves it, as JSON."""
    os.kill(running.worker, signal.SIGSTOP)  # it must not look before the whole day is there
    try:
        experiment = await begin(running, "day")
        now = datetime.now(UTC)
        begun = now - timedelta(seconds=DAY + 60)
        await running.pool.execute(_BACKDATE, experiment, begun)
        await running.pool.execute(_SET_BACK, begun)
        journal = await Journal.begin(
            running.folder / "data" / "journals", lambda: datetime.now(UTC), durability="written"
        )
        told = 0
        async for records in healthy_day(experiment, now, seed):
            await journal.append(records)
            told += len(records)
        await journal.close()
        await until(running, lambda shipped: shipped >= told, _SHIPPED)
    finally:
        os.kill(running.worker, signal.SIGCONT)
    await until(running, lambda waiting: waiting == 0, _LEFT)
    last = int(now.timestamp()) - 2
    await until(running, lambda closed: closed is not None and closed >= last, _CLOSED, "day")
    return str((await running.pool.fetchrow(_STATE, "day"))["state"])


async def until(
    running: Running, enough: Callable[[Any], bool], query: str, *arguments: object
) -> None:
    """Wait for a number in the database: other processes set no event that we could wait for."""
    while True:
        if enough(await running.pool.fetchval(query, *arguments)):
            return
        await asyncio.sleep(0.2)


async def ledger_row(running: Running, key: str) -> int:
    """The number of the guard's row in the ledger, once it is there."""
    while True:
        row = await running.pool.fetchrow(_STATE, key)
        if row is not None:
            return int(row["id"])
        await asyncio.sleep(0.1)


async def begin(running: Running, key: str) -> int:
    """Define an experiment, and start it; its number in the database."""
    await running.call("POST", "/v1/experiments", definition(key))
    await running.call("POST", f"/v1/experiments/{key}/start", {"reason": "a drill"})
    number: int = await running.pool.fetchval("select id from experiment where key = $1", key)
    return number


async def drill(
    running: Running, load: Load, key: str, day: str, generator: random.Random
) -> Drill:
    """Let a treatment fail that was healthy for a day; what came of it."""
    await begin(running, key)
    await running.pool.execute(_SET_STATE, await ledger_row(running, key), day)
    load.experiment, load.failing_from = key, math.inf
    load.failed_units = load.errors = 0
    await asyncio.sleep(6 + generator.random())
    fault = load.failing_from = time.time()
    while (await running.call("GET", f"/v1/experiments/{key}"))["state"] != "rolled_back":
        if load.fault is not None:
            raise load.fault
        if time.time() - fault > PATIENCE:
            raise RuntimeError(f"{key} was not rolled back within {PATIENCE:.0f} s")
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)  # whoever still names it would do so by now
    decisions = (await running.call("GET", f"/v1/experiments/{key}/decisions"))["items"]
    evidence = next(d["evidence"] for d in decisions if d["kind"] == "rollback")
    alarm = msgspec.convert(evidence, Alarm, strict=False)
    block, blocks = crossing(alarm, fault)
    enough = max(block + 2.0, fault)  # the block's second, and the window of the last unit in it
    return Drill(
        gone=load.last_failing - fault,
        reaction=load.last_failing - enough,
        blocks=blocks,
        units=load.failed_units,
        errors=load.errors,
    )


def crossing(alarm: Alarm, fault: float) -> tuple[int, int]:
    """The block that carried the evidence over its threshold, and how many it took."""
    state = alarm.state_before
    for cells in alarm.blocks:
        state = step(alarm.rule, state, cells)
        if alarms(alarm.rule, state):
            block = cells[0].block
            return block, block - math.floor(fault) + 1
    raise RuntimeError("the evidence of a rollback does not reach its threshold")


def arm(units: int, conversions: int) -> Moments:
    """Moments of a proportion."""
    mean = conversions / units if units else 0.0
    return Moments(units, (mean,), (conversions * (1.0 - mean),))


class Others(msgspec.Struct, frozen=True):
    """What others take on such a stream, in seconds after the fault, and their false alarms."""

    guard: float
    sequence: float
    threshold: float
    """One interval above the margin; the fault comes at any of its seconds."""
    false_alarms: float
    """Of the threshold rule, in a healthy day."""
    false_alarms_small: float
    """The same at the traffic of the day that was told."""


def others(generator: random.Random) -> Others:
    """The guard, a cumulative confidence sequence and a threshold on a minute, on one stream of a
    healthy day at the full rate and a fault behind it."""
    from numpy.random import default_rng  # noqa: PLC0415 - numpy is loaded where it is needed

    numbers = default_rng(generator.randrange(2**32))
    half = RATE // 2
    healthy = numbers.binomial(half, HEALTHY, (DAY, 2))
    rule = GuardRule("proportion", "decrease", MARGIN, ALPHA / 2)
    state: GuardState = start(rule)
    for second in range(DAY):
        state = step(rule, state, [_cell(second, half, *healthy[second])])
    if alarms(rule, state):
        raise RuntimeError("a false alarm in the healthy day: another seed")
    failing = numbers.binomial(half, (HEALTHY, FAILING), (2 * 3_600, 2))
    guard = next(
        second + 1
        for second in range(len(failing))
        if alarms(rule, state := step(rule, state, [_cell(DAY + second, half, *failing[second])]))
    )
    errors = healthy.sum(axis=0)
    sequence = math.inf
    for second, more in enumerate(failing):
        errors = errors + more
        units = half * (DAY + second + 1)
        rates = errors / units
        error = math.sqrt(sum(rate * (1.0 - rate) for rate in rates) / units)
        reading = always_valid(rates[1] - rates[0], error, units, units, 2 * ALPHA / 2)
        if reading.ci_low is not None and reading.ci_low > MARGIN:
            sequence = second + 1
            break
    return Others(
        guard=guard,
        sequence=sequence,
        threshold=statistics.mean(map(_threshold, range(60))),
        false_alarms=_false_alarms(healthy.reshape(-1, 60, 2).sum(axis=1) / (60 * half)),
        false_alarms_small=_false_alarms(
            numbers.binomial(30 * TOLD_RATE, HEALTHY, (DAY // 60, 2)) / (30 * TOLD_RATE)
        ),
    )


def _threshold(second: int) -> float:
    """How long a threshold on a minute takes where the fault comes at this second of it."""
    left = 60.0 - second
    return left if (FAILING - HEALTHY) * left / 60.0 > MARGIN else left + 60.0


def _cell(block: int, units: int, control: int, treatment: int) -> BlockCell:
    return BlockCell(block, 1, 0.5, 0.5, arm(units, int(control)), arm(units, int(treatment)))


def _false_alarms(rates: Any) -> float:
    return float(((rates[:, 1] - rates[:, 0]) > MARGIN).sum())


async def run(drills: int, seed: int) -> None:
    """Measure, and print."""
    generator = random.Random(seed)  # noqa: S311 - a load, no secret
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder:
        async with turnout(Path(folder), routers=ROUTERS) as running:
            begun = time.perf_counter()
            day = await tell_the_day(running, seed)
            state = msgspec.json.decode(day, type=GuardState)
            print(
                f"a healthy day of {TOLD_RATE * DAY:,} units in {state.blocks:,} blocks was told,"
                f" folded and bet on in {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
            load = Load(running, running.urls, generator)
            load.experiment = "day"
            task = asyncio.create_task(load.run())
            try:
                found = []
                for number in range(drills):
                    found.append(await drill(running, load, f"drill-{number}", day, generator))
                    print(f"drill {number + 1}: {_words(found[-1])}", flush=True)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    _print(found, others(generator))


def _words(one: Drill) -> str:
    return (
        f"gone after {one.gone:.2f} s, {one.reaction:.2f} s after the evidence sufficed; it cost "
        f"{one.units:,} units and {one.errors:,} errors"
    )


def _print(found: Sequence[Drill], beside: Others) -> None:
    print(f"\n{'seconds':44}{'median':>10}{'95 %':>10}{'worst':>10}")
    for name, values in (
        ("from the fault to the traffic gone", [d.gone for d in found]),
        ("from evidence enough to the traffic gone", [d.reaction for d in found]),
        ("units that met the failing variant", [float(d.units) for d in found]),
        ("errors of it", [float(d.errors) for d in found]),
    ):
        ordered = sorted(values)
        at95 = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
        form = ",.2f" if max(values) < 100 else ",.0f"
        print(
            f"{name:44}{statistics.median(values):>10{form}}{at95:>10{form}}{ordered[-1]:>10{form}}"
        )
    print(f"\non a day and a fault at {RATE:,} a second, of the evidence alone:")
    print(f"{'the guard needs':44}{beside.guard:>10,.0f} s")
    print(f"{'a cumulative confidence sequence':44}{beside.sequence:>10,.0f} s")
    print(
        f"{'a threshold on a minute':44}{beside.threshold:>10,.0f} s, with "
        f"{beside.false_alarms:,.0f} false alarms in the healthy day, and "
        f"{beside.false_alarms_small:,.0f} at {TOLD_RATE} units a second"
    )


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(run(options.drills, options.seed))


if __name__ == "__main__":
    main()
