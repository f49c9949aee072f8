"""Metrics of several workers as those of one."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from turnout.sums import Sums, exposition, families_of, summed


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


def heard(*workers: Worker) -> Sums:
    """The sum of workers, of which each was heard."""
    sums = Sums()
    for number, worker in enumerate(workers):
        sums.hear(number, families_of(worker.registry))
    return sums


def test_counters_and_histograms_add_up(workers: tuple[Worker, Worker]) -> None:
    found = told(heard(*workers))
    assert found["turnout_assignments_total", "old"] == 7
    assert found["turnout_assignments_total", "new"] == 5
    assert found["seconds_bucket", "0.1"] == 1
    assert found["seconds_bucket", "1.0"] == 2
    assert found["seconds_bucket", "+Inf"] == found[("seconds_count",)] == 3
    assert found[("seconds_sum",)] == pytest.approx(7.55)


def test_sizes_add_up_and_of_ages_and_flags_the_largest_counts(
    workers: tuple[Worker, Worker],
) -> None:
    found = told(heard(*workers))
    assert found[("turnout_journal_bytes",)] == 120
    assert found[("turnout_journal_age_seconds",)] == 9.5
    assert found[("turnout_journal_full",)] == 1


def test_a_dead_worker_leaves_what_it_counted_and_nothing_else(
    workers: tuple[Worker, Worker],
) -> None:
    sums = heard(*workers)
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


def test_successors_count_on(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    sums = heard(one, two)
    for number in (1, 2, 3):
        sums.bury(number)
        successor = Worker()
        successor.assignments.labels("new").inc(10)
        sums.hear(number + 1, families_of(successor.registry))
    assert told(sums)["turnout_assignments_total", "new"] == 35


def test_who_is_silent_counts_with_what_it_said_last(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    sums = heard(one, two)
    two.assignments.labels("new").inc(100)
    one.assignments.labels("new").inc(1)
    sums.hear(0, families_of(one.registry))
    assert told(sums)["turnout_assignments_total", "new"] == 6


def test_the_sum_of_one_is_itself(workers: tuple[Worker, Worker]) -> None:
    families = families_of(workers[1].registry)
    assert summed([families]) == families
    assert summed([]) == ()
