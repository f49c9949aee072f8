"""Guardrails of the scope `exposure` against a real Postgres: what all units do now."""

import random
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from analysis.control import guard
from analysis.folding import visits
from analysis.folding.metrics import read_every_metric
from analysis.folding.visits import PIECE, read_open
from analysis.inference.evidence import GuardState
from analysis.upkeep.erase import Order, erase
from analysis.upkeep.verify import Verdict, verify
from experiments.projects import unit_key
from experiments.records import ExperimentRecord
from router.records import Record, names_unit
from tests.service.loop import SHOP, Service, after, definition, mean, metric

Visits = dict[tuple[str, int, str], tuple[float, float]]
"""Numerator and denominator by unit, epoch and variant."""


def failures(scope: str = "exposure", **others: Any) -> dict[str, Any]:
    """Errors per request, which the guard watches."""
    given: dict[str, Any] = {
        "kind": "ratio",
        "numerator": "error",
        "denominator": "request",
        "goal": "decrease",
        "margin": {"absolute": 0.01},
        "window": "1s",
        "scope": scope,
    }
    made = metric(f"errors-{scope}", "guardrail", **(given | others))
    del made["event"]
    return made


async def open_visits(service: Service) -> Visits:
    """What the log of open blocks comes to, over all blocks of the only metric of visits."""
    found: Visits = defaultdict(lambda: (0.0, 0.0))
    async with service.pool.acquire() as connection:
        [row] = await connection.fetch("select id from run_metric where scope = 'exposure'")
        [stored] = await read_every_metric(connection, (), [row["id"]])
        arms = {r["id"]: (r["epoch"], r["variant"]) for r in await connection.fetch("table arm")}
        units = {r["ordinal"]: r["unit"] for r in await connection.fetch("select * from enrolment")}
        for (_, ordinal, arm), (x, y) in (await read_open(connection, stored)).items():
            place = (units[ordinal], *arms[arm])
            found[place] = (found[place][0] + x, found[place][1] + y)
    return dict(found)


async def closed_visits(service: Service) -> dict[tuple[int, str], tuple[Any, ...]]:
    """Visits, and the sums of numerators and denominators, of the closed blocks, by arm."""
    rows = await service.fetch(
        """select a.epoch, a.variant, c.n, c.mean from cell c join arm a on a.id = c.arm
           join run_metric m on m.id = c.metric
           where m.scope = 'exposure' and c.block = 0 order by 1, 2"""
    )
    return {
        (row["epoch"], row["variant"]): (
            row["n"],
            pytest.approx(row["n"] * row["mean"][0]),
            pytest.approx(row["n"] * row["mean"][1]),
        )
        for row in rows
    }


def requests(
    service: Service, unit: str, at: float, errors: int = 0, requests: int = 1
) -> list[Record]:
    """What a unit does."""
    return [
        *(service.outcome("request", unit, after(at)) for _ in range(requests)),
        *(service.outcome("error", unit, after(at)) for _ in range(errors)),
    ]


async def test_a_unit_that_was_enrolled_long_ago_is_counted_by_what_it_does_now(
    service: Service,
) -> None:
    record = await service.begin(definition("x", failures()))
    await service.ship([service.exposure(record, "u", "b", after(1))])
    await service.settle(86_400)
    now = 86_400.0
    await service.ship([*requests(service, "u", now), *requests(service, "u", now + 0.5, errors=2)])
    await service.tick()
    assert await open_visits(service) == {("u", 1, "b"): (2.0, 2.0)}
    assert await closed_visits(service) == {}
    await service.settle(10)
    assert await open_visits(service) == {}
    assert await closed_visits(service) == {(1, "b"): (1, 2.0, 2.0)}


async def test_a_mean_is_over_single_outcomes_each_capped_by_itself(service: Service) -> None:
    latency = mean("ms", "guardrail", goal="decrease", scope="exposure", cap=100, window="1s")
    record = await service.begin(definition("x", latency))
    values = (30.0, 900.0, None)
    await service.ship(
        [
            service.exposure(record, "u", "a", after(0)),
            *(service.outcome("ms", "u", after(0.2), value) for value in values),
        ]
    )
    await service.tick()
    assert await open_visits(service) == {("u", 1, "a"): (130.0, 3.0)}


async def test_what_happened_before_a_unit_met_the_experiment_is_not_counted(
    service: Service,
) -> None:
    record = await service.begin(definition("x", failures()))
    await service.ship(requests(service, "u", 0.2))
    await service.tick()
    await service.ship(requests(service, "u", 0.6))
    await service.ship([service.exposure(record, "u", "a", after(0.5))])
    await service.tick()
    assert await open_visits(service) == {("u", 1, "a"): (0.0, 1.0)}


async def test_a_unit_that_moved_counts_for_the_variant_that_it_meets_now(
    service: Service,
) -> None:
    record = await service.begin(definition("x", failures(window="10m")))
    await service.ship(
        [service.exposure(record, "u", "b", after(1)), *requests(service, "u", 2, errors=1)]
    )
    service.clock.advance(60)
    moved = await service.allocate("x", {"a": 0.9, "b": 0.1})
    await service.ship(
        [service.exposure(moved, "u", "a", after(70)), *requests(service, "u", 71, requests=3)]
    )
    await service.tick()
    assert await open_visits(service) == {("u", 1, "b"): (1.0, 1.0), ("u", 2, "a"): (0.0, 3.0)}
    [row] = await service.fetch("select count(*) as n from meeting")
    assert row["n"] == 1
    await service.settle(3_600)
    assert await closed_visits(service) == {(1, "b"): (1, 1.0, 1.0), (2, "a"): (1, 0.0, 3.0)}


async def test_what_a_unit_met_long_ago_is_forgotten(service: Service) -> None:
    record = await service.begin(definition("x", failures()))
    await service.ship([service.exposure(record, "u", "b", after(0))])
    for share in (0.4, 0.6, 0.4, 0.6):
        await service.settle(60)
        record = await service.allocate("x", {"a": share, "b": 1 - share})
        await service.ship([service.exposure(record, "u", "a", service.clock.now)])
        await service.tick()
    assert len(await service.fetch("select from meeting")) <= 2


@pytest.mark.parametrize("change", ["traffic", "pause"])
async def test_who_meets_no_variant_any_more_does_not_count(service: Service, change: str) -> None:
    record = await service.begin(definition("x", failures()))
    await service.ship([service.exposure(record, "u", "b", after(0))])
    service.clock.advance(30)
    if change == "pause":
        await service.pause("x")
    else:
        await service.allocate("x", {"a": 0.9, "b": 0.1})  # the unit's slot was released
    await service.ship([*requests(service, "u", 29), *requests(service, "u", 50, errors=1)])
    await service.tick()
    assert await open_visits(service) == {("u", 1, "b"): (0.0, 1.0)}


async def test_a_unit_that_sticks_to_its_variant_counts_for_it_in_later_epochs(
    service: Service,
) -> None:
    record = await service.begin(definition("x", failures(), stickiness="sticky"))
    await service.ship([service.exposure(record, "u", "b", after(0))])
    service.clock.advance(30)
    await service.allocate("x", {"a": 0.9, "b": 0.1})
    await service.ship(requests(service, "u", 50, errors=1))
    await service.tick()
    assert await open_visits(service) == {("u", 1, "b"): (1.0, 1.0)}


def history(service: Service, record: ExperimentRecord, moved: ExperimentRecord) -> list[Record]:
    """Four units before and after a reallocation, some of which move."""
    records: list[Record] = []
    ways = [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]
    for number, (first, then) in enumerate(ways):
        unit = f"u{number}"
        records += [
            service.exposure(record, unit, first, after(1 + number)),
            *requests(service, unit, 0.5),
            *requests(service, unit, 5 + number, errors=number),
            service.exposure(moved, unit, then, after(61 + number)),
            *requests(service, unit, 60.5),
            *requests(service, unit, 65 + number, requests=2),
        ]
    return records


@pytest.mark.parametrize("seed", range(6))
async def test_in_whatever_order_segments_come_the_same_is_counted(
    service: Service, seed: int
) -> None:
    record = await service.begin(definition("x", failures(window="10m")))
    service.clock.advance(60)
    moved = await service.allocate("x", {"a": 0.8, "b": 0.2})
    service.clock.advance(60)
    records = history(service, record, moved)
    generator = random.Random(seed)  # noqa: S311 - a simulation
    generator.shuffle(records)
    for begin in range(0, len(records), 4):
        await service.ship(records[begin : begin + 4])
        if begin % 8 == 0:
            await service.tick()
    await service.tick()
    expected: Visits = {
        ("u0", 1, "a"): (0.0, 2.0),
        ("u1", 1, "a"): (1.0, 2.0),
        ("u2", 1, "b"): (2.0, 2.0),
        ("u3", 1, "b"): (3.0, 2.0),
        ("u0", 2, "a"): (0.0, 2.0),
        ("u1", 2, "b"): (0.0, 2.0),
        ("u2", 2, "a"): (0.0, 2.0),
        ("u3", 2, "b"): (0.0, 2.0),
    }
    assert await open_visits(service) == expected
    [row] = await service.fetch("select late from run_metric")
    assert row["late"] == 0
    await service.settle(3_600)
    assert await closed_visits(service) == {
        (1, "a"): (4, 1.0, 4.0),
        (1, "b"): (4, 5.0, 4.0),
        (2, "a"): (2, 0.0, 4.0),
        (2, "b"): (2, 0.0, 4.0),
    }


async def test_what_comes_after_its_block_is_late_and_changes_nothing(service: Service) -> None:
    record = await service.begin(definition("x", failures()))
    await service.ship([service.exposure(record, "u", "b", after(0)), *requests(service, "u", 1)])
    await service.settle(60)
    before = await closed_visits(service)
    await service.ship(requests(service, "u", 1, errors=5))
    await service.settle(60)
    assert await closed_visits(service) == before
    [row] = await service.fetch("select late from run_metric")
    assert row["late"] == 6


async def test_a_guardrail_that_joins_a_run_knows_what_units_met_before_it_came(
    service: Service,
) -> None:
    record = await service.begin(definition("x"))
    await service.ship([service.exposure(record, "u", "b", after(1))])
    await service.tick()
    service.clock.advance(60)
    moved = await service.allocate("x", {"a": 0.9, "b": 0.1})
    await service.ship([service.exposure(moved, "u", "a", after(61)), *requests(service, "u", 62)])
    service.clock.advance(60)
    await service.tick()
    await service.amend("x", {"metrics": [failures()]})
    await service.ship(requests(service, "u", 121, errors=1))
    await service.tick()
    assert await open_visits(service) == {("u", 2, "a"): (1.0, 1.0)}


class Crowd:
    """Units that were enrolled, each in its variant, and come back."""

    def __init__(self, service: Service, record: ExperimentRecord, units: int, seed: int) -> None:
        self._service = service
        self._record = record
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._variant = {f"u{number}": "ab"[number % 2] for number in range(units)}

    async def enrol(self) -> None:
        """Let all units come for the first time."""
        at = self._service.clock.now
        await self._service.ship(
            [self._service.exposure(self._record, u, v, at) for u, v in self._variant.items()]
        )

    async def come_back(self, many: int, rate: Mapping[str, float]) -> None:
        """Let a second pass, in which some of them come back, and the controller tick."""
        service, records = self._service, list[Record]()
        begun = (service.clock.now - after(0)).total_seconds()
        for unit in self._random.choices([*self._variant], k=many):
            errors = self._random.random() < rate[self._variant[unit]]
            records += requests(service, unit, begun + self._random.random(), errors=int(errors))
        service.clock.advance(1)
        await service.ship(records)
        await service.shipped()
        await service.tick()


async def test_harm_to_units_of_yesterday_is_rolled_back_though_nobody_new_comes(
    service: Service,
) -> None:
    guardrails = failures("exposure"), failures("enrolment")
    record = await service.begin(definition("x", *guardrails))
    crowd = Crowd(service, record, 2_000, seed=1)
    await crowd.enrol()
    await service.settle(86_400)
    for _ in range(20):
        await crowd.come_back(100, {"a": 0.02, "b": 0.02})
    assert (await service.find("x")).state == "running"
    # Another process takes over.
    registry = CollectorRegistry()
    service.controller = service.new_controller("second", registry)
    await service.execute("update lease set expires_at = clock_timestamp() - interval '1 s'")
    seconds = 0
    while (await service.find("x")).state == "running" and seconds < 30:
        await crowd.come_back(100, {"a": 0.02, "b": 0.5})
        seconds += 1
    assert seconds < 15
    [decision] = [d for d in await service.decisions("x") if d.kind == "rollback"]
    alarm = msgspec.convert(decision.evidence, guard.Alarm)
    assert (alarm.guardrail, alarm.variant) == ("errors-exposure", "b")
    assert alarm.rule.repeats
    assert guard.recompute(alarm) == alarm.state_after
    [silent] = await service.fetch(
        "select state from guard_ledger where metric = 'errors-enrolment'"
    )
    assert msgspec.json.decode(silent["state"], type=GuardState).blocks == 0
    report = await service.report("x")
    bounds = {row.guardrail: row.bound for row in report.guard}
    assert bounds == {"errors-exposure": "approximate", "errors-enrolment": "asymptotic"}
    assert any("Units repeat" in note for note in report.notes)


async def test_units_that_return_to_a_harmless_variant_cause_no_rollback(service: Service) -> None:
    record = await service.begin(definition("x", failures()))
    crowd = Crowd(service, record, 2_000, seed=2)
    await crowd.enrol()
    for _ in range(40):
        await crowd.come_back(100, {"a": 0.05, "b": 0.05})
    assert (await service.find("x")).state == "running"
    [row] = (await service.report("x")).guard
    assert row.units > 3_000
    assert not row.alarm


async def test_visits_of_a_run_that_has_ended_close_too_and_later_ones_are_not_asked_for(
    service: Service,
) -> None:
    record = await service.begin(definition("x", failures()))
    await service.ship([service.exposure(record, "u", "b", after(0)), *requests(service, "u", 1)])
    await service.tick()
    await service.conclude("x")
    await service.settle(60)
    assert await service.fetch("select from visit") == []
    assert await closed_visits(service) == {(1, "b"): (1, 0.0, 1.0)}
    await service.ship(requests(service, "u", 60))
    await service.settle(60)
    await service.ship(requests(service, "u", 120))
    await service.settle(60)
    assert await closed_visits(service) == {(1, "b"): (1, 0.0, 1.0)}
    parts = await service.fetch("select ends = interval '0' as retired from metric_part")
    assert [row["retired"] for row in parts] == [True, True]


async def test_a_backlog_of_visits_is_closed_over_several_ticks(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "MOST_PIECES", 3)
    record = await service.begin(definition("x", failures()))
    await service.ship([service.exposure(record, f"u{n}", "b", after(0)) for n in range(8)])
    await service.ship([r for n in range(8) for r in requests(service, f"u{n}", 1 + n)])
    left = [8]
    while left[-1]:
        await service.settle(60)
        left.append(len(await service.fetch("select from visit")))
    assert left == [8, 5, 2, 0]
    assert await closed_visits(service) == {(1, "b"): (8, 0.0, 8.0)}


async def verdict(service: Service) -> Verdict:
    """What verify finds."""
    async with service.pool.acquire() as connection:
        return await verify(connection, None, None, lambda _: None)


async def forget(service: Service, unit: str) -> None:
    """Erase a unit."""
    async with service.pool.acquire() as connection, connection.transaction():
        order = Order(SHOP, [("user", unit)], "tester", "a test")
        key = await unit_key(connection, SHOP, bytes)
        await erase(connection, order, key, service.clock, names_unit)


async def test_an_erased_unit_leaves_open_visits_and_no_trace_of_what_it_met(
    service: Service,
) -> None:
    record = await service.begin(definition("x", failures(window="10m")))
    for unit in ("u", "v"):
        await service.ship(
            [service.exposure(record, unit, "b", after(0)), *requests(service, unit, 1, errors=1)]
        )
    moved = await service.allocate("x", {"a": 0.9, "b": 0.1})
    for unit in ("u", "v"):
        at = after(10)
        await service.ship([service.exposure(moved, unit, "a", at), *requests(service, unit, 11)])
    await service.tick()
    await forget(service, "u")
    assert await open_visits(service) == {("v", 1, "b"): (1.0, 1.0), ("v", 2, "a"): (0.0, 1.0)}
    assert len(await service.fetch("select from meeting")) == 1
    assert (await verdict(service)).found == 0
    await service.settle(3_600)
    assert await closed_visits(service) == {(1, "b"): (1, 1.0, 1.0), (2, "a"): (1, 0.0, 1.0)}


async def test_verify_counts_open_visits_again_and_names_one_that_is_wrong(
    service: Service,
) -> None:
    record = await service.begin(definition("x", failures(window="10m")))
    service.clock.advance(60)
    moved = await service.allocate("x", {"a": 0.8, "b": 0.2})
    service.clock.advance(60)
    await service.ship(history(service, record, moved))
    await service.tick()
    assert (await verdict(service)).lines()[-1].endswith("all equal")
    pieces = (await service.fetch("select pieces from visit order by number limit 1"))[0]["pieces"]
    wrong = np.frombuffer(pieces, PIECE).copy()
    wrong["numerator"][0] += 1
    await service.execute(
        "update visit set pieces = $1 where number = (select min(number) from visit)",
        wrong.tobytes(),
    )
    found = await verdict(service)
    assert found.found == 1
    [difference] = found.named
    assert difference.what == "numerator"
    await service.settle(3_600)
    assert (await verdict(service)).found == 0
    await service.execute("update cell set n = n + 1 where block = 0")
    assert (await verdict(service)).found > 0


async def test_visits_stand_when_raw_events_are_dropped(pool: asyncpg.Pool, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        service = Service(pool, redis, keep=timedelta(days=1))
        record = await service.begin(definition("x", failures()))
        service.clock.advance(60)
        moved = await service.allocate("x", {"a": 0.8, "b": 0.2})
        service.clock.advance(60)
        await service.ship(history(service, record, moved))
        for _ in range(4):
            await service.settle(86_400)
        assert await service.fetch("select from exposure") == []
        now = (service.clock.now - after(0)).total_seconds()
        await service.ship(requests(service, "u1", now, errors=1))
        await service.tick()
        assert await open_visits(service) == {("u1", 2, "b"): (1.0, 1.0)}
        assert (await verdict(service)).found == 0
