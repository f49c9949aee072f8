"""What a bandit believes of its arms, beside what it has decided by."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from analysis.control.posterior import Posterior, read_posterior
from analysis.inference.bandit import Reallocation
from experiments import lifecycle
from tests.running import Turnout, problem
from tests.service.loop import SHOP, Service, Visitors, definition, mean, metric, rates

RATES = rates(c=0.5, a=0.3, b=0.2)


def bandit(**policy: Any) -> dict[str, Any]:
    """A bandit of three arms, whose control is neither the first nor the best of them by key."""
    thompson = {"kind": "thompson", "metric": "click", "every": "3s", "warmup": 50}
    weights = {"c": 1 / 3, "a": 1 / 3, "b": 1 / 3}
    return definition("x", metric("click", "primary"), weights=weights, policy=thompson | policy)


async def believed(service: Service) -> Posterior:
    """What the bandit believes now."""
    record = await service.find("x")
    async with service.pool.acquire() as connection:
        found = await read_posterior(connection, record)
    assert found is not None
    return found


async def reallocated(service: Service, visitors: Visitors) -> Reallocation:
    """Let units come until traffic has just been moved; the evidence of it."""
    before = len(await service.decisions("x"))
    for _ in range(30):
        await visitors.come(60, {"click": RATES})
        await service.tick()
        decisions = await service.decisions("x")
        if len(decisions) > before:
            return msgspec.convert(decisions[-1].evidence, Reallocation)
    raise AssertionError("nothing was moved")


@pytest.mark.parametrize("half_life", [None, "1m"])
async def test_it_is_what_the_rule_has_just_decided_by(
    service: Service, half_life: str | None
) -> None:
    await service.begin(bandit(half_life=half_life))
    visitors = Visitors(service, "x", seed=1)
    for _ in range(2):  # the second time over two epochs
        evidence = await reallocated(service, visitors)
        now = await believed(service)
        chances = {arm.variant: arm.chance_best for arm in now.arms}
        assert chances == pytest.approx(evidence.probability_best)
        assert [*chances] == ["c", "a", "b"]  # in the order of the definition
        assert sum(arm.weight for arm in now.arms) == pytest.approx(1)
        assert not now.warming_up
        assert all(arm.mean is not None and arm.std is not None for arm in now.arms)
        considered = await service.fetch("select considered_at from run")
        assert now.next_look == considered[0]["considered_at"] + timedelta(seconds=3)


async def test_before_the_warm_up_is_over_nothing_is_believed(service: Service) -> None:
    await service.begin(bandit(warmup=400))
    visitors = Visitors(service, "x", seed=2)
    await visitors.come(60, {"click": RATES})
    await service.settle(10)
    found = await believed(service)
    assert found.warming_up
    assert sum(arm.units for arm in found.arms) == 60
    assert {arm.chance_best for arm in found.arms} == {arm.mean for arm in found.arms} == {None}
    fewest = min(arm.units for arm in found.arms)
    assert f"needs 400 finished units, and the one with the fewest has {fewest}" in found.note


async def test_rates_of_one_allocation_have_beta_posteriors(service: Service) -> None:
    await service.begin(bandit(every="1h"))
    visitors = Visitors(service, "x", seed=3)
    await visitors.come(600, {"click": RATES})
    await service.settle(10)
    found = await believed(service)
    for arm in found.arms:
        clicks = sum(visitors.values("click", arm.variant))
        assert arm.beta == (1 + clicks, 1 + arm.units - clicks)
    assert found.note == "Beta posteriors from a flat prior."
    assert found.arms[0].chance_best == pytest.approx(1, abs=1e-3)


async def test_a_variant_that_is_rolled_back_has_none(service: Service) -> None:
    await service.begin(bandit(every="1h"))
    visitors = Visitors(service, "x", seed=4)
    await visitors.come(600, {"click": RATES})
    await service.settle(10)
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        await lifecycle.roll_back_variant(connection, record, "a", service.change())
    found = await believed(service)
    chances = {arm.variant: arm.chance_best for arm in found.arms}
    assert chances["a"] is None
    assert chances["c"] == pytest.approx(1, abs=1e-3)
    assert {arm.variant: arm.weight for arm in found.arms}["a"] == 0


async def test_what_has_ended_looks_no_more(service: Service) -> None:
    await service.begin(bandit())
    await service.conclude("x")
    assert (await believed(service)).next_look is None


async def test_without_a_bandit_or_a_run_there_is_none(service: Service) -> None:
    record = await service.begin(definition("y", mean("spent", "primary")))
    draft = await service.draft(bandit())
    async with service.pool.acquire() as connection:
        assert await read_posterior(connection, record) is None
        assert await read_posterior(connection, draft) is None


async def test_the_posterior_is_read_over_the_api(turnout: Turnout) -> None:
    policy = {"kind": "thompson", "metric": "click"}
    key = await turnout.start(policy=policy)
    analyst = turnout.client("analyst")
    answer = await analyst.get(f"/v1/experiments/{key}/posterior")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["metric"], body["warming_up"], body["warmup"]) == ("click", True, 100)
    assert [arm["variant"] for arm in body["arms"]] == ["old", "new"]
    assert body["arms"][0]["chance_best"] is None
    without = await turnout.define()
    problem(await analyst.get(f"/v1/experiments/{without}/posterior"), 404, "not-found")
