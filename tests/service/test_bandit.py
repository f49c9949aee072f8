"""The bandit against a real Postgres: small steps towards what works, each of them explained."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from analysis.inference.bandit import Reallocation, propose
from analysis.inference.exact import quotient
from experiments.allocation import propensities
from experiments.records import Decision
from tests.service.loop import Respond, Service, Visitors, definition, mean, metric, rates

PER_TICK = 60
EVERY = 3
"""Seconds between two moves."""


def thompson(**others: Any) -> dict[str, Any]:
    """A policy in small steps."""
    return {
        "kind": "thompson",
        "metric": "click",
        "every": f"{EVERY}s",
        "floor": 0.05,
        "warmup": 50,
        "max_step": 0.1,
    } | others


async def shares(service: Service) -> list[dict[str, float]]:
    """The propensities of all epochs, in order."""
    return [propensities(epoch.allocation) for epoch in await service.epochs("x")]


async def live(
    service: Service, visitors: Visitors, ticks: int, respond: Mapping[str, Respond]
) -> None:
    """Let units come, and the controller tick."""
    for _ in range(ticks):
        await visitors.come(PER_TICK, respond)
        await service.tick()


def evidence(decision: Decision) -> Reallocation:
    """The evidence of a reallocation, as it comes out of the API's JSON."""
    return msgspec.json.decode(msgspec.json.encode(decision.evidence), type=Reallocation)


FOUR = {"dddd": 0.25, "ccc": 0.25, "bb": 0.25, "a": 0.25}
"""Not in the order in which JSON in Postgres keeps them."""


async def test_traffic_goes_to_what_works_in_steps_and_keeps_its_floor(service: Service) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), weights=FOUR, policy=thompson())
    )
    visitors = Visitors(service, "x", seed=1)
    click = rates(a=0.6, bb=0.3, ccc=0.25, dddd=0.2)
    await live(service, visitors, 50, {"click": click})
    weights = await shares(service)
    assert len(weights) > 5
    assert weights[-1]["a"] > 0.8
    assert min(min(epoch.values()) for epoch in weights) >= 0.05 - 1e-9
    for before, after in pairwise(weights):
        steps = [abs(after[variant] - before[variant]) for variant in FOUR]
        assert max(steps) <= 0.1 + 1e-4  # a slot is the least that moves
        assert sum(steps) / 2 >= 0.01


async def test_a_reallocation_can_be_computed_again_from_what_is_stored(service: Service) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), weights=FOUR, policy=thompson())
    )
    visitors = Visitors(service, "x", seed=2)
    await live(service, visitors, 30, {"click": rates(a=0.2, bb=0.25, ccc=0.3, dddd=0.35)})
    decisions = await service.decisions("x")
    epochs = {epoch.number: epoch for epoch in await service.epochs("x")}
    assert len(decisions) > 3
    assert len(epochs) == len(decisions) + 1
    for decision in decisions:
        kept = evidence(decision)
        again = propose(kept.inputs)
        assert again is not None
        assert again.weights == kept.weights
        assert again.probability_best == kept.probability_best
        epoch = epochs[decision.epoch_after]
        assert (epoch.decision, epoch.at) == (decision.id, decision.at)
        shares = propensities(epoch.allocation)
        assert shares == pytest.approx(kept.weights, abs=1e-4)
        before = propensities(epochs[decision.epoch_before].allocation)
        assert kept.inputs.weights == pytest.approx(before)


async def test_it_reads_finished_units_only(service: Service) -> None:
    await service.begin(
        definition("x", metric("click", "primary", window="30s"), policy=thompson())
    )
    visitors = Visitors(service, "x", seed=3)
    await live(service, visitors, 20, {"click": rates(a=0.1, b=0.9)})
    assert await service.decisions("x") == []
    await service.settle()
    [decision] = await service.decisions("x")
    inputs = evidence(decision).inputs
    finished = inputs.finished
    assert sum(arm.n for arm in finished.arms.values()) == 20 * PER_TICK
    for variant, arm in finished.arms.items():
        values = visitors.values("click", variant)
        assert arm.n == len(values)
        assert quotient(arm.mean[0], finished.weight) == pytest.approx(sum(values) / len(values))


async def test_it_waits_for_its_warm_up(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), policy=thompson(warmup=1_000)))
    visitors = Visitors(service, "x", seed=4)
    await live(service, visitors, 20, {"click": rates(a=0.1, b=0.9)})
    assert await service.decisions("x") == []
    await live(service, visitors, 25, {"click": rates(a=0.1, b=0.9)})
    assert len(await service.decisions("x")) > 0


async def test_moves_under_a_hundredth_make_no_epoch_and_no_decision(service: Service) -> None:
    policy = thompson(floor=0.499)
    await service.begin(definition("x", metric("click", "primary"), policy=policy))
    visitors = Visitors(service, "x", seed=5)
    await live(service, visitors, 20, {"click": rates(a=0.1, b=0.9)})
    assert await service.decisions("x") == []
    assert len(await service.epochs("x")) == 1


async def test_a_paused_experiment_is_not_reallocated(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), policy=thompson()))
    visitors = Visitors(service, "x", seed=6)
    await visitors.come(500, {"click": rates(a=0.1, b=0.9)})
    await service.pause("x")
    for _ in range(3):
        await service.settle()
    assert await service.decisions("x") == []


async def test_moves_are_apart_by_the_time_that_the_policy_names(service: Service) -> None:
    """Also where another process takes the lead before each tick, and knows nothing of the last."""
    await service.begin(definition("x", metric("click", "primary"), policy=thompson()))
    visitors = Visitors(service, "x", seed=7)
    leader = service.controller
    for tick in range(30):
        await visitors.come(PER_TICK, {"click": rates(a=0.4, b=0.6)}, seconds=0.5)
        if tick % 2:
            await service.execute("delete from lease")
            leader = service.new_controller(f"leader {tick}")
        assert await leader.tick()
    times = [epoch.at for epoch in await service.epochs("x")]
    assert len(times) > 2
    pauses = [(after - before).total_seconds() for before, after in pairwise(times)]
    assert min(pauses) >= EVERY


async def test_a_mean_that_should_fall_moves_traffic_to_the_lowest(service: Service) -> None:
    await service.begin(
        definition(
            "x",
            mean("wait", "primary", goal="decrease"),
            policy=thompson(metric="wait", max_step=1),
        )
    )
    visitors = Visitors(service, "x", seed=8)
    waits = {"a": 5.0, "b": 4.0}
    await live(
        service, visitors, 25, {"wait": lambda variant, g: g.expovariate(1 / waits[variant])}
    )
    assert (await shares(service))[-1]["b"] > 0.8


async def test_a_harmful_favourite_is_rolled_back(service: Service) -> None:
    """The guard comes first, whatever the bandit likes."""
    await service.begin(
        definition(
            "x",
            metric("click", "primary"),
            metric("error", "guardrail", goal="decrease"),
            policy=thompson(),
        )
    )
    visitors = Visitors(service, "x", seed=9)
    bait = {"click": rates(a=0.2, b=0.5), "error": rates(a=0.02, b=0.2)}
    for _ in range(40):
        await live(service, visitors, 1, bait)
        if (await service.find("x")).state == "rolled_back":
            break
    decisions = await service.decisions("x")
    assert decisions[-1].kind == "rollback"
    assert {decision.kind for decision in decisions[:-1]} <= {"reallocate"}
    record = await service.find("x")
    assert (record.state, record.epoch) == ("rolled_back", decisions[-1].epoch_after)
    await live(service, Visitors(service, "x", seed=10), 5, bait)
    assert len(await service.decisions("x")) == len(decisions)


async def test_weights_are_whole_whatever_happens(service: Service) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), weights=FOUR, policy=thompson(max_step=1))
    )
    visitors = Visitors(service, "x", seed=11)
    await live(service, visitors, 15, {"click": rates(a=1.0, bb=0.0, ccc=0.0, dddd=0.0)})
    for weights in await shares(service):
        assert weights.keys() == FOUR.keys()
        assert math.fsum(weights.values()) == pytest.approx(1)
