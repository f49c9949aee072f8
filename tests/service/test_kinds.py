"""Ratios, covariates, quantiles and aggregates: from definitions and raw events to the report."""

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from analysis.inference.estimate import Comparison
from analysis.reports.markdown import render
from analysis.reports.model import MetricReport
from analysis.reports.report import Report
from experiments import lifecycle
from router.records import Record
from tests.service.loop import SHOP, Service, definition, mean, metric
from tests.service.recount import check
from tests.service.test_fold import Mix
from tests.service.test_report import STRANGE, numbers

Numbers = NDArray[np.float64]


def ratio(key: str, numerator: str, denominator: str, **others: Any) -> dict[str, Any]:
    """A ratio metric of a definition."""
    data = metric(key, kind="ratio", numerator=numerator, denominator=denominator, **others)
    del data["event"]
    return data


def quantile(key: str, level: float, **others: Any) -> dict[str, Any]:
    """A quantile metric of a definition."""
    return metric(key, kind="quantile", quantile=level, **others)


class EveryKind(Mix):
    """A random life of experiments with metrics of every kind."""

    async def begin(self) -> None:
        metrics = (
            mean("spent", event="buy", window="60s", cap=20, covariate="30s"),
            ratio("rate", "click", "buy", window="40s", covariate="20s"),
            ratio("share", "look", "click", window="30s"),
            quantile("usual", 0.5, event="buy", window="25s"),
            mean("most", event="buy", aggregate="max", window="20s"),
            mean("final", event="buy", aggregate="last", window="45s", covariate="60s"),
            mean("average", event="look", aggregate="mean", window="30s", covariate="10s"),
        )
        for key, weights in (("x", {"a": 0.5, "b": 0.5}), ("y", {"a": 0.2, "b": 0.3, "c": 0.5})):
            record = await self.service.begin(definition(key, *metrics, weights=weights))
            self.epochs["shop", key] = [(record.run, record.epoch)]


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_kept_of_every_kind_is_that_of_the_raw_events(
    service: Service, seed: int
) -> None:
    life = EveryKind(service, seed)
    await life.begin()
    await life.live(steps=5)
    for key in "xy":
        report = await service.report(key)
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
        assert "nan" not in render(report).lower().split()


@pytest.mark.parametrize("case", STRANGE)
async def test_a_number_that_is_not_defined_is_null(service: Service, case: str) -> None:
    await service.draft(
        definition(
            "x",
            ratio("per-click", "click", "click", role="primary", covariate="1h"),
            ratio("per-look", "click", "look", role="primary"),
            mean("adjusted", "primary", event="click", covariate="1h"),
            quantile("usual", 0.5, event="click", role="primary"),
        )
    )
    assert (await service.report("x")).conclusion == "No units yet: nothing is known."
    record = await service.start("x")
    at = service.clock.now
    records: list[Record] = []
    for number, (variant, value) in enumerate(STRANGE[case]):
        records.append(service.exposure(record, f"u{number}", variant, at))
        if value is not None:
            records.append(service.outcome("click", f"u{number}", at, value))
    if records:
        await service.ship(records)
    await service.settle()
    report = await service.report("x")
    assert all(math.isfinite(number) for number in numbers(msgspec.to_builtins(report)))
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert "nan" not in render(report).lower().split()
    assert report.verdict.action != "ship"
    assert fixed(report, "per-look").mean_control is None  # nobody looked


def found(report: Report, key: str) -> MetricReport:
    """A metric of the report."""
    return next(m for m in report.metrics if m.key == key)


def fixed(report: Report, key: str) -> Comparison:
    """The fixed reading of the first treatment on a metric."""
    return found(report, key).comparisons[0].fixed


class Shop:
    """Units that did things before and after they were enrolled, and what they did, by variant."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.random = random.Random(seed)  # noqa: S311 - a simulation
        self.bought: dict[str, list[list[float]]] = {"a": [], "b": []}
        self.spent_before: dict[str, list[float]] = {"a": [], "b": []}
        self.requests: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}

    async def come(self, units: int, split: float = 0.5, level: float = 1.0) -> None:
        """Units come, the treated ones with a chance of `split`, and do what they do at once."""
        record = await self.service.find("x")
        before = self.service.clock.now
        self.service.clock.advance(10)
        at = self.service.clock.now
        records: list[Record] = []
        for number in range(units):
            unit = f"{record.epoch}-{number}-{len(self.bought['a'])}"
            variant = "b" if self.random.random() < split else "a"
            records.append(self.service.exposure(record, unit, variant, at))
            usual = level * self.random.lognormvariate(0, 1)
            records.append(self.service.outcome("buy", unit, before, usual))
            self.spent_before[variant].append(usual)
            amounts = [
                usual * self.random.lognormvariate(0.1 if variant == "b" else 0.0, 0.3)
                for _ in range(self.random.randrange(3))
            ]
            records += [self.service.outcome("buy", unit, at, amount) for amount in amounts]
            self.bought[variant].append(amounts)
            requests = self.random.randrange(1, 20)
            errors = sum(self.random.random() < 0.1 * level for _ in range(requests))
            records += [self.service.outcome("request", unit, at)] * requests
            records += [self.service.outcome("error", unit, at)] * errors
            self.requests[variant].append((errors, requests))
        await self.service.ship(records)
        await self.service.settle()

    def each(self, of: Any) -> tuple[Numbers, Numbers]:
        """A number of each unit's purchases, of the control and of the treatment."""
        control, treatment = (np.array([float(of(x)) for x in self.bought[v]]) for v in "ab")
        return control, treatment


def last(amounts: Sequence[float]) -> float:
    """Of purchases at one time the greatest counts as the last."""
    return max(amounts, default=0.0)


async def test_a_mean_of_any_aggregate_is_welchs_on_the_raw_numbers(service: Service) -> None:
    """A unit without outcomes counts 0."""
    aggregates = {"mean": lambda x: np.mean(x) if x else 0.0, "max": last, "last": last}
    metrics = [mean(key, event="buy", aggregate=key, cap=5) for key in aggregates]
    await service.begin(definition("x", *metrics))
    shop = Shop(service, seed=1)
    await shop.come(400)
    report = await service.report("x")
    for key, of in aggregates.items():
        control, treatment = (np.minimum(each, 5.0) for each in shop.each(of))
        expected = stats.ttest_ind(treatment, control, equal_var=False)
        result = fixed(report, key)
        assert (control == 0).any()
        assert result.n_control == len(control)
        assert result.mean_treatment == pytest.approx(treatment.mean(), rel=1e-9)
        assert (result.p_value, result.df) == pytest.approx((expected.pvalue, expected.df))


async def test_a_ratio_counts_events_without_a_value_and_sums_those_with_one(
    service: Service,
) -> None:
    await service.begin(
        definition("x", ratio("errors", "error", "request"), ratio("per-request", "buy", "request"))
    )
    shop = Shop(service, seed=2)
    await shop.come(500)
    report = await service.report("x")
    errors, requests = (
        [np.array([float(pair[place]) for pair in shop.requests[v]]) for v in "ab"]
        for place in (0, 1)
    )
    for key, numerators in (("errors", errors), ("per-request", shop.each(sum))):
        ratios, variance = [], 0.0
        for x, y in zip(numerators, requests, strict=True):
            level, v = x.sum() / y.sum(), np.cov(x, y)
            ratios.append(level)
            square = v[0, 0] - 2 * level * v[0, 1] + level**2 * v[1, 1]
            variance += square / (len(x) * y.mean() ** 2)
        result = fixed(report, key)
        assert (result.mean_control, result.mean_treatment) == pytest.approx(tuple(ratios))
        assert result.difference == pytest.approx(ratios[1] - ratios[0])
        assert result.std_error == pytest.approx(math.sqrt(variance))
        assert found(report, key).comparisons[0].continuous.reading.valid
    assert any("holds asymptotically (errors, per-request)" in note for note in report.notes)


async def test_a_covariate_makes_the_variance_smaller(service: Service) -> None:
    await service.begin(
        definition(
            "x",
            mean("spent", "primary", event="buy", covariate="1h"),
            mean("plain", event="buy"),
            ratio("per-request", "buy", "request", covariate="1h"),
        )
    )
    shop = Shop(service, seed=3)
    await shop.come(700)
    report = await service.report("x")
    outcome, z = shop.each(sum), [np.array(shop.spent_before[v]) for v in "ab"]
    products = [np.cov(y, x) * (len(y) - 1) for y, x in zip(outcome, z, strict=True)]
    theta = sum(p[0, 1] for p in products) / sum(p[1, 1] for p in products)
    rest = [y - theta * x for y, x in zip(outcome, z, strict=True)]
    result, plain = fixed(report, "spent"), fixed(report, "plain")
    assert result.theta == pytest.approx(theta, rel=1e-9)
    assert result.difference == pytest.approx(rest[1].mean() - rest[0].mean(), rel=1e-9)
    error = math.sqrt(sum(r.var(ddof=1) / len(r) for r in rest))
    assert result.std_error == pytest.approx(error, rel=1e-9)
    assert plain.std_error is not None
    assert plain.theta is None
    fall = 1 - (error / plain.std_error) ** 2
    assert result.variance_reduction == pytest.approx(fall, rel=1e-9)
    assert fall > 0.3
    text = render(report)
    assert "primary, mean adjusted by 1h before, goal increase" in text
    assert f"- b: the covariate made the variance {100 * fall:.3g} % smaller." in text
    # Nobody made requests before, so this ratio has no covariate to speak of.
    assert fixed(report, "per-request").notes == ("constant_covariate",)
    assert "- b: the covariate does not vary" in text


async def test_a_reallocation_biases_neither_ratios_nor_adjusted_means(service: Service) -> None:
    """Twice the errors on the day on which most are treated: no difference within a day."""
    await service.begin(
        definition(
            "x",
            ratio("errors", "error", "request", role="primary"),
            mean("before", event="buy", covariate="1h"),
            quantile("usual", 0.5, event="buy"),
            weights={"a": 0.9, "b": 0.1},
        )
    )
    shop = Shop(service, seed=4)
    await shop.come(1_000, 0.1)
    unmoved = await service.report("x")
    assert fixed(unmoved, "usual").difference is not None
    await service.allocate("x", {"a": 0.1, "b": 0.9})
    await shop.come(1_000, 0.9, level=3.0)
    report = await service.report("x")
    result = fixed(report, "errors")
    assert result.std_error is not None
    assert abs(result.difference or 0.0) < 3 * result.std_error
    totals = [np.sum(shop.requests[v], axis=0) for v in "ab"]
    assert totals[1][0] / totals[1][1] - totals[0][0] / totals[0][1] > 10 * result.std_error
    lost = found(report, "usual")
    assert fixed(report, "usual").notes == ("reallocated",)
    assert fixed(report, "usual").difference is None
    assert lost.comparisons[0].continuous.difference is None
    assert lost.arms["a"].quantile is None
    assert any("not available after a reallocation (usual)" in note for note in report.notes)
    assert "- b: quantiles are not available after a reallocation." in render(report)


async def test_a_quantile_is_that_of_the_units_that_have_a_value(service: Service) -> None:
    await service.begin(
        definition(
            "x",
            quantile("usual", 0.5, event="buy", role="primary"),
            quantile("slow", 0.9, event="buy"),
            quantile("rare", 0.999, event="buy"),
        )
    )
    shop = Shop(service, seed=5)
    await shop.come(900)
    await service.pause("x")
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        await lifecycle.resume(connection, record, service.change())
    await shop.come(900)
    report = await service.report("x")
    assert report.epochs == 2
    values = [np.array([np.mean(x) for x in shop.bought[v] if x]) for v in "ab"]
    for key, level in (("usual", 0.5), ("slow", 0.9)):
        result, metric = fixed(report, key), found(report, key)
        exact = [float(np.quantile(v, level)) for v in values]
        assert (result.n_control, result.n_treatment) == tuple(map(len, values))
        assert (result.mean_control, result.mean_treatment) == pytest.approx(exact, rel=0.02)
        h = stats.norm.isf(0.025) * np.sqrt(level * (1 - level) / len(values[0]))
        ends = np.quantile(values[0], [level - h, level + h]).tolist()
        own = metric.arms["a"].quantile
        assert own is not None
        assert (own.ci_low, own.ci_high) == pytest.approx(ends, rel=0.03)
        assert result.std_error is not None
        assert result.difference == (result.mean_treatment or 0) - (result.mean_control or 0)
        assert metric.comparisons[0].continuous.reading.valid
        assert metric.arms["a"].units == len(shop.bought["a"])
    assert fixed(report, "rare").notes == ("too_few_units",)
    assert fixed(report, "rare").difference is not None
    text = render(report)
    assert "secondary, quantile 0.9, goal increase" in text
    assert f"of {len(values[0]):,} units with a value." in text
    async with service.pool.acquire() as connection:
        await check(connection)


async def test_a_quantile_that_cannot_be_compared_concludes_nothing(service: Service) -> None:
    await service.begin(definition("x", quantile("usual", 0.5, event="buy", role="primary")))
    shop = Shop(service, seed=6)
    await shop.come(300)
    await service.allocate("x", {"a": 0.2, "b": 0.8})
    await shop.come(300, 0.8)
    report = await service.report("x")
    assert report.conclusion.startswith(
        "Keep the control. The plan cannot be followed: traffic was"
    )
