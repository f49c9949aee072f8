"""Verify: what stands equals what raw events say, and where it does not, that is said."""

from datetime import timedelta

import pytest

from analysis.control.intake import take_in
from analysis.folding.backfill import backfill
from analysis.folding.metrics import add_metric, run_metric
from analysis.upkeep.verify import MOST_NAMED, Verdict, VerifyError, verify
from experiments.model import Metric, QuantileMetric
from experiments.records import ExperimentRecord
from router.records import Record
from tests.service.loop import Service, after, definition, mean, metric

WINDOW = "30s"
METRICS = (
    metric("click", window=WINDOW),
    mean("spent", event="buy", window=WINDOW, cap=200, covariate="20s"),
    mean("buys", event="buy", aggregate="count", window=WINDOW),
    mean("basket", event="buy", aggregate="mean", window=WINDOW),
    mean("largest", event="buy", aggregate="max", window=WINDOW),
    mean("latest", event="buy", aggregate="last", window=WINDOW),
    {
        "key": "per_click",
        "role": "secondary",
        "kind": "ratio",
        "numerator": "buy",
        "denominator": "click",
        "window": WINDOW,
        "covariate": "20s",
    },
)


async def verdict(service: Service, project: str | None = None, key: str | None = None) -> Verdict:
    """What verify finds."""
    async with service.pool.acquire() as connection:
        return await verify(connection, project, key, lambda _: None)


async def join(service: Service, record: ExperimentRecord, joining: Metric) -> None:
    """Make a metric one of the run's, whether definitions may have its kind yet or not."""
    async with service.pool.acquire() as connection:
        await add_metric(
            connection, record.id, record.run, run_metric(joining), after(0), covered=None
        )


@pytest.fixture
async def rich(service: Service) -> ExperimentRecord:
    """A run with all kinds of metrics, two epochs, closed blocks and open ones."""
    record = await service.begin(definition("x", *METRICS))
    typical = QuantileMetric(
        key="typical", role="secondary", event="buy", window=WINDOW, quantile=0.5
    )
    await join(service, record, typical)
    for epoch in (1, 2):
        for place in range(20):
            unit, at = f"u{epoch}-{place}", after(100 * (epoch - 1) + place)
            records: list[Record] = [service.exposure(record, unit, "ab"[place % 2], at)]
            for number in range(place % 4):
                when = at + timedelta(seconds=number - 1)
                records.append(service.outcome("buy", unit, when, 1.5**place - 3))
                records.append(service.outcome("click", unit, when))
            if place % 7 == 0:
                records.append(service.exposure(record, unit, "ba"[place % 2], after(200)))
            await service.ship(records)
        if epoch == 1:
            await service.settle(70)
            record = await service.allocate("x", {"a": 0.3, "b": 0.7})
    await service.tick()
    return record


async def test_all_is_equal_after_a_rich_life(service: Service, rich: ExperimentRecord) -> None:
    found = await verdict(service)
    assert found.named == ()
    assert (found.runs, found.units, found.metrics) == (1, 40, len(METRICS) + 1)
    assert found.cells > 4 * found.metrics
    assert found.lines() == [
        f"verified 1 runs, 40 units, {found.metrics} metrics, {found.cells} cells: all equal"
    ]


A_CELL = """
    create function a_cell(wanted text, block_sign int) returns tid language sql as $$
        select c.ctid from cell c join run_metric m on m.id = c.metric
        where m.key = wanted and sign(c.block) = block_sign and c.n > 0
        order by c.block, c.arm limit 1
    $$
"""
CORRUPTIONS = {
    "the variant of an enrolment": (
        "update enrolment set arm = (select id from arm where epoch = 1 and variant = 'b')"
        " where unit = 'u1-0'",
        ["unit u1-0: its enrolment is variant b in epoch 1 ", "should be variant a in epoch 1 "],
    ),
    "the epoch of an enrolment": (
        "update enrolment set arm = (select id from arm where epoch = 2 and variant = 'a')"
        " where unit = 'u1-2'",
        ["unit u1-2: its enrolment is variant a in epoch 2 ", "should be variant a in epoch 1 "],
    ),
    "the time of an enrolment": (
        "update enrolment set at = at + interval '1 microsecond' where unit = 'u1-3'",
        ["unit u1-3: its enrolment is ", "should be variant b in epoch 1 "],
    ),
    "whether a unit met several variants": (
        "update enrolment set several = false where unit = 'u1-7'",
        ["unit u1-7: its enrolment is ", " of one variant, should be ", " of several variants"],
    ),
    "an enrolment that is lost": (
        "delete from enrolment where unit = 'u2-5'",
        ["unit u2-5: its enrolment is none, should be variant b"],
    ),
    "an enrolment that nobody made": (
        "update enrolment set unit = 'nobody' where unit = 'u2-6'",
        ["unit nobody: its enrolment is ", "should be none"],
    ),
    "the number of enrolments": (
        "update run set enrolments = enrolments + 1",
        ["shop/x, run 1: number of enrolments is 41, ", "should be 40"],
    ),
    "the units of an arm": (
        "update arm set units = units + 1 where epoch = 1 and variant = 'b'",
        ["run 1, epoch 1, variant b: number of units is 11, should be 10"],
    ),
    "the units of an arm that met several variants": (
        "update arm set several = several - 1 where epoch = 2 and variant = 'a'",
        ["epoch 2, variant a: number of units of several variants is 1, should be 2"],
    ),
    "the units over epochs": (
        "update run set unit_sums = replace(unit_sums::text, '\"units\":20', '\"units\":21')::json",
        ["run 1, units over epochs: sum variants.a.units is 21, should be 20"],
    ),
    "the state of a unit": (
        "update unit_value v set state[3] = 7 from run_metric m"
        " where m.id = v.metric and m.key = 'buys'",
        ["metric buys ", ", unit 2: number 1 of its state is 7.0, should be 1.0"],
    ),
    "the state of a unit that did nothing": (
        "update unit_value v set state[1] = 1 from run_metric m"
        " where m.id = v.metric and m.key = 'click'",
        ["metric click ", ", unit 0: number 1 of its state is 1.0, should be 0.0"],
    ),
    "the count of a closed cell": (
        "update cell set n = n + 1 where ctid = a_cell('click', 0)",
        ["metric click ", "epoch 1, variant a, closed blocks: count is 11, should be 10"],
    ),
    "the count of a cell of all": (
        "update cell set n = n - 1 where ctid = a_cell('click', -1)",
        ["metric click ", "epoch 1, variant a, all blocks: count is 9, should be 10"],
    ),
    "the count of an open cell": (
        "update cell set n = n + 1 where ctid = a_cell('click', 1)",
        ["metric click ", "epoch 2, variant ", ", block 1", ": count is ", "should be "],
    ),
    "the mean of a closed cell": (
        "update cell set mean[1] = mean[1] * (1 + 1e-8) where ctid = a_cell('largest', 0)",
        ["metric largest ", "epoch 1, variant a, closed blocks: mean 1 is ", "should be "],
    ),
    "the mean of the covariate of all": (
        "update cell set mean[2] = mean[2] - 1e-3 where ctid = a_cell('spent', -1)",
        ["metric spent ", "epoch 1, variant a, all blocks: mean 2 is ", "should be "],
    ),
    "the mean of an open cell": (
        "update cell set mean[1] = mean[1] + 1 where ctid = a_cell('latest', 1)",
        ["metric latest ", "epoch 2, variant ", ", block 1", ": mean 1 is ", "should be "],
    ),
    "the spread of a closed cell": (
        "update cell set m2[1] = m2[1] * (1 + 1e-8) where ctid = a_cell('basket', 0)",
        ["metric basket ", "closed blocks: cross-product (1, 1) is ", "should be "],
    ),
    "a cross-product of all": (
        "update cell set m2[2] = m2[2] + 1e-3 where ctid = a_cell('per_click', -1)",
        ["metric per_click ", "all blocks: cross-product (1, 2) is ", "should be "],
    ),
    "the spread of an open cell": (
        "update cell set m2[1] = m2[1] + 1e-3 where ctid = a_cell('spent', 1)",
        ["metric spent ", ", block 1", ": cross-product (1, 1) is ", "should be "],
    ),
    "a cell that is lost": (
        "delete from cell where ctid = a_cell('buys', -1)",
        ["metric buys ", "epoch 1, variant a, all blocks: count is 0, should be 10"],
    ),
    "a histogram": (
        "update histogram set n = n + 2 where block = 0 and bucket ="
        " (select max(bucket) from histogram where block = 0)",
        ["metric typical ", "closed blocks: count of bucket ", " is 3, should be 1"],
    ),
    "the sums over epochs of closed cells": (
        "update metric_total set sums = replace(sums::text, '\"weight\":20', '\"weight\":21')::json"
        " where block = 0 and metric = (select id from run_metric where key = 'click')",
        ["metric click ", "closed blocks: sum contrasts.b.weight is 21, should be 20"],
    ),
    "the sums over epochs of all cells": (
        "delete from metric_total"
        " where block = -1 and metric = (select id from run_metric where key = 'click')",
        ["metric click ", "all blocks: sum contrasts.b.", " is 0, should be "],
    ),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
async def test_what_is_wrong_is_named(service: Service, rich: ExperimentRecord, what: str) -> None:
    corrupt, parts = CORRUPTIONS[what]
    await service.execute(A_CELL)
    await service.execute(corrupt)
    found = await verdict(service)
    assert found.found > 0
    assert any(_has(line, parts) for line in map(str, found.named)), found.lines()


def _has(line: str, parts: list[str]) -> bool:
    """Whether these parts stand in a line, in this order."""
    place = 0
    for part in parts:
        place = line.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


async def test_of_many_differences_the_first_are_named_and_the_others_counted(
    service: Service, rich: ExperimentRecord
) -> None:
    await service.execute("update enrolment set at = at - interval '1 hour'")
    found = await verdict(service)
    assert len(found.named) == MOST_NAMED
    assert found.found == 40
    assert found.lines()[-2] == "and 20 more"
    assert found.lines()[-1].endswith(": 40 differences")


async def test_an_experiment_may_be_verified_alone(
    service: Service, rich: ExperimentRecord
) -> None:
    other = await service.begin(definition("y", metric("click")))
    await service.ship([service.exposure(other, "u", "a", after(1))])
    await service.tick()
    await service.execute("update arm set units = 5 where experiment = $1", other.id)
    assert (await verdict(service, None, "x")).found == 0
    assert (await verdict(service, "shop", "y")).found == 1
    assert (await verdict(service, "shop")).found == 1


@pytest.mark.parametrize(("project", "key"), [("shop-staging", None), ("shop", "z"), (None, "z")])
async def test_what_does_not_exist_cannot_be_verified(
    service: Service, rich: ExperimentRecord, project: str | None, key: str | None
) -> None:
    with pytest.raises(VerifyError, match="has been started"):
        await verdict(service, project, key)


async def test_events_that_are_not_folded_yet_are_left_out(
    service: Service, rich: ExperimentRecord
) -> None:
    await service.ship([service.exposure(rich, "new", "a", after(300))])
    assert (await verdict(service)).found == 0


async def test_of_a_metric_that_is_filled_in_the_covered_units_are_compared(
    service: Service, rich: ExperimentRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.folding.backfill.STEP", 10)
    joined = mean("looks", event="buy", aggregate="count", window="3s")
    await service.amend("x", {"metrics": [joined]})
    async with service.pool.acquire() as connection, connection.transaction():
        await take_in(connection, service.clock.now)
        assert await backfill(connection)
    found = await verdict(service)
    assert found.found == 0
    assert "filling in, compared for 25% of the units" in found.lines()[-2]
    await service.execute(
        "update cell set n = n + 1 from run_metric m"
        " where m.id = metric and m.key = 'looks' and block = -1"
    )
    assert (await verdict(service)).found > 0


async def test_folding_goes_on_beside_it(service: Service, rich: ExperimentRecord) -> None:
    told: list[str] = []
    async with service.pool.acquire() as connection, connection.transaction():
        await connection.execute("lock table exposure, outcome in access share mode")
        await service.ship([service.exposure(rich, "new", "a", after(300))])
        await service.execute("select ensure_day('2031-05-06')")
        await service.tick()
    async with service.pool.acquire() as connection:
        found = await verify(connection, None, None, told.append)
    assert found.units == 41
    assert len(told) == 1 + found.metrics
