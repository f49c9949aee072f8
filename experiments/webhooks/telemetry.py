"""What the herald counts of its own work, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class HeraldMetrics:
    """The metrics of deliveries, on the registry handed in. What waits is counted in the database:
    every process that has a herald tells the same."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.deliveries = Counter(
            "turnout_webhook_deliveries",
            "Attempts to deliver a decision to a webhook, by what came of them",
            ["project", "outcome"],
            registry=registry,
        )
        self.failures = Counter(
            "turnout_webhook_failures",
            "Times that webhooks had to wait, for the database failed or we did",
            registry=registry,
        )
        self.waiting = Gauge(
            "turnout_webhook_waiting", "Deliveries to webhooks that wait", registry=registry
        )
        self.oldest = Gauge(
            "turnout_webhook_oldest_waiting_seconds",
            "Age of the oldest delivery that waits",
            registry=registry,
        )
        self.disabled = Gauge(
            "turnout_webhooks_disabled",
            "Webhooks that were disabled because nothing arrived, or they answered 410 Gone",
            registry=registry,
        )
