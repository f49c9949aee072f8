"""The stop rule against a real Postgres: it advises once, or concludes, and says why it holds."""

from typing import Any

import msgspec

from analysis.control import overruling
from analysis.control.decisions import read_whole
from analysis.control.ledger import examine
from analysis.inference.stopping import StopReading, stop
from experiments import lifecycle
from experiments.records import Decision
from tests.service.loop import Service, Visitors, definition, metric, rates


def policy(action: str, loss: dict[str, float], **others: Any) -> dict[str, Any]:
    return {
        "kind": "thompson",
        "metric": "click",
        "every": "3s",
        "floor": 0.1,
        "warmup": 50,
        "max_step": 0.5,
        "stop": {"loss": loss, "action": action},
    } | others


async def live(service: Service, visitors: Visitors, ticks: int, **click: float) -> None:
    for _ in range(ticks):
        await visitors.come(60, {"click": rates(**click)})
        await service.tick()


async def said(service: Service) -> list[Decision]:
    """What the stop rule put into the ledger."""
    return [decision for decision in await service.ledger("x") if decision.rule == "stop"]


def reading(decision: Decision) -> StopReading:
    """The evidence, as it comes out of the API's JSON."""
    return msgspec.json.decode(msgspec.json.encode(decision.evidence), type=StopReading)


async def test_it_concludes_with_the_best_and_the_ledger_says_why(service: Service) -> None:
    await service.begin(
        definition("x", metric("click", "primary"), policy=policy("conclude", {"absolute": 0.02}))
    )
    visitors = Visitors(service, "x", seed=1)
    for _ in range(20):
        await live(service, visitors, 1, a=0.3, b=0.7)
        if (await service.find("x")).state != "running":
            break
    record = await service.find("x")
    assert (record.state, record.ship) == ("concluded", "b")
    decisions = await said(service)
    assert [d.code for d in decisions] == ["warming_up", *[d.code for d in decisions[1:]]]
    last = decisions[-1]
    assert (last.kind, last.code, last.epoch_after) == ("conclude", "loss_small", record.epoch)
    assert last.reason.startswith("shipping b is expected to lose ")
    for decision in decisions:
        kept = reading(decision)
        assert stop(kept.inputs) == kept
    assert (await service.epochs("x"))[-1].decision == last.id
    notes = (await service.report("x")).notes
    assert any("by expected loss, which bounds no error rate" in note for note in notes)
    before = len(await service.ledger("x"))
    await service.settle()
    assert len(await service.ledger("x")) == before  # a run that is over decides nothing


async def test_the_control_is_shipped_where_it_is_the_best(service: Service) -> None:
    rule = policy("conclude", {"relative": 0.05})
    await service.begin(definition("x", metric("click", "primary", goal="decrease"), policy=rule))
    visitors = Visitors(service, "x", seed=2)
    await live(service, visitors, 15, a=0.3, b=0.7)
    record = await service.find("x")
    assert (record.state, record.ship) == ("concluded", "a")


async def test_it_advises_once_for_each_variant_and_moves_no_traffic(service: Service) -> None:
    """Also where another process leads: what was advised last is kept with the run."""
    rule = policy("advise", {"absolute": 0.05}, half_life="5s", floor=0.4)
    await service.begin(definition("x", metric("click", "primary"), policy=rule))
    visitors = Visitors(service, "x", seed=3)
    await live(service, visitors, 12, a=0.2, b=0.8)
    await service.execute("delete from lease")
    assert await service.new_controller("another").tick()
    await service.execute("delete from lease")
    await live(service, visitors, 8, a=0.2, b=0.8)
    advice = [d for d in await said(service) if d.kind == "advise"]
    assert [reading(d).best for d in advice] == ["b"]
    assert advice[0].epoch_before == advice[0].epoch_after
    await live(service, visitors, 25, a=0.8, b=0.2)
    advice = [d for d in await said(service) if d.kind == "advise"]
    assert [reading(d).best for d in advice] == ["b", "a"]
    assert (await service.find("x")).state == "running"


async def test_it_holds_while_there_is_much_to_lose_and_while_moments_are_stale(
    service: Service,
) -> None:
    rule = policy("conclude", {"absolute": 1e-9})
    await service.begin(definition("x", metric("click", "primary"), policy=rule))
    visitors = Visitors(service, "x", seed=4)
    await live(service, visitors, 12, a=0.5, b=0.5)
    service.clock.advance(300)
    await service.tick()
    await service.tick()
    held = await said(service)
    assert [d.code for d in held] == ["warming_up", "loss_too_large", "stale"]
    assert {d.kind for d in held} == {"hold"}
    assert (await service.find("x")).state == "running"


async def test_a_move_of_the_bandit_at_the_same_look_does_not_pass_the_stop_rule_over(
    service: Service,
) -> None:
    rule = policy("advise", {"absolute": 0.2}, max_step=0.02)
    await service.begin(definition("x", metric("click", "primary"), policy=rule))
    visitors = Visitors(service, "x", seed=5)
    await live(service, visitors, 10, a=0.2, b=0.8)
    moves = [d for d in await service.decisions("x") if d.kind == "reallocate"]
    [advice] = [d for d in await said(service) if d.kind == "advise"]
    assert advice.at in {move.at for move in moves}


async def test_what_harms_gets_no_more_traffic_and_is_not_shipped_until_a_hand_overrules_it(
    service: Service,
) -> None:
    """Though the guard only alerts, and the bandit and the stop rule like what they see."""
    errors = metric("errors", "guardrail", goal="decrease", margin={"absolute": 0.05})
    rule = policy("conclude", {"absolute": 0.05}, warmup=100)
    await service.begin(
        definition("x", metric("click", "primary"), errors, policy=rule, guard={"action": "alert"})
    )
    visitors = Visitors(service, "x", seed=6)
    bait = {"click": rates(a=0.3, b=0.7), "errors": rates(a=0.02, b=0.6)}
    for _ in range(15):
        await visitors.come(60, bait)
        await service.tick()
    assert [(d.kind, d.rule) for d in await service.decisions("x")] == [("alert", "guard")]
    held = [d for d in await service.ledger("x") if d.rule in {"bandit", "stop"}]
    assert [(d.rule, d.code) for d in held] == [
        ("bandit", "warming_up"),
        ("stop", "warming_up"),
        ("bandit", "alarmed"),
        ("stop", "alarmed"),
    ]
    assert held[-1].reason.endswith("the guard has evidence that b harms")
    assert "more traffic would go to b" in held[-2].reason
    for decision in held:
        async with service.pool.acquire() as connection:
            whole = await read_whole(connection, "shop", decision.id)
        assert whole is not None
        assert [check.differences for check in examine(whole) if check.differences] == []
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, "shop", "x", lock=True)
        await overruling.overrule(connection, record, service.change())
    await live(service, visitors, 8, a=0.3, b=0.7)
    record = await service.find("x")
    assert (record.state, record.ship) == ("concluded", "b")


async def test_nothing_is_shipped_on_data_that_are_not_sound(service: Service) -> None:
    rule = policy("conclude", {"absolute": 0.05})
    await service.begin(definition("x", metric("click", "primary"), policy=rule))
    visitors = Visitors(service, "x", seed=7)
    for tick in range(8):
        record = await service.find("x")
        units = [f"{tick}-{number}" for number in range(60)]
        await service.ship([service.exposure(record, u, "a", service.clock.now) for u in units])
        await live(service, visitors, 1, a=0.3, b=0.7)
    assert (await service.find("x")).state == "running"
    assert (await said(service))[-1].code == "unhealthy"
    assert (await said(service))[-1].reason.endswith("the data are not sound: sample_ratio")
