"""Metrics of several workers as those of one process.

Counters and histograms are added. What goes up and down is added where it is a size, and the least
is told of what there should be more of; of all else (ages, and flags that are 0 or 1) the largest
is told: the process is as late as the latest of its workers. `GAUGES` says which is which.

**A worker that dies takes its counters with it**, and its successor begins at 0. A sum of the
living would fall, which Prometheus takes for the restart of one process that has counted all the
rest since: `rate()` would show a burst that never was. So the sum goes on with the last values that
were heard of the dead. What was told is never taken back, and a rate is at most too small: by what
the dead worker had counted since somebody asked last, which dies with any process. (A label for the
worker would serve `rate()`, too, but makes every series as many as there are workers.)
"""

import asyncio
import gzip
import operator
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SLICE: Final = 500
"""Samples that are read in one turn of the event loop: about a millisecond."""
_GZIP_LEVEL: Final = 1
_LASTING: Final = frozenset({"counter", "histogram", "summary"})
Rule: TypeAlias = Literal["sum", "max", "min"]

GAUGES: Final[dict[str, Rule]] = {
    "process_max_fds": "min",
    "process_open_fds": "max",
    "process_resident_memory_bytes": "sum",
    "process_start_time_seconds": "min",
    "process_virtual_memory_bytes": "sum",
    "turnout_build_info": "max",
    "turnout_chronicle_oldest_glance_seconds": "max",
    "turnout_clock_offset_seconds": "max",
    "turnout_dependency_up": "min",
    "turnout_disk_free_bytes": "min",
    "turnout_disk_size_bytes": "min",
    "turnout_event_streams": "sum",
    "turnout_experiments": "max",
    "turnout_experiments_unread": "max",
    "turnout_fold_lag_seconds": "max",
    "turnout_journal_age_seconds": "max",
    "turnout_journal_bytes": "sum",
    "turnout_journal_failing": "max",
    "turnout_journal_full": "max",
    "turnout_journal_limit_bytes": "sum",
    "turnout_last_decision_timestamp_seconds": "max",
    "turnout_leader": "max",
    "turnout_orphan_bytes": "sum",
    "turnout_orphan_journals": "sum",
    "turnout_orphan_journals_kept": "max",
    "turnout_page_streams": "sum",
    "turnout_postgres_connections": "sum",
    "turnout_postgres_connections_limit": "sum",
    "turnout_sample_ratio_log10_e": "max",
    "turnout_sample_ratio_mismatch": "max",
    "turnout_shipping_lag_seconds": "max",
    "turnout_snapshot_age_seconds": "max",
    "turnout_webhook_oldest_waiting_seconds": "max",
    "turnout_webhook_waiting": "max",
    "turnout_webhooks_disabled": "max",
    "turnout_workers": "sum",
}
"""How a gauge of several workers comes together; `max` where none is named here."""

_MERGE: Final[dict[Rule, Callable[[float, float], float]]] = {
    "sum": operator.add,
    "max": max,
    "min": min,
}


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One line of the exposition."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric with all its samples."""

    name: str
    documentation: str
    kind: str
    samples: tuple[Sample, ...]

    @property
    def lasts(self) -> bool:
        """Whether it only grows."""
        return self.kind in _LASTING

    @property
    def rule(self) -> Rule:
        """How its values of several workers come together."""
        return "sum" if self.lasts else GAUGES.get(self.name, "max")


Families: TypeAlias = tuple[Family, ...]


async def families_of(registry: CollectorRegistry) -> Families:
    """The metrics of this process as they are now. With many labels this takes some time, in which
    the event loop gets its turns."""
    families: list[Family] = []
    for metric in registry.collect():
        samples: list[Sample] = []
        for first in range(0, len(metric.samples), _SLICE):
            part = metric.samples[first : first + _SLICE]
            samples += [Sample(item.name, item.labels, float(item.value)) for item in part]
            await asyncio.sleep(0)
        families.append(Family(metric.name, metric.documentation, metric.type, tuple(samples)))
    return tuple(families)


def exposition(families: Families) -> bytes:
    """The metrics as Prometheus reads them: its text format, version 0.0.4."""
    return generate_latest(_Given(families))


async def told(families: Families, *, compressed: bool) -> bytes:
    """The metrics as Prometheus reads them, written beside the event loop, and compressed with gzip
    if that is asked for."""

    def write() -> bytes:
        text = exposition(families)
        return gzip.compress(text, _GZIP_LEVEL) if compressed else text

    return await asyncio.to_thread(write)


def metrics_of(registry: CollectorRegistry) -> Callable[[], Awaitable[Families]]:
    """Gives the metrics of this process alone."""

    async def metrics() -> Families:
        return await families_of(registry)

    return metrics


def summed(parts: Iterable[Families]) -> Families:
    """The metrics of several processes as those of one."""
    alike: dict[str, list[Family]] = {}
    for part in parts:
        for family in part:
            alike.setdefault(family.name, []).append(family)
    return tuple(_sum(families) for families in alike.values())


class Sums:
    """What was heard of the workers of a fleet, by the number of their process."""

    def __init__(self) -> None:
        self._living: dict[int, Families] = {}
        self._dead: Families = ()

    def hear(self, worker: int, families: Families) -> None:
        """Keep what a worker says now. Until it speaks again, this is what counts."""
        self._living[worker] = families

    def bury(self, worker: int) -> None:
        """A worker has ended: what it had counted stays, what it was like does not."""
        families = self._living.pop(worker, ())
        self._dead = summed([self._dead, tuple(item for item in families if item.lasts)])

    def total(self) -> Families:
        """The metrics of all."""
        return summed([self._dead, *self._living.values()])


class _Given(Collector):
    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.documentation, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric


def _sum(families: Sequence[Family]) -> Family:
    first = families[0]
    merge = _MERGE[first.rule]
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            before = values.get(key)
            if before is None:
                values[key] = sample.value
            else:
                values[key] = merge(before, sample.value)
    return Family(
        first.name,
        first.documentation,
        first.kind,
        tuple(Sample(name, dict(labels), value) for (name, labels), value in values.items()),
    )
