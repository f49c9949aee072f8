"""The bandit against a real Postgres: small steps towards what works, each of them explained."""

import math
import random
from collections.abc import Mapping
from datetime import timedelta
from itertools import count, pairwise
from typing import Any

import msgspec
import pytest

from analysis.folding.cells import ALL, CLOSED
from analysis.folding.fading import read_discounted
from analysis.folding.totals import read_total
from analysis.inference.bandit import Reallocation, propose
from analysis.inference.discounted import Discounted, ScoredCell, follow, start
from analysis.inference.exact import quotient
from analysis.inference.moments import Moments
from analysis.inference.thompson import posterior, probability_best
from experiments import lifecycle
from experiments.allocation import propensities
from experiments.records import Decision
from router.records import Record
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


async def test_slow_conversions_do_not_favour_the_fast(service: Service) -> None:
    """Both convert alike in the end, a within a second and b after fifteen. As long as units count
    that are still within their window, a looks better by far."""
    await service.begin(
        definition("x", metric("click", "primary", window="20s"), policy=thompson(floor=0.4))
    )
    random_ = random.Random(12)  # noqa: S311 - a simulation
    numbers, late = count(1), list[tuple[str, Any]]()
    for _ in range(36):
        record = await service.find("x")
        chances = (await shares(service))[-1]
        begun = service.clock.now
        service.clock.advance(1)
        records: list[Record] = []
        for _ in range(PER_TICK):
            unit, at = f"u{next(numbers)}", begun + timedelta(seconds=random_.random())
            [variant] = random_.choices([*chances], [*chances.values()])
            records.append(service.exposure(record, unit, variant, at))
            if random_.random() < 0.5:
                late.append((unit, at + timedelta(seconds=0 if variant == "a" else 15)))
        records += [service.outcome("click", u, at) for u, at in late if at <= service.clock.now]
        late = [(unit, at) for unit, at in late if at > service.clock.now]
        await service.ship(records)
        await service.shipped()
        await service.tick()
    [row] = await service.fetch("select id from run_metric")
    async with service.pool.acquire() as connection:
        totals = {block: await read_total(connection, row["id"], block) for block in (ALL, CLOSED)}
    rate = {
        block: {v: arm.converted / arm.n for v, arm in total.contrasts["b"].arms.items()}
        for block, total in totals.items()
    }
    assert rate[ALL]["b"] < 0.85 * rate[ALL]["a"]  # what a bandit must not stand on
    assert rate[CLOSED]["b"] == pytest.approx(rate[CLOSED]["a"], abs=0.1)
    best = {}
    for block, total in totals.items():
        known = posterior(total.together, "proportion")
        assert known is not None
        best[block] = probability_best(known, "increase")["a"]
    assert best[ALL] > 0.999
    assert best[CLOSED] < 0.99


async def test_floors_and_a_pinned_control_are_reached_in_steps(service: Service) -> None:
    policy = thompson(floors={"bb": 0.2}, pin_control=0.1, max_step=0.1, sampling="top_two")
    await service.begin(definition("x", metric("click", "primary"), weights=FOUR, policy=policy))
    visitors = Visitors(service, "x", seed=13)
    click = rates(a=0.6, bb=0.2, ccc=0.2, dddd=0.9)
    await live(service, visitors, 22, {"click": click})
    weights = await shares(service)
    assert 0.1 < weights[1]["dddd"] < 0.25
    assert weights[-1]["dddd"] == pytest.approx(0.1)  # the control, though it is the best
    assert weights[-1]["bb"] >= 0.2 - 1e-9
    assert weights[-1]["a"] == pytest.approx(0.05 + 0.6 / 2, abs=0.03)
    decision = (await service.decisions("x"))[-1]
    kept = evidence(decision)
    assert (kept.inputs.pin_control, kept.inputs.sampling) == (0.1, "top_two")
    assert propose(kept.inputs) == kept
    assert "top_two on click: dddd is best" in decision.reason


async def test_a_variant_that_is_rolled_back_is_left_out_until_it_is_resumed(
    service: Service,
) -> None:
    three = {"a": 0.4, "b": 0.3, "c": 0.3}
    await service.begin(
        definition("x", metric("click", "primary"), weights=three, policy=thompson())
    )
    visitors = Visitors(service, "x", seed=14)
    click = {"click": rates(a=0.3, b=0.4, c=0.9)}
    await live(service, visitors, 6, click)
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, "shop", "x", lock=True)
        await lifecycle.roll_back_variant(connection, record, "c", service.change())
    away = (await service.find("x")).epoch
    await live(service, visitors, 18, click)
    decisions = [d for d in await service.decisions("x") if d.epoch_before >= away]
    assert len(decisions) > 1
    for decision in decisions:
        kept = evidence(decision)
        assert kept.inputs.rolled_back == ("c",)
        assert kept.weights["c"] == 0.0
        assert kept.probability_best.keys() == {"a", "b"}
        assert propose(kept.inputs) == kept
    assert (await shares(service))[-1]["b"] > 0.5  # it goes on learning of those who are left


async def test_where_only_the_control_is_left_it_says_so_once(service: Service) -> None:
    await service.begin(definition("x", metric("click", "primary"), policy=thompson()))
    visitors = Visitors(service, "x", seed=15)
    await live(service, visitors, 4, {"click": rates(a=0.3, b=0.4)})
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, "shop", "x", lock=True)
        await lifecycle.roll_back_variant(connection, record, "b", service.change())
    await live(service, visitors, 10, {"click": rates(a=0.3, b=0.4)})
    codes = [decision.code for decision in await service.ledger("x") if decision.rule == "bandit"]
    assert codes.count("alone") == 1
    assert codes[-1] == "alone"


async def discounted(service: Service) -> Discounted:
    """The evidence of the bandit, of its only metric."""
    [row] = await service.fetch("select id from run_metric")
    async with service.pool.acquire() as connection:
        found = await read_discounted(connection, row["id"])
    assert found is not None
    return found


async def recounted(service: Service) -> Discounted:
    """The same, from single units."""
    epochs = {epoch.number: propensities(epoch.allocation) for epoch in await service.epochs("x")}
    rows = await service.fetch("""
        select e.at, a.epoch, a.variant, exists (
            select from outcome o where o.unit = e.unit and o.event = 'click'
        )::int::float as value
        from enrolment e join arm a on a.id = e.arm
    """)
    [metric] = await service.fetch("select block_seconds, closed_through from run_metric")
    blocks: dict[int, dict[int, dict[str, list[float]]]] = {}
    for row in rows:
        block = int(row["at"].timestamp() // metric["block_seconds"]) * metric["block_seconds"]
        if block <= metric["closed_through"]:
            arms = blocks.setdefault(block, {}).setdefault(row["epoch"], {})
            arms.setdefault(row["variant"], []).append(row["value"])
    state = start("a", ["b"])
    for block in sorted(blocks):
        cells = [
            ScoredCell(
                block, epoch, dict(epochs[epoch]), {v: Moments.of(x) for v, x in arms.items()}
            )
            for epoch, arms in blocks[block].items()
        ]
        state = follow(state, cells, 5.0)
    return state


async def test_evidence_with_a_half_life_is_stepped_once_for_each_closed_block(
    service: Service,
) -> None:
    """Also where another process leads before each tick, and while the experiment is paused."""
    await service.begin(
        definition("x", metric("click", "primary"), policy=thompson(half_life="5s"))
    )
    visitors = Visitors(service, "x", seed=16)
    for tick in range(24):
        await visitors.come(PER_TICK, {"click": rates(a=0.4, b=0.6)})
        await service.execute("delete from lease")
        assert await service.new_controller(f"leader {tick}").tick()
        if tick == 12:
            await service.pause("x")
    kept, again = await discounted(service), await recounted(service)
    assert kept.since_block is None
    assert kept.last_block == again.last_block
    for mine, theirs in zip(
        msgspec.structs.astuple(kept.pairs["b"].treatment),
        msgspec.structs.astuple(again.pairs["b"].treatment),
        strict=True,
    ):
        assert mine == pytest.approx(theirs, rel=1e-9)
    assert kept.memories["a"].mean == pytest.approx(again.memories["a"].mean)


async def test_where_the_half_life_was_taken_away_for_a_while_the_evidence_begins_anew(
    service: Service,
) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), policy=thompson(half_life="5s", every="5s"))
    )
    visitors = Visitors(service, "x", seed=19)
    click = {"click": rates(a=0.4, b=0.6)}
    await live(service, visitors, 5, click)
    before = await discounted(service)
    assert before.since_block is None
    await service.amend("x", {"policy": {"half_life": None}})
    await live(service, visitors, 3, click)
    assert await discounted(service) == before
    await service.amend("x", {"policy": {"half_life": "9s"}})
    await live(service, visitors, 3, click)
    anew = await discounted(service)
    assert before.last_block is not None
    assert anew.since_block is not None
    assert anew.since_block > before.last_block
    assert sum(memory.seen for memory in anew.memories.values()) <= 4 * PER_TICK


async def test_after_a_swap_of_the_best_it_follows_and_says_what_it_stands_on(
    service: Service,
) -> None:
    """The half-life is set in the midst of a run: what had closed before is not in the evidence."""
    policy = thompson(floor=0.2, max_step=1)
    await service.begin(definition("x", metric("click", "primary"), policy=policy))
    visitors = Visitors(service, "x", seed=17)
    await live(service, visitors, 10, {"click": rates(a=0.2, b=0.8)})
    assert (await shares(service))[-1]["b"] > 0.7
    await service.amend("x", {"policy": {"half_life": "5s"}})
    await live(service, visitors, 25, {"click": rates(a=0.8, b=0.2)})
    assert (await shares(service))[-1]["b"] < 0.3
    decision = (await service.decisions("x"))[-1]
    kept = evidence(decision)
    assert kept.inputs.discounted is not None
    assert kept.inputs.discounted.since_block is not None
    assert (
        "units of a half-life of 5s, of those enrolled since 2026-03-02 12:00:" in decision.reason
    )
    assert propose(kept.inputs) == kept


async def test_stale_moments_move_nothing_and_do_not_count_as_a_look(service: Service) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), policy=thompson(every="100s", max_step=1))
    )
    visitors = Visitors(service, "x", seed=18)
    await live(service, visitors, 20, {"click": rates(a=0.1, b=0.9)})
    service.clock.advance(300)
    await service.tick()  # a router is silent
    await service.tick()
    holds = [d for d in await service.ledger("x") if d.rule == "bandit"]
    assert [(d.kind, d.code) for d in holds] == [("hold", "stale")]
    assert holds[0].reason.startswith("routers have shipped nothing since 2026-03-02 12:0")
    await service.settle(1)
    [decision] = await service.decisions("x")
    assert decision.kind == "reallocate"


async def test_a_clock_that_was_put_back_is_told_from_silent_routers(service: Service) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), policy=thompson(every="100s", max_step=1))
    )
    ahead = service.clock.now + timedelta(hours=1)
    await service.execute("update experiment set updated_at = $1", ahead)
    await service.settle(1)
    [hold] = [d for d in await service.ledger("x") if d.rule == "bandit"]
    assert (hold.code, hold.at) == ("stale", ahead)
    assert hold.reason.startswith("the clock was put back to 2026-03-02 12:00:01 UTC: ")


async def test_a_look_that_lies_ahead_puts_no_other_off(service: Service) -> None:
    """It was dated by a clock that was put back since."""
    await service.begin(
        definition("x", metric("click", "primary"), policy=thompson(every="100s", max_step=1))
    )
    visitors = Visitors(service, "x", seed=18)
    await live(service, visitors, 20, {"click": rates(a=0.1, b=0.9)})
    looked = "update run set considered_at = $1"
    await service.execute(looked, service.clock.now + timedelta(seconds=99))
    await service.settle(1)
    [decision] = await service.decisions("x")
    assert decision.kind == "reallocate"
