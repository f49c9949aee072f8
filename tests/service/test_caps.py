"""Caps at a quantile of the data: resolved once, over all variants, and a number from then on."""

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import numpy as np
import pytest
from redis.asyncio import Redis

from analysis.upkeep.verify import verify
from experiments.caps import MIN_UNITS
from experiments.model import MeanMetric, QuantileCap
from tests.service.loop import Service, Visitors, definition, mean, metric
from tests.service.recount import check

DAY = 86_400


@pytest.fixture
async def keeping(pool: asyncpg.Pool, redis_url: str) -> AsyncIterator[Service]:
    """The loop, with raw events that are kept for a day."""
    async with Redis.from_url(redis_url) as redis:
        yield Service(pool, redis, timedelta(days=1))


def spends(variant: str, generator: random.Random) -> float | None:
    """Three in ten buy, a few of them for very much."""
    if generator.random() > 0.3:
        return None
    return generator.lognormvariate(3.0 if variant == "a" else 3.1, 1.2)


def spent(**others: Any) -> dict[str, Any]:
    """A metric whose cap is at the 90 % quantile of the units that bought."""
    return mean("spent", event="buy", cap={"quantile": 0.9}, **others)


async def shop(service: Service, units: int, **others: Any) -> Visitors:
    """An experiment with such a metric, and units whose windows have passed."""
    await service.begin(definition("x", spent(role="primary", **others)))
    visitors = Visitors(service, "x", seed=7)
    await visitors.come(units, {"buy": spends})
    await service.settle()
    return visitors


async def check_all(service: Service) -> None:
    """What is kept is what the raw events say."""
    async with service.pool.acquire() as connection:
        await check(connection)


async def resolved(service: Service) -> list[float | None]:
    return [row["cap"] for row in await service.fetch("select cap from quantile_cap")]


async def test_a_cap_waits_until_enough_units_have_finished(service: Service) -> None:
    await shop(service, MIN_UNITS - 10)
    await service.settle()
    assert await resolved(service) == [None]
    report = await service.report("x")
    [metric] = report.metrics
    assert sum(arm.finished for arm in metric.arms.values()) == MIN_UNITS - 10
    assert metric.cap == QuantileCap(quantile=0.9)
    assert [check.severity for check in report.quality if check.code == "cap_open"] == ["info"]


async def test_a_cap_is_the_quantile_of_the_values_of_all_variants_together(
    service: Service,
) -> None:
    visitors = await shop(service, 1_500)
    await service.settle()
    values = [v["buy"] for _, _, v in visitors.seen if "buy" in v]
    expected = float(np.quantile(values, 0.9))
    [cap] = await resolved(service)
    assert cap == pytest.approx(expected, rel=1e-12)
    report = await service.report("x")
    assert report.metrics[0].cap == cap
    assert [check for check in report.quality if check.code == "cap_open"] == []
    [comparison] = report.metrics[0].comparisons
    for arm, level in (
        ("a", comparison.fixed.mean_control),
        ("b", comparison.fixed.mean_treatment),
    ):
        capped = np.minimum(visitors.values("buy", arm), expected)
        assert level == pytest.approx(capped.mean(), rel=1e-12)
    await check_all(service)


async def test_a_resolved_cap_stays_whatever_later_units_spend(service: Service) -> None:
    visitors = await shop(service, 1_500)
    await service.settle()
    before = await resolved(service)
    await visitors.come(3_000, {"buy": lambda *_: 10_000.0})
    await service.settle()
    await service.settle()
    assert await resolved(service) == before
    report = await service.report("x")
    mean_of_b = report.metrics[0].comparisons[0].fixed.mean_treatment
    assert before[0] is not None
    assert mean_of_b is not None
    assert mean_of_b < before[0]
    await check_all(service)


async def test_the_metric_is_kept_in_its_version_with_the_cap_only(service: Service) -> None:
    await shop(service, 1_500)
    await service.settle()
    assert len(await service.fetch("select from run_metric")) == 1


async def test_units_whose_raw_events_were_dropped_are_counted_with_the_cap(
    keeping: Service,
) -> None:
    visitors = await shop(keeping, 800)
    for _ in range(3):
        await keeping.settle(DAY)
    [position] = await keeping.fetch("select kept_from from fold_position")
    assert position["kept_from"] > keeping.clock.now - timedelta(days=2), "nothing was dropped"
    await visitors.come(400, {"buy": spends})
    for _ in range(3):
        await keeping.settle()
    [cap] = await resolved(keeping)
    assert cap is not None
    [metric_report] = (await keeping.report("x")).metrics
    assert sum(arm.finished for arm in metric_report.arms.values()) == 1_200
    [comparison] = metric_report.comparisons
    capped = np.minimum(visitors.values("buy", "b"), cap)
    assert comparison.fixed.mean_treatment == pytest.approx(capped.mean(), rel=1e-12)
    assert comparison.continuous.n_treatment == len(capped)
    async with keeping.pool.acquire() as connection:
        verdict = await verify(connection, None, None, lambda _: None)
    assert verdict.named == ()


async def test_a_cap_that_was_taken_back_is_not_resolved(service: Service) -> None:
    """A guardrail of the same version comes in its place, and goes on being watched."""
    others: dict[str, Any] = {"window": "2s", "margin": {"absolute": 100.0}, "goal": "decrease"}
    await service.begin(definition("x", metric("click", "primary"), spent()))
    visitors = Visitors(service, "x", seed=3)
    await visitors.come(500, {"buy": spends})
    await service.settle()
    guardrail = mean("spent", "guardrail", event="buy", **others)
    await service.amend("x", {"metrics": [metric("click", "primary"), guardrail]})
    for _ in range(4):
        await visitors.come(400, {"buy": spends})
        await service.settle()
    assert await resolved(service) == []
    [watched] = (await service.report("x")).guard
    assert watched.units >= 600
    await check_all(service)


async def test_the_definition_keeps_saying_quantile(service: Service) -> None:
    await shop(service, 1_500)
    await service.settle()
    [metric] = (await service.find("x")).definition.metrics
    assert isinstance(metric, MeanMetric)
    assert metric.cap == QuantileCap(quantile=0.9)
