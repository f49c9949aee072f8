"""What a router counts of its own work, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter


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
