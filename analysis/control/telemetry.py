"""What analysis counts of its own work, for Prometheus."""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from experiments.model import State

MOST_EXPERIMENTS: Final = 5_000
"""Experiments that have labels of their own. Of more the decisions are counted as `other`, and
those that began last have no gauges."""


class Ratio(msgspec.Struct, frozen=True):
    """How the split of an experiment that runs stands.

    `mismatch` says whether a finding about it stands; `log_e` is the natural logarithm of the most
    evidence so far, and infinite where units came that cannot be.
    """

    project: str
    experiment: str
    mismatch: bool
    log_e: float


class Sight(msgspec.Struct, frozen=True):
    """What the leader sees of all experiments.

    Arguments:
        states: how many experiments there are in each state.
        ratios: of those that run.
        decided_at: when the last decision was made, by hand or not; None before the first.
    """

    states: dict[State, int]
    ratios: Sequence[Ratio]
    decided_at: datetime | None


class SightCollector(Collector):
    """What the leader sees; nothing from a process that does not lead, so that an experiment which
    has ended leaves with the next look, and a leader that was followed tells nothing that is old.
    """

    def __init__(self) -> None:
        self.sight: Sight | None = None

    def collect(self) -> Iterator[Metric]:
        """The gauges as they were when the leader looked."""
        states = GaugeMetricFamily(
            "turnout_experiments", "Experiments, by state; told by the leader", labels=["state"]
        )
        labels = ["project", "experiment"]
        mismatches = GaugeMetricFamily(
            "turnout_sample_ratio_mismatch",
            "1 while the units of an experiment that runs are not split as they should be",
            labels=labels,
        )
        evidence = GaugeMetricFamily(
            "turnout_sample_ratio_log10_e",
            "Decimal logarithm of the most evidence so far for that; an alarm from 3 on",
            labels=labels,
        )
        decided = GaugeMetricFamily(
            "turnout_last_decision_timestamp_seconds", "When the last decision was made"
        )
        if self.sight is not None:
            for state, count in self.sight.states.items():
                states.add_metric([state], float(count))
            for ratio in self.sight.ratios[:MOST_EXPERIMENTS]:
                key = [ratio.project, ratio.experiment]
                mismatches.add_metric(key, float(ratio.mismatch))
                evidence.add_metric(key, ratio.log_e / math.log(10.0))
            if self.sight.decided_at is not None:
                decided.add_metric([], self.sight.decided_at.timestamp())
        yield from (states, mismatches, evidence, decided)


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
        self._decisions = Counter(
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
        self.sights = SightCollector()
        registry.register(self.sights)
        self._known: set[tuple[str, str]] = set()

    def leads(self, leads: bool) -> None:
        """Tell whether this process leads. Who does not sees nothing."""
        self.leader.set(leads)
        if not leads:
            self.sights.sight = None

    def decided(self, project: str, experiment: str, kind: str, rule: str, code: str) -> None:
        """Count a decision."""
        key = (project, experiment)
        if key not in self._known:
            if len(self._known) < MOST_EXPERIMENTS:
                self._known.add(key)
            else:
                project, experiment = "other", "other"
        self._decisions.labels(project, experiment, kind, rule, code).inc()
