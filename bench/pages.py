"""How long a page takes, from the click to the drawn page, where there is much to show.

    make bench-pages                    # about four minutes

A router and a worker, each a process with its usual settings, serve 500 experiments with data, and
one experiment of 50 metrics and 10 variants. Debian's Chromium opens the list and that experiment,
signed in, its cache warm, as somebody who works with them.

`answered` is the time until the whole of the page has arrived, `drawn` until two frames after all
that it needs was there; both count from the click. Beside them stands the same content as plain
JSON of the API, which is what a page made in the browser would have to fetch before it could begin
to draw.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import msgspec
from playwright.async_api import Browser, Page, async_playwright

from bench.turnout_processes import Running, turnout

CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = ("--disable-gpu", "--disable-quic", "--disable-dev-shm-usage")
UNITS: Final = 80
"""Of each of the many experiments."""
WIDE_UNITS: Final = 4_000
_WIDE: Final = "wide"
_WINDOW: Final = "1s"
_BATCH: Final = 10_000
_PATIENCE: Final = 600.0
_GLANCED: Final = "select count(*) from glance where at >= $1"
_NOW: Final = "select clock_timestamp()"
_LEFT: Final = "select count(*) from segment where folded_at is null"
_OPEN: Final = "select count(*) from cell where block > 0"

_DRAWN: Final = """
    () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
        const [navigation] = performance.getEntriesByType("navigation");
        done([navigation.responseEnd, performance.now(), navigation.decodedBodySize]);
    })))
"""


class Opened(msgspec.Struct, frozen=True):
    """A page that was opened: milliseconds from the click, and its size."""

    answered: float
    drawn: float
    size: float


def metric(key: str, role: str, event: str) -> dict[str, Any]:
    """A proportion that is finished soon."""
    kind = {"kind": "proportion", "event": event, "window": _WINDOW, "goal": "increase"}
    return {"key": key, "role": role, **kind}


def variants(number: int) -> list[dict[str, Any]]:
    """So many variants, the first one the control."""
    return [
        {"key": f"v{place}", "control": place == 0, "weight": 1 / number, "value": place}
        for place in range(number)
    ]


async def define(running: Running, key: str, arms: int, metrics: Sequence[dict[str, Any]]) -> None:
    """Create an experiment, and start it."""
    definition = {
        "key": key,
        "name": f"What {key} is about, said in a few words",
        "owner": "bench",
        "tags": ["bench"],
        "variants": variants(arms),
        "metrics": [*metrics],
    }
    await running.call("POST", "/v1/experiments", definition)
    await running.call("POST", f"/v1/experiments/{key}/start", {"reason": "to be measured"})


async def live(
    running: Running, experiments: Sequence[str], units: Sequence[str], events: Sequence[str]
) -> None:
    """Let units meet experiments, and each of them have about a third of the events."""
    source = random.Random(1)  # noqa: S311 - a simulation
    at_once = max(_BATCH // len(experiments), 1)
    for first in range(0, len(units), at_once):
        some = units[first : first + at_once]
        batch = {"experiments": [*experiments], "units": [{"unit": unit} for unit in some]}
        await running.call("POST", "/v1/assign/batch", batch)
        outcomes = [
            {"event": event, "unit": unit}
            for unit in some
            for event in events
            if source.random() < 1 / 3
        ]
        for place in range(0, len(outcomes), _BATCH):
            await running.call("POST", "/v1/outcomes", outcomes[place : place + _BATCH])


async def settled(running: Running, experiments: int) -> None:
    """Wait until all is folded and finished, and then all experiments were glanced at."""

    async def rests(*queries: str) -> bool:
        return not any([await running.pool.fetchval(query) for query in queries])

    async def glanced(since: object) -> bool:
        found: int = await running.pool.fetchval(_GLANCED, since)
        return found >= experiments

    await until(partial(rests, _LEFT, _OPEN))
    await until(partial(glanced, await running.pool.fetchval(_NOW)))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again, until it is so."""
    async with asyncio.timeout(_PATIENCE):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(1)  # other processes set no event that we could wait for


@asynccontextmanager
async def signed_in(running: Running) -> AsyncIterator[Page]:
    """A page in Chromium, with a session."""
    async with async_playwright() as playwright:
        browser: Browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        context = await browser.new_context(
            base_url=running.url, viewport={"width": 1280, "height": 900}
        )
        await context.request.post("/sign-in", form={"key": running.key, "to": "/"})
        yield await context.new_page()
        await browser.close()


async def open_often(page: Page, path: str, times: int) -> list[Opened]:
    """Open a page again and again, the first time for what browsers keep."""
    found: list[Opened] = []
    for _ in range(times + 1):
        answer = await page.goto(path, wait_until="load")
        if answer is None or answer.status != 200:
            raise RuntimeError(f"{path} did not open")
        found.append(Opened(*await page.evaluate(_DRAWN)))
        await asyncio.sleep(0.2)
    return found[1:]


async def fetch_often(running: Running, path: str, times: int) -> list[float]:
    """Milliseconds that the JSON of a door takes."""
    found: list[float] = []
    headers = {"Authorization": f"Bearer {running.key}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=60) as client:
        for _ in range(times + 1):
            begun = time.perf_counter()
            (await client.get(path)).raise_for_status()
            found.append(1_000 * (time.perf_counter() - begun))
    return found[1:]


async def compare(running: Running, page: Page, name: str, path: str, door: str) -> None:
    """Print how long a page takes, beside the JSON of a door."""
    times = 9
    opened = await open_often(page, path, times)
    plain = median(await fetch_often(running, door, times))
    answered, drawn = (median(getattr(each, of) for each in opened) for of in ("answered", "drawn"))
    print(
        f"{name}: answered {answered:.0f} ms, drawn {drawn:.0f} ms"
        f" (slowest {max(each.drawn for each in opened):.0f} ms), {opened[0].size / 1024:.0f} KiB;"
        f" the JSON of {door.partition('?')[0]} alone {plain:.0f} ms: {drawn / plain:.1f} times"
        f" ({times} openings, medians)"
    )


async def measure(experiments: int) -> None:
    """Print all figures."""
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder:
        async with turnout(Path(folder), lateness="200ms") as running:
            print(f"defining and starting {experiments} experiments", file=sys.stderr)
            keys = [f"experiment-{number:03}" for number in range(experiments)]
            usual = [
                metric("click", "primary", "click"),
                metric("buy", "secondary", "buy"),
                metric("error", "guardrail", "error"),
            ]
            for place, key in enumerate(keys):
                await define(running, key, 2 + place % 3, usual)
            events = [f"event-{number:02}" for number in range(50)]
            many = [
                metric(event, "primary" if place == 0 else "secondary", event)
                for place, event in enumerate(events)
            ]
            await define(running, _WIDE, 10, many)
            await asyncio.sleep(5)  # until the router has heard of the last one
            print("units come", file=sys.stderr)
            units = [f"unit-{number}" for number in range(UNITS)]
            await live(running, keys, units, ["click", "buy"])
            await live(running, [_WIDE], [f"wide-{n}" for n in range(WIDE_UNITS)], events)
            print("folding, and reports of all of them", file=sys.stderr)
            await settled(running, experiments + 1)
            async with signed_in(running) as page:
                await compare(
                    running,
                    page,
                    f"the list of {experiments} experiments",
                    "/experiments",
                    f"/v1/experiments?limit={experiments}",
                )
                await compare(
                    running,
                    page,
                    "an experiment of 50 metrics and 10 variants",
                    f"/experiments/{_WIDE}",
                    f"/v1/experiments/{_WIDE}/report",
                )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=500)
    asyncio.run(measure(parser.parse_args().experiments))


if __name__ == "__main__":
    main()
