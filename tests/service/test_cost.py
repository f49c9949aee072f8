"""What a report and a decision read does not grow with the events behind them."""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta

from analysis.control.decide import decide
from analysis.control.intake import take_in
from analysis.folding.fold import fold
from analysis.reports.facts import read_facts
from experiments import lifecycle, store
from router.records import Record
from tests.service.loop import LATENESS, SHOP, Service, definition, metric

Read = Counter[str]
"""Rows that were read, by table."""

_READ = """
    select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) as rows
    from pg_stat_xact_user_tables
"""


async def rows_read(connection: store.Connection, work: Callable[[], Awaitable[object]]) -> Read:
    """What some work reads, as Postgres counts it within the transaction."""

    async def counted() -> Read:
        read: Read = Counter()
        for row in await connection.fetch(_READ):
            read[row["relname"].split("_2")[0]] += row["rows"]
        return read

    before = await counted()
    await work()
    return +((await counted()) - before)


async def events(service: Service, units: int, start: int) -> None:
    """Ship so many units with an outcome each."""
    record = await service.find("x")
    records: list[Record] = []
    for number in range(start, start + units):
        at = service.clock.now + timedelta(milliseconds=number % 1_000)
        records.append(service.exposure(record, f"u{number}", "ab"[number % 2], at))
        records.append(service.outcome("ok", f"u{number}", at))
    await service.ship(records)


async def report_and_decision(service: Service) -> tuple[Read, Read]:
    """What a report reads, and what a decision reads."""
    async with service.pool.acquire() as connection:
        record = await lifecycle.find(connection, SHOP, "x")

        async def report() -> None:
            await read_facts(connection, record)

        async def decision() -> None:
            await decide(
                connection,
                record,
                term=1,
                watermark=service.clock.now + timedelta(minutes=1),
                lateness=LATENESS,
                now=service.clock.now + timedelta(minutes=2),
            )

        async with connection.transaction(isolation="repeatable_read", readonly=True):
            of_report = await rows_read(connection, report)
        transaction = connection.transaction()
        await transaction.start()
        of_decision = await rows_read(connection, decision)
        await transaction.rollback()
    return of_report, of_decision


async def test_a_report_and_a_decision_read_as_much_after_thirty_times_the_events(
    service: Service,
) -> None:
    policy = {"kind": "thompson", "metric": "ok", "warmup": 2}
    await service.begin(definition("x", metric("ok", "guardrail"), policy=policy))
    found = []
    for start, units in ((0, 200), (200, 6_000)):
        await events(service, units, start)
        await service.tick()
        found.append(await report_and_decision(service))
    (report, decision), (later_report, later_decision) = found
    assert report["metric_total"] > 0
    assert later_report == report
    assert decision["metric_total"] > 0
    assert later_decision == decision
    raw = {"exposure", "outcome", "enrolment", "unit_value"}
    assert not raw & (report | decision).keys()


async def test_a_fold_takes_as_many_statements_however_many_segments_it_touches(
    service: Service,
) -> None:
    record = await service.begin(definition("x", metric("ok"), metric("buy"), record=["country"]))
    taken = []
    for values in (1, 2, 10):  # the first fold of a connection makes its tables
        at = service.clock.now
        records: list[Record] = []
        for number in range(40):
            unit, country = f"{values}-{number}", {"country": f"c{number % values}"}
            exposure = service.exposure(record, unit, "ab"[number // 20], at, attributes=country)
            records += [exposure, service.outcome("ok", unit, at)]
        await service.ship(records)
        statements: list[object] = []
        async with service.pool.acquire() as connection, connection.transaction():
            await take_in(connection, service.clock.now)
            with connection.query_logger(statements.append):
                await fold(connection, service.clock.now)
        taken.append(len(statements))
    segments = await service.fetch("select from metric_total where segment <> 0")
    assert len(segments) == 2 * 10
    assert taken[1] == taken[2]


async def test_a_fold_can_reach_what_is_new_without_what_was_there(service: Service) -> None:
    """Where tables are as small as here, the planner may prefer to read them whole; it is kept from
    that, as their size would keep it."""
    await service.begin(definition("x", metric("ok", "guardrail")))
    await events(service, 6_000, 0)
    await service.tick()
    await service.execute("analyze")
    await events(service, 100, 6_000)
    async with service.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        for plan in ("seqscan", "hashjoin", "mergejoin"):
            await connection.execute(f"set local enable_{plan} = off")
        read = await rows_read(connection, lambda: fold(connection, service.clock.now))
        await transaction.rollback()
    assert read["exposure"] >= 100
    assert sum(read.values()) < 100 * 25
