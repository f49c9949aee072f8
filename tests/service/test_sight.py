"""What the leader tells Prometheus of experiments, as long as they run and it leads; and what a
process tells of itself."""

import time
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from analysis.control.telemetry import AnalysisMetrics
from tests.running import Turnout, eventually
from tests.service.loop import SHOP, Service
from tests.service.test_health_rule import checked, come

MISMATCH = "turnout_sample_ratio_mismatch"
EVIDENCE = "turnout_sample_ratio_log10_e"
LABELS = {"project": SHOP, "experiment": "x"}
_EXPIRE = "update lease set expires_at = clock_timestamp() - interval '1 ms'"


async def test_a_mismatch_is_told_while_the_experiment_runs(service: Service) -> None:
    registry = CollectorRegistry()
    controller = service.controller
    service.controller = service.new_controller("watched", registry)

    def told(name: str, labels: dict[str, str] = LABELS) -> float | None:
        return registry.get_sample_value(name, labels)

    async def look() -> None:
        service.clock.advance(10)
        await service.shipped()
        assert await service.controller.tick()

    await service.begin(checked(sample_ratio={"action": "alert"}))
    await come(service, {"a": 30, "b": 30}, "well")
    await look()
    assert told("turnout_experiments", {"state": "running"}) == 1
    assert told(MISMATCH) == 0
    well = told(EVIDENCE)
    assert well is not None
    assert 0 <= well < 3
    await come(service, {"a": 300, "b": 10}, "ill")
    await look()
    assert told(MISMATCH) == 1
    ill = told(EVIDENCE)
    assert ill is not None
    assert ill > 3
    decided = told("turnout_last_decision_timestamp_seconds", {})
    assert decided == (await service.ledger("x"))[-1].at.timestamp()

    # Another leads: who led before tells nothing that gets old.
    service.clock.advance(60)
    await service.execute(_EXPIRE)
    assert await controller.tick()
    assert not await service.controller.tick()
    assert told(MISMATCH) is None
    assert told("turnout_leader", {}) == 0
    await service.execute(_EXPIRE)
    assert await service.controller.tick()
    assert told(MISMATCH) == 1

    await service.conclude("x")
    await look()
    assert told(MISMATCH) is told(EVIDENCE) is None
    assert told("turnout_experiments", {"state": "concluded"}) == 1


async def test_a_controller_that_has_not_looked_tells_of_no_experiment() -> None:
    registry = CollectorRegistry()
    AnalysisMetrics(registry)
    told = {family.name: family.samples for family in registry.collect()}
    assert told["turnout_experiments"] == told[MISMATCH] == []


async def test_an_event_loop_that_was_blocked_is_told(turnout: Turnout) -> None:
    async def late() -> float:
        """How often it was more than a quarter of a second late."""
        text = (await turnout.client(None).get("/metrics")).text
        lag: dict[Any, float] = {
            sample.labels["le"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "turnout_event_loop_lag_seconds_bucket"
        }
        return lag["+Inf"] - lag["0.25"] if lag else 0.0

    before = await late()
    time.sleep(0.8)  # noqa: ASYNC251 - to block the loop, which the service shares with the test

    async def told() -> bool | None:
        return True if await late() > before else None

    await eventually(told, "lag of the event loop")
