"""Looks are taken by the leader once, when enough units have finished, and stay as they were."""

from collections.abc import Sequence

import pytest

from analysis.control.looks import read_looks
from analysis.inference.planned import Look
from router.records import Record
from tests.service.loop import Service, definition, mean, metric

FIXED = {"reading": "fixed", "units": 400}
PLANNED = {"reading": "planned", "units": 1_000}


async def enrol(service: Service, name: str, each: int, clicks: dict[str, int]) -> None:
    """Units of the current epoch, so many of each variant, and how many of these click."""
    record = await service.find("x")
    records: list[Record] = []
    for variant, count in clicks.items():
        for number in range(each):
            unit = f"{name}-{variant}-{number}"
            records.append(service.exposure(record, unit, variant, service.clock.now))
            if number < count:
                records.append(service.outcome("click", unit, service.clock.now, 1.0 + number % 3))
    await service.ship(records)


async def looks(service: Service, metric: str = "click", treatment: str = "b") -> Sequence[Look]:
    """The looks that were taken."""
    record = await service.find("x")
    async with service.pool.acquire() as connection:
        found = await read_looks(connection, record.id, record.run)
    return found.get(metric, {}).get(treatment, ())


async def test_a_fixed_reading_looks_once_when_its_units_have_finished(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), analysis=FIXED))
    await enrol(service, "first", 199, {"a": 40, "b": 60})
    await service.settle()
    assert await looks(service) == ()

    await enrol(service, "second", 1, {"a": 0, "b": 0})
    await service.tick()
    assert await looks(service) == ()  # they have enrolled, and not finished
    await service.settle()
    [look] = await looks(service)
    assert (look.number, look.units, look.information) == (1, 400, 1.0)
    assert look.taken_at == service.clock.now
    fixed = (await service.report("x")).metrics[0].comparisons[0].fixed
    assert look.comparison == fixed
    assert look.statistic == pytest.approx(fixed.statistic)

    await enrol(service, "later", 300, {"a": 0, "b": 300})
    await service.settle()
    assert await looks(service) == (look,)
    comparison = (await service.report("x")).metrics[0].comparisons[0]
    assert comparison.fixed.difference != look.difference
    assert comparison.planned is not None
    assert comparison.planned.looks == (look,)
    assert comparison.planned.final
    assert comparison.planned.p_value == pytest.approx(fixed.p_value)


async def test_planned_looks_are_taken_at_their_shares_and_a_late_leader_takes_one(
    service: Service,
) -> None:
    await service.begin(definition("x", metric("click", "primary"), analysis=PLANNED))
    await enrol(service, "1", 110, {"a": 20, "b": 30})
    await service.settle()
    await enrol(service, "2", 200, {"a": 40, "b": 60})  # passes two shares
    await service.settle()
    await enrol(service, "3", 1, {"a": 0, "b": 0})
    await service.settle()
    await enrol(service, "4", 400, {"a": 60, "b": 90})
    await service.settle()
    taken = await looks(service)
    assert [look.number for look in taken] == [1, 2, 3]
    assert [look.information for look in taken] == [0.22, 0.62, 1.0]
    assert [look.units for look in taken] == [220, 620, 1_422]
    reading = (await service.report("x")).metrics[0].comparisons[0].planned
    assert reading is not None
    assert reading.final
    assert reading.boundaries[0] is not None
    assert reading.boundaries[0] > 4


async def test_a_look_waits_for_the_slowest_primary_metric(service: Service) -> None:
    await service.begin(
        definition(
            "x",
            metric("click", "primary"),
            mean("spent", "primary", event="click", window="1h"),
            metric("other", "secondary", event="click"),
            analysis=PLANNED | {"looks": [0.5, 1.0]},
            weights={"a": 0.5, "b": 0.25, "c": 0.25},
        )
    )
    await enrol(service, "1", 200, {"a": 40, "b": 60, "c": 50})
    await service.settle()
    assert await looks(service) == ()
    await service.settle(2 * 3_600)
    [click] = await looks(service)
    [spent] = await looks(service, "spent", "c")
    assert (click.number, click.information) == (spent.number, spent.information) == (1, 0.6)
    assert click.comparison is not None
    assert click.comparison.test == "wald"
    assert spent.comparison is not None
    assert spent.comparison.test == "welch"
    assert await looks(service, "other") == ()


async def test_a_quantile_is_looked_at_too_and_says_so_where_it_cannot_be_compared(
    service: Service,
) -> None:
    size = {"key": "size", "role": "primary", "kind": "quantile", "quantile": 0.5}
    await service.begin(
        definition(
            "x", size | {"event": "click", "window": "2s"}, analysis=PLANNED | {"looks": [0.5, 1]}
        )
    )
    await enrol(service, "1", 300, {"a": 300, "b": 300})
    await service.settle()
    [look] = await looks(service, "size")
    assert look.comparison is not None
    assert look.comparison.test == "order_statistics"
    assert look.std_error is not None
    await service.allocate("x", {"a": 0.2, "b": 0.8})
    await enrol(service, "2", 300, {"a": 300, "b": 300})
    await service.settle()
    _, blind = await looks(service, "size")
    assert (blind.difference, blind.information) == (None, 1.0)
    assert blind.comparison is not None
    assert blind.comparison.notes == ("reallocated",)


async def test_a_run_that_ended_is_looked_at_as_its_units_finish(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), analysis=FIXED))
    await enrol(service, "1", 200, {"a": 40, "b": 60})
    await service.tick()
    await service.conclude("x")
    await service.settle()
    assert len(await looks(service)) == 1


async def test_a_new_run_starts_with_no_looks(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), analysis=FIXED))
    await enrol(service, "1", 200, {"a": 40, "b": 60})
    await service.settle()
    await service.conclude("x")
    await service.start("x")
    assert await looks(service) == ()
    await enrol(service, "again", 200, {"a": 40, "b": 60})
    await service.settle()
    assert [look.number for look in await looks(service)] == [1]


async def test_a_continuous_reading_takes_no_looks(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    await enrol(service, "1", 200, {"a": 40, "b": 60})
    await service.settle()
    assert await service.fetch("select from look") == []
