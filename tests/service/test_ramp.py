"""The ramp against a real Postgres: its steps under the guard, its stored state, and what a hand
does to it."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from analysis.control import ramp
from analysis.control.decisions import read_whole
from analysis.control.ledger import examine
from analysis.control.ramp import RampEvidence
from experiments import lifecycle, ramp_hand, ramps
from experiments.allocation import owners, traffic_of
from experiments.problems import ProblemError
from experiments.ramp import RampState
from experiments.records import Decision, ExperimentRecord
from tests.service.loop import START, Service, Visitors, definition, metric, rates

PER_TICK = 300
"""So many that a block has more than a hundred units of each of two arms."""
HARMLESS = {"errors": rates(a=0.1, b=0.1, c=0.1)}
HARMFUL = {"errors": rates(a=0.05, b=0.9, c=0.05)}


def step(traffic: float, **conditions: Any) -> dict[str, Any]:
    return {"traffic": traffic} | conditions


def ramp_of(*steps: dict[str, Any], **others: Any) -> dict[str, Any]:
    """An experiment x with these steps and one guardrail."""
    watched = metric("errors", "guardrail", goal="decrease", margin={"absolute": 0.05})
    return definition("x", watched, policy={"kind": "ramp", "steps": [*steps]}, **others)


THREE = (step(0.1, hold="5s"), step(0.5, hold="5s"), step(1.0))


async def live(
    service: Service, visitors: Visitors, ticks: int, responses: Any = HARMLESS
) -> list[tuple[float, float]]:
    """Let units come, a second at a time, and the controller tick; the changes of traffic, each
    with the seconds since the start."""
    changes: list[tuple[float, float]] = []
    for _ in range(ticks):
        before = await traffic(service)
        await visitors.come(PER_TICK, responses)
        await service.tick()
        if (now := await traffic(service)) != before:
            changes.append(((service.clock.now - START).total_seconds(), now))
    return changes


async def traffic(service: Service) -> float:
    """The share of traffic that is in force."""
    return traffic_of((await service.epochs("x"))[-1].allocation)


async def state(service: Service) -> RampState:
    """Where the ramp stands."""
    record = await service.find("x")
    async with service.pool.acquire() as connection:
        found = await ramps.read(connection, record.id, record.run)
    assert found is not None
    return found


async def codes(service: Service) -> list[str]:
    """What the ramp said, one after another."""
    return [decision.code for decision in await service.ledger("x") if decision.rule == "ramp"]


async def by_hand(
    service: Service, use_case: Callable[..., Awaitable[ExperimentRecord]], *arguments: Any
) -> ExperimentRecord:
    """What a hand does through a door."""
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, "shop", "x", lock=True)
        return await use_case(connection, record, *arguments, service.change())


def evidence_of(decision: Decision) -> RampEvidence:
    """The evidence of a decision, as it comes out of the API's JSON."""
    return msgspec.json.decode(msgspec.json.encode(decision.evidence), type=RampEvidence)


async def test_traffic_grows_step_by_step_and_no_enrolled_slot_moves(service: Service) -> None:
    await service.begin(ramp_of(*THREE, weights={"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}))
    assert await traffic(service) == 0.1
    visitors = Visitors(service, "x", seed=1)
    assert await live(service, visitors, 15) == [(5.0, 0.5), (10.0, 1.0)]
    assert await codes(service) == [
        "waiting_time",
        "advance",
        "waiting_time",
        "advance",
        "inconclusive",
        "complete",
    ]
    for before, after in pairwise(await service.epochs("x")):
        old, new = owners(before.allocation), owners(after.allocation)
        assert all(was in {None, now} for was, now in zip(old, new, strict=True))
    acts = await service.decisions("x")
    assert [(act.kind, act.rule, act.epoch_after) for act in acts] == [
        ("advance", "ramp", 2),
        ("advance", "ramp", 3),
    ]
    assert acts[0].reason == "step 2 of 3: traffic 0.5; no guardrail shows harm"


async def test_every_ruling_of_a_ramp_is_computed_again_from_its_evidence(
    service: Service,
) -> None:
    await service.begin(ramp_of(step(0.1, hold="3s", units=100), *THREE[1:]))
    await live(service, Visitors(service, "x", seed=2), 12)
    rulings = [d for d in await service.ledger("x") if d.rule == "ramp"]
    assert len(rulings) > 4
    for ruling in rulings:
        evidence = evidence_of(ruling)
        assert ramp.recompute(evidence) == evidence.outcome
        assert evidence.outcome.code == ruling.code


async def test_whatever_moved_a_ramp_is_replayed_from_the_ledger_with_its_slots(
    service: Service,
) -> None:
    await service.begin(ramp_of(*THREE))
    await live(service, Visitors(service, "x", seed=20), 6)
    for number in (3, 1, 2):
        await by_hand(service, ramp_hand.jump, number)
    decisions = [d for d in await service.ledger("x") if d.kind in {"advance", "jump"}]
    assert len(decisions) == 4
    for decision in decisions:
        async with service.pool.acquire() as connection:
            whole = await read_whole(connection, "shop", decision.id)
        assert whole is not None
        checks = examine(whole)
        assert checks[-1].of == "allocation"
        assert [check.differences for check in checks] == [()] * len(checks)


async def test_a_step_that_harms_is_rolled_back_and_nothing_is_added(service: Service) -> None:
    await service.begin(ramp_of(step(0.1, hold="30s"), step(1.0)))
    visitors = Visitors(service, "x", seed=3)
    changes: list[tuple[float, float]] = []
    while (await service.find("x")).state == "running":
        changes += await live(service, visitors, 1, HARMFUL)
        assert len(visitors.seen) < 30 * PER_TICK
    assert (await service.find("x")).state == "rolled_back"
    assert [act.kind for act in await service.decisions("x")] == ["rollback"]
    await service.settle(40)
    assert [act.kind for act in await service.decisions("x")] == ["rollback"]


async def test_a_step_that_nobody_meets_is_inconclusive_and_goes_on_once_somebody_does(
    service: Service,
) -> None:
    await service.begin(ramp_of(*THREE))
    for seconds in (1, 5, 1, 20):
        await service.settle(seconds)
    assert await traffic(service) == 0.1
    assert await codes(service) == ["waiting_time", "inconclusive"]
    [hold] = [d for d in await service.ledger("x") if d.code == "inconclusive"]
    assert hold.reason.endswith("not seen enough of it yet: errors of b (0 of 100 units)")
    changes = await live(service, Visitors(service, "x", seed=4), 12)
    assert [share for _, share in changes] == [0.5, 1.0]
    # The time in which nobody came is no time that the second step is short of.
    assert changes[1][0] - changes[0][0] >= 5


async def test_after_an_outage_steps_catch_up_each_under_the_guards_eye(service: Service) -> None:
    steps = [step((number + 1) / 10, hold="5s") for number in range(5)]
    await service.begin(ramp_of(*steps))
    visitors = Visitors(service, "x", seed=5)
    await live(service, visitors, 2)
    await visitors.come(PER_TICK, HARMLESS, seconds=60)
    changes = await live(service, visitors, 17)
    assert [share for _, share in changes] == [0.2, 0.3, 0.4, 0.5]
    # A block has to begin, its window to pass, and what is late to come.
    assert all(3 <= later[0] - earlier[0] <= 5 for earlier, later in pairwise(changes))


async def test_stale_moments_raise_no_traffic(service: Service) -> None:
    await service.begin(ramp_of(step(0.1, hold="20s"), step(1.0)))
    await live(service, Visitors(service, "x", seed=6), 8)
    service.clock.advance(100)
    await service.tick()
    assert (await codes(service))[-1] == "stale"
    assert await traffic(service) == 0.1
    await service.settle(1)
    assert await traffic(service) == 1.0


async def test_units_of_the_step_before_do_not_count_however_late_they_are_shipped(
    service: Service,
) -> None:
    record = await service.begin(ramp_of(step(0.1, hold="4s"), step(0.5, units=100), step(1.0)))
    visitors = Visitors(service, "x", seed=7)
    await live(service, visitors, 4)
    assert await traffic(service) == 0.5
    late = [service.exposure(record, f"late{n}", "ab"[n % 2], START) for n in range(200)]
    await service.ship(late)
    await live(service, visitors, 2)
    assert (await state(service)).units == 2 * PER_TICK
    assert await traffic(service) == 0.5
    assert [share for _, share in await live(service, visitors, 5)] == [1.0]


async def test_another_controller_at_every_tick_gives_the_same_course(service: Service) -> None:
    async def course(key: str, *, restarts: bool) -> list[tuple[str, str, str]]:
        begun = service.clock.now
        await service.begin(ramp_of(*THREE) | {"key": key})
        visitors = Visitors(service, key, seed=8)
        for tick in range(11):
            if restarts:
                await service.execute("update lease set expires_at = '-infinity'")
                service.controller = service.new_controller(f"process {tick}")
            await visitors.come(PER_TICK, HARMLESS)
            assert await service.controller.tick()
        return [
            (d.kind, d.code, str(d.at - begun))
            for d in await service.ledger(key)
            if d.rule == "ramp"
        ]

    alone = await course("x", restarts=False)
    assert ("advance", "advance", "0:00:10") in alone
    assert await course("y", restarts=True) == alone


async def test_a_crash_between_the_decision_and_its_epoch_leaves_the_ramp_as_it_was(
    service: Service,
) -> None:
    await service.begin(ramp_of(*THREE))
    visitors = Visitors(service, "x", seed=9)
    await live(service, visitors, 4)
    before, said = await state(service), await codes(service)
    await service.execute(
        """create function crash() returns trigger language plpgsql as
               $$ begin raise 'a crash'; end $$;
           create trigger crash before insert on epoch for each row execute function crash()"""
    )
    await visitors.come(PER_TICK, HARMLESS)
    assert await service.controller.tick()
    assert service.failures() == 1
    assert await state(service) == before
    assert await codes(service) == said
    await service.execute("drop trigger crash on epoch")
    await visitors.come(PER_TICK, HARMLESS)
    assert await service.controller.tick()
    assert (await state(service)).step == 2
    # The step was due at 5 s, though only the tick after that could do it.
    assert (await state(service)).begins == timedelta(seconds=5)


async def test_an_approval_is_for_its_step_and_a_decision_of_a_hand(service: Service) -> None:
    asks = [step(0.1, approval=True), step(0.2, approval=True), step(1.0)]
    await service.begin(ramp_of(*asks))
    visitors = Visitors(service, "x", seed=10)
    await live(service, visitors, 6)
    assert (await codes(service))[-1] == "awaiting_approval"
    await by_hand(service, ramp_hand.approve, 1)
    await by_hand(service, ramp_hand.approve, 1)
    assert [share for _, share in await live(service, visitors, 8)] == [0.2]
    hands = [d for d in await service.ledger("x") if d.rule == "manual"]
    assert [(d.kind, d.actor, d.evidence["asked"]) for d in hands[1:]] == [
        ("approve", "tester", {"step": 1})
    ]
    for wrong, kind in ((1, "conflict"), (3, "conflict"), (4, "invalid")):
        with pytest.raises(ProblemError) as caught:
            await by_hand(service, ramp_hand.approve, wrong)
        assert caught.value.type == kind


async def test_neither_a_paused_ramp_nor_a_paused_experiment_counts_time(service: Service) -> None:
    await service.begin(ramp_of(step(0.1, hold="10s"), step(1.0)))
    visitors = Visitors(service, "x", seed=11)
    await live(service, visitors, 3)
    await by_hand(service, ramp_hand.pause)
    service.clock.advance(20)
    assert await live(service, visitors, 2) == []
    assert (await codes(service))[-1] == "paused"
    with pytest.raises(ProblemError, match="paused already"):
        await by_hand(service, ramp_hand.pause)
    await by_hand(service, ramp_hand.resume)
    await live(service, visitors, 3)
    await service.pause("x")
    await service.settle(20)
    assert (await codes(service))[-1] == "experiment_paused"
    await by_hand(service, lifecycle.resume)
    assert [share for _, share in await live(service, visitors, 6)] == [1.0]
    assert (await state(service)).begins == timedelta(seconds=10)


async def test_a_jump_back_releases_slots_and_a_jump_ahead_restores_them(service: Service) -> None:
    await service.begin(ramp_of(*THREE))
    await by_hand(service, ramp_hand.jump, 3)
    full = (await service.epochs("x"))[-1].allocation
    await by_hand(service, ramp_hand.jump, 1)
    assert await traffic(service) == 0.1
    assert (await state(service)).step == 1
    await by_hand(service, ramp_hand.jump, 3)
    epoch = (await service.epochs("x"))[-1]
    assert epoch.allocation == full
    assert epoch.decision == [d.id for d in await service.ledger("x") if d.kind == "jump"][-1]
    with pytest.raises(ProblemError, match="step"):
        await by_hand(service, ramp_hand.jump, 4)


async def test_a_jump_to_its_own_step_begins_it_anew_without_an_epoch(service: Service) -> None:
    await service.begin(ramp_of(step(0.1, hold="6s"), step(1.0)))
    visitors = Visitors(service, "x", seed=13)
    await live(service, visitors, 4)
    record = await by_hand(service, ramp_hand.jump, 1)
    assert record.epoch == 1
    assert [at for at, _ in await live(service, visitors, 7)] == [10.0]


async def test_a_ramp_that_has_no_slots_left_says_so_and_holds(service: Service) -> None:
    await service.begin(ramp_of(*THREE))
    visitors = Visitors(service, "x", seed=14)
    for number in (3, 1):
        await by_hand(service, ramp_hand.jump, number)
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, "shop", "x", lock=True)
        weights = {"a": 0.2, "b": 0.8}
        await lifecycle.allocate(connection, record, weights, None, service.change())
    await live(service, visitors, 8)
    assert (await codes(service))[-1] == "no_slots"
    assert await traffic(service) == 0.1
    [hold] = [d for d in await service.ledger("x") if d.code == "no_slots"]
    assert "at most 0.1" in hold.reason


async def test_when_its_last_treatment_is_rolled_back_the_ramp_waits_until_it_is_resumed(
    service: Service,
) -> None:
    await service.begin(ramp_of(*THREE, guard={"action": "rollback_variant"}))
    visitors = Visitors(service, "x", seed=15)
    while not (await service.find("x")).rolled_back:
        await live(service, visitors, 1, HARMFUL)
    share = await traffic(service)
    assert await live(service, visitors, 3) == []
    assert (await codes(service))[-1] == "rolled_back"
    with pytest.raises(ProblemError, match="resume a variant"):
        await by_hand(service, ramp_hand.jump, 3)
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, "shop", "x", lock=True)
        await lifecycle.resume_variant(connection, record, "b", service.change())
    resumed_at = (service.clock.now - START).total_seconds()
    changes = await live(service, visitors, 15)
    assert [more for _, more in changes] == [s for s in (0.5, 1.0) if s > share]
    assert changes[0][0] >= resumed_at + 5


async def test_the_others_go_on_without_a_variant_that_is_rolled_back(service: Service) -> None:
    weights = {"a": 0.4, "b": 0.3, "c": 0.3}
    await service.begin(
        ramp_of(
            step(0.1, hold="20s"),
            step(1.0),
            weights=weights,
            guard={"action": "rollback_variant"},
        )
    )
    visitors = Visitors(service, "x", seed=16)
    while (await service.find("x")).rolled_back != ("b",):
        await live(service, visitors, 1, HARMFUL)
        assert len(visitors.seen) < 30 * PER_TICK
    service.clock.advance(10)
    assert [share for _, share in await live(service, visitors, 10)] == [1.0]
    last = (await service.epochs("x"))[-1]
    assert last.weights == {"a": 0.7, "b": 0.0, "c": 0.3}
    for before, after in pairwise((await service.epochs("x"))[1:]):
        old, new = owners(before.allocation), owners(after.allocation)
        assert all(was in {None, now} for was, now in zip(old, new, strict=True))


async def test_a_running_ramp_changes_what_is_to_come_and_not_what_was(service: Service) -> None:
    await service.begin(ramp_of(*THREE))
    visitors = Visitors(service, "x", seed=17)
    await by_hand(service, ramp_hand.jump, 2)

    async def refused(**policy: Any) -> list[tuple[str, str]]:
        with pytest.raises(ProblemError) as caught:
            await service.amend("x", {"policy": policy})
        return [(problem.path, problem.type) for problem in caught.value.errors]

    first, second, last = THREE
    assert await refused(steps=[step(0.1, hold="6s"), second, last]) == [
        ("policy.steps[0]", "immutable")
    ]
    assert await refused(steps=[first, step(0.4, hold="5s"), last]) == [
        ("policy.steps[1].traffic", "immutable")
    ]
    assert await refused(steps=[step(0.1)]) == [("policy.steps", "immutable")]
    await service.amend("x", {"policy": {"steps": [first, step(0.5, hold="1h"), step(0.8)]}})
    assert await live(service, visitors, 6) == []
    await service.amend("x", {"policy": {"steps": [first, step(0.5, hold="1s"), step(0.8)]}})
    assert [share for _, share in await live(service, visitors, 3)] == [0.8]


async def test_a_ramp_begins_with_a_run_and_may_end_in_its_midst(service: Service) -> None:
    await service.begin(ramp_of(*THREE))
    with pytest.raises(ProblemError, match="ramp/jump"):
        await service.allocate("x", {"a": 0.5, "b": 0.5})
    await service.amend("x", {"policy": {"kind": "fixed", "steps": None}})
    assert await traffic(service) == 0.1
    with pytest.raises(ProblemError) as caught:
        await service.amend("x", {"policy": {"kind": "ramp", "steps": [*THREE]}})
    assert [(p.path, p.type) for p in caught.value.errors] == [("policy.kind", "immutable")]
    await service.allocate("x", {"a": 0.5, "b": 0.5})
    assert await traffic(service) == 1.0


async def test_a_new_run_begins_its_ramp_anew(service: Service) -> None:
    await service.begin(ramp_of(*THREE))
    await by_hand(service, ramp_hand.jump, 2)
    assert (await state(service)).step == 2
    await service.conclude("x")
    record = await service.start("x")
    assert (await state(service)).step == 1
    assert (await state(service)).epoch == record.epoch
    assert await traffic(service) == 0.1


async def test_the_state_and_its_decision_are_one_transaction(service: Service) -> None:
    await service.begin(ramp_of(*THREE))
    await live(service, Visitors(service, "x", seed=19), 5)
    rows = await service.fetch(
        """select xmin::text from ramp
           union all select xmin::text from epoch where number = 2
           union all select xmin::text from experiment
           union all (select xmin::text from decision order by id desc limit 1)"""
    )
    assert len(rows) == 4
    assert len({row["xmin"] for row in rows}) == 1
