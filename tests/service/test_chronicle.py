"""The chronicle against a real Postgres: what is kept of reports, by whom, and when."""

import asyncio
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from analysis.chronicle.chronicler import SETTLED, Chronicler
from analysis.chronicle.course import FIRST_SPACING, MOST_POINTS, Figures
from analysis.chronicle.kept import add_point, read_course, read_glances
from analysis.chronicle.model import Course, CoursePoint, Glance
from analysis.chronicle.telemetry import ChronicleMetrics
from analysis.reports.facts import read_facts
from analysis.reports.model import Facts
from analysis.reports.report import Report
from experiments import store
from router.records import Record
from tests.running import Turnout, eventually, problem
from tests.service.loop import LATENESS, Service, after, definition, mean, metric

APART = FIRST_SPACING.total_seconds()
_units = count()


class Worker:
    """A process that has a chronicler, on the clock of the tests."""

    def __init__(self, service: Service, pool: asyncpg.Pool | None = None) -> None:
        self._clock = service.clock
        self.registry = CollectorRegistry()
        self.chronicler = Chronicler(
            pool or service.pool,
            self._time,
            self._elapsed,
            LATENESS,
            ChronicleMetrics(self.registry),
        )

    async def _time(self, _: store.Connection) -> datetime:
        return self._clock.now

    def _elapsed(self) -> float:
        return self._clock.now.timestamp()

    async def look(self) -> int:
        """Look around; how many experiments were glanced at."""
        return await self.chronicler.look_around()

    def failures(self, of: str = "experiment") -> float:
        """How many glances failed."""
        name = "turnout_chronicle_failures_total"
        return self.registry.get_sample_value(name, {"of": of}) or 0


@pytest.fixture
def worker(service: Service) -> Worker:
    """The only worker."""
    return Worker(service)


async def come(service: Service, key: str = "x", units: int = 200) -> None:
    """Units of both variants, half of them of each: of the control every second one clicks, and of
    the other all do."""
    record = await service.find(key)
    records: list[Record] = []
    for _ in range(units):
        number = next(_units)
        variant = "ab"[number % 2]
        unit = f"u{number}"
        records.append(service.exposure(record, unit, variant, service.clock.now))
        if variant == "b" or number % 4 == 0:
            records.append(service.outcome("click", unit, service.clock.now))
    await service.ship(records)


async def glance_at(service: Service, key: str = "x") -> Glance | None:
    """The last glance."""
    record = await service.find(key)
    async with service.pool.acquire() as connection:
        return (await read_glances(connection, [record.id])).get(record.id)


async def seen(service: Service, key: str = "x") -> Glance:
    """The last glance, which there is."""
    glance = await glance_at(service, key)
    assert glance is not None
    return glance


async def course_of(service: Service, key: str = "x", run: int | None = None) -> Course:
    """The course of a run."""
    record = await service.find(key)
    async with service.pool.acquire() as connection:
        return await read_course(connection, record, run)


def points_as_said(report: Report, at: Any) -> list[tuple[str, str, CoursePoint]]:
    """What a report says of each comparison, as a point."""
    return [
        (
            shown.key,
            c.treatment,
            CoursePoint(
                at,
                c.continuous.n_control,
                c.continuous.n_treatment,
                c.fixed.mean_control,
                c.fixed.mean_treatment,
                c.continuous.difference,
                c.continuous.reading.ci_low,
                c.continuous.reading.ci_high,
                c.continuous.reading.p_value,
            ),
        )
        for shown in report.metrics
        for c in shown.comparisons
    ]


async def test_a_glance_and_a_point_are_what_the_report_said_at_that_time(
    service: Service, worker: Worker
) -> None:
    median = metric("median", event="click", kind="quantile", quantile=0.5)
    await service.begin(definition("x", metric("click", "primary"), median))
    said = []
    for _ in range(3):
        await come(service)
        await service.settle(10)
        assert await worker.look() == 1
        report = await service.report("x")
        glance = await seen(service)
        assert glance.at == service.clock.now
        assert glance.headline == report.conclusion
        assert glance.units == sum(report.units.values())
        assert glance.lead is not None
        assert glance.lead.difference == report.metrics[0].comparisons[0].continuous.difference
        said.append(points_as_said(report, service.clock.now))
    course = await course_of(service)
    found = [
        [(line.metric, line.treatment, line.points[place]) for line in course.lines]
        for place in range(3)
    ]
    assert found == said
    assert course.line("click", "b").points[-1].low is not None
    assert course.line("no-such", "b").points == ()


async def test_the_course_is_not_rewritten_by_late_data(service: Service, worker: Worker) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    await come(service)
    await service.settle(10)
    await worker.look()
    [before] = (await course_of(service)).line("click", "b").points
    record = await service.find("x")
    late = [service.exposure(record, f"late{i}", "b", after(0)) for i in range(300)]
    await service.ship(late)
    await service.settle(10)
    await worker.look()
    first, second = (await course_of(service)).line("click", "b").points
    assert first == before
    assert second.n_treatment == before.n_treatment + 300
    assert second.difference != before.difference


async def test_points_are_bounded_and_keep_the_first_and_the_last(service: Service) -> None:
    record = await service.begin(definition("x", metric("click", "primary")))
    said: list[datetime] = []
    async with service.pool.acquire() as connection, connection.transaction():
        at = service.clock.now
        while len(said) < 2 * MOST_POINTS:
            at += timedelta(seconds=APART)
            figures = Figures("b", len(said), len(said), None, None, None, None, None, None)
            if await add_point(connection, record, at, {"click": (figures,)}, last=False):
                said.append(at)
                points = await connection.fetchval("select count(*) from course_point")
                assert points <= MOST_POINTS
        course = await read_course(connection, record)
    times = [point.at for point in course.line("click", "b").points]
    assert len(times) == await service.pool.fetchval("select points from course")
    assert (times[0], times[-1]) == (said[0], said[-1])
    assert times == sorted(set(times) & set(said))


async def test_a_point_waits_for_its_spacing_and_where_nothing_changed_there_is_none(
    service: Service, worker: Worker
) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    await come(service)
    await service.settle(10)
    await worker.look()
    await service.settle(100)
    assert await worker.look() == 1  # time alone moves what a glance says
    assert len((await course_of(service)).line("click", "b").points) == 1
    assert (await seen(service)).at == service.clock.now


async def test_a_change_of_state_is_glanced_at_before_all_others(
    service: Service, worker: Worker
) -> None:
    for key in "xyz":
        await service.begin(definition(key, metric("click", "primary")))
    assert await worker.look() == 3
    assert await worker.look() == 0  # all of them are young
    await service.pause("y")
    assert await worker.look() == 1
    assert (await seen(service, "y")).state == "paused"
    await service.amend("z", {"name": "Another name"})
    assert await worker.look() == 1


async def test_drafts_have_no_glance(service: Service, worker: Worker) -> None:
    await service.draft(definition("x", metric("click", "primary")))
    assert await worker.look() == 0
    assert await glance_at(service) is None
    assert (await course_of(service)).lines == ()


async def test_the_last_glance_waits_for_the_last_data_and_then_no_other_comes(
    service: Service, worker: Worker
) -> None:
    await service.begin(definition("x", metric("click", "primary", window="10m")))
    await come(service)
    await service.settle(5)
    await worker.look()
    await service.conclude("x")
    assert await worker.look() == 1
    glance = await seen(service)
    assert (glance.state, glance.final) == ("concluded", False)
    service.clock.advance(SETTLED.total_seconds() + 5)  # windows are open for minutes still
    await service.settle(1)
    await worker.look()
    assert not (await seen(service)).final

    await service.settle(700)
    await worker.look()
    glance = await seen(service)
    assert glance.final
    report = await service.report("x")
    [_, last] = (await course_of(service)).line("click", "b").points
    assert last.n_control == report.metrics[0].comparisons[0].continuous.n_control == 100
    await service.settle(7_200)
    assert await worker.look() == 0


async def test_what_ended_before_anybody_looked_is_found_all_the_same(
    service: Service, worker: Worker
) -> None:
    await worker.look()
    await service.begin(definition("x", metric("click", "primary")))
    await service.conclude("x")
    assert await worker.look() == 0
    await service.settle(120)
    assert await worker.look() == 1
    assert (await seen(service)).final


async def test_a_new_run_begins_anew_and_the_points_of_the_old_one_stay(
    service: Service, worker: Worker
) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    await come(service)
    await service.settle(10)
    await worker.look()
    await service.conclude("x")
    await service.settle(120)
    await worker.look()
    before = await course_of(service)
    await service.start("x")
    assert await worker.look() == 1
    glance = await seen(service)
    assert (glance.run, glance.units, glance.final) == (2, 0, False)
    await come(service)
    await service.settle(10)
    await worker.look()
    [*_, point] = (await course_of(service)).line("click", "b").points
    assert point.n_control == 100
    assert await course_of(service, run=1) == before
    assert (await course_of(service, run=9)).lines == ()


async def test_several_workers_do_nothing_twice(service: Service) -> None:
    keys = [f"x{number}" for number in range(6)]
    for key in keys:
        await service.begin(definition(key, metric("click", "primary")))
        await come(service, key, 40)
    await service.settle(10)
    workers = [Worker(service) for _ in range(3)]
    taken = await asyncio.gather(*(worker.look() for worker in workers))
    assert sum(taken) == len(keys)
    assert all(worker.failures() == 0 for worker in workers)
    for key in keys:
        assert len((await course_of(service, key)).line("click", "b").points) == 1


async def test_a_change_while_a_report_is_made_hinders_neither(
    service: Service, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.begin(definition("x", metric("click", "primary")))

    async def read_and_be_overtaken(*arguments: Any, **options: Any) -> Facts:
        facts = await read_facts(*arguments, **options)
        await service.pause("x")
        return facts

    with monkeypatch.context() as patched:
        patched.setattr("analysis.chronicle.chronicler.read_facts", read_and_be_overtaken)
        assert await worker.look() == 1
    assert (await seen(service)).state == "running"
    assert await worker.look() == 1  # at once
    assert (await seen(service)).state == "paused"
    assert worker.failures() == 0


async def test_who_dies_on_the_way_leaves_nothing_and_another_goes_on(
    service: Service, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    await come(service)
    await service.settle(10)
    asks = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        asks.set()
        await asyncio.sleep(60)

    with monkeypatch.context() as patched:
        patched.setattr("analysis.chronicle.chronicler.add_point", never)
        dying = asyncio.create_task(worker.look())
        await asks.wait()  # the glance is written, and not committed
        assert await Worker(service).look() == 0  # nobody else is at it
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying
    assert await glance_at(service) is None
    assert await Worker(service).look() == 1
    assert (await seen(service)).units == 200


async def test_an_experiment_that_fails_stops_no_other(
    service: Service, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    for key in "xyz":
        await service.begin(definition(key, metric("click", "primary")))
    unreadable = (
        """update experiment set definition = '{"key": "y", "quantum": 1}' where key = 'y'"""
    )
    await service.execute(unreadable)
    assert await worker.look() == 2
    assert worker.failures() == 1
    service.clock.advance(10)
    assert await worker.look() == 2
    assert worker.failures() == 1  # it is left alone for a while
    service.clock.advance(60)
    await worker.look()
    assert worker.failures() == 2
    logged = [entry for entry in caplog.records if "no glance" in entry.message]
    assert {vars(entry)["experiment"] for entry in logged} == {"y"}
    assert len(logged) == 2


async def test_a_glance_that_this_release_cannot_read_is_left_out(
    service: Service, worker: Worker
) -> None:
    await service.begin(definition("x", metric("click", "primary")))
    await worker.look()
    await service.execute("""update glance set content = '{"at": "2027"}'""")
    assert await glance_at(service) is None


async def test_while_postgres_is_away_it_waits_and_then_goes_on(
    service: Service, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.chronicle.chronicler.LEAST_REST", 0.02)
    await service.begin(definition("x", metric("click", "primary")))
    async with asyncpg.create_pool(migrated_url, min_size=1, max_size=1) as pool:
        worker = Worker(service, pool)
        await service.execute("alter table glance rename to gone")
        running = asyncio.create_task(worker.chronicler.run())

        async def waited() -> bool | None:
            return worker.failures("round") > 1 or None

        await eventually(waited, "failure of a second round")
        await service.execute("alter table gone rename to glance")
        await eventually(lambda: glance_at(service), "glance")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_the_course_is_read_over_the_api(turnout: Turnout) -> None:
    key = await turnout.start(
        metrics=[metric("click", "primary"), mean("spent", window="1s")],
    )
    analyst = turnout.client("analyst")

    async def followed() -> Any:
        answer = await analyst.get(f"/v1/experiments/{key}/course")
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.json()["lines"] else None

    course = await eventually(followed, "course")
    assert course["run"] == 1
    assert [(line["metric"], line["treatment"]) for line in course["lines"]] == [
        ("click", "new"),
        ("spent", "new"),
    ]
    [point, *_] = course["lines"][0]["points"]
    assert (point["n_control"], point["difference"], point["p_value"]) == (0, None, None)
    answer = await analyst.get(f"/v1/experiments/{key}/course", params={"metric": "spent"})
    assert [line["metric"] for line in answer.json()["lines"]] == ["spent"]
    problem(await analyst.get(f"/v1/experiments/{key}/course?run=2"), 404, "not-found")
    problem(await analyst.get("/v1/experiments/none/course"), 404, "not-found")
    problem(await turnout.client(None).get(f"/v1/experiments/{key}/course"), 401, "unauthenticated")
    document = (await turnout.client(None).get("/schema")).json()
    assert "CoursePoint" in document["components"]["schemas"]
