"""What a router counts of its own work, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from experiments.doors import Clock
from router.journal import Journal
from router.shipper import Shipper


class RouterMetrics:
    """The counters of a router, on the registry handed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.assignments = Counter(
            "turnout_assignments",
            "Assignments answered, by experiment, variant and reason",
            ["project", "experiment", "variant", "reason"],
            registry=registry,
        )
        self.unrecorded = Counter(
            "turnout_exposures_unrecorded",
            "Exposures that could not be recorded; the assignment was answered all the same",
            ["project", "experiment"],
            registry=registry,
        )
        self.outcomes = Counter(
            "turnout_outcomes",
            "Outcomes received, by what became of them",
            ["project", "result"],
            registry=registry,
        )


class JournalCollector(Collector):
    """What the journal and its shipper know of themselves, read when Prometheus asks."""

    def __init__(self, journal: Journal, shipper: Shipper, clock: Clock) -> None:
        self._journal = journal
        self._shipper = shipper
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        now, journal, shipper = self._clock(), self._journal, self._shipper
        oldest, through = journal.oldest_at or now, shipper.shipped_through or now
        for name, text, value in (
            ("journal_bytes", "Bytes in the journal that Postgres lacks", journal.depth),
            (
                "journal_age_seconds",
                "Age of the oldest record that Postgres lacks",
                (now - oldest).total_seconds(),
            ),
            ("journal_full", "1 while the journal refuses records", journal.full),
            (
                "shipping_lag_seconds",
                "Age of the time up to which all was shipped",
                (now - through).total_seconds(),
            ),
        ):
            yield GaugeMetricFamily(f"turnout_{name}", text, value=float(value))
        for name, text, count in (
            ("journal_failures", "Writes and syncs of the journal that failed", journal.failures),
            ("journal_torn", "Ends of unfinished writes cut off at the start", journal.torn),
            ("journal_damaged", "Damaged places of the journal set aside", journal.damaged),
            ("shipped_segments", "Segments of the journal shipped to Postgres", shipper.segments),
            ("shipped_records", "Records shipped to Postgres", shipper.records),
            ("shipped_duplicates", "Outcomes whose id was in Postgres before", shipper.duplicates),
            ("shipping_failures", "Attempts to ship that failed", shipper.failures),
            ("dead_letters", "Records set aside with a reason", shipper.letters),
        ):
            yield CounterMetricFamily(f"turnout_{name}", text, value=float(count))
