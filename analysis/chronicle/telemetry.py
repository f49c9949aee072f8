"""What the chronicle counts of its own work, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ChronicleMetrics:
    """The metrics of the chronicler, on the registry handed in. The age is read from the database:
    every process that has a chronicler tells the same."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "turnout_chronicle_seconds",
            "What a glance at an experiment took, its report and all",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            registry=registry,
        )
        self.failures = Counter(
            "turnout_chronicle_failures",
            "Glances that failed, of an experiment or of all",
            ["of"],
            registry=registry,
        )
        self.oldest = Gauge(
            "turnout_chronicle_oldest_glance_seconds",
            "Age of the oldest glance at an experiment whose data still come",
            registry=registry,
        )
