"""Counters and histograms of hot paths: right, and of bounded size whoever asks."""

import logging

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from analysis.control.telemetry import MOST_EXPERIMENTS, AnalysisMetrics
from router.metrics import RouterMetrics
from router.tally import MOST_COUNTERS, MOST_HISTOGRAMS, Histogram, Tally
from turnout.sums import exposition, families_of


async def told(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """What Prometheus reads, by the name and the values of the labels in order of their names."""
    text = exposition(await families_of(registry)).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_counter_has_a_bounded_number_of_labels_and_says_when_it_has_no_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    seen = Tally("seen", "?", ("project", "experiment"), registry, limit=3)
    with caplog.at_level(logging.WARNING, logger="router.tally"):
        for number in range(1_000):
            seen.add("shop", f"experiment-{number}", count=2)
            seen.one(("shop", "experiment-0"))
    found = await told(registry)
    assert {key for key in found if key[0] == "seen_total"} == {
        ("seen_total", "experiment-0", "shop"),
        ("seen_total", "experiment-1", "shop"),
        ("seen_total", "experiment-2", "shop"),
        ("seen_total", "other", "other"),
    }
    assert found["seen_total", "experiment-0", "shop"] == 1_002
    assert found["seen_total", "other", "other"] == 2 * 997
    assert sum(value for key, value in found.items() if key[0] == "seen_total") == 3_000
    assert found["turnout_metric_overflows_total", "seen"] == 2 * 997
    assert [record.message for record in caplog.records] == [
        "a metric has too many labels: what is new is counted as other"
    ]


async def test_a_histogram_has_a_bounded_number_of_labels() -> None:
    registry = CollectorRegistry()
    seconds = Histogram("seconds", "?", ("door",), (0.1, 1.0), registry, limit=2)
    for number in range(100):
        seconds.observe(0.5, (f"/door-{number}",))
    found = await told(registry)
    assert found["seconds_count", "other"] == found["seconds_bucket", "other", "1.0"] == 98
    assert found["seconds_sum", "other"] == 49
    assert len([key for key in found if key[0] == "seconds_count"]) == 3
    assert found["turnout_metric_overflows_total", "seconds"] == 98


async def test_however_many_experiments_there_are_a_router_tells_no_more_series_than_it_may() -> (
    None
):
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    for number in range(MOST_COUNTERS + 5_000):
        metrics.assignments.one(("shop", f"experiment-{number}", "old", "split"))
    found = await told(registry)
    series = [key for key in found if key[0] == "turnout_assignments_total"]
    assert len(series) == MOST_COUNTERS + 1
    assert found["turnout_assignments_total", "other", "other", "other", "other"] == 5_000
    assert MOST_HISTOGRAMS < MOST_COUNTERS


async def test_decisions_have_labels_of_their_own_for_so_many_experiments() -> None:
    registry = CollectorRegistry()
    metrics = AnalysisMetrics(registry)
    for number in range(MOST_EXPERIMENTS + 10):
        metrics.decided("shop", f"experiment-{number}", "rollback", "guard", "harm")
    metrics.decided("shop", "experiment-0", "rollback", "guard", "harm")
    found = await told(registry)
    others = ("turnout_decisions_total", "harm", "other", "rollback", "other", "guard")
    first = ("turnout_decisions_total", "harm", "experiment-0", "rollback", "shop", "guard")
    assert found[others] == 10
    assert found[first] == 2
