"""Starts a service on an empty folder, replays two logs through it, and shows what it did."""

import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from turnout.demo.logs import black_politicians, open_bandit
from turnout.demo.replay import Arena, Doors, replay, wait_until_assigned, wait_until_counted

BANDIT: Final[dict[str, Any]] = {
    "key": "open-bandit-men",
    "name": "Open Bandit, men's campaign: random against Bernoulli Thompson sampling",
    "hypothesis": "Items chosen by bts are clicked more often than items chosen at random",
    "unit": {"type": "impression"},
    "variants": [
        {"key": "random", "control": True, "weight": 0.5, "value": {"policy": "random"}},
        {"key": "bts", "weight": 0.5, "value": {"policy": "bts"}},
    ],
    "metrics": [
        {
            "key": "click",
            "role": "primary",
            "kind": "proportion",
            "event": "click",
            "window": "500ms",
        }
    ],
    "policy": {
        "kind": "thompson",
        "metric": "click",
        "every": "1s",
        "floor": 0.1,
        "warmup": 200,
        "max_step": 0.1,
    },
}
AUDIT: Final[dict[str, Any]] = {
    "key": "black-politicians",
    "name": "E-mails to legislators: from inside against from outside the district",
    "hypothesis": "A sender from outside the district is answered as often",
    "unit": {"type": "legislator"},
    "variants": [
        {"key": "inside", "control": True, "weight": 0.5, "value": {"treat_out": 0}},
        {"key": "outside", "weight": 0.5, "value": {"treat_out": 1}},
    ],
    "metrics": [
        {
            "key": "responded",
            "role": "guardrail",
            "kind": "proportion",
            "event": "response",
            "window": "500ms",
            "goal": "increase",
            "margin": {"absolute": 0.02},
        }
    ],
    "guard": {"alpha": 0.01, "action": "rollback"},
}
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0
_SERVICE_FLAGS: Final = (
    "--port",
    "0",
    "--ship-every",
    "100ms",
    "--tick",
    "200ms",
    "--lateness",
    "100ms",
    "--log-level",
    "warning",
)
Say = Callable[[str], None]


class DemoError(Exception):
    """The demo could not go on; one line says why."""


def main(data_dir: str | None, say: Say) -> int:
    """Run the demo; 0 if all that was acknowledged was counted and the guard did its work."""
    folder = data_dir or tempfile.mkdtemp(prefix="turnout-demo-")
    try:
        return asyncio.run(_demo(Path(folder), say))
    except (DemoError, aiohttp.ClientError, TimeoutError) as error:
        print(f"turnout: the demo failed: {error!r}", file=sys.stderr)
        return 2


async def _demo(folder: Path, say: Say) -> int:
    began = time.monotonic()
    say(f"Starting Turnout with its own Postgres and Redis in {folder} ...")
    async with _service(folder) as (url, admin_key):
        say(f"  serving on {url} after {time.monotonic() - began:.1f} s\n")
        async with Doors(url, admin_key) as admin:
            service_key = (await admin.post("/v1/keys", {"role": "service"}))["key"]
            arenas = await _start_experiments(admin, say)
            async with Doors(url, service_key) as service:
                await _replay(service, arenas, say)
            good = await _show(admin, arenas, say)
    say(
        f"Done in {time.monotonic() - began:.0f} s. Everything is kept in {folder}; look around:\n"
        f"  TURNOUT_API_KEY={admin_key}\n"
        f"  {Path(sys.executable).parent / 'turnout'} up --data-dir {folder}\n"
        "  then open http://127.0.0.1:8080/ in a browser, or GET .../v1/experiments, /schema"
    )
    return 0 if good else 1


@contextlib.asynccontextmanager
async def _service(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """A `turnout up` of its own on the folder: its address and its first admin key."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TURNOUT_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "turnout",
        "up",
        "--data-dir",
        str(folder),
        *_SERVICE_FLAGS,
        stdout=asyncio.subprocess.PIPE,
        env=inherited,
    )
    try:
        try:
            async with asyncio.timeout(_START_SECONDS):
                greeting = await _read_greeting(process)
        except TimeoutError as error:
            raise DemoError("the service did not start in time") from error
        yield greeting
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _read_greeting(process: asyncio.subprocess.Process) -> tuple[str, str]:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    admin_key = ""
    while line := (await process.stdout.readline()).decode().strip():
        last_word = line.rsplit(" ", 1)[-1]
        if line.startswith("Admin key"):
            admin_key = last_word
        elif last_word.startswith("http://"):
            return last_word, admin_key
    raise DemoError("the service did not start")


async def _start_experiments(admin: Doors, say: Say) -> list[Arena]:
    men, audit = open_bandit("men"), black_politicians()
    arenas = [
        Arena(BANDIT["key"], "click", "impression", {"random": "random", "bts": "bts"}, men),
        Arena(AUDIT["key"], "response", "legislator", {"inside": "0", "outside": "1"}, audit),
    ]
    for definition, arena in zip((BANDIT, AUDIT), arenas, strict=True):
        await admin.post("/v1/experiments", definition)
        await admin.post(f"/v1/experiments/{arena.key}/start", {"reason": "the demo"})
        policy = definition.get("policy", {"kind": "fixed"})["kind"]
        say(f"Started {arena.key}: {definition['name']}")
        say(f"  policy {policy}, {arena.log.rows:,} logged rows to answer from")
    await wait_until_assigned(admin, arenas)
    return arenas


async def _replay(service: Doors, arenas: list[Arena], say: Say) -> None:
    began = time.monotonic()
    bandit, audit = arenas
    # Visitors of both come mixed, five impressions for each e-mail.
    schedule = itertools.cycle([*[bandit] * 5, audit])
    progress = Progress(arenas, say)
    say("\nReplaying: assign, let the variant answer with its log's next row, report the outcome")
    await replay(service, schedule, arenas, progress.show)
    progress.finish()
    seconds = time.monotonic() - began
    requests = sum(arena.exposures + arena.outcomes for arena in arenas)
    say(f"  {requests:,} requests in {seconds:.1f} s, each on disk before it was answered")


class Progress:
    """A line on the terminal that is written over; elsewhere a line now and then."""

    def __init__(self, arenas: list[Arena], say: Say) -> None:
        self._arenas = arenas
        self._say = say
        self._on_terminal = sys.stdout.isatty()
        self._every = 0.1 if self._on_terminal else 3.0
        self._shown_at = time.monotonic()

    def show(self) -> None:
        """Show how far the replay is, if it is time."""
        now = time.monotonic()
        if now - self._shown_at < self._every:
            return
        self._shown_at = now
        if self._on_terminal:
            sys.stdout.write(f"\r  {self._line()}\x1b[K")
            sys.stdout.flush()
        else:
            self._say(f"  {self._line()}")

    def finish(self) -> None:
        """Show where it ended."""
        if self._on_terminal:
            sys.stdout.write("\r\x1b[K")
        for arena in self._arenas:
            self._say(f"  {_state(arena)}: {arena.ended}")

    def _line(self) -> str:
        return "   ".join(_state(arena) for arena in self._arenas)


def _state(arena: Arena) -> str:
    used = ", ".join(
        f"{variant} {arena.log_used(variant):,}/{len(arena.log.arms[arm]):,}"
        for variant, arm in arena.arms.items()
    )
    return f"{arena.key} {used}"


async def _show(admin: Doors, arenas: list[Arena], say: Say) -> bool:
    """Show what the service made of it; whether all that was acknowledged was counted."""
    bandit, audit = arenas
    counted = [await wait_until_counted(admin, arena) for arena in arenas]
    say(f"\nAllocation of {bandit.key} over time")
    await _show_allocations(admin, bandit, say)
    say(f"\nDecisions on {audit.key}")
    rolled_back = await _show_rollback(admin, audit, say)
    for arena in arenas:
        markdown = await admin.get_markdown(f"/v1/experiments/{arena.key}/report")
        say("\n" + markdown.rstrip())
    say("")
    good = rolled_back
    for arena, report in zip(arenas, counted, strict=True):
        units = sum(report["units"].values())
        good = good and units == arena.exposures
        say(f"{arena.key}: {arena.exposures:,} exposures acknowledged, {units:,} units counted")
    return good


async def _show_allocations(admin: Doors, arena: Arena, say: Say) -> None:
    listed = await admin.get(f"/v1/experiments/{arena.key}/allocations?limit=500")
    epochs = listed["items"][::-1]
    start = datetime.fromisoformat(epochs[0]["at"])
    width = 40
    for epoch in epochs:
        after = (datetime.fromisoformat(epoch["at"]) - start).total_seconds()
        bar = "".join(
            symbol * round(width * epoch["weights"].get(variant, 0.0))
            for variant, symbol in zip(arena.arms, "·█", strict=True)
        )
        shares = ", ".join(f"{v} {epoch['weights'].get(v, 0):.3f}" for v in arena.arms)
        say(f"  epoch {epoch['number']:>2}  {after:5.1f} s  {bar}  {shares}  {epoch['reason']}")


async def _show_rollback(admin: Doors, arena: Arena, say: Say) -> bool:
    listed = await admin.get(f"/v1/experiments/{arena.key}/decisions")
    rollbacks = [decision for decision in listed["items"] if decision["kind"] == "rollback"]
    for decision in rollbacks:
        evidence = decision["evidence"]
        units, rows = evidence["state_after"]["units"], arena.log.rows
        say(f"  {decision['at'][:19]}Z  {decision['kind']}: {decision['reason']}")
        say(
            f"  the evidence is {units:,} finished units, {arena.exposures:,} were exposed by then;"
        )
        say(
            f"  the log has {rows:,}, so {1 - arena.exposures / rows:.0%} of its people were spared"
        )
        for arm in ("control", "treatment"):
            seen = evidence["state_after"][arm]
            say(f"    {arm:9}  {seen['n']:>5} units, mean {seen['mean'][0]:.3f}")
        rule = evidence["rule"]
        say(
            f"    margin {rule['margin']}, share of alpha {rule['alpha_share']}, "
            f"epoch {decision['epoch_before']} -> {decision['epoch_after']}"
        )
    return bool(rollbacks)
