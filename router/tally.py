"""Counters and histograms for hot paths, as Prometheus reads them.

The library's own take 0.6 and 1.2 microseconds a step; these are an addition to a dictionary.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Tally(Collector):
    """A counter with labels, for use in one event loop."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        registry.register(self)

    def add(self, *values: str, count: int = 1) -> None:
        """Add to the counter with these values of its labels."""
        self._counts[values] += count

    def one(self, values: tuple[str, ...]) -> None:
        """Add one to the counter with these values of its labels."""
        self._counts[values] += 1

    def collect(self) -> Iterator[Metric]:
        """The counters as they are now."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count)
        yield family


class _Cells:
    """The buckets of a histogram for one set of labels, and the sum of what was observed."""

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0


class Histogram(Collector):
    """A histogram with labels, for use in one event loop."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """`bounds` are the upper bounds of the buckets, rising; one without bound follows them."""
        self._name, self._text, self._labels = name, text, labels
        self._bounds = tuple(bounds)
        self._names = [str(float(bound)) for bound in bounds] + ["+Inf"]
        self._cells: dict[tuple[str, ...], _Cells] = {}
        registry.register(self)

    def observe(self, value: float, values: tuple[str, ...]) -> None:
        """Take in a value, under these values of the labels."""
        cells = self._cells.get(values)
        if cells is None:
            cells = self._cells[values] = _Cells(len(self._bounds) + 1)
        cells.counts[bisect_left(self._bounds, value)] += 1
        cells.total += value

    def collect(self) -> Iterator[Metric]:
        """The histograms as they are now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, cells in list(self._cells.items()):
            buckets: list[tuple[str, float]] = []
            seen = 0
            for name, count in zip(self._names, cells.counts, strict=True):
                seen += count
                buckets.append((name, float(seen)))
            family.add_metric(values, buckets, sum_value=cells.total)
        yield family
