"""Assignment within a process: ours, and that of other packages for an equivalent experiment."""

import asyncio
import contextlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench.router.figures import Figure, paired
from bench.router.servers import CannotMeasureError, process

PACKAGES: Final = ("growthbook", "optimizely-sdk", "openfeature-flagd-core")
OURS: Final = "router.assign"
LEAST: Final = 10.0
LEAST_MILLIONS: Final = 2.0
_PATIENCE: Final = 60.0
_SHARE_TOLERANCE: Final = 0.02


class _Ready(msgspec.Struct, frozen=True):
    version: str
    treated: float
    not_targeted: list[str]


class _Timed(msgspec.Struct, frozen=True):
    nanoseconds: float


class Evaluator:
    """A process with one evaluator that waits to be timed."""

    def __init__(self, name: str, running: asyncio.subprocess.Process) -> None:
        """`start` before use."""
        self.name = name
        self.version = ""
        self._running = running

    async def start(self) -> None:
        """Wait until it is ready.

        Raises:
            CannotMeasureError: if it assigns otherwise than the others do.
        """
        ready = msgspec.json.decode(await self._line(), type=_Ready)
        self.version = ready.version
        if abs(ready.treated - 0.5) > _SHARE_TOLERANCE or ready.not_targeted != ["v6"]:
            raise CannotMeasureError(f"{self.name} evaluates another experiment: {ready}")

    async def measure(self, evaluations: int) -> float:
        """Nanoseconds of one evaluation."""
        if self._running.stdin is None:
            raise RuntimeError("the process has no input")
        self._running.stdin.write(f"{evaluations}\n".encode())
        await self._running.stdin.drain()
        return msgspec.json.decode(await self._line(), type=_Timed).nanoseconds

    async def _line(self) -> bytes:
        if self._running.stdout is None:
            raise RuntimeError("the process has no output")
        line = await asyncio.wait_for(self._running.stdout.readline(), _PATIENCE)
        if not line:
            raise CannotMeasureError(f"{self.name} ended")
        return line


async def compare(
    peers: Path, core: int, rounds: int, seconds: float
) -> tuple[list[Figure], list[str]]:
    """How many times faster an assignment is, and the times themselves.

    Args:
        peers: the Python of the peers' environment.
        seconds: how long each evaluator takes in a round, about.
    """
    commands: dict[str, Sequence[str | Path]] = {
        OURS: [sys.executable, "-m", "bench.router.evaluator"],
        **{name: [peers, "-m", "bench.peers.evaluators", name] for name in PACKAGES},
    }
    async with contextlib.AsyncExitStack() as stack:
        evaluators = []
        for name, command in commands.items():
            running = await stack.enter_async_context(process(command, core, read=True, write=True))
            evaluator = Evaluator(name, running)
            await evaluator.start()
            evaluators.append(evaluator)
        # As many evaluations as take so long, so that all are disturbed alike.
        counts = {
            evaluator.name: max(int(seconds * 1e9 / await evaluator.measure(10_000)), 1000)
            for evaluator in evaluators
        }
        times: dict[str, list[float]] = {evaluator.name: [] for evaluator in evaluators}
        for _ in range(rounds):
            for evaluator in evaluators:
                times[evaluator.name].append(await evaluator.measure(counts[evaluator.name]))
    versions = {evaluator.name: evaluator.version for evaluator in evaluators}
    figures = [
        Figure(f"assign() against {name}, in time", paired(times[name], times[OURS]), least=LEAST)
        for name in PACKAGES
    ]
    return figures, _lines(times, versions)


async def batches(core: int, rounds: int) -> list[Figure]:
    """Millions of assignments a second and core in the work of a batch."""
    command = [sys.executable, "-m", "bench.router.batches", str(rounds)]
    async with process(command, core, read=True) as running:
        said, _ = await asyncio.wait_for(running.communicate(), _PATIENCE + rounds)
    if running.returncode != 0:
        raise CannotMeasureError(f"bench.router.batches ended with status {running.returncode}")
    found = msgspec.json.decode(said, type=dict[str, list[float]])
    return [
        Figure(
            f"batch, {name}, million/s",
            paired(rates, [1e6] * rounds),
            least=None if "targeting" in name else LEAST_MILLIONS,
        )
        for name, rates in found.items()
    ]


def _lines(times: Mapping[str, Sequence[float]], versions: Mapping[str, str]) -> list[str]:
    lines = [f"{'one evaluation in the process':34}{'us':>8}"]
    for name, found in times.items():
        lines.append(f"{f'{name} {versions[name]}':34}{statistics.median(found) / 1e3:8.2f}")
    return lines
