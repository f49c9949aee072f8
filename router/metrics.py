"""What a router counts of its own work, for Prometheus."""

from collections.abc import Callable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.journal import Journal
from router.orphans import Orphans
from router.shipper import Shipper
from router.tally import Tally


class RouterMetrics:
    """The counters of a router, on the registry handed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.assignments = Tally(
            "turnout_assignments",
            "Assignments answered, by experiment, variant and reason",
            ("project", "experiment", "variant", "reason"),
            registry,
        )
        self.unrecorded = Tally(
            "turnout_exposures_unrecorded",
            "Exposures that could not be recorded; the assignment was answered all the same",
            ("project", "experiment"),
            registry,
        )
        self.outcomes = Tally(
            "turnout_outcomes",
            "Outcomes received, by what became of them",
            ("project", "result"),
            registry,
        )
        self.reported = Tally(
            "turnout_exposures_reported",
            "Exposures that were evaluated elsewhere, by what became of them",
            ("project", "result"),
            registry,
        )
        self.mismatched = Tally(
            "turnout_exposures_mismatched",
            "Exposures that name another variant than their epoch gives, and were set aside",
            ("project", "experiment"),
            registry,
        )
        self.unstuck = Tally(
            "turnout_sticky_fallbacks",
            "Answers of sticky experiments given by the slot, for Redis did not answer in time",
            ("project", "experiment"),
            registry,
        )


class JournalCollector(Collector):
    """What the journal and its shipper know of themselves, read when Prometheus asks. What was
    adopted waits for Postgres as well, so bytes and age are those of both."""

    def __init__(
        self, journal: Journal, shipper: Shipper, orphans: Orphans, clock: Callable[[], datetime]
    ) -> None:
        self._journal = journal
        self._shipper = shipper
        self._orphans = orphans
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        now, journal, shipper = self._clock(), self._journal, self._shipper
        oldest = min(journal.oldest_at or now, self._orphans.oldest_at or now)
        through = shipper.shipped_through or journal.oldest_at or now
        depth = journal.depth + self._orphans.depth
        for name, text, value in (
            ("journal_bytes", "Bytes in journals that Postgres lacks", depth),
            ("journal_limit_bytes", "Bytes at which the journal is full", journal.limit),
            (
                "journal_age_seconds",
                "Age of the oldest record that Postgres lacks",
                (now - oldest).total_seconds(),
            ),
            ("journal_full", "1 while the journal refuses records", journal.full),
            (
                "journal_failing",
                "1 from a write that the disk refused to one that it takes",
                journal.refusal is not None,
            ),
            (
                "shipping_lag_seconds",
                "Age of the time up to which all was shipped",
                (now - through).total_seconds(),
            ),
            (
                "clock_offset_seconds",
                "How far the clock of this process is ahead of the database's",
                shipper.clock_offset.total_seconds(),
            ),
        ):
            yield _gauge(name, text, value)
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
            yield _counter(name, text, count)


class OrphanCollector(Collector):
    """What became of the journals of dead processes, read when Prometheus asks."""

    def __init__(self, orphans: Orphans) -> None:
        self._orphans = orphans

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        orphans = self._orphans
        for name, text, value in (
            ("orphan_journals", "Journals of dead processes that wait", orphans.waiting),
            ("orphan_bytes", "Bytes in these that Postgres lacks", orphans.depth),
            ("orphan_journals_kept", "Those with damage, left for an operator", orphans.kept),
        ):
            yield _gauge(name, text, value)
        for name, text, count in (
            ("orphan_journals_shipped", "Journals of dead processes shipped", orphans.shipped),
            ("orphan_segments", "Segments of them shipped to Postgres", orphans.segments),
            ("orphan_records", "Records of them shipped to Postgres", orphans.records),
            ("orphan_dead_letters", "Records of them set aside with a reason", orphans.letters),
            ("orphan_damaged", "Damaged places of them set aside", orphans.damaged),
            ("orphan_failures", "Attempts to ship them that failed", orphans.failures),
        ):
            yield _counter(name, text, count)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"turnout_{name}", text, value=float(value))


def _counter(name: str, text: str, count: int) -> Metric:
    return CounterMetricFamily(f"turnout_{name}", text, value=float(count))
