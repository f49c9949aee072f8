"""The guard against a real Postgres: its ledger, its patience with the harmless, its rollbacks."""

import math
from typing import Any

import msgspec
import pytest

from analysis.control import guard
from analysis.inference.evidence import BURN_IN_UNITS, GuardRule, GuardState, alarms
from experiments.allocation import counts
from experiments.records import Decision
from tests.service.loop import (
    Respond,
    Service,
    Visitors,
    after,
    definition,
    mean,
    metric,
    rates,
)

PER_TICK = 40


def guardrail(key: str, **others: Any) -> dict[str, Any]:
    """A proportion that the guard watches."""
    return metric(key, "guardrail", **others)


async def shares(service: Service) -> list[dict[str, Any]]:
    """The ledger."""
    rows = await service.fetch(
        "select metric, variant, alpha, closed_at is null as open from guard_ledger order by id"
    )
    return [dict(row) for row in rows]


async def state(service: Service) -> GuardState:
    """The evidence of the only row of the ledger that is open."""
    [row] = await service.fetch("select state from guard_ledger where closed_at is null")
    return msgspec.json.decode(row["state"], type=GuardState)


async def live(
    service: Service,
    visitors: Visitors,
    seconds: int,
    responses: dict[str, Respond],
    tick_every: int = 1,
) -> int:
    """Let units come and the controller tick, until a rollback; the seconds that it took. Whatever
    the rhythm of ticks, each closed block is looked at."""
    for second in range(seconds):
        await visitors.come(PER_TICK, responses)
        if (second + 1) % tick_every:
            continue
        await service.tick()
        if (await service.find(visitors.key)).state == "rolled_back":
            return second
    return seconds


async def test_those_who_come_share_half_of_the_alpha_that_is_unspent(service: Service) -> None:
    errors, slow = guardrail("errors", goal="decrease"), guardrail("slow", goal="decrease")
    await service.begin(
        definition(
            "x",
            errors,
            slow,
            weights={"a": 0.5, "b": 0.25, "c": 0.25},
            guard={"alpha": 0.08},
        )
    )
    await service.tick()
    assert [(row["metric"], row["variant"], row["alpha"]) for row in await shares(service)] == [
        ("errors", "b", 0.01),
        ("errors", "c", 0.01),
        ("slow", "b", 0.01),
        ("slow", "c", 0.01),
    ]
    await service.amend("x", {"metrics": [errors, slow, guardrail("angry", goal="decrease")]})
    await service.tick()
    assert [(row["metric"], row["alpha"]) for row in await shares(service)][4:] == [
        ("angry", 0.01),
        ("angry", 0.01),
    ]
    await service.amend("x", {"metrics": [errors | {"margin": {"absolute": 0.1}}]})
    await service.tick()
    ledger = await shares(service)
    opened = [row for row in ledger if row["open"]]
    assert [(row["metric"], row["variant"]) for row in opened] == [("errors", "b"), ("errors", "c")]
    assert [row["alpha"] for row in opened] == pytest.approx([0.005, 0.005])
    assert sum(row["alpha"] for row in ledger) <= 0.08


async def test_what_does_not_change_a_guardrail_costs_no_alpha(service: Service) -> None:
    errors = guardrail("errors", goal="decrease")
    await service.begin(definition("x", errors))
    await service.tick()
    before = await service.fetch("select * from guard_ledger")
    await service.amend("x", {"name": "N", "metrics": [errors, metric("click", "secondary")]})
    await service.tick()
    assert await service.fetch("select * from guard_ledger") == before


async def test_a_hundred_changes_do_not_exhaust_the_ledger(service: Service) -> None:
    await service.begin(definition("x", guardrail("errors"), guard={"alpha": 0.3}))
    for margin in range(100):
        service.clock.advance(0.01)
        changed = guardrail("errors", margin={"absolute": margin / 200})
        await service.amend("x", {"metrics": [changed]})
        await service.tick()
    ledger = await shares(service)
    assert len(ledger) == 100
    assert min(row["alpha"] for row in ledger) > 0
    assert math.fsum(row["alpha"] for row in ledger) <= 0.3


async def test_a_new_run_has_fresh_alpha_and_fresh_evidence(service: Service) -> None:
    await service.begin(definition("x", guardrail("ok"), guard={"alpha": 0.08}))
    visitors = Visitors(service, "x", seed=1)
    await live(service, visitors, 10, {"ok": rates(a=0.5, b=0.5)})
    await service.conclude("x")
    await service.start("x")
    await service.tick()
    rows = await service.fetch("select run, alpha, state from guard_ledger order by run")
    assert [(row["run"], row["alpha"]) for row in rows] == [(1, 0.04), (2, 0.04)]
    assert msgspec.json.decode(rows[0]["state"])["units"] > 0
    assert msgspec.json.decode(rows[1]["state"])["units"] == 0


async def test_a_guardrail_that_joins_sees_only_units_that_enrol_from_then_on(
    service: Service,
) -> None:
    await service.begin(definition("x", metric("ok")))
    visitors = Visitors(service, "x", seed=2)
    harmful, harmless = {"ok": rates(a=0.9, b=0.1)}, {"ok": rates(a=0.5, b=0.5)}
    assert await live(service, visitors, 10, harmful) == 10
    await service.amend("x", {"metrics": [guardrail("ok")]})
    # In the second in which it joins, units come before and after it: none of them counts.
    service.clock.advance(0.5)
    await visitors.come(PER_TICK, harmful, seconds=0.2)
    await service.tick()
    service.clock.advance(0.3)
    before = len(visitors.seen)
    assert await live(service, visitors, 20, harmless) == 20
    await service.settle()
    assert (await state(service)).units == len(visitors.seen) - before


async def test_a_margin_that_is_no_more_causes_no_rollback(service: Service) -> None:
    """And one that returns begins afresh: what it had seen before is not held against anybody."""
    strict, lenient = guardrail("ok"), guardrail("ok", margin={"absolute": 0.4})
    await service.begin(definition("x", strict))
    visitors = Visitors(service, "x", seed=12)
    harmful = {"ok": rates(a=0.6, b=0.4)}
    assert await live(service, visitors, 7, harmful) == 7
    assert (await state(service)).log_peak > 0
    await service.amend("x", {"metrics": [lenient]})
    assert await live(service, visitors, 30, harmful) == 30
    await service.amend("x", {"metrics": [strict]})
    await service.tick()
    assert (await state(service)).units == 0
    assert await live(service, visitors, 40, harmful) < 40
    assert alarm_of((await service.decisions("x"))[0]).rule.margin == 0


HARMFUL: dict[str, tuple[dict[str, Any], dict[str, Respond]]] = {
    "a proportion that falls": (
        guardrail("ok", margin={"absolute": 0.02}),
        {"ok": rates(a=0.6, b=0.4)},
    ),
    "a proportion that rises": (
        guardrail("errors", goal="decrease", margin={"relative": 0.1}),
        {"errors": rates(a=0.1, b=0.3)},
    ),
    "a mean that falls": (
        mean("spent", "guardrail", margin={"relative": 0.05}),
        {"spent": lambda variant, generator: generator.gauss(10 if variant == "a" else 6, 4)},
    ),
    "a mean that rises": (
        mean("wait", "guardrail", goal="decrease", margin={"absolute": 0.5}),
        {"wait": lambda variant, generator: generator.gauss(5 if variant == "a" else 9, 4)},
    ),
}


@pytest.mark.parametrize("case", HARMFUL)
async def test_a_harmful_variant_is_rolled_back_with_evidence_that_computes_again(
    service: Service, case: str
) -> None:
    watched, responses = HARMFUL[case]
    begun = await service.begin(definition("x", watched))
    visitors = Visitors(service, "x", seed=3)
    ticks = await live(service, visitors, 80, responses)
    assert ticks < 80
    if watched["kind"] == "mean":
        assert ticks * PER_TICK > BURN_IN_UNITS

    record = await service.find("x")
    assert (record.state, record.epoch, record.ship) == ("rolled_back", begun.epoch + 1, "a")
    epoch = (await service.epochs("x"))[-1]
    assert counts(epoch.allocation) == {"a": 10_000}
    [decision] = await service.decisions("x")
    assert (decision.kind, decision.id) == ("rollback", epoch.decision)
    assert (decision.epoch_before, decision.epoch_after) == (begun.epoch, epoch.number)
    assert decision.term == 1

    alarm = alarm_of(decision)
    assert guard.recompute(alarm) == alarm.state_after == await state(service)
    assert alarm.log_peak >= alarm.log_threshold
    assert alarms(alarm.rule, alarm.state_after)
    assert not alarms(alarm.rule, alarm.state_before)
    assert (alarm.guardrail, alarm.variant) == (watched["key"], "b")


def alarm_of(decision: Decision) -> guard.Alarm:
    """The evidence of a rollback, as it comes out of the API's JSON."""
    return msgspec.json.decode(msgspec.json.encode(decision.evidence), type=guard.Alarm)


async def test_the_whole_history_of_evidence_is_recomputed_from_units(service: Service) -> None:
    """Ticks of any rhythm give what one block after the other gives."""
    watched = guardrail("ok", margin={"absolute": 0.3})
    await service.begin(definition("x", watched))
    visitors = Visitors(service, "x", seed=4)
    for tick in range(30):
        await visitors.come(PER_TICK, {"ok": rates(a=0.6, b=0.5)})
        if tick % 7 == 0:
            await service.tick()
    await service.settle()
    found = await state(service)
    assert found.units == len(visitors.seen)
    assert found.blocks == 30
    for arm, moments in (("a", found.control), ("b", found.treatment)):
        values = visitors.values("ok", arm)
        assert moments.n == len(values)
        assert moments.mean[0] == pytest.approx(sum(values) / len(values))


HARMLESS: dict[str, tuple[dict[str, Any], dict[str, Respond]]] = {
    "the same": (guardrail("ok"), {"ok": rates(a=0.5, b=0.5)}),
    "better": (guardrail("errors", goal="decrease"), {"errors": rates(a=0.5, b=0.2)}),
    "worse, within its margin": (
        guardrail("errors", goal="decrease", margin={"absolute": 0.1}),
        {"errors": rates(a=0.1, b=0.17)},
    ),
    "a mean of rare large values": (
        mean("spent", "guardrail"),
        {
            "spent": lambda variant, generator: (
                generator.lognormvariate(2, 1.5) if generator.random() < 0.2 else None
            )
        },
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
async def test_a_harmless_variant_is_not_rolled_back(service: Service, case: str) -> None:
    watched, responses = HARMLESS[case]
    await service.begin(definition("x", watched))
    visitors = Visitors(service, "x", seed=5)
    assert await live(service, visitors, 120, responses, tick_every=5) == 120
    assert (await service.find("x")).state == "running"
    assert (await state(service)).units > 100 * PER_TICK
    assert await service.decisions("x") == []


async def test_harm_that_begins_late_is_seen_soon(service: Service) -> None:
    await service.begin(definition("x", guardrail("errors", goal="decrease")))
    visitors = Visitors(service, "x", seed=6)
    assert await live(service, visitors, 60, {"errors": rates(a=0.05, b=0.05)}) == 60
    assert await live(service, visitors, 25, {"errors": rates(a=0.05, b=0.5)}) < 20


async def test_a_paused_experiment_is_watched_until_its_last_unit_has_finished(
    service: Service,
) -> None:
    await service.begin(definition("x", guardrail("ok", window="20s")))
    visitors = Visitors(service, "x", seed=7)
    assert await live(service, visitors, 15, {"ok": rates(a=0.9, b=0.1)}) == 15
    await service.pause("x")
    await service.settle()
    assert (await service.find("x")).state == "rolled_back"


async def test_a_decision_and_what_it_does_are_one_transaction(service: Service) -> None:
    await service.begin(definition("x", guardrail("ok")))
    visitors = Visitors(service, "x", seed=8)
    await live(service, visitors, 40, {"ok": rates(a=0.9, b=0.1)})
    rows = await service.fetch(
        """select xmin::text from decision where rule = 'guard'
           union all select xmin::text from epoch where number = 2
           union all select xmin::text from experiment
           union all select xmin::text from guard_ledger
           union all (select xmin::text from run)"""
    )
    assert len(rows) == 5
    assert len({row["xmin"] for row in rows}) == 1


async def test_what_cannot_be_done_leaves_nothing_behind_and_holds_up_no_other(
    service: Service,
) -> None:
    for key in ("x", "y"):
        await service.begin(definition(key, guardrail("ok")))
    await service.execute(  # the number of the epoch that a rollback of x would open
        """insert into epoch select experiment, 2, run, state, salt, allocation, weights, targeting,
                                    layer, holdout, stickiness, ship, resized, at, actor, reason,
                                    decision
           from epoch where experiment = (select id from experiment where key = 'x')"""
    )
    visitors = {key: Visitors(service, key, seed=9) for key in ("x", "y")}
    for _ in range(30):
        for visitor in visitors.values():
            await visitor.come(PER_TICK, {"ok": rates(a=0.9, b=0.1)})
        assert await service.controller.tick()
    assert service.failures() > 0
    assert (await service.find("y")).state == "rolled_back"
    assert len(await service.decisions("y")) == 1
    assert (await service.find("x")).state == "running"
    assert await service.decisions("x") == []
    rows = await service.fetch(
        "select l.state from guard_ledger l join experiment x on x.id = l.experiment "
        "where x.key = 'x'"
    )
    [kept] = [msgspec.json.decode(row["state"], type=GuardState) for row in rows]
    [row] = await service.fetch("select rule from guard_ledger limit 1")
    assert not alarms(msgspec.json.decode(row["rule"], type=GuardRule), kept)


async def test_units_enrolled_before_the_clocks_agreed_harm_nobody(service: Service) -> None:
    """A router's clock may be behind: its units enrol before the run began."""
    record = await service.begin(definition("x", guardrail("ok")))
    await service.ship([service.exposure(record, f"u{i}", "a", after(-10)) for i in range(5)])
    await service.settle()
    assert (await state(service)).units == 0
    assert (await service.report("x")).units == {"a": 5, "b": 0}
