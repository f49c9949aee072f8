"""The health of a run's data, as folding keeps it, and what the report says of it."""

import math
from datetime import timedelta

import msgspec
import pytest

from analysis.folding.health import EXACT, SAMPLED, read_health
from analysis.inference.health import Arrivals, Health, delay_bucket
from analysis.inference.ratio_watch import LOG_THRESHOLD, RatioWatch, watch
from analysis.reports.model import QualityCheck
from tests.service.loop import Service, after, definition, mean, metric

EVEN = {"a": 0.5, "b": 0.5}


async def health(service: Service, key: str = "x") -> Health:
    """What is kept of an experiment's run."""
    record = await service.find(key)
    async with service.pool.acquire() as connection:
        return await read_health(connection, record.id, record.run)


async def check(service: Service, code: str, subject: str | None = None) -> QualityCheck:
    """What a check of the report found."""
    [found] = [
        found
        for found in (await service.report("x")).quality
        if found.code == code and subject in (None, found.subject)
    ]
    return found


async def test_units_are_watched_by_the_propensities_of_their_epochs(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    now = service.clock.now
    first = [service.exposure(record, f"u{n}", "ab"[n % 3 == 0], now) for n in range(300)]
    await service.ship(first[:100])
    await service.tick()
    await service.ship(first[50:])  # fifty of them come twice
    await service.tick()
    record = await service.allocate("x", {"a": 0.9, "b": 0.1})
    await service.ship(
        [service.exposure(record, f"later {n}", "ab"[n % 10 == 0], now) for n in range(200)]
        + [service.exposure(record, "u1", "b", now)]  # who is enrolled is not new
    )
    await service.tick()
    expected = RatioWatch()
    for units, propensities in (
        ({"a": 66, "b": 34}, EVEN),
        ({"a": 134, "b": 66}, EVEN),
        ({"a": 180, "b": 20}, {"a": 0.9, "b": 0.1}),
    ):
        expected = watch(expected, units, propensities)
    found = (await health(service)).ratio
    assert (found.units, found.impossible) == (expected.units, {})
    assert found.expected == pytest.approx(expected.expected)
    assert found.log_e == pytest.approx(expected.log_e)
    assert found.log_peak > LOG_THRESHOLD
    said = await check(service, "sample_ratio_watch")
    assert said.severity == "critical"
    assert "500 units" in said.explanation


async def test_a_unit_of_a_variant_without_traffic_is_an_alarm(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    record = await service.allocate("x", {"a": 1.0, "b": 0.0})
    await service.ship([service.exposure(record, "u", "b", service.clock.now)])
    await service.settle()
    assert (await health(service)).ratio.impossible == {"b": 1}
    assert (await check(service, "sample_ratio_watch")).severity == "critical"
    assert (await check(service, "sample_ratio")).severity == "critical"


async def test_an_earlier_exposure_moves_the_unit_but_not_the_watch(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    for variant, seconds in (("b", 5), ("a", 1)):
        await service.ship([service.exposure(record, "u", variant, after(seconds))])
        await service.tick()
    assert (await health(service)).ratio.units == {"a": 0, "b": 1}
    assert (await service.report("x")).units == {"a": 1, "b": 0}


async def test_outcomes_are_counted_as_they_come_and_as_they_count(service: Service) -> None:
    record = await service.begin(
        definition("x", mean("spent", "primary", event="buy", window="60s", covariate="1h"))
    )
    await service.draft(definition("draft", mean("spent", "primary", event="buy")))
    await service.tick()
    service.clock.advance(100)
    buy = [
        service.outcome("buy", "u", after(10), 1.0),  # before the exposure was shipped
        service.outcome("buy", "u", after(-10), 1.0),  # for the covariate only
        service.outcome("buy", "u", after(90), 1.0),  # beyond the window
        service.outcome("buy", "stranger", after(20), 1.0),
        service.outcome("buy", (("session", "s"),), after(20), 1.0),
        service.outcome("look", "u", after(20)),
    ]
    await service.ship(buy)
    await service.tick()
    await service.ship(
        [
            service.exposure(record, "u", "a", after(5)),
            service.outcome("buy", "u", after(30), 1.0),
        ]
    )
    await service.tick()
    await service.ship([service.outcome("buy", "u", after(40), 1.0)])
    await service.settle()
    found = await health(service)
    [counted] = found.counted.values()
    assert counted == {"buy": 3}
    event = found.events["buy"]
    assert list(found.events) == ["buy"]
    assert (event.received.n, event.of_other_types) == (6, 1)
    assert event.delays[delay_bucket(10)] == 1
    assert found.enrolments == Arrivals(1, after(5), after(5))
    said = await check(service, "outcomes_without_exposures")
    assert said.numbers == {"received": 6, "counted": 3, "of_other_types": 1}


async def test_imported_outcomes_say_nothing_of_delays(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    await service.tick()
    long_ago = service.clock.now - timedelta(days=30)
    await service.ship([service.outcome("click", "u", long_ago)])
    await service.tick()
    assert (await health(service)).events == {}


async def test_runs_that_are_over_cost_nothing(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    await service.ship([service.exposure(record, "u", "a", service.clock.now)])
    await service.settle()
    await service.conclude("x")
    before = await health(service)
    await service.ship([service.outcome("click", f"u{n}", service.clock.now) for n in range(10)])
    await service.settle()
    assert await health(service) == before


async def test_a_run_has_a_health_of_its_own(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    await service.ship([service.exposure(record, "u", "a", service.clock.now)])
    await service.settle()
    await service.conclude("x")
    await service.start("x")
    assert await health(service) == Health()


async def test_a_large_batch_is_counted_by_a_sample(service: Service) -> None:
    """Of two events that come by turns, both are in it."""
    await service.begin(definition("x", metric("click", "primary"), metric("buy")))
    await service.tick()
    outcomes, now = EXACT + 2_000, service.clock.now
    await service.ship(
        [service.outcome(("click", "buy")[n % 2], f"u{n}", now) for n in range(outcomes)]
    )
    await service.tick()
    events = (await health(service)).events
    margin = 4 * math.sqrt(outcomes / 2 * (SAMPLED - 1))
    for event in ("click", "buy"):
        assert events[event].received.n % SAMPLED == 0
        assert events[event].received.n == pytest.approx(outcomes / 2, abs=margin)


async def test_outcomes_of_another_type_of_unit_are_a_fault(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    now = service.clock.now
    await service.ship([service.exposure(record, f"u{n}", "ab"[n % 2], now) for n in range(200)])
    await service.tick()
    await service.ship(
        [service.outcome("click", (("session", f"u{n}"),), now) for n in range(1_000)]
    )
    await service.settle()
    said = await check(service, "outcomes_without_exposures")
    assert said.severity == "critical"
    assert "other types than user" in said.explanation
    report = await service.report("x")
    assert report.verdict.action == "fix_data"


async def test_units_that_stop_coming_are_told(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    for _ in range(5):
        service.clock.advance(10)
        await service.ship(
            [
                service.exposure(record, f"{service.clock.now} {n}", "ab"[n % 2], service.clock.now)
                for n in range(20)
            ]
        )
        await service.shipped()
        await service.tick()
    assert (await check(service, "enrolment_stopped")).severity == "ok"
    assert (await check(service, "report_stale")).severity == "ok"
    await service.settle(590)
    assert (await check(service, "enrolment_stopped")).severity == "ok"
    await service.settle(11)
    found = await check(service, "enrolment_stopped")
    assert (found.severity, found.numbers["silence"]) == ("info", 601), "it may be the night"
    await service.settle(86_400)
    assert (await check(service, "enrolment_stopped")).severity == "warning"
    service.clock.advance(301)  # nobody ships
    assert (await check(service, "report_stale")).severity == "warning"
    await service.pause("x")
    assert not [
        found
        for found in (await service.report("x")).quality
        if found.code in ("enrolment_stopped", "report_stale")
    ]


async def test_late_outcomes_are_told(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    now = service.clock.now
    units = [f"u{n}" for n in range(200)]
    await service.ship([service.exposure(record, unit, "a", now) for unit in units])
    await service.tick()
    service.clock.advance(20)
    late = [
        msgspec.structs.replace(
            service.outcome("click", unit, now), received_at=after(20 if n < 10 else 0.5)
        )
        for n, unit in enumerate(units)
    ]
    await service.ship(late)
    await service.settle()
    said = await check(service, "event_delay", "click")
    assert said.severity == "warning"
    assert said.numbers["late_share"] == pytest.approx(0.05)
    assert 0.5 <= said.numbers["p50"] <= 0.5 * math.sqrt(2)
    assert 20 <= said.numbers["p99"] <= 20 * math.sqrt(2)
