"""Folding: whatever order events and commits come in, the moments are those of the raw events."""

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from analysis.folding.fold import BATCH_RECORDS, BATCH_SEGMENTS, fold
from experiments.records import ExperimentRecord
from router.records import Record
from tests.service.loop import START, Service, after, definition, mean, metric
from tests.service.recount import check

STAGING = "shop-staging"
VALUES = (None, 0.0, -0.0, 1.0, 1.0, 5.5, -3.25, 19.0, 250.0)


async def counted(service: Service) -> None:
    """All that was folded is counted right."""
    async with service.pool.acquire() as connection:
        await check(connection)


async def fold_all(service: Service, *segments: Sequence[Record]) -> None:
    """Ship segments, and fold each before the next one comes."""
    for records in segments:
        await service.ship(records)
        await service.tick()


async def cells(service: Service, key: str) -> dict[tuple[str, int], tuple[int, float]]:
    """Units and mean of a metric by variant and epoch."""
    rows = await service.fetch(
        """select a.variant, a.epoch, c.n, c.mean[1] as mean
           from cell c join arm a on a.id = c.arm join run_metric m on m.id = c.metric
           where m.key = $1 and c.block = -1 and c.n > 0""",
        key,
    )
    return {(row["variant"], row["epoch"]): (row["n"], row["mean"]) for row in rows}


async def active(service: Service, key: str) -> set[str]:
    """The units whose state of a metric says that something happened."""
    rows = await service.fetch(
        """select e.unit
           from run_metric m join unit_value v on v.metric = m.id
           cross join unnest(v.state) with ordinality as state (number, place)
           join enrolment e on e.experiment = m.experiment and e.run = m.run
                           and e.ordinal = v.chunk * 128 + place - 1
           where m.key = $1 and state.number > 0""",
        key,
    )
    return {row["unit"] for row in rows}


class Mix:
    """A random life of several experiments, in two projects that share the ids of their units."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.random = random.Random(seed)  # noqa: S311 - a simulation
        self.waiting: list[Record] = []
        self.epochs: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.amendments = 0

    async def begin(self) -> None:
        """Define and start what lives."""
        buy = mean("spent", event="buy", window="60s", cap=20)
        for project, data in (
            ("shop", definition("x", metric("click", window="30s"), buy)),
            ("shop", definition("y", mean("buys", event="buy", aggregate="count", window="25s"))),
            (STAGING, definition("x", metric("buy", window="10s"), buy)),
            (
                "shop",
                definition(
                    "z",
                    mean("spent", event="buy", window="45s"),
                    weights={"a": 0.2, "b": 0.3, "c": 0.5},
                    unit={"type": "session"},
                ),
            ),
        ):
            record = await self.service.begin(data, project)
            self.epochs[project, data["key"]] = [(record.run, record.epoch)]

    async def live(self, steps: int) -> None:
        """Let things happen in a random order; what is folded is right after every step."""
        for _ in range(steps):
            for act in self.random.sample(
                [self.meet, self.do, self.change, self.ship, self.pass_time], 5
            ):
                await act()
            await self.service.tick()
            await counted(self.service)
        while self.waiting:
            await self.ship()
        await self.service.settle(1_000)
        await counted(self.service)

    def _unit(self) -> str:
        return f"ü{self.random.randrange(12)}"

    def _at(self) -> Any:
        # Whole seconds, so that times are often equal, or lie on the border of a window.
        return after(self.random.randrange(-3, 100))

    async def meet(self) -> None:
        """Units meet variants, in any epoch that there was, some of them twice."""
        for project, key in self.epochs:
            record = await self.service.find(key, project)
            for _ in range(self.random.randrange(8)):
                run, epoch = self.random.choice(self.epochs[project, key])
                if self.random.random() < 0.05:
                    run += 1  # no such epoch in that run: it counts for nothing
                exposure = self.service.exposure(
                    record,
                    self._unit(),
                    self.random.choice([*record.definition.weights]),
                    self._at(),
                    run=run,
                    epoch=epoch,
                )
                self.waiting += [exposure] * self.random.choice([1, 1, 1, 2])

    async def do(self) -> None:
        """Things happen to users and sessions, also to those that never met anything."""
        for _ in range(self.random.randrange(30)):
            named = {
                self.random.choice(["user", "session"]): self._unit()
                for _ in range(self.random.choice([1, 2]))
            }
            self.waiting.append(
                self.service.outcome(
                    self.random.choice(["click", "buy", "look"]),
                    tuple(named.items()),
                    self._at(),
                    self.random.choice(VALUES),
                    self.random.choice(["shop", "shop", STAGING]),
                )
            )

    async def change(self) -> None:
        """A metric joins, a cap changes, weights move, or a run ends and the next one begins."""
        project, key = self.random.choice([*self.epochs])
        record = await self.service.find(key, project)
        match self.random.randrange(6):
            case 0:
                self.amendments += 1
                joined = [
                    metric(f"looks{self.amendments}", event="look", window="40s"),
                    mean("spent", event="buy", window="45s", cap=7 + self.amendments),
                ]
                await self.service.amend(key, {"metrics": joined}, project)
            case 1:
                weights = dict.fromkeys(record.definition.weights, 0.1)
                chosen = self.random.choice([*weights])
                weights[chosen] = 1.0 - 0.1 * (len(weights) - 1)
                await self.service.allocate(key, weights, project)
            case 2:
                await self.service.conclude(key, project)
                await self.service.start(key, project)
        record = await self.service.find(key, project)
        if (record.run, record.epoch) not in self.epochs[project, key]:
            self.epochs[project, key].append((record.run, record.epoch))

    async def ship(self) -> None:
        """Some of what waits is shipped, in any order, in segments of any size."""
        self.random.shuffle(self.waiting)
        for _ in range(self.random.randrange(1, 4)):
            size = self.random.randrange(1, 40)
            await self.service.ship(self.waiting[:size])
            self.waiting = self.waiting[size:]

    async def pass_time(self) -> None:
        """The watermark moves, so that blocks close, and what comes later comes late."""
        self.service.clock.advance(self.random.randrange(0, 40))
        await self.service.shipped()


@pytest.mark.parametrize("seed", range(16))
async def test_moments_are_those_of_the_raw_events_in_any_order(
    service: Service, seed: int
) -> None:
    mix = Mix(service, seed)
    await mix.begin()
    await mix.live(steps=6)


@pytest.fixture
async def shop(service: Service) -> ExperimentRecord:
    """A running experiment with a proportion, a sum and a count over windows of 30 s."""
    return await service.begin(
        definition(
            "x",
            metric("click", window="30s"),
            mean("spent", event="buy", window="30s"),
            mean("buys", event="buy", aggregate="count", window="30s"),
        )
    )


async def test_an_outcome_may_come_in_before_its_exposure(
    service: Service, shop: ExperimentRecord
) -> None:
    await fold_all(
        service,
        [service.outcome("click", "u", after(5)), service.outcome("buy", "u", after(6), 4.0)],
        [service.exposure(shop, "u", "b", after(1))],
    )
    assert await cells(service, "click") == {("b", 1): (1, 1.0)}
    assert await cells(service, "spent") == {("b", 1): (1, 4.0)}


async def test_an_earlier_exposure_that_comes_in_later_moves_the_enrolment(
    service: Service, shop: ExperimentRecord
) -> None:
    later = await service.allocate("x", {"a": 0.2, "b": 0.8})
    await fold_all(
        service,
        [
            service.exposure(later, "u", "b", after(40)),
            service.outcome("buy", "u", after(20), 3.0),
            service.outcome("buy", "u", after(50), 5.0),
        ],
    )
    assert await cells(service, "spent") == {("b", 2): (1, 5.0)}
    await fold_all(service, [service.exposure(shop, "u", "a", after(10))])
    assert await cells(service, "spent") == {("a", 1): (1, 3.0)}
    report = await service.report("x")
    assert report.units == {"a": 1, "b": 0}
    assert report.several_variants == 1


@pytest.mark.parametrize("turned", [False, True])
async def test_of_two_exposures_at_one_time_the_lower_epoch_counts_whichever_came_first(
    service: Service, shop: ExperimentRecord, turned: bool
) -> None:
    later = await service.allocate("x", {"a": 0.2, "b": 0.8})
    both = [
        [service.exposure(later, "u", "a", after(10))],
        [service.exposure(shop, "u", "b", after(10))],
    ]
    await fold_all(service, *(reversed(both) if turned else both))
    assert await cells(service, "click") == {("b", 1): (1, 0.0)}


async def test_a_window_has_its_beginning_and_not_its_end(
    service: Service, shop: ExperimentRecord
) -> None:
    tick = timedelta(microseconds=1)
    enrolled, end = after(10), after(40)
    for unit, at in {
        "before": enrolled - tick,
        "first": enrolled,
        "last": end - tick,
        "after": end,
    }.items():
        await service.ship(
            [service.exposure(shop, unit, "a", enrolled), service.outcome("buy", unit, at, 1.0)]
        )
    await service.tick()
    assert await active(service, "buys") == {"first", "last"}


async def test_a_proportion_counts_an_outcome_without_a_value_and_not_one_of_zero(
    service: Service, shop: ExperimentRecord
) -> None:
    for unit, value in {"none": None, "zero": 0.0, "minus": -1.0, "both": 0.0}.items():
        await service.ship(
            [
                service.exposure(shop, unit, "a", after(1)),
                service.outcome("click", unit, after(2), value),
            ]
        )
    await service.ship([service.outcome("click", "both", after(3))])
    await service.tick()
    assert await active(service, "click") == {"none", "minus", "both"}


async def test_nothing_crosses_projects_and_unit_types(
    service: Service, shop: ExperimentRecord
) -> None:
    await service.ship(
        [
            service.exposure(shop, "42", "a", after(1)),
            service.outcome("click", "42", after(2), project=STAGING),
            service.outcome("click", (("session", "42"),), after(2)),
        ]
    )
    await service.tick()
    assert await cells(service, "click") == {("a", 1): (1, 0.0)}
    await service.ship([service.outcome("click", (("session", "7"), ("user", "42")), after(3))])
    await service.tick()
    assert await cells(service, "click") == {("a", 1): (1, 1.0)}


async def test_a_metric_that_joins_is_computed_for_those_who_were_there_before(
    service: Service, shop: ExperimentRecord
) -> None:
    await service.ship(
        [
            service.exposure(shop, "u", "a", after(1)),
            service.exposure(shop, "v", "a", after(1)),
            service.outcome("look", "u", after(20)),
        ]
    )
    await service.tick()
    await service.amend("x", {"metrics": [metric("look", window="30s")]})
    await service.tick()
    assert await cells(service, "look") == {("a", 1): (2, 0.5)}
    await fold_all(service, [service.outcome("look", "v", after(21))])
    assert await cells(service, "look") == {("a", 1): (2, 1.0)}


async def test_a_second_run_has_no_old_data(service: Service, shop: ExperimentRecord) -> None:
    await fold_all(
        service,
        [service.exposure(shop, "u", "a", after(1)), service.outcome("click", "u", after(2))],
    )
    await service.conclude("x")
    again = await service.start("x")
    await fold_all(service, [service.exposure(again, "u", "b", after(20))])
    report = await service.report("x")
    assert report.units == {"a": 0, "b": 1}
    assert report.metrics[0].comparisons[0].fixed.mean_treatment is None  # the control has none
    await counted(service)


async def test_a_value_beyond_all_measure_does_not_stop_the_fold(
    service: Service, shop: ExperimentRecord
) -> None:
    await fold_all(
        service,
        [service.exposure(shop, unit, "a", after(1)) for unit in "uvw"],
        [
            service.outcome("buy", "u", after(2), 1.7e308),
            service.outcome("buy", "v", after(2), 1.0),
        ],
        [service.outcome("buy", "u", after(3), 1.7e308)],
        [service.outcome("buy", "u", after(4), -1.7e308)],
    )
    [(units, average)] = (await cells(service, "spent")).values()
    assert units == 3
    assert average == pytest.approx(1e30 / 3)
    await service.settle()
    assert (await service.report("x")).units["a"] == 3


async def test_a_segment_that_commits_late_is_folded_when_it_does(
    service: Service, shop: ExperimentRecord
) -> None:
    late = await service.pool.acquire()
    try:
        transaction = late.transaction()
        await transaction.start()
        number = await late.fetchval(
            "insert into segment (journal, number, records, shipped_at) "
            "values (gen_random_uuid(), 1, 0, $1) returning id",
            START,
        )
        following = await service.ship([service.exposure(shop, "u", "a", after(1))])
        assert number < following
        await service.tick()
        await transaction.commit()
    finally:
        await service.pool.release(late)
    await service.tick()
    assert await service.fetch("select from segment where folded_at is null") == []


@pytest.mark.parametrize(
    ("segments", "records"), [(BATCH_SEGMENTS + 1, 1), (3, BATCH_RECORDS // 2 + 1)]
)
async def test_the_watermark_stays_while_segments_are_left_over(
    service: Service, segments: int, records: int
) -> None:
    await service.execute(
        """insert into segment (journal, number, records, shipped_at)
           select gen_random_uuid(), 1, $2, $3 from generate_series(1, $1)""",
        segments,
        records,
        START,
    )
    await service.shipped(after(10))
    marks, complete = [], []
    for _ in range(3):
        async with service.pool.acquire() as connection, connection.transaction():
            folded = await fold(connection, service.clock.now)
            complete.append(folded.complete)
        marks += await service.fetch("select watermark = $1 as moved from fold_position", after(10))
    assert complete[0] is False
    assert complete[-1] is True
    assert [mark["moved"] for mark in marks] == complete
    async with service.pool.acquire() as connection, connection.transaction():
        assert (await fold(connection, service.clock.now)).segments == 0


async def test_a_segment_of_any_size_is_folded(service: Service) -> None:
    await service.execute(
        """insert into segment (journal, number, records, shipped_at)
           values (gen_random_uuid(), 1, $1, $2)""",
        BATCH_RECORDS * 10,
        START,
    )
    await service.tick()
    assert await service.fetch("select from segment where folded_at is null") == []
