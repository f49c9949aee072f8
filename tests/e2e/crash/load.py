"""Clients under whose hands processes die. They remember exactly what they were told.

An event's number is its value, so that each can be told from all others in Postgres.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias

import aiohttp
import msgspec

from tests.e2e.crash.programs import PATIENCE, until

EXPERIMENT: Final = "ranker"
PATH: Final = f"/v1/experiments/{EXPERIMENT}"
CLICK: Final = {"key": "click", "role": "primary", "kind": "proportion"} | {
    "event": "click",
    "window": "1s",
}
REVENUE: Final = {"key": "revenue", "role": "secondary", "kind": "mean"} | {
    "event": "purchase",
    "aggregate": "sum",
    "window": "1h",
    "cap": 1e6,
}
DEFINITION: Final = {
    "key": EXPERIMENT,
    "variants": [
        {"key": "v6", "control": True, "weight": 0.5, "value": {"model": "ranker/6"}},
        {"key": "v7", "weight": 0.5, "value": {"model": "ranker/7"}},
    ],
    "metrics": [CLICK, REVENUE],
}
SPLITS: Final = ({"v6": 0.2, "v7": 0.8}, {"v6": 0.5, "v7": 0.5})
PAUSE: Final = 0.03
"""Between two requests of a client: the machine has processes to restart, too."""
ABSENCE: Final = 0.1
"""After a request that nobody answered."""
CLIENTS: Final = 10
LARGEST_BATCH: Final = 20

KnownBy: TypeAlias = Literal["ids", "key", "nothing"]
"""How a batch is told from others when it is sent again: by ids of its items, by an
`Idempotency-Key`, or not at all; then it is sent once."""
Verdict: TypeAlias = Literal["acknowledged", "refused", "unknown"]


class Exposure(NamedTuple):
    """A unit met a variant in an epoch."""

    unit: str
    epoch: int
    variant: str


class Batch(NamedTuple):
    """Outcomes that are sent together."""

    numbers: Sequence[int]
    items: Sequence[dict[str, Any]]
    known_by: KnownBy


class Ledger:
    """What was sent, and what was said of it.

    `acknowledged` events have to be in Postgres once, `refused` ones never; of the others that were
    sent nobody knows, so they may be there, but not twice.
    """

    def __init__(self) -> None:
        self.sent: set[int] = set()
        self.acknowledged: set[int] = set()
        self.refused: set[int] = set()
        self.exposed: set[Exposure] = set()
        self.changes: set[str] = set()
        self.unrecorded = 0
        self.unanswered = 0
        self.refusals = 0
        self.sent_again = 0
        self.wrong: list[str] = []
        """Answers that no client should get."""
        self.assignments: list[float] = []
        """How long answers took, in seconds."""
        self.receipts: list[float] = []
        self._variants: dict[tuple[str, int], str] = {}

    def heed(self, exposure: Exposure) -> None:
        """A unit has one variant in an epoch, whoever is asked, and whenever."""
        before = self._variants.setdefault((exposure.unit, exposure.epoch), exposure.variant)
        if before != exposure.variant:
            self.wrong.append(f"{exposure} was {before} before")

    async def grow(self, events: int, exposures: int = 0) -> None:
        """Wait until so many more events, and exposures among them, are acknowledged."""
        enough = len(self.acknowledged) + events, len(self.exposed) + exposures

        async def grown() -> bool:
            return len(self.acknowledged) >= enough[0] and len(self.exposed) >= enough[1]

        await until(grown, f"{events} more events are acknowledged")


class Answer(NamedTuple):
    """What a server said."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Load:
    """Clients of some routers, which work within the context.

    When it ends, each finishes what it has in hand: what may be sent again is, until it is
    acknowledged.
    """

    def __init__(
        self,
        routers: Sequence[str],
        key: str,
        seed: str,
        ledger: Ledger,
    ) -> None:
        """`routers` are their addresses."""
        self.ledger = ledger
        self._routers = routers
        self._random = random.Random(seed)  # noqa: S311 - load, not secrets
        self._headers = {"Authorization": f"Bearer {key}"}
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._met: list[str] = []
        self._unsettled: deque[Batch] = deque()
        self._numbers = count(len(ledger.sent))
        self._changes = count(len(ledger.changes))

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=30)
        )
        works = [self._visit() for _ in range(CLIENTS)] + [self._operate()]
        self._tasks = [asyncio.create_task(work) for work in works]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        try:
            if error is None:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._session.close()

    async def _visit(self) -> None:
        """A client: assignments, and batches of outcomes; what was not acknowledged comes again."""
        while not self._ending.is_set():
            await self._assign()
            await self._tell(self._new_batch())
            if self._unsettled:
                await self._tell_again()
            await self._pause()
        while self._unsettled:
            await self._tell_again()
            await self._pause()

    async def _assign(self) -> None:
        seen_before = self._met and self._random.random() < 0.2
        unit = self._random.choice(self._met) if seen_before else f"unit-{len(self._met)}"
        if not seen_before:
            self._met.append(unit)
        began = time.monotonic()
        answer = await self._post("/v1/assign", {"experiment": EXPERIMENT, "unit": unit})
        if answer is None:
            return
        if answer.status != 200:
            self.ledger.wrong.append(f"assign: {answer}")
            return
        self.ledger.assignments.append(time.monotonic() - began)
        exposure = Exposure(unit, answer.body["epoch"], answer.body["variant"])
        self.ledger.heed(exposure)
        if answer.body["recorded"]:
            self.ledger.exposed.add(exposure)
        else:
            self.ledger.unrecorded += 1

    def _new_batch(self) -> Batch:
        known_by: KnownBy = self._random.choices(("ids", "key", "nothing"), (4, 1, 5))[0]
        numbers = [next(self._numbers) for _ in range(self._random.randint(1, LARGEST_BATCH))]
        self.ledger.sent.update(numbers)
        return Batch(numbers, [self._outcome(number, known_by) for number in numbers], known_by)

    def _outcome(self, number: int, known_by: KnownBy) -> dict[str, Any]:
        event = self._random.choice(("click", "purchase"))
        outcome = {"event": event, "unit": self._random.choice(self._met), "value": number}
        return outcome | {"id": f"outcome-{number}"} if known_by == "ids" else outcome

    async def _tell(self, batch: Batch) -> None:
        """Report a batch of outcomes. It comes again if it was not acknowledged and has a name."""
        if batch.known_by == "nothing":
            if await self._report(batch) == "refused":
                self.ledger.refused.update(batch.numbers)
            return
        if self._random.random() < 0.05:  # it asks twice, since the first answer may be late
            verdict, _ = await asyncio.gather(self._report(batch), self._report(batch))
        else:
            verdict = await self._report(batch)
        if verdict != "acknowledged" or self._random.random() < 0.1:  # it forgot the answer
            self._unsettled.append(batch)

    async def _tell_again(self) -> None:
        self.ledger.sent_again += 1
        await self._tell(self._unsettled.popleft())

    async def _report(self, batch: Batch) -> Verdict:
        """Send a batch; what became of it."""
        key = {"Idempotency-Key": f"batch-{batch.numbers[0]}"} if batch.known_by == "key" else None
        began = time.monotonic()
        answer = await self._post("/v1/outcomes", batch.items, key)
        if answer is None:
            return "unknown"
        if answer.status == 503 and "Retry-After" in answer.headers:
            self.ledger.refusals += 1
            return "refused"
        if answer.status != 200 or (
            answer.body["accepted"] + answer.body["duplicates"] != len(batch.items)
        ):
            self.ledger.wrong.append(f"outcomes: {answer}")
            return "unknown"
        self.ledger.receipts.append(time.monotonic() - began)
        self.ledger.acknowledged.update(batch.numbers)
        return "acknowledged"

    async def _operate(self) -> None:
        """An operator who moves traffic and changes metrics, and repeats what was not answered."""
        while not self._ending.is_set():
            number = next(self._changes)
            name, change = (
                (f"amendment {number}", self._amend)
                if number % 3 == 2
                else (f"reallocation {number}", self._reallocate)
            )
            while not await change(name, number):
                await self._pause()
            self.ledger.changes.add(name)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self._random.uniform(0.5, 2))

    async def _reallocate(self, name: str, number: int) -> bool:
        """Split the traffic in another way; whether it is done."""
        body = {"reason": name, "weights": SPLITS[number % 3]}
        return await self._change("PUT", "/allocation", body, {"Idempotency-Key": name})

    async def _amend(self, name: str, number: int) -> bool:
        """Cap a metric elsewhere, so that all its values are made again; whether it is done."""
        found = await self._send("GET", self._any_router() + PATH)
        if found is None or found.status != 200:
            return False
        headers = {"Idempotency-Key": name, "X-Reason": name, "If-Match": found.headers["ETag"]}
        body = {"metrics": [CLICK, REVENUE | {"cap": 1_000 * number}]}
        return await self._change("PATCH", "", body, headers)

    async def _change(
        self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> bool:
        answer = await self._send(method, self._any_router() + PATH + path, body, headers)
        if answer is None or answer.status == 503:
            return False
        if answer.status != 200:
            self.ledger.wrong.append(f"{method} {path}: {answer}")
            return False
        return True

    def _any_router(self) -> str:
        return self._random.choice(self._routers)

    async def _post(
        self, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> Answer | None:
        return await self._send("POST", self._any_router() + path, body, headers)

    async def _send(
        self, method: str, url: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer | None:
        """What was answered, or None if nothing was."""
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, url, data=data, headers=headers) as answer:
                text = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError):
            self.ledger.unanswered += 1
            await asyncio.sleep(ABSENCE)
            return None
        return Answer(answer.status, msgspec.json.decode(text), answer.headers)

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.uniform(0, 2 * PAUSE))
