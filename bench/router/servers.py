"""The servers that are measured, each on one processor core, and the client on another.

Each is a context that starts it, waits until it answers, and ends it.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import asyncpg
import httpx
import msgspec

from bench.router.idiomatic import Options
from bench.router.scene import DEFINITION, EXPERIMENT, PATH, body
from bench.turnout_processes import cpu_seconds
from router.journal import Durability
from turnout.embedded import embedded_servers

Program: TypeAlias = Literal["nginx", "setpriv", "taskset", "wrk"]

_PACKAGES: Final[dict[Program, str]] = {
    "nginx": "nginx-light",
    "setpriv": "util-linux",
    "taskset": "util-linux",
    "wrk": "wrk",
}
"""The Debian packages that have the programs needed."""

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0
_SHIP_SECONDS: Final = 60.0
_LONGEST_LINE: Final = 64 * 1024 * 1024
"""Bytes that a process may say at once: a latency for every request."""
_WAITING: Final = re.compile(r"^turnout_journal_bytes ([\d.e+]+)$", re.MULTILINE)
_POSTMASTER: Final = r"select split_part(pg_read_file('postmaster.pid'), E'\n', 1)::int"
_LOWEST_PRIORITY: Final = 19
_NGINX: Final = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            default_type application/json;
            return 200 '{answer}';
        }}
    }}
}}
"""


class CannotMeasureError(Exception):
    """Something that the benchmark needs is missing; the text is one line."""


class Cores(msgspec.Struct, frozen=True):
    """The two processor cores in use."""

    server: int
    client: int


def core_seconds(core: int) -> float:
    """How long a core was in use so far, by anybody; what the hypervisor took counts, too."""
    lines = Path("/proc/stat").read_text().splitlines()
    fields = next(line.split() for line in lines if line.startswith(f"cpu{core} "))
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, fields[1:9])
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


class Server(msgspec.Struct, frozen=True):
    """A server that answers the request of the scene."""

    name: str
    host: str
    port: int
    pid: int
    key: str
    ships: bool = False
    """Whether it has a journal that has to reach Postgres."""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{self.host}:{self.port}"

    @property
    def cpu_seconds(self) -> float:
        """The processor time of all its processes and threads so far."""
        return cpu_seconds(self.pid)

    async def answer(self, unit: int) -> bytes:
        """What it says to a request.

        Raises:
            CannotMeasureError: if it is not a good answer.
            httpx.TransportError: if there is none.
        """
        async with httpx.AsyncClient(timeout=10) as client:
            answer = await client.post(
                self.url + PATH,
                content=body(unit),
                headers={"Content-Type": "application/json", "X-API-Key": self.key},
            )
        if answer.status_code != 200:
            raise CannotMeasureError(f"{self.name} answers {answer.status_code}: {answer.text}")
        return answer.content

    async def settled(self) -> None:
        """Wait until what it recorded is in Postgres, so that it does not disturb the next run."""
        if not self.ships:
            return
        async with httpx.AsyncClient(timeout=10) as client:
            async with asyncio.timeout(_SHIP_SECONDS):
                while True:
                    metrics = (await client.get(self.url + "/metrics")).text
                    waiting = _WAITING.search(metrics)
                    if waiting is None:
                        raise CannotMeasureError(f"{self.name} does not tell its journal's size")
                    if float(waiting.group(1)) == 0:
                        return
                    await asyncio.sleep(0.2)


class Turnouts(msgspec.Struct, frozen=True):
    """Routers of one Turnout: the same experiment, each with its own journal."""

    written: Server
    synced: Server
    database_url: str
    pool: Any

    async def experiment(self) -> int:
        """The number of the experiment in the database."""
        number: int = await self.pool.fetchval(
            "select id from experiment where key = $1", EXPERIMENT
        )
        return number

    async def exposures(self) -> int:
        """How many of the experiment are in Postgres."""
        count: int = await self.pool.fetchval(
            "select count(*) from exposure where experiment = $1", await self.experiment()
        )
        return count


def require(*programs: Program) -> Cores:
    """The cores to use, if all that is needed is there.

    Raises:
        CannotMeasureError: naming what is missing.
    """
    missing = sorted({_PACKAGES[program] for program in programs if shutil.which(program) is None})
    if missing:
        raise CannotMeasureError(f"missing programs: apt-get install {' '.join(missing)}")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise CannotMeasureError("two processor cores are needed: one serves, one asks")
    return Cores(cores[0], cores[1])


@asynccontextmanager
async def turnouts(folder: Path, cores: Cores) -> AsyncIterator[Turnouts]:
    """Two routers behind which nothing folds; Postgres and Redis are on the client's core, on which
    this process has to be before.

    They would be elsewhere in production, so the client goes before them: else the server would
    wait for a client that waits for Postgres.
    """
    async with contextlib.AsyncExitStack() as stack:
        servers = await stack.enter_async_context(embedded_servers(folder / "servers"))
        pool = await stack.enter_async_context(
            asyncpg.create_pool(servers.database_url, min_size=1, max_size=2)
        )
        _give_way(await pool.fetchval(_POSTMASTER))
        variables = {
            "TURNOUT_DATABASE_URL": servers.database_url,
            "TURNOUT_REDIS_URL": servers.redis_url,
            "TURNOUT_PORT": "0",
            "TURNOUT_LOG_LEVEL": "warning",
        }
        routers: dict[Durability, Server] = {}
        key = ""
        for durability in ("written", "synced"):
            own = {
                "TURNOUT_DATA_DIR": str(folder / durability),
                "TURNOUT_DURABILITY": durability,
            }
            process, said = await stack.enter_async_context(_router(variables | own, cores.server))
            host, port = said.split("//")[-1].strip().split(":")
            if not key:
                key = await _define(f"http://{host}:{port}", said)
            server = Server(f"Turnout, {durability}", host, int(port), process.pid, key, ships=True)
            await _until_ready(server)
            routers[durability] = server
        yield Turnouts(routers["written"], routers["synced"], servers.database_url, pool)


def _give_way(postmaster: int) -> None:
    """Let Postgres, and all that it starts from now on, have the core when nobody else wants it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if postmaster in {int(entry.name), int(fields[1])}:
                    os.setpriority(os.PRIO_PROCESS, int(entry.name), _LOWEST_PRIORITY)


async def _define(url: str, said: str) -> str:
    """Start the experiment with the first admin key; a service key."""
    found = re.search(r"to_\w+", said)
    if found is None:
        raise CannotMeasureError(f"no admin key in {said!r}")
    headers = {"X-API-Key": found.group()}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:

        async def made(path: str, data: Mapping[str, Any]) -> Any:
            answer = await client.post(path, json=data)
            if answer.status_code not in {200, 201}:
                raise CannotMeasureError(f"{path} answers {answer.status_code}: {answer.text}")
            return answer.json()

        await made("/v1/experiments", DEFINITION)
        await made(f"/v1/experiments/{EXPERIMENT}/start", {"reason": "to be measured"})
        return str((await made("/v1/keys", {"role": "service"}))["key"])


@asynccontextmanager
async def _router(
    variables: Mapping[str, str], core: int
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A router, and what it said until it served."""
    command = [sys.executable, "-m", "turnout", "serve"]
    async with process(command, core, variables, read=True) as running:
        if running.stdout is None:
            raise RuntimeError("the process has no output")
        said = ""
        while "serves on" not in said:
            line = await asyncio.wait_for(running.stdout.readline(), _START_SECONDS)
            if not line:
                raise CannotMeasureError("turnout serve did not start")
            said += line.decode()
        yield running, said


@asynccontextmanager
async def nginx(folder: Path, core: int, answer: bytes, key: str) -> AsyncIterator[Server]:
    """nginx that says the same to everything, from its configuration."""
    text = answer.decode()
    if any(special in text for special in "'\\$"):
        raise CannotMeasureError(f"nginx cannot be told to answer {text}")
    port = _free_port()
    configuration = _configured(folder, _NGINX.format(folder=folder, port=port, answer=text))
    command = ["nginx", "-p", str(folder), "-c", str(configuration), "-e", "stderr"]
    async with _serving("nginx", command, core, port, key) as server:
        if await server.answer(0) != answer:
            raise CannotMeasureError("nginx gives another answer than it was told")
        yield server


def _configured(folder: Path, text: str) -> Path:
    folder.mkdir()
    configuration = folder / "nginx.conf"
    configuration.write_text(text)
    return configuration


@asynccontextmanager
async def idiomatic(
    folder: Path, core: int, durability: Durability, ours: Turnouts
) -> AsyncIterator[Server]:
    """The same work in an ordinary Litestar handler, whose exposures go to the same Postgres."""
    options = Options(
        port=_free_port(),
        journals=str(folder),
        durability=durability,
        key=new_key(),
        database_url=ours.database_url,
        experiment=await ours.experiment(),
    )
    command = [
        sys.executable,
        "-m",
        "bench.router.idiomatic",
        msgspec.json.encode(options).decode(),
    ]
    async with _serving(
        f"Litestar, {durability}", command, core, options.port, options.key, ships=True
    ) as server:
        yield server


@asynccontextmanager
async def fast_feature(python: Path, core: int, key: str) -> AsyncIterator[Server]:
    """The OFREP server of that name, in the peers' own environment."""
    port = _free_port()
    command = [str(python), "-m", "bench.peers.fast_feature_server", str(port)]
    async with _serving("fast-feature", command, core, port, key) as server:
        yield server


@asynccontextmanager
async def _serving(
    name: str,
    command: Sequence[str | Path],
    core: int,
    port: int,
    key: str,
    *,
    ships: bool = False,
) -> AsyncIterator[Server]:
    async with process(command, core) as running:
        server = Server(name, "127.0.0.1", port, running.pid, key, ships)
        await _until_ready(server, running)
        yield server


async def _until_ready(server: Server, running: asyncio.subprocess.Process | None = None) -> None:
    """Wait for the first good answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_SECONDS
    while True:
        if running is not None and running.returncode is not None:
            raise CannotMeasureError(f"{server.name} ended with status {running.returncode}")
        try:
            await server.answer(0)
        except (httpx.TransportError, CannotMeasureError) as error:
            if loop.time() > deadline:
                raise CannotMeasureError(f"{server.name} does not answer: {error}") from error
            await asyncio.sleep(0.1)
        else:
            return


@asynccontextmanager
async def process(
    command: Sequence[str | Path],
    core: int,
    variables: Mapping[str, str] | None = None,
    *,
    read: bool = False,
    write: bool = False,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours on one core, which is ended with the context, and by the kernel should this
    process be killed. Ctrl-C is not for it: this process ends its processes in order.

    Args:
        variables: beside those of this process.
        read: whether its standard output is ours to read.
        write: whether its standard input is ours to write.
    """
    running = await asyncio.create_subprocess_exec(
        "taskset",
        "--cpu-list",
        str(core),
        "setpriv",
        "--pdeathsig",
        "TERM",
        *command,
        env=os.environ | dict(variables or {}),
        stdin=asyncio.subprocess.PIPE if write else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if read else None,
        limit=_LONGEST_LINE,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                running.terminate()
            try:
                await asyncio.wait_for(running.wait(), _STOP_SECONDS)
            except TimeoutError:
                running.kill()
                await running.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def new_key() -> str:
    """A key for those that are not Turnout."""
    return secrets.token_hex(32)
