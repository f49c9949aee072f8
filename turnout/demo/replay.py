"""Replays logs through the public doors: assign, let the variant answer, report what came of it."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, Final

import httpx

from turnout.demo.logs import Log, LogReader

CONCURRENCY: Final = 24
_PATIENCE: Final = 30.0


class Arena:
    """An experiment of the demo, and the log that its variants answer from.

    `arms` maps its variants to those of the log; `exposures` and `outcomes` count what was
    acknowledged; `ended` says why no more visitors come.
    """

    def __init__(
        self, key: str, event: str, unit_type: str, arms: Mapping[str, str], log: Log
    ) -> None:
        self.key = key
        self.event = event
        self.unit_type = unit_type
        self.arms = arms
        self.log = log
        self.reader = LogReader(log)
        self.exposures = 0
        self.outcomes = 0
        self.ended: str | None = None

    def log_used(self, variant: str) -> int:
        """Rows of its log that a variant has answered with."""
        return self.reader.used[self.arms[variant]]


async def post(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    """Post JSON, and give the answer's.

    Raises:
        httpx.HTTPStatusError: if it is refused.
    """
    answer = await client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


async def replay(
    client: httpx.AsyncClient,
    schedule: Iterator[Arena],
    arenas: list[Arena],
    progress: Callable[[], None],
) -> None:
    """Send visitors, as many at a time as `CONCURRENCY`, until each arena has ended: its log at an
    end, or its experiment rolled back."""
    numbers = count(1)

    async def worker() -> None:
        while any(arena.ended is None for arena in arenas):
            arena = next(schedule)
            if arena.ended is None:
                await _visit(client, arena, f"{arena.key}-{next(numbers)}")
                progress()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(worker())


async def _visit(client: httpx.AsyncClient, arena: Arena, unit: str) -> None:
    answer = await post(client, "/v1/assign", {"experiment": arena.key, "unit": unit})
    if answer["reason"] != "split":
        arena.ended = answer["reason"].replace("_", " ")
        return
    arena.exposures += 1
    happened = arena.reader.answer(arena.arms[answer["variant"]])
    if happened is None:
        arena.ended = f"the log of {answer['variant']} is at its end"
    elif happened:
        outcome = {"id": unit, "event": arena.event, "units": {arena.unit_type: unit}}
        await post(client, "/v1/outcomes", outcome)
        arena.outcomes += 1


async def wait_until_assigned(client: httpx.AsyncClient, arenas: list[Arena]) -> None:
    """Wait until the router has learnt of the experiments.

    Raises:
        TimeoutError: if it never does.
    """
    async with asyncio.timeout(_PATIENCE):
        for arena in arenas:
            body = {"experiment": arena.key, "unit": "nobody", "expose": False}
            while True:
                answer = await client.post("/v1/assign", json=body)
                if answer.status_code != httpx.codes.NOT_FOUND:
                    break
                await asyncio.sleep(0.05)


async def wait_until_counted(client: httpx.AsyncClient, arena: Arena) -> dict[str, Any]:
    """The report, once it counts every exposure that was acknowledged.

    Raises:
        TimeoutError: if it never does.
    """
    async with asyncio.timeout(_PATIENCE):
        while True:
            answer = await client.get(f"/v1/experiments/{arena.key}/report")
            answer.raise_for_status()
            report: dict[str, Any] = answer.json()
            if sum(report["units"].values()) >= arena.exposures:
                return report
            await asyncio.sleep(0.1)
