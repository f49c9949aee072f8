"""Replays logs through the public doors: assign, let the variant answer, report what came of it."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from itertools import count
from typing import Any, Final, Self

import aiohttp
import msgspec

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


class Doors:
    """The public doors of a service, entered with one key."""

    def __init__(self, url: str, key: str) -> None:
        self._session = aiohttp.ClientSession(
            url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=30),
            connector=aiohttp.TCPConnector(limit=CONCURRENCY),
            json_serialize=lambda body: msgspec.json.encode(body).decode(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, path: str, body: Any) -> Any:
        """Post JSON, and give the answer's.

        Raises:
            aiohttp.ClientResponseError: if it is refused.
        """
        async with self._session.post(path, json=body, raise_for_status=True) as answer:
            return msgspec.json.decode(await answer.read())

    async def get(self, path: str) -> Any:
        """The JSON that is there."""
        async with self._session.get(path, raise_for_status=True) as answer:
            return msgspec.json.decode(await answer.read())

    async def get_markdown(self, path: str) -> str:
        """The Markdown that is there."""
        accept = {"Accept": "text/markdown"}
        async with self._session.get(path, headers=accept, raise_for_status=True) as answer:
            return await answer.text()


async def replay(
    doors: Doors,
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
                await _visit(doors, arena, f"{arena.key}-{next(numbers)}")
                progress()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(worker())


async def _visit(doors: Doors, arena: Arena, unit: str) -> None:
    answer = await doors.post("/v1/assign", {"experiment": arena.key, "unit": unit})
    if answer["reason"] != "split":
        arena.ended = answer["reason"].replace("_", " ")
        return
    arena.exposures += 1
    happened = arena.reader.answer(arena.arms[answer["variant"]])
    if happened is None:
        arena.ended = f"the log of {answer['variant']} is at its end"
    elif happened:
        outcome = {"id": unit, "event": arena.event, "units": {arena.unit_type: unit}}
        await doors.post("/v1/outcomes", outcome)
        arena.outcomes += 1


async def wait_until_assigned(doors: Doors, arenas: list[Arena]) -> None:
    """Wait until the router has learnt of the experiments.

    Raises:
        TimeoutError: if it never does.
    """
    async with asyncio.timeout(_PATIENCE):
        for arena in arenas:
            body = {"experiment": arena.key, "unit": "nobody", "expose": False}
            while True:
                try:
                    await doors.post("/v1/assign", body)
                    break
                except aiohttp.ClientResponseError as error:
                    if error.status != HTTPStatus.NOT_FOUND:
                        raise
                await asyncio.sleep(0.05)


async def wait_until_counted(doors: Doors, arena: Arena) -> dict[str, Any]:
    """The report, once it counts every exposure that was acknowledged, and the windows of all
    units have passed.

    Raises:
        TimeoutError: if it never does.
    """
    async with asyncio.timeout(_PATIENCE):
        while True:
            report: dict[str, Any] = await doors.get(f"/v1/experiments/{arena.key}/report")
            arms = [arm for metric in report["metrics"] for arm in metric["arms"].values()]
            finished = all(arm["units"] == arm["finished"] for arm in arms)
            if finished and sum(report["units"].values()) >= arena.exposures:
                return report
            await asyncio.sleep(0.1)
