"""Enrolment blocks and the watermark: what decides waits until units have finished."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from analysis.folding import blocks
from analysis.folding.cells import ALL, CLOSED
from analysis.folding.metrics import block_of
from tests.service.loop import LATENESS, Service, after, definition, mean, metric
from tests.service.recount import check

WINDOW = 30
BLOCK = 3
"""A tenth of the window."""


async def closed(service: Service) -> bool:
    """Whether all cells are closed, none of them being left behind."""
    rows = await service.fetch("select block from cell")
    return {row["block"] for row in rows} == {ALL, CLOSED}


async def watermark(service: Service) -> float:
    """Seconds from the start to the watermark."""
    [row] = await service.fetch("select watermark - $1 as since from fold_position", after(0))
    seconds: float = row["since"].total_seconds()
    return seconds


async def test_a_block_closes_once_window_and_lateness_lie_below_the_watermark(
    service: Service,
) -> None:
    record = await service.begin(definition("x", metric("click", window=f"{WINDOW}s")))
    await service.ship([service.exposure(record, "u", "a", after(1))])
    end_of_block = block_of(after(1), BLOCK) + BLOCK - after(0).timestamp()
    finished = end_of_block + WINDOW + LATENESS.total_seconds()
    service.clock.advance(100)
    for seconds, expected in ((finished - 0.001, False), (finished, True)):
        await service.shipped(after(seconds))
        await service.tick()
        assert await closed(service) is expected


async def test_the_watermark_is_that_of_the_slowest_router_and_never_goes_back(
    service: Service,
) -> None:
    slow, fast = uuid4(), uuid4()
    await service.shipped(after(10), slow)
    await service.shipped(after(50), fast)
    await service.tick()
    assert await watermark(service) == 10
    await service.shipped(after(40), slow)
    await service.tick()
    assert await watermark(service) == 40
    await service.shipped(after(5), uuid4())
    await service.tick()
    assert await watermark(service) == 40


async def silence(service: Service, journal: UUID, seconds: float) -> None:
    """A router was heard for the last time so many seconds ago."""
    await service.execute(
        """update journal set heartbeat_at = clock_timestamp() - $2::interval,
                              beating_since = clock_timestamp() - $2::interval
           where id = $1""",
        journal,
        timedelta(seconds=seconds),
    )


@pytest.mark.parametrize(("silent", "expected"), [(20, 10), (31, 50)])
async def test_a_router_that_was_silent_for_30_s_holds_the_watermark_back_no_more(
    service: Service, silent: int, expected: float
) -> None:
    dead = uuid4()
    await service.shipped(after(10), dead)
    await service.shipped(after(50))
    await silence(service, dead, silent)
    await service.execute(
        "update journal set beating_since = clock_timestamp() - interval '1 h' where id <> $1", dead
    )
    await service.tick()
    assert await watermark(service) == expected


async def test_when_all_were_silent_the_first_that_is_heard_again_passes_nobody(
    service: Service,
) -> None:
    other = uuid4()
    await service.shipped(after(10), other)
    await silence(service, other, 100)
    await service.shipped(after(50))
    await service.tick()
    assert await watermark(service) == 10


async def test_before_any_router_has_shipped_there_is_no_watermark(service: Service) -> None:
    await service.tick()
    [row] = await service.fetch("select watermark = '-infinity' as never from fold_position")
    assert row["never"]


async def test_once_all_journals_are_withdrawn_the_watermark_follows_the_clock(
    service: Service,
) -> None:
    await service.shipped(after(7))
    await service.tick()
    assert await watermark(service) == 7
    await service.execute("delete from journal")
    await service.tick()
    [row] = await service.fetch("select clock_timestamp() - watermark as behind from fold_position")
    assert timedelta(seconds=30) <= row["behind"] < timedelta(seconds=40)


async def test_a_backlog_of_blocks_is_closed_over_several_ticks(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MOST_CELLS", 10)
    record = await service.begin(definition("x", mean("spent", event="buy", window=f"{WINDOW}s")))
    await service.ship(
        [
            service.exposure(record, f"u{number}", "ab"[number % 2], after(number % 60))
            for number in range(240)
        ]
    )
    left, finished = "select from cell where block > 0", "select n from cell where block = 0"
    await service.tick()
    open_cells = [len(await service.fetch(left))]
    while open_cells[-1]:
        await service.settle(200)
        open_cells.append(len(await service.fetch(left)))
        assert 0 < open_cells[-2] - open_cells[-1] <= 10
    assert len(open_cells) > 3
    assert [row["n"] for row in await service.fetch(finished)] == [120, 120]
    async with service.pool.acquire() as connection:
        await check(connection)


async def test_closing_keeps_the_moments_and_few_cells(service: Service) -> None:
    data = definition("x", mean("spent", event="buy", window=f"{WINDOW}s"))
    record = await service.begin(data)
    for second in range(60):
        unit = f"u{second}"
        await service.ship(
            [
                service.exposure(record, unit, "ab"[second % 2], after(second)),
                service.outcome("buy", unit, after(second + 1), 1.5**second),
            ]
        )
    await service.tick()
    before = await service.report("x")
    assert len(await service.fetch("select from cell where block > 0")) > 20
    await service.settle(200)
    finished = await service.report("x")
    assert [row["n"] for row in await service.fetch("select n from cell")] == [30] * 4
    [metric_before], [metric_after] = before.metrics, finished.metrics
    assert {v: arm.finished for v, arm in metric_before.arms.items()} == {"a": 0, "b": 0}
    assert {v: arm.finished for v, arm in metric_after.arms.items()} == {"a": 30, "b": 30}
    then, now = metric_before.comparisons[0].fixed, metric_after.comparisons[0].fixed
    assert then.difference is not None
    assert now.difference == pytest.approx(then.difference, rel=1e-12)
    assert now.std_error == pytest.approx(then.std_error, rel=1e-12)


async def test_what_comes_after_closing_is_counted_as_late_and_changes_no_evidence(
    service: Service,
) -> None:
    guarded = metric("click", "guardrail", window=f"{WINDOW}s", goal="increase")
    record = await service.begin(definition("x", guarded))
    await service.ship([service.exposure(record, f"u{i}", "ab"[i % 2], after(i)) for i in range(6)])
    await service.settle(100)
    evidence = await service.fetch("select state from guard_ledger")
    await service.ship(
        [
            service.outcome("click", "u1", after(20)),  # a value that changes
            service.outcome("click", "u2", after(90)),  # after the window: nothing changes
            service.exposure(record, "new", "a", after(3)),  # a unit that nobody knew
            service.exposure(record, "u5", "a", after(4)),  # a unit that was enrolled earlier
        ]
    )
    await service.tick()
    assert [row["late"] for row in await service.fetch("select late from run_metric")] == [3]
    assert await service.fetch("select state from guard_ledger") == evidence
    report = await service.report("x")
    assert report.metrics[0].late_changes == 3
    [late] = [check for check in report.quality if check.code == "late_changes"]
    assert late.explanation.startswith("3 values changed after")
    assert {v: arm.finished for v, arm in report.metrics[0].arms.items()} == {"a": 5, "b": 2}
    async with service.pool.acquire() as connection:
        await check(connection)


async def test_blocks_of_a_run_that_has_ended_close_too(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", window=f"{WINDOW}s")))
    await service.ship([service.exposure(record, "u", "a", after(1))])
    await service.tick()
    await service.conclude("x")
    await service.settle(100)
    assert await closed(service)


async def test_what_a_run_left_open_is_closed_after_the_next_one_began(service: Service) -> None:
    """And the run's planned look is taken, and its trails go on."""
    planned = {"reading": "fixed", "units": 10}
    primary = metric("click", "primary", window=f"{WINDOW}s")
    record = await service.begin(definition("x", primary, analysis=planned))
    units = [service.exposure(record, f"u{i}", "ab"[i % 2], after(1)) for i in range(10)]
    await service.ship(units)
    await service.tick()
    await service.conclude("x")
    again = await service.start("x")
    await service.ship([service.exposure(again, "v", "b", after(1))])
    await service.tick()
    assert not await closed(service)
    await service.settle(100)
    assert await closed(service)
    looks = await service.fetch("select run, units from look")
    assert [tuple(row) for row in looks] == [(1, 10)]
    trails = await service.fetch("select from metric_trail")
    assert len(trails) == 2
    async with service.pool.acquire() as connection:
        await check(connection)


async def test_an_experiment_that_cannot_be_read_holds_up_no_other(service: Service) -> None:
    """As a newer release may write it, while workers are upgraded one by one."""
    await service.begin(definition("newer"))
    other = await service.begin(definition("x", metric("click")))
    await service.execute(
        """update experiment set definition = jsonb_set(definition::jsonb, '{policy}',
                                                        '{"kind": "quantum"}')::json
           where key = 'newer'"""
    )
    await service.ship([service.exposure(other, "u", "a", after(1))])
    await service.shipped()
    assert await service.controller.tick()
    assert service.failures() == 1  # to decide on the newer one
    enrolled = await service.fetch("select experiment, unit from enrolment")
    assert [tuple(row) for row in enrolled] == [(other.id, "u")]
    assert await service.fetch("select from segment where folded_at is null") == []
