"""Trails and sums over epochs against a real Postgres: each closed block is followed once and in
order, and sums that an older release made are made again."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.folding.totals import FORM, renew_totals
from analysis.folding.trails import read_trails
from analysis.inference.moments import EMPTY, Moments, of_rows
from analysis.inference.trail import PairScores, Trail, TrailCell, follow, merge_scores, start
from experiments import store
from experiments.allocation import propensities
from tests.service.loop import Service, Visitors, definition, mean, metric, rates
from tests.service.recount import check

THREE = {"a": 0.4, "b": 0.4, "c": 0.2}
POLICY = {
    "kind": "thompson",
    "metric": "click",
    "every": "3s",
    "floor": 0.05,
    "warmup": 30,
    "max_step": 0.1,
}
MIGRATION = Path(__file__).parents[2] / "migrations" / "0008_trails.sql"
_UNITS = """
    select e.unit, e.at, a.epoch, a.variant,
           coalesce((select sum(o.value) from outcome o where o.unit = e.unit and o.event = $1), 0)
               as value
    from enrolment e join arm a on a.id = e.arm
"""


async def trails(service: Service, key: str = "click") -> dict[str, Trail]:
    """The trails of a metric, by treatment."""
    record = await service.find("x")
    async with service.pool.acquire() as connection:
        by_number = await read_trails(connection, record.id, record.run)
    [row] = await service.fetch("select id from run_metric where key = $1", key)
    return by_number[row["id"]]


async def recounted(service: Service, treatment: str, key: str = "click") -> Trail:
    """The trail of a treatment, from single units: their enrolments and outcomes."""
    record = await service.find("x")
    async with service.pool.acquire() as connection:
        epochs = await store.list_epochs(connection, record.id, 1_000, None)
    shares = {epoch.number: propensities(epoch.allocation) for epoch in epochs}
    [stored] = await service.fetch(
        "select block_seconds, closed_through from run_metric where key = $1", key
    )
    blocks: dict[int, dict[int, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in await service.fetch(_UNITS, key):
        block = int(row["at"].timestamp() // stored["block_seconds"]) * stored["block_seconds"]
        if block <= stored["closed_through"]:
            blocks[block][row["epoch"]][row["variant"]].append(row["value"])
    trail = start(1)
    for block in sorted(blocks):
        cells = []
        for epoch, values in blocks[block].items():
            moments: dict[str, Moments] = {
                variant: of_rows([[value] for value in of_arm])
                for variant, of_arm in values.items()
            }
            cells.append(
                TrailCell(
                    block=block,
                    epoch=epoch,
                    propensity_control=shares[epoch].get("a", 0.0),
                    propensity_treatment=shares[epoch].get(treatment, 0.0),
                    units=sum(cell.n for cell in moments.values()),
                    control=moments.get("a", EMPTY),
                    treatment=moments.get(treatment, EMPTY),
                )
            )
        trail = follow(trail, cells)
    return trail


def numbers(value: Any) -> list[float]:
    """All numbers of a record, in order."""
    if isinstance(value, dict):
        return [x for part in value.values() for x in numbers(part)]
    if isinstance(value, list | tuple):
        return [x for part in value for x in numbers(part)]
    return [] if value is None else [float(value)]


def same(a: Trail, b: Trail) -> bool:
    """Whether two trails are equal but for rounding."""
    found, expected = (numbers(msgspec.to_builtins(trail)) for trail in (a, b))
    return found == pytest.approx(expected, rel=1e-9, abs=1e-9)


async def run(service: Service, ticks: int, units: int = 60) -> Visitors:
    """A bandit of three variants on two metrics, some blocks of it closed."""
    await service.begin(
        definition("x", metric("click", "primary"), mean("spent"), weights=THREE, policy=POLICY)
    )
    visitors = Visitors(service, "x", seed=1)
    await come(service, visitors, ticks, units)
    return visitors


async def come(service: Service, visitors: Visitors, ticks: int, units: int = 60) -> None:
    """Let units come, and the controller tick."""
    click = rates(a=0.2, b=0.3, c=0.25)
    for _ in range(ticks):
        await visitors.come(units, {"click": click, "spent": lambda _, r: r.expovariate(1.0)})
        await service.tick()


async def test_a_trail_is_that_of_its_units(service: Service) -> None:
    await run(service, ticks=16, units=220)
    assert len(await service.epochs("x")) > 3
    for key in ("click", "spent"):
        found = await trails(service, key)
        assert found.keys() == {"b", "c"}
        for treatment, trail in found.items():
            assert trail.since_block is None
            assert trail.sequence.units > 0
            assert same(trail, await recounted(service, treatment, key))


async def test_blocks_are_followed_alike_one_by_one_and_many_at_once(service: Service) -> None:
    visitors = await run(service, ticks=10)
    before = await trails(service)
    for _ in range(8):
        await visitors.come(40, {"click": rates(a=0.2, b=0.3, c=0.25)})
    assert await trails(service) == before
    await service.settle()
    found = await trails(service)
    assert found["b"].last_block != before["b"].last_block
    assert same(found["b"], await recounted(service, "b"))


async def test_a_run_that_is_over_is_followed_to_its_last_block(service: Service) -> None:
    await run(service, ticks=12)
    await service.conclude("x")
    before = (await trails(service))["b"]
    await service.settle()
    after = (await trails(service))["b"]
    assert after.last_block != before.last_block
    assert scored(after).units > scored(before).units
    assert same(after, await recounted(service, "b"))


def scored(trail: Trail) -> PairScores:
    return merge_scores(trail.training, trail.sequence)


async def test_a_report_under_a_bandit_reads_the_trail(service: Service) -> None:
    await run(service, ticks=20)
    await service.settle()
    report = await service.report("x")
    [click] = [m for m in report.metrics if m.key == "click"]
    for comparison in click.comparisons:
        assert comparison.fixed.method == "aipw"
        trail = (await trails(service))[comparison.treatment]
        assert comparison.fixed.n_treatment == scored(trail).treatment.units + sum(
            cell.treatment.n for cell in trail.opening
        )


async def test_a_quantile_has_no_trail(service: Service) -> None:
    await service.begin(
        definition("x", metric("wait", kind="quantile", quantile=0.9), metric("click", "primary"))
    )
    visitors = Visitors(service, "x", seed=3)
    for _ in range(8):
        await visitors.come(20, {"wait": lambda _, r: r.expovariate(1.0)})
        await service.tick()
    assert await trails(service, "wait") == {}
    assert (await trails(service))["b"].opening


async def test_a_metric_that_joins_late_has_a_trail_of_all_blocks(service: Service) -> None:
    await run(service, ticks=10)
    first = await trails(service, "spent")
    patch = {"metrics": [metric("click", "primary"), mean("spent", cap=2.0)]}
    await service.amend("x", patch)
    await service.tick()
    await service.settle()
    rows = await service.fetch("select id from run_metric where key = 'spent' order by id")
    record = await service.find("x")
    async with service.pool.acquire() as connection:
        found = await read_trails(connection, record.id, record.run)
    trail = found[rows[-1]["id"]]["b"]
    assert trail.since_block is None
    assert trail.control.n > first["b"].control.n
    assert trail.control.mean[0] < first["b"].control.mean[0]


async def test_blocks_closed_before_there_were_trails_are_named(service: Service) -> None:
    visitors = await run(service, ticks=10)
    [closed] = await service.fetch("select closed_through from run_metric where key = 'click'")
    await service.execute("delete from metric_trail")
    insert = MIGRATION.read_text().partition("insert into metric_trail")
    await service.execute("".join(insert[1:]))
    await come(service, visitors, 12)
    trail = (await trails(service))["b"]
    assert trail.since_block == closed["closed_through"]
    assert 0 < trail.control.n < len(visitors.values("click", "a"))
    report = await service.report("x")
    [click] = [m for m in report.metrics if m.key == "click"]
    assert all("partial_trail" in c.fixed.notes for c in click.comparisons)


_OLDER = 'update metric_total set form = 1, sums = \'{"units": {"a": 1}}\''
_FORMS = "select distinct form from metric_total"


async def test_sums_of_an_older_form_are_made_anew(service: Service) -> None:
    await run(service, ticks=10)
    await service.execute(_OLDER)
    totals = len(await service.fetch("select from metric_total"))
    steps = 0
    more = True
    while more:
        async with service.pool.acquire() as connection, connection.transaction():
            more = await renew_totals(connection)
        steps += more
    assert steps == totals
    assert [row["form"] for row in await service.fetch(_FORMS)] == [FORM]
    async with service.pool.acquire() as connection:
        await check(connection)


async def test_what_changes_while_sums_are_of_an_older_form_counts_once(service: Service) -> None:
    """This leader has renewed all in its term; an older release has made new ones since."""
    visitors = await run(service, ticks=10)
    await service.execute(_OLDER)
    await come(service, visitors, 3)
    await service.settle()
    assert [row["form"] for row in await service.fetch(_FORMS)] == [FORM]
    async with service.pool.acquire() as connection:
        await check(connection)


async def test_a_new_leader_renews_before_it_decides(service: Service) -> None:
    await run(service, ticks=10)
    await service.execute(_OLDER)
    service.clock.advance(60)
    await service.shipped()
    second = service.new_controller("second")
    await service.execute("delete from lease")
    assert await second.tick()
    assert [row["form"] for row in await service.fetch(_FORMS)] == [FORM]
    async with service.pool.acquire() as connection:
        await check(connection)
