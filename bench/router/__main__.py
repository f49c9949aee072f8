"""How fast a router answers, as ratios to what a user could pick instead.

    make bench-router                        # about seven minutes
    make bench-router ROUNDS=3 SECONDS=1     # a little over one
    make bench-assign                        # only what is measured within the process

Measured is the OFREP evaluation of one flag over HTTP: key check, one targeting rule, and an
exposure that is recorded, of another unit in every request. Servers run on one processor core, one
at a time; `wrk` runs on the other, together with the Postgres that a router ships its exposures to.
The servers take turns; a ratio is that of two runs of the same round, and the median over the
rounds is given. Processor time counts until all that a run recorded is in Postgres.

Like is compared with like: `fast-feature`, which checks no key and records nothing, with durability
`written`; the Litestar handler and Turnout with the same durability each.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import msgspec

from bench.router import in_process
from bench.router.figures import Figure, Run, load_of, paired, percentile, table
from bench.router.scene import request_around_unit
from bench.router.servers import (
    CannotMeasureError,
    Cores,
    Program,
    Server,
    Turnouts,
    core_seconds,
    fast_feature,
    idiomatic,
    new_key,
    nginx,
    process,
    require,
    turnouts,
)
from turnout.embedded import EmbeddedError

FEW: Final = 64
"""Connections, and the next."""
MANY: Final = 256
WARM_UP_SECONDS: Final = 1
OFFERED: Final = 0.5
"""Of what the slowest can serve, the rate at which latencies are compared."""
MOST_OFFERED: Final = 10_000.0
LEAST_BUSY: Final = 0.8
"""Of a core that serves nginx, if it is nginx that is measured."""
MOST_OTHERS: Final = 0.05
"""Of the core that serves, for a measurement that nobody disturbs."""
UNANSWERED: Final = 1_000
"""Requests of a run, at most, that were on their way at its end: their units are used, too."""
_SCRIPT: Final = Path(__file__).with_name("unit.lua")
_PATIENCE: Final = 30.0
_PEER_VERSION: Final = "from importlib.metadata import version; print(version('fast-feature'))"


class Contender(NamedTuple):
    """A server, with so many connections."""

    server: Server
    connections: int

    @property
    def name(self) -> str:
        """How its line is called."""
        return f"{self.server.name}, {self.connections} connections"


class Field(NamedTuple):
    """All that take part."""

    nginx: Server
    turnouts: Turnouts
    written_handler: Server
    synced_handler: Server
    fast_feature: Server

    @property
    def contenders(self) -> list[Contender]:
        """In the order of their turns."""
        return [
            Contender(self.nginx, FEW),
            Contender(self.turnouts.written, FEW),
            Contender(self.turnouts.synced, FEW),
            Contender(self.nginx, MANY),
            Contender(self.turnouts.synced, MANY),
            Contender(self.written_handler, FEW),
            Contender(self.synced_handler, FEW),
            Contender(self.fast_feature, FEW),
        ]


class Client:
    """Asks servers from its own core, each time for units that no run asked for before."""

    def __init__(self, cores: Cores) -> None:
        """Between the two."""
        self._cores = cores
        self._next_unit = 1
        self.exposed = 0
        """Requests that were answered by those who record exposures."""

    async def load(self, contender: Contender, seconds: int) -> Run:
        """As many requests as the server answers.

        Raises:
            CannotMeasureError: if it refuses one, or loses a connection.
        """
        server, connections = contender
        head, tail = request_around_unit(server.host, server.key)
        command = ["wrk", "--threads", "1", "--connections", str(connections)]
        command += ["--duration", f"{seconds}s", "--timeout", "10s", "--script", str(_SCRIPT)]
        command += [server.url, "--", head, tail, str(self._next_unit)]
        before, core_before = server.cpu_seconds, core_seconds(self._cores.server)
        said = await self._said(command, seconds)
        others = core_seconds(self._cores.server) - core_before - server.cpu_seconds + before
        await server.settled()
        try:
            load = load_of(said)
        except ValueError as error:
            raise CannotMeasureError(f"{contender.name}: {error}") from error
        if load.lost or load.refused:
            raise CannotMeasureError(f"{contender.name}: {load}")
        self._count(server, load.requests)
        return Run(
            rate=load.rate,
            cpu=(server.cpu_seconds - before) / load.requests * 1e6,
            others=max(others / load.microseconds * 1e6, 0),
        )

    async def paced(self, server: Server, rate: float, seconds: float) -> list[float]:
        """Latencies in milliseconds at a fixed rate."""
        numbers = [f"{rate:.3f}", str(seconds), str(FEW), str(self._next_unit)]
        command = [sys.executable, "-m", "bench.router.paced", server.host, str(server.port)]
        said = await self._said([*command, server.key, *numbers], seconds)
        await server.settled()
        found = msgspec.json.decode(said, type=list[float])
        self._count(server, len(found))
        return found

    def _count(self, server: Server, answered: int) -> None:
        self._next_unit += answered + UNANSWERED
        self.exposed += answered if server.ships else 0

    async def _said(self, command: Sequence[str], seconds: float) -> str:
        async with process(command, self._cores.client, read=True) as running:
            said, _ = await asyncio.wait_for(running.communicate(), seconds + _PATIENCE)
        if running.returncode != 0:
            raise CannotMeasureError(f"{command[0]} ended with status {running.returncode}")
        return said.decode()


async def over_http(field: Field, client: Client, rounds: int, seconds: int) -> list[Figure]:
    """Measure the servers, and print what each did."""
    contenders = field.contenders
    for contender in contenders:
        await client.load(contender, WARM_UP_SECONDS)
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        _progress(f"round {number + 1} of {rounds}")
        for contender in contenders:
            runs[contender.name].append(await client.load(contender, seconds))
    print("\n".join([*_servers(runs), *_doubts(field, runs)]))
    return [*_throughput(field, runs), *await _latency(field, client, runs, rounds, seconds)]


def _throughput(field: Field, runs: Mapping[str, Sequence[Run]]) -> list[Figure]:
    def rates(server: Server, connections: int = FEW) -> list[float]:
        return [run.rate for run in runs[Contender(server, connections).name]]

    def cpu(server: Server) -> list[float]:
        return [run.cpu for run in runs[Contender(server, FEW).name]]

    written, synced = field.turnouts.written, field.turnouts.synced
    few, many = f"{FEW} connections", f"{MANY} connections"
    return [
        Figure(
            f"requests/s to nginx: written, {few}",
            paired(rates(written), rates(field.nginx)),
            least=0.40,
        ),
        Figure(
            f"requests/s to nginx: synced, {few}",
            paired(rates(synced), rates(field.nginx)),
            least=0.25,
        ),
        Figure(
            f"requests/s to nginx: synced, {many}",
            paired(rates(synced, MANY), rates(field.nginx, MANY)),
            least=0.35,
        ),
        Figure(
            "requests/s to fast-feature, which records nothing: written",
            paired(rates(written), rates(field.fast_feature)),
            least=12,
        ),
        Figure(
            "requests/s to the Litestar handler: both written",
            paired(rates(written), rates(field.written_handler)),
            least=6,
        ),
        Figure(
            "requests/s to the Litestar handler: both synced",
            paired(rates(synced), rates(field.synced_handler)),
        ),
        Figure("CPU a request to nginx: written", paired(cpu(written), cpu(field.nginx))),
        Figure("CPU a request to nginx: synced", paired(cpu(synced), cpu(field.nginx))),
        Figure(
            "CPU a request, the Litestar handler to ours: both written",
            paired(cpu(field.written_handler), cpu(written)),
        ),
        Figure(
            "CPU a request, fast-feature to ours: written",
            paired(cpu(field.fast_feature), cpu(written)),
        ),
    ]


async def _latency(
    field: Field,
    client: Client,
    runs: Mapping[str, Sequence[Run]],
    rounds: int,
    seconds: int,
) -> list[Figure]:
    written, synced = field.turnouts.written, field.turnouts.synced
    servers = (field.nginx, written, synced)
    slowest = min(
        statistics.median(run.rate for run in runs[Contender(server, FEW).name])
        for server in servers
    )
    rate = min(OFFERED * slowest, MOST_OFFERED)
    found: dict[str, list[list[float]]] = {server.name: [] for server in servers}
    for number in range(rounds):
        _progress(f"latency, round {number + 1} of {rounds}")
        for server in servers:
            found[server.name].append(await client.paced(server, rate, seconds))
    print(f"\n{f'at {rate:,.0f} requests/s, {FEW} connections':34}{'p50 ms':>10}{'p99 ms':>10}")
    for name, rounds_of_it in found.items():
        middle, late = (
            statistics.median(percentile(each, share) for each in rounds_of_it)
            for share in (0.5, 0.99)
        )
        print(f"{name:34}{middle:10.2f}{late:10.2f}")

    def p99(server: Server) -> list[float]:
        return [percentile(latencies, 0.99) for latencies in found[server.name]]

    return [
        Figure("p99 latency to nginx: written", paired(p99(written), p99(field.nginx)), most=2),
        Figure("p99 latency to nginx: synced", paired(p99(synced), p99(field.nginx)), most=3),
    ]


def _busy(runs: Sequence[Run]) -> float:
    """The share of the core that a server used."""
    return statistics.median(run.rate * run.cpu / 1e6 for run in runs)


def _doubts(field: Field, runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Why the rates may not be what they would be on a quiet machine."""
    lines = []
    # Where nginx had nothing to do, its rate is that of the client, and a ratio to it too good.
    idle = min(_busy(runs[Contender(field.nginx, number).name]) for number in (FEW, MANY))
    if idle < LEAST_BUSY:
        lines.append(f"nginx waited for the client: it used {idle:.0%} of its core")
    others = statistics.median(run.others for of_it in runs.values() for run in of_it)
    if others > MOST_OTHERS:
        lines.append(f"others took {others:.0%} of the core that serves")
    if lines:
        lines = [
            f"\nIn doubt: {'; '.join(lines)}.",
            "Measure again on a quiet machine; until then heed the processor times alone.",
        ]
    return lines


def _servers(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    lines = [f"\n{'medians':34}{'requests/s':>12}{'CPU us':>9}{'core used':>11}{'by others':>11}"]
    for name, of_it in runs.items():
        rate = statistics.median(run.rate for run in of_it)
        cpu = statistics.median(run.cpu for run in of_it)
        others = statistics.median(run.others for run in of_it)
        lines.append(f"{name:34}{rate:12,.0f}{cpu:9.1f}{_busy(of_it):11.0%}{others:11.0%}")
    return lines


async def run(options: argparse.Namespace) -> None:
    """Measure what was asked for, and print it."""
    over_network: tuple[Program, ...] = () if options.in_process else ("nginx", "wrk")
    cores = require("setpriv", "taskset", *over_network)
    os.sched_setaffinity(0, {cores.client})  # with all that this process starts, but for servers
    begun = time.monotonic()
    print(f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"Python {platform.python_version()}, {_versions()}")
    print(f"{options.rounds} rounds, {options.seconds} s a run; the load before: {_load()}")
    figures: list[Figure] = []
    if not options.in_process:
        figures += await _with_servers(options, cores)
    _progress("within the process")
    compared, lines = await in_process.compare(
        options.peers, cores.server, options.rounds, options.seconds / 4
    )
    compared += await in_process.batches(cores.server, options.rounds)
    print("\n" + "\n".join(lines))
    print("\n" + "\n".join(table([*figures, *compared])))
    print(f"\n{time.monotonic() - begun:.0f} s; the load after: {_load()}")


async def _with_servers(options: argparse.Namespace, cores: Cores) -> list[Figure]:
    client = Client(cores)
    print(await _peer_versions(options.peers))
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnout-bench-")))
        _progress("starting the servers")
        ours = await stack.enter_async_context(turnouts(folder, cores))
        key, core = new_key(), cores.server
        enter = stack.enter_async_context
        field = Field(
            await enter(nginx(folder / "nginx", core, await ours.written.answer(0), key)),
            ours,
            await enter(idiomatic(folder / "handler-written", core, "written", ours)),
            await enter(idiomatic(folder / "handler-synced", core, "synced", ours)),
            await enter(fast_feature(options.peers, core, key)),
        )
        figures = await over_http(field, client, options.rounds, options.seconds)
        found = await ours.exposures()
        print(
            f"\n{found:,} exposures in Postgres, of {client.exposed:,} requests that were answered"
        )
        if found < client.exposed:
            raise CannotMeasureError("exposures are missing: the rates are not those of the work")
        return figures


async def _peer_versions(peers: Path) -> str:
    """The versions of the servers that are not Turnout, and of the client."""
    names = [await _first_line("nginx", "-v"), (await _first_line("wrk", "-v")).split(" [")[0]]
    feature = await _first_line(str(peers), "-c", _PEER_VERSION)
    return ", ".join([*names, f"fast-feature {feature}"])


def _versions() -> str:
    names = ("uvicorn", "uvloop", "httptools", "litestar", "msgspec", "mmh3")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


async def _first_line(*command: str) -> str:
    running = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(running.communicate(), _PATIENCE)
    return said.decode().splitlines()[0].strip()


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _progress(text: str) -> None:
    print(f"  ... {text}", file=sys.stderr, flush=True)


async def _until_signal(options: argparse.Namespace) -> None:
    """Run, and end all that was started also where this process is asked to end."""
    task = asyncio.create_task(run(options))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


def main() -> int:
    """Read the command line, and measure; the exit status."""
    parser = argparse.ArgumentParser(prog="bench.router", description="Measure a router.")
    parser.add_argument("--peers", type=Path, required=True, help="the Python of their environment")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each run")
    parser.add_argument("--in-process", action="store_true", help="only what is in the process")
    options = parser.parse_args()
    if not options.peers.exists():
        parser.error(f"there is no {options.peers}: `make bench-router` makes it")
    try:
        asyncio.run(_until_signal(options))
    except (CannotMeasureError, EmbeddedError, httpx.TransportError) as error:
        print(f"bench-router: {error}", file=sys.stderr)
        return 2
    except TimeoutError:
        print("bench-router: something took longer than it may", file=sys.stderr)
        return 2
    except asyncio.CancelledError:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
