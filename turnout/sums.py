"""Metrics of several workers as those of one process.

Counters and histograms are added. Of what goes up and down, sizes are added, and of all else (ages,
and flags that are 0 or 1) the largest is told: the process is as late as the latest of its workers.

**A worker that dies takes its counters with it**, and its successor begins at 0. A sum of the
living would fall, which Prometheus takes for the restart of one process that has counted all the
rest since: `rate()` would show a burst that never was. So the sum goes on with the last values that
were heard of the dead. What was told is never taken back, and a rate is at most too small: by what
the dead worker had counted since somebody asked last, which dies with any process. (A label for the
worker would serve `rate()`, too, but makes every series as many as there are workers.)
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_LASTING: Final = frozenset({"counter", "histogram", "summary"})
_ADDED_GAUGES: Final = frozenset(
    {"turnout_event_streams", "turnout_orphan_journals", "turnout_workers"}
)


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
    def adds_up(self) -> bool:
        """Whether its values are added; otherwise the largest counts."""
        return self.lasts or self.name.endswith("_bytes") or self.name in _ADDED_GAUGES


Families: TypeAlias = tuple[Family, ...]


def families_of(registry: CollectorRegistry) -> Families:
    """The metrics of this process as they are now."""
    return tuple(
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            tuple(Sample(item.name, dict(item.labels), item.value) for item in metric.samples),
        )
        for metric in registry.collect()
    )


def exposition(families: Families) -> bytes:
    """The metrics as Prometheus reads them."""
    return generate_latest(_Given(families))


def metrics_of(registry: CollectorRegistry) -> Callable[[], Awaitable[bytes]]:
    """Gives the metrics of this process alone, as Prometheus reads them."""

    async def metrics() -> bytes:
        return generate_latest(registry)

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
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            before = values.get(key)
            if before is None:
                values[key] = sample.value
            else:
                values[key] = before + sample.value if first.adds_up else max(before, sample.value)
    return Family(
        first.name,
        first.documentation,
        first.kind,
        tuple(Sample(name, dict(labels), value) for (name, labels), value in values.items()),
    )
