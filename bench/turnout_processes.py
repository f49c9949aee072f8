"""A Turnout to measure: its own Postgres and Valkey, routers and a worker, each a real process."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec

from turnout.embedded import embedded_servers

_TURNOUT = Path(sys.executable).parent / "turnout"
_POSTMASTER = r"select split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int"
_START_SECONDS = 60
_STOP_SECONDS = 60


class Running(msgspec.Struct, frozen=True):
    """What a benchmark works with."""

    folder: Path
    database_url: str
    redis_url: str
    url: str
    """Of the first router."""
    urls: tuple[str, ...]
    """Of all of them."""
    key: str
    router: int
    """Process ids, this one and the next."""
    worker: int
    postgres: int
    pool: Any

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer of a door, which must be a good one."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            answer = await client.request(
                method, path, json=body, headers={"Authorization": f"Bearer {self.key}"}
            )
            answer.raise_for_status()
            return answer.json()


@asynccontextmanager
async def turnout(folder: Path, routers: int = 1, **settings: str) -> AsyncIterator[Running]:
    """Start servers, routers and a worker in a folder; end them all."""
    async with embedded_servers(folder / "servers") as servers, contextlib.AsyncExitStack() as more:
        variables = _variables(servers.database_url, servers.redis_url, folder / "data", settings)
        async with (
            _process("serve", variables) as (router, said),
            _process("worker", variables) as (worker, _),
            asyncpg.create_pool(servers.database_url, min_size=1, max_size=4) as pool,
        ):
            key = re.search(r"to_\w+", said)
            if key is None:
                raise RuntimeError(f"no admin key in {said!r}")
            postgres = await pool.fetchval(_POSTMASTER)
            first = Running(
                folder,
                servers.database_url,
                servers.redis_url,
                said.split()[-1],
                (said.split()[-1],),
                key.group(),
                router.pid,
                worker.pid,
                postgres,
                pool,
            )
            others = [
                await more.enter_async_context(serving(first, folder / f"router-{number}"))
                for number in range(1, routers)
            ]
            yield msgspec.structs.replace(first, urls=(*first.urls, *others))


@asynccontextmanager
async def serving(beside: Running, folder: Path) -> AsyncIterator[str]:
    """Start another router, with a data folder of its own; where it serves."""
    variables = _variables(beside.database_url, beside.redis_url, folder, {})
    async with _process("serve", variables) as (_, said):
        yield said.split()[-1]


def _variables(
    database_url: str, redis_url: str, folder: Path, settings: Mapping[str, str]
) -> dict[str, str]:
    return {
        "TURNOUT_DATABASE_URL": database_url,
        "TURNOUT_REDIS_URL": redis_url,
        "TURNOUT_DATA_DIR": str(folder),
        "TURNOUT_PORT": "0",
        "TURNOUT_LOG_LEVEL": "warning",
    } | {f"TURNOUT_{name.upper()}": value for name, value in settings.items()}


@asynccontextmanager
async def _process(
    command: str, variables: Mapping[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of Turnout that serves, and what it said until then."""
    process = await asyncio.create_subprocess_exec(
        _TURNOUT, command, env=os.environ | dict(variables), stdout=asyncio.subprocess.PIPE
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the process has no output")
        said = ""
        while "serves on" not in said:
            line = await asyncio.wait_for(process.stdout.readline(), _START_SECONDS)
            if not line:
                raise RuntimeError(f"turnout {command} did not start")
            said += line.decode()
        yield process, said
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)


def memory_mib(process: int) -> float:
    """The resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0


def cpu_seconds(process: int) -> float:
    """The processor time that a process and its children, also those that have ended, have used."""
    ticks = sum(_ticks(process)[1:])
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent, *own = _ticks(int(entry.name))
                ticks += sum(own) if parent == process else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(process: int) -> tuple[int, int, int, int, int]:
    """Of a process: its parent, its own time and that of the children that it has waited for."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    parent, user, system, of_children, of_their_system = (
        int(fields[i]) for i in (1, 11, 12, 13, 14)
    )
    return parent, user, system, of_children, of_their_system
