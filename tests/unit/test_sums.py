"""Metrics of several workers as those of one."""

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from turnout.sums import Families, Family, Sample, Sums, exposition, families_of, summed


class Worker:
    """The metrics of a worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["variant"]
        self.assignments = Counter("turnout_assignments", "?", labels, registry=self.registry)
        self.seconds = Histogram("seconds", "?", buckets=(0.1, 1), registry=self.registry)
        self.bytes = Gauge("turnout_journal_bytes", "?", registry=self.registry)
        self.age = Gauge("turnout_journal_age_seconds", "?", registry=self.registry)
        self.full = Gauge("turnout_journal_full", "?", registry=self.registry)


def read(text: str) -> list[Metric]:
    """What a reader of the text format makes of it."""
    return list(text_string_to_metric_families(text))


def told(sums: Sums) -> dict[tuple[str, ...], float]:
    """What Prometheus reads, by the name and the values of the labels."""
    text = exposition(sums.total()).decode()
    return {
        (sample.name, *(value for label, value in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def workers() -> tuple[Worker, Worker]:
    """Two workers that have done something."""
    one, two = Worker(), Worker()
    one.assignments.labels("old").inc(3)
    two.assignments.labels("old").inc(4)
    two.assignments.labels("new").inc(5)
    one.seconds.observe(0.05)
    two.seconds.observe(0.5)
    two.seconds.observe(7)
    for worker, size, age, full in ((one, 100, 2.5, 1), (two, 20, 9.5, 0)):
        worker.bytes.set(size)
        worker.age.set(age)
        worker.full.set(full)
    return one, two


async def heard(*workers: Worker) -> Sums:
    """The sum of workers, of which each was heard."""
    sums = Sums()
    for number, worker in enumerate(workers):
        sums.hear(number, await families_of(worker.registry))
    return sums


async def test_counters_and_histograms_add_up(workers: tuple[Worker, Worker]) -> None:
    found = told(await heard(*workers))
    assert found["turnout_assignments_total", "old"] == 7
    assert found["turnout_assignments_total", "new"] == 5
    assert found["seconds_bucket", "0.1"] == 1
    assert found["seconds_bucket", "1.0"] == 2
    assert found["seconds_bucket", "+Inf"] == found[("seconds_count",)] == 3
    assert found[("seconds_sum",)] == pytest.approx(7.55)


async def test_sizes_add_up_and_of_ages_and_flags_the_largest_counts(
    workers: tuple[Worker, Worker],
) -> None:
    found = told(await heard(*workers))
    assert found[("turnout_journal_bytes",)] == 120
    assert found[("turnout_journal_age_seconds",)] == 9.5
    assert found[("turnout_journal_full",)] == 1


async def test_a_dead_worker_leaves_what_it_counted_and_nothing_else(
    workers: tuple[Worker, Worker],
) -> None:
    sums = await heard(*workers)
    before = told(sums)
    sums.bury(1)
    sums.bury(1)
    sums.bury(17)  # it died before it was heard
    after = told(sums)
    for name, value in before.items():
        if name[0].startswith(("turnout_assignments", "seconds")):
            assert after[name] == value
    assert after[("turnout_journal_bytes",)] == 100
    assert after[("turnout_journal_age_seconds",)] == 2.5


async def test_successors_count_on(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    sums = await heard(one, two)
    for number in (1, 2, 3):
        sums.bury(number)
        successor = Worker()
        successor.assignments.labels("new").inc(10)
        sums.hear(number + 1, await families_of(successor.registry))
    assert told(sums)["turnout_assignments_total", "new"] == 35


async def test_who_is_silent_counts_with_what_it_said_last(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    sums = await heard(one, two)
    two.assignments.labels("new").inc(100)
    one.assignments.labels("new").inc(1)
    sums.hear(0, await families_of(one.registry))
    assert told(sums)["turnout_assignments_total", "new"] == 6


async def test_the_sum_of_one_is_itself(workers: tuple[Worker, Worker]) -> None:
    families = await families_of(workers[1].registry)
    assert summed([families]) == families
    assert summed([]) == ()


async def test_of_what_there_should_be_more_of_the_least_counts() -> None:
    def one(name: str, value: float) -> Families:
        return (Family(name, "?", "gauge", (Sample(name, {"name": "redis"}, value),)),)

    found = [
        summed([one(name, 3.0), one(name, 1.0), one(name, 2.0)])[0].samples[0].value
        for name in ("turnout_dependency_up", "turnout_disk_free_bytes", "turnout_journal_bytes")
    ]
    assert found == [1.0, 1.0, 6.0]


async def test_what_is_written_reads_as_the_librarys_own_text_does() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as a running Turnout does
    registry = CollectorRegistry()
    odd = Counter("odd", 'Quotes ", lines\n and \\', ["name"], registry=registry)
    for name in ("plain", 'a "quote"', "two\nlines", "back\\slash", "日本"):
        odd.labels(name).inc(1e21)
    Gauge("nowhere", "?", registry=registry).set(float("nan"))
    Gauge("far", "?", registry=registry).set(float("-inf"))
    Gauge("unused", "?", ["name"], registry=registry)
    Histogram("seconds", "?", ["door"], buckets=(0.1, 1), registry=registry).labels("/").observe(7)
    ours = exposition(await families_of(registry)).decode()
    assert repr(read(ours)) == repr(read(generate_latest(registry).decode()))
