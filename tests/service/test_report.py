"""The report, from raw events to its numbers, beside statsmodels on the same raw data."""

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.inference.estimate import Comparison
from analysis.reports.markdown import render
from analysis.reports.report import Report
from experiments import lifecycle
from router.records import Record
from tests.service.loop import Service, Visitors, definition, mean, metric, rates

proportions_test = test_proportions_2indep
proportions_test.__test__ = False


def comparison(report: Report, place: int = 0) -> Comparison:
    """The fixed reading of the first treatment on a metric."""
    return report.metrics[place].comparisons[0].fixed


async def enrol(service: Service, epoch_units: dict[str, tuple[int, int]], key: str = "x") -> None:
    """Units of the current epoch, and how many of them click, by variant."""
    record = await service.find(key)
    records: list[Record] = []
    for variant, (units, clicks) in epoch_units.items():
        for number in range(units):
            unit = f"{record.epoch}-{variant}-{number}"
            records.append(service.exposure(record, unit, variant, service.clock.now))
            if number < clicks:
                records.append(service.outcome("click", unit, service.clock.now))
    await service.ship(records)
    await service.settle()


@pytest.mark.parametrize("settled", [False, True])
async def test_one_epoch_gives_what_statsmodels_gives_on_the_raw_data(
    service: Service, settled: bool
) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), mean("spent", "primary", window="3s"))
    )
    visitors = Visitors(service, "x", seed=1)
    responses = {
        "click": rates(a=0.2, b=0.25),
        "spent": lambda variant, generator: (
            generator.lognormvariate(1 if variant == "a" else 1.1, 1)
            if generator.random() < 0.7
            else None
        ),
    }
    for _ in range(10):
        await visitors.come(150, responses)
        await service.tick()
    if settled:
        await service.settle()
    report = await service.report("x")

    control, treatment = (np.array(visitors.values("click", arm)) for arm in "ab")
    counts = (int(treatment.sum()), len(treatment), int(control.sum()), len(control))
    wald = proportions_test(*counts, compare="diff", method="wald")
    found = comparison(report)
    assert (found.n_control, found.n_treatment) == (len(control), len(treatment))
    assert found.difference == pytest.approx(treatment.mean() - control.mean(), rel=1e-9)
    assert found.statistic == pytest.approx(wald.statistic, rel=1e-9)
    assert found.p_value == pytest.approx(wald.pvalue, rel=1e-9)
    interval = confint_proportions_2indep(*counts, compare="diff", method="wald")
    assert (found.ci_low, found.ci_high) == pytest.approx(interval, rel=1e-9)

    control, treatment = (np.array(visitors.values("spent", arm)) for arm in "ab")
    means = CompareMeans(DescrStatsW(treatment), DescrStatsW(control))
    t, p, df = means.ttest_ind(usevar="unequal")
    found = comparison(report, 1)
    assert found.mean_control == pytest.approx(control.mean(), rel=1e-9)
    assert found.mean_treatment == pytest.approx(treatment.mean(), rel=1e-9)
    assert (found.statistic, found.p_value, found.df) == pytest.approx((t, p, df), rel=1e-9)
    interval = means.tconfint_diff(usevar="unequal")
    assert (found.ci_low, found.ci_high) == pytest.approx(interval, rel=1e-9)


async def test_a_reallocation_does_not_bias_it_though_pooled_counts_go_astray(
    service: Service,
) -> None:
    """Nothing differs within a day, but the favourite of the good day has more units on it."""
    await service.begin(definition("x", metric("click", "primary"), weights={"a": 0.9, "b": 0.1}))
    days = [
        {"a": (900, 450), "b": (100, 50)},
        {"a": (100, 10), "b": (900, 90)},
    ]
    await enrol(service, days[0])
    await service.allocate("x", {"a": 0.1, "b": 0.9})
    await enrol(service, days[1])

    pooled = {arm: [sum(day[arm][i] for day in days) for i in (0, 1)] for arm in "ab"}
    naive = proportions_test(
        pooled["b"][1], pooled["b"][0], pooled["a"][1], pooled["a"][0], method="wald"
    )
    assert naive.diff < -0.3
    assert naive.pvalue < 1e-50

    report = await service.report("x")
    found = comparison(report)
    assert found.difference == pytest.approx(0, abs=1e-12)
    assert found.p_value == pytest.approx(1)
    assert found.mean_control == pytest.approx(0.3)  # of a population of two equal days
    assert report.verdict.action == "keep_running"
    assert report.epochs == 2
    assert any("never pooled over epochs" in note for note in report.notes)


async def test_a_difference_survives_a_reallocation_that_would_hide_it(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), weights={"a": 0.8, "b": 0.2}))
    await enrol(service, {"a": (1_600, 800), "b": (400, 240)})  # +0.1
    await service.allocate("x", {"a": 0.2, "b": 0.8})
    await enrol(service, {"a": (400, 40), "b": (1_600, 320)})  # +0.1
    assert (840 / 2_000) > (560 / 2_000)  # pooled, the treatment looks worse
    report = await service.report("x")
    assert comparison(report).difference == pytest.approx(0.1)
    assert report.conclusion.startswith("Ship b. b is better on click")


async def test_units_are_checked_against_the_propensities_of_their_epochs(
    service: Service,
) -> None:
    await service.begin(definition("x", metric("click", "primary"), weights={"a": 0.5, "b": 0.5}))
    epochs = [(500, 500), (900, 100), (250, 750)]
    for control, treatment in epochs:
        total = control + treatment
        await service.allocate("x", {"a": control / total, "b": treatment / total})
        await enrol(service, {"a": (control, control // 5), "b": (treatment, treatment // 5)})
    latest = stats.chisquare([1_650, 1_350], [750, 2_250])
    assert latest.pvalue < 1e-100
    ratio = (await service.report("x")).sample_ratio
    assert ratio.observed == {"a": 1_650, "b": 1_350}
    assert ratio.expected == pytest.approx({"a": 1_650, "b": 1_350})
    assert ratio.p_value == pytest.approx(1)

    record = await service.find("x")
    lost = [service.exposure(record, f"more {i}", "b", service.clock.now) for i in range(600)]
    await service.ship(lost)  # and no unit of the control
    await service.settle()
    report = await service.report("x")
    assert report.sample_ratio.mismatch
    assert report.conclusion.startswith("Fix the data first")


async def test_a_unit_of_a_variant_without_propensity_is_a_mismatch(service: Service) -> None:
    record = await service.begin(
        definition("x", metric("click", "primary"), weights={"a": 0.5, "b": 0.5, "c": 0.0})
    )
    await service.ship([service.exposure(record, "u", "c", service.clock.now)])
    await service.tick()
    report = await service.report("x")
    assert report.sample_ratio.impossible == ("c",)
    assert report.conclusion.startswith("Fix the data first")


async def test_before_its_windows_have_passed_it_asks_for_patience(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary", window="1h")))
    visitors = Visitors(service, "x", seed=2)
    await visitors.come(600, {"click": rates(a=0.1, b=0.5)})
    await service.tick()
    waiting = await service.report("x")
    assert comparison(waiting).p_value == pytest.approx(0, abs=1e-9)
    assert "b on click has too few finished units, 0 of the 100" in waiting.conclusion
    assert waiting.verdict.action == "keep_running"
    await service.settle(2 * 3_600)
    assert (await service.report("x")).verdict.action == "ship"


async def test_it_says_about_how_long_the_run_still_takes(service: Service) -> None:
    plan = {"effect": {"relative": 0.1}}
    await service.begin(definition("x", metric("click", "primary"), analysis=plan))
    visitors = Visitors(service, "x", seed=4)
    await visitors.come(1_000, {"click": rates(a=0.3, b=0.31)}, seconds=100)
    await service.settle(10)
    report = await service.report("x")
    verdict = report.verdict
    assert verdict.action == "keep_running"
    assert verdict.more_units is not None
    seconds = verdict.more_units / (1_000 / 110) + 2  # the window of the metric
    assert verdict.more_seconds == pytest.approx(seconds, rel=0.05)
    assert report.conclusion.startswith("Keep running, about ")
    assert "to tell the plan's effect of" in verdict.what_would_change_it


async def test_a_guardrail_shows_its_evidence_and_a_rollback_its_reason(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), metric("ok", "guardrail")))
    visitors = Visitors(service, "x", seed=3)
    await visitors.come(40, {"ok": rates(a=0.5, b=0.5)})
    await service.settle()
    [before] = (await service.report("x")).guard
    assert not before.alarm
    assert before.units == 40
    for _ in range(10):
        await visitors.come(40, {"click": rates(a=0.1, b=0.9), "ok": rates(a=0.9, b=0.1)})
        await service.settle()
        if (await service.find("x")).state == "rolled_back":
            break
    report = await service.report("x")
    [row] = report.guard
    assert row.alarm
    assert row.log_peak >= row.log_threshold
    assert row.bound == "exact"
    assert report.conclusion.startswith("Rolled back to a: guardrail ok of b: ")
    assert "of the control, where" in report.conclusion
    assert "harmless variants would ever show" in report.conclusion

    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, "shop", "x", lock=True)
        await lifecycle.archive(connection, record, service.change())
    assert (await service.report("x")).conclusion == report.conclusion


STRANGE: dict[str, list[tuple[str, float | None]]] = {
    "nobody": [],
    "one unit": [("a", 1.0)],
    "one of each": [("a", None), ("b", 3.0)],
    "a treatment only": [("b", 1.0), ("b", 2.0)],
    "all the same": [("a", 2.0), ("b", 2.0)] * 150,
    "nothing at all": [("a", None), ("b", None)] * 150,
    "beyond measure": [("a", 1e308), ("b", -1e308), ("a", 1.0), ("b", 1.0)] * 60,
}


@pytest.mark.parametrize("case", STRANGE)
async def test_a_number_that_is_not_defined_is_null(service: Service, case: str) -> None:
    record = await service.begin(
        definition(
            "x",
            metric("click", "primary"),
            mean("click-sum", "primary", event="click"),
            mean("click-guard", "guardrail", event="click", margin={"relative": 0.1}),
        )
    )
    records: list[Record] = []
    for number, (variant, value) in enumerate(STRANGE[case]):
        at = service.clock.now
        records.append(service.exposure(record, f"u{number}", variant, at))
        if value is not None:
            records.append(service.outcome("click", f"u{number}", at, value))
    if records:
        await service.ship(records)
    await service.settle()
    report = await service.report("x")
    data = msgspec.to_builtins(report)
    assert all(math.isfinite(number) for number in numbers(data))
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert "nan" not in render(report).lower().split()
    assert report.verdict.action != "ship"
    assert (await service.find("x")).state == "running"


async def test_a_draft_has_a_report(service: Service) -> None:
    await service.draft(definition("x", metric("click", "primary")))
    report = await service.report("x")
    assert report.conclusion == "No units yet: nothing is known."
    assert report.started_at is None


def numbers(data: Any) -> Iterator[float]:
    """All numbers in JSON data."""
    match data:
        case dict():
            for value in data.values():
                yield from numbers(value)
        case list() | tuple():
            for value in data:
                yield from numbers(value)
        case float():
            yield data
