"""What analysis counts of its own work, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class AnalysisMetrics:
    """The metrics of the controller, on the registry handed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leader = Gauge(
            "turnout_leader", "1 where this process leads the controller", registry=registry
        )
        self.fold_lag = Gauge(
            "turnout_fold_lag_seconds",
            "Age of the watermark: everything older is in the moments",
            registry=registry,
        )
        self.folded = Counter(
            "turnout_folded_records", "Records folded into moments", registry=registry
        )
        self.decisions = Counter(
            "turnout_decisions",
            "Decisions of the controller, by kind, rule, and why",
            ["project", "experiment", "kind", "rule", "code"],
            registry=registry,
        )
        self.failures = Counter(
            "turnout_controller_failures",
            "Ticks of the controller that failed, by what they were about",
            ["of"],
            registry=registry,
        )
