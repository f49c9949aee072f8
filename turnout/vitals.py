"""How the process itself is: how late its event loop runs, its connections to Postgres, whether
what it depends on answers, the disk of its journals, its processor time, memory and open files.

**The lag of the event loop** is what every request waits for before anything else: a sleeper that
should wake up after a quarter of a second notes how much later it did. Whatever blocks the loop for
longer than that is seen by it, however seldom it happens; what is shorter is sampled.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from experiments.store import Pool
from router.tally import Histogram
from turnout.health import Health

BEAT_SECONDS: Final = 0.25
LOOK_SECONDS: Final = 10.0
"""How often the disk and what we depend on are looked at."""
DEPENDENCIES: Final = ("postgres", "redis")
_VERSIONS: Final = [version("turnout"), ".".join(map(str, sys.version_info[:3]))]
_LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

logger = logging.getLogger(__name__)


class Vitals(Collector):
    """What a process tells of itself, on the registry handed in."""

    def __init__(
        self,
        registry: CollectorRegistry,
        pool: Pool,
        health: Health,
        folder: Path,
        seconds: Callable[[], float],
    ) -> None:
        """`folder` is where the journals are; `seconds` a clock that never goes back."""
        self._pool = pool
        self._health = health
        self._folder = folder
        self._seconds = seconds
        self._disk: tuple[float, float] | None = None
        self._up: dict[str, bool] = {}
        self._lag = Histogram(
            "turnout_event_loop_lag_seconds",
            "How much later than it should the event loop came to a task",
            (),
            _LAG_BUCKETS,
            registry,
        )
        # It registers itself, and reads /proc when it is asked.
        ProcessCollector(registry=registry)
        registry.register(self)

    async def beat(self) -> None:
        """Note how late the event loop is, until cancelled."""
        while True:
            due = self._seconds() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self._lag.observe(max(0.0, self._seconds() - due), ())

    async def look(self) -> None:
        """Look at the disk and at what we depend on, until cancelled."""
        while True:
            try:
                state = await self._health.check()
                # A disk that hangs, as one on the network may, must not stop the event loop.
                self._disk = await asyncio.to_thread(_room, self._folder)
            except Exception:  # whoever only looks must not end what is looked at
                logger.exception("vital signs not read")
            else:
                self._up = {it.name: it.ok for it in state.checks if it.name in DEPENDENCIES}
            await asyncio.sleep(LOOK_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """The gauges as they are now, or were when they were looked at."""
        build = GaugeMetricFamily(
            "turnout_build_info",
            "1, under the versions of Turnout and Python that run",
            labels=["version", "python"],
        )
        build.add_metric(_VERSIONS, 1.0)
        yield build
        pool = self._pool
        connections = GaugeMetricFamily(
            "turnout_postgres_connections",
            "Connections to Postgres, by whether somebody works with them",
            labels=["state"],
        )
        idle = pool.get_idle_size()
        connections.add_metric(["busy"], float(pool.get_size() - idle))
        connections.add_metric(["idle"], float(idle))
        yield connections
        yield GaugeMetricFamily(
            "turnout_postgres_connections_limit",
            "How many connections to Postgres there may be",
            value=float(pool.get_max_size()),
        )
        up = GaugeMetricFamily(
            "turnout_dependency_up", "1 while it answers this process", labels=["name"]
        )
        for name, answers in self._up.items():
            up.add_metric([name], float(answers))
        yield up
        free, size = (float("nan"),) * 2 if self._disk is None else self._disk
        yield GaugeMetricFamily(
            "turnout_disk_free_bytes", "Room on the disk of the data folder", value=free
        )
        yield GaugeMetricFamily(
            "turnout_disk_size_bytes", "Size of the disk of the data folder", value=size
        )


def _room(folder: Path) -> tuple[float, float] | None:
    """What is free and the size of a folder's disk, in bytes; None if it cannot be told."""
    try:
        there = os.statvfs(folder)
    except OSError:
        return None
    return float(there.f_bavail * there.f_frsize), float(there.f_blocks * there.f_frsize)
