"""What the guard does on an alarm, what a hand does after it, and what the ledger of alpha makes of
it; against a real Postgres."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from analysis.control import guard
from analysis.inference.evidence import GuardState, alarms
from analysis.reports.markdown import render
from experiments import lifecycle, store
from experiments.allocation import counts
from experiments.problems import ProblemError
from experiments.records import Epoch, ExperimentRecord
from tests.service.loop import SHOP, Respond, Service, Visitors, definition, metric, rates

PER_TICK = 60
SPLIT = {"a": 0.5, "b": 0.25, "c": 0.25}
BAD_B: dict[str, Respond] = {"ok": rates(a=0.9, b=0.1, c=0.9)}
BAD_B_AND_C: dict[str, Respond] = {"ok": rates(a=0.9, b=0.1, c=0.1)}
WELL: dict[str, Respond] = {"ok": rates(a=0.9, b=0.9, c=0.9)}


def guarded(action: str, **others: Any) -> dict[str, Any]:
    """A definition with one guardrail, and this action of the guard."""
    weights = others.pop("weights", SPLIT)
    guard_of = {"alpha": 0.02, "action": action}
    return definition("x", metric("ok", "guardrail"), weights=weights, guard=guard_of, **others)


async def use(
    service: Service, use_case: str, *arguments: Any, reason: str = "a hand"
) -> ExperimentRecord:
    """Let a hand do something to x."""
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        changed: ExperimentRecord = await getattr(lifecycle, use_case)(
            connection, record, *arguments, service.change(reason)
        )
        return changed


async def live(
    service: Service, visitors: Visitors, ticks: int, responses: dict[str, Respond]
) -> int:
    """Let units come and the controller tick, until it does something; the ticks that it took."""
    before = len(await service.decisions("x"))
    for tick in range(ticks):
        await visitors.come(PER_TICK, responses)
        await service.tick()
        if len(await service.decisions("x")) > before:
            return tick
    return ticks


async def ledger(service: Service) -> list[dict[str, Any]]:
    """The rows of the ledger of alpha, with their evidence."""
    rows = await service.fetch(
        """select generation, metric, variant, alpha, opened_block, acted, state,
                  closed_at is null as open
           from guard_ledger order by id"""
    )
    return [dict(row) | {"state": msgspec.json.decode(row["state"])} for row in rows]


async def generations(service: Service) -> list[dict[str, Any]]:
    """The generations after the first."""
    rows = await service.fetch(
        "select number, epoch, at, actor, reason, decision from guard_generation order by number"
    )
    return [dict(row) for row in rows]


async def last_epoch(service: Service) -> Epoch:
    """The epoch that is in force."""
    return (await service.epochs("x"))[-1]


def of(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Those of some rows that have these values."""
    return [row for row in rows if wanted.items() <= row.items()]


async def test_a_variant_is_rolled_back_and_the_run_goes_on_with_the_others(
    service: Service,
) -> None:
    begun = await service.begin(guarded("rollback_variant"))
    first = await last_epoch(service)
    visitors = Visitors(service, "x", seed=1)
    assert await live(service, visitors, 60, BAD_B) < 60
    record = await service.find("x")
    assert (record.state, record.rolled_back, record.epoch) == ("running", ("b",), 2)
    epoch = await last_epoch(service)
    assert counts(epoch.allocation) == {"a": 7_500, "c": 2_500}
    assert epoch.weights == {"a": 0.75, "b": 0.0, "c": 0.25}
    assert epoch.rolled_back == ("b",)
    assert [
        (old, new)
        for old, new in zip(first.allocation.runs, epoch.allocation.runs, strict=False)
        if old[0] == "c" and new != old
    ] == []
    [decision] = await service.decisions("x")
    assert (decision.kind, decision.code, decision.rule) == ("rollback_variant", "harm", "guard")
    assert (decision.epoch_before, decision.epoch_after) == (begun.epoch, epoch.number)
    assert epoch.decision == decision.id
    rows = await ledger(service)
    assert [(row["variant"], row["open"], row["acted"]) for row in rows] == [
        ("b", False, "rollback_variant"),
        ("c", True, None),
    ]
    assert await live(service, visitors, 5, WELL) == 5
    alarm = msgspec.convert(decision.evidence, guard.Alarm)
    assert guard.recompute(alarm) == alarm.state_after
    report = await service.report("x")
    assert report.rolled_back == {"b": decision.reason}
    assert {view.variant: view.alarm for view in report.guard} == {"b": True, "c": False}
    assert (report.guard_generation, report.guard_action) == (1, "rollback_variant")
    text = render(report)
    assert f"**b is rolled back and gets no traffic until it is resumed: {decision.reason}" in text
    assert "On an alarm the variant is rolled back" in text


async def test_the_run_goes_on_without_its_only_treatment(service: Service) -> None:
    await service.begin(guarded("rollback_variant", weights={"a": 0.5, "b": 0.5}))
    visitors = Visitors(service, "x", seed=2)
    assert await live(service, visitors, 60, BAD_B) < 60
    record = await service.find("x")
    assert (record.state, record.rolled_back) == ("running", ("b",))
    assert counts((await last_epoch(service)).allocation) == {"a": 10_000}
    await service.settle()
    report = await service.report("x")
    assert report.state == "running"
    assert "No guard watches" not in report.guard_alpha
    assert report.verdict.action != "ship"


@pytest.mark.parametrize("action", ["rollback_variant", "rollback", "pause", "alert"])
async def test_of_several_variants_in_alarm_at_one_tick_each_has_its_decision(
    service: Service, action: str
) -> None:
    await service.begin(guarded(action))
    visitors = Visitors(service, "x", seed=3)
    for _ in range(20):
        await visitors.come(PER_TICK, BAD_B_AND_C)
    await service.settle()
    decisions = await service.decisions("x")
    assert [decision.kind for decision in decisions] == [action, action]
    assert {decision.evidence["variant"] for decision in decisions} == {"b", "c"}
    record = await service.find("x")
    states = {"rollback": "rolled_back", "pause": "paused"}
    assert record.state == states.get(action, "running")
    epochs = {"rollback_variant": 3, "alert": 1}
    assert record.epoch == epochs.get(action, 2)
    named = [epoch.decision for epoch in await service.epochs("x") if epoch.number > 1]
    assert named == [decision.id for decision in decisions][: len(named)]


async def test_a_pause_waits_for_a_hand_and_its_generation_begins_afresh(service: Service) -> None:
    await service.begin(guarded("pause"))
    visitors = Visitors(service, "x", seed=4)
    assert await live(service, visitors, 60, BAD_B) < 60
    assert (await service.find("x")).state == "paused"
    await service.settle(20)
    before = await ledger(service)
    resumed = await use(service, "resume", reason="it was the cache")
    assert (resumed.state, resumed.rolled_back) == ("running", ())
    await service.tick()
    assert (await service.find("x")).state == "running"
    [generation] = await generations(service)
    assert (generation["number"], generation["epoch"]) == (2, resumed.epoch)
    assert (generation["actor"], generation["reason"]) == ("tester", "it was the cache")
    assert generation["at"] == (await last_epoch(service)).at
    assert generation["decision"] == (await last_epoch(service)).decision

    rows = await ledger(service)
    assert [row["open"] for row in rows] == [False, False, True, True]
    fresh = of(rows, generation=2)
    assert [row["alpha"] for row in fresh] == [0.005, 0.005]
    for row, old in zip(fresh, before, strict=True):
        assert (row["state"]["blocks"], row["state"]["log_peak"], row["acted"]) == (0, 0.0, None)
        assert row["state"]["control"] == old["state"]["control"]
        assert row["state"]["treatment"] == old["state"]["treatment"]
        assert row["state"]["units"] == old["state"]["units"] > 0


async def test_a_pause_by_hand_changes_nothing_of_the_guard(service: Service) -> None:
    await service.begin(guarded("pause"))
    visitors = Visitors(service, "x", seed=5)
    assert await live(service, visitors, 10, WELL) == 10
    await service.settle(10)
    before = await ledger(service)
    await service.pause("x")
    await service.tick()
    await use(service, "resume")
    await service.tick()
    assert await ledger(service) == before
    assert await generations(service) == []


async def test_an_alarm_in_a_paused_run_is_a_pause_of_the_guards(service: Service) -> None:
    """A hand had paused it; that it goes on is then for a generation of its own."""
    await service.begin(definition("x", metric("ok", "guardrail", window="20s"), weights=SPLIT))
    await service.amend("x", {"guard": {"action": "pause"}})
    visitors = Visitors(service, "x", seed=6)
    assert await live(service, visitors, 15, BAD_B) == 15
    paused = await service.pause("x")
    await service.settle()
    [decision] = await service.decisions("x")
    assert (decision.kind, decision.epoch_after) == ("pause", paused.epoch)
    assert (await service.find("x")).epoch == paused.epoch
    await use(service, "resume")
    assert [row["number"] for row in await generations(service)] == [2]


async def test_an_alert_is_told_once_in_a_generation_and_leaves_the_traffic(
    service: Service,
) -> None:
    begun = await service.begin(guarded("alert", weights={"a": 0.5, "b": 0.5}))
    visitors = Visitors(service, "x", seed=7)
    assert await live(service, visitors, 60, BAD_B) < 60
    assert await live(service, visitors, 10, BAD_B) == 10
    [decision] = await service.decisions("x")
    assert (decision.kind, decision.epoch_after) == ("alert", begun.epoch)
    assert (await service.find("x")).epoch == begun.epoch
    # Whoever asks for more once it has alarmed gets more.
    await service.amend("x", {"guard": {"action": "rollback_variant"}})
    await service.tick()
    assert [d.kind for d in await service.decisions("x")] == ["alert", "rollback_variant"]
    evidence = msgspec.convert((await service.decisions("x"))[1].evidence, guard.Alarm)
    assert guard.recompute(evidence) == evidence.state_after
    assert alarms(evidence.rule, evidence.state_after)


async def test_a_resumed_variant_has_its_slots_again_and_fresh_evidence(service: Service) -> None:
    await service.begin(guarded("rollback_variant"))
    first = await last_epoch(service)
    visitors = Visitors(service, "x", seed=8)
    assert await live(service, visitors, 60, BAD_B) < 60
    # Bad units that come until it is resumed have met the others, or came before.
    resumed = await use(service, "resume_variant", "b", reason="mended")
    epoch = await last_epoch(service)
    assert (epoch.allocation, epoch.weights) == (first.allocation, first.weights)
    assert (resumed.rolled_back, epoch.rolled_back) == ((), ())
    await service.tick()
    await service.settle(10)
    rows = await ledger(service)
    assert [(row["generation"], row["variant"]) for row in of(rows, open=True)] == [
        (2, "b"),
        (2, "c"),
    ]
    for row in of(rows, open=True):
        assert (row["state"]["blocks"], row["state"]["log_peak"]) == (0, 0.0)
        assert row["opened_block"] >= int(epoch.at.timestamp())
    assert [d.kind for d in await service.decisions("x")] == ["rollback_variant"]
    assert await live(service, visitors, 8, WELL) == 8
    assert "This is generation 2 of the guard" in render(await service.report("x"))
    # What harms again is rolled back again, in the alpha of the generation.
    assert await live(service, visitors, 60, BAD_B) < 60
    kinds = [(d.kind, d.evidence.get("generation")) for d in await service.decisions("x")]
    assert kinds == [("rollback_variant", 1), ("rollback_variant", 2)]
    for number in (1, 2):
        spent = math.fsum(row["alpha"] for row in of(await ledger(service), generation=number))
        assert spent <= 0.02


async def test_shares_that_come_later_are_of_what_the_generation_has_not_spent(
    service: Service,
) -> None:
    await service.begin(guarded("rollback_variant"))
    await service.settle(1)
    await use(service, "roll_back_variant", "b")
    await service.settle(2)
    assert [row["open"] for row in await ledger(service)] == [False, True]
    await use(service, "resume_variant", "b")
    await service.tick()
    strict = metric("ok", "guardrail", margin={"absolute": 0.1})
    await service.amend("x", {"metrics": [strict]})
    await service.tick()
    second = of(await ledger(service), generation=2)
    assert [row["alpha"] for row in second] == pytest.approx([0.005, 0.005, 0.0025, 0.0025])
    assert [row["open"] for row in second] == [False, False, True, True]


async def test_a_margin_that_changed_with_the_generation_is_tested_on_what_comes(
    service: Service,
) -> None:
    """It was chosen after a look at the data: only blocks from now on are its own."""
    await service.begin(guarded("rollback_variant"))
    await service.tick()
    await use(service, "roll_back_variant", "b")
    await use(service, "resume_variant", "b")
    service.clock.advance(30)
    await service.amend("x", {"metrics": [metric("ok", "guardrail", margin={"absolute": 0.2})]})
    await service.tick()
    opened = of(await ledger(service), open=True)
    assert {row["opened_block"] for row in opened} == {int(service.clock.now.timestamp())}
    assert {row["generation"] for row in opened} == {2}


async def test_nothing_gives_traffic_to_a_variant_that_is_rolled_back(service: Service) -> None:
    await service.begin(guarded("rollback_variant"))
    await use(service, "roll_back_variant", "b", reason="it is slow")
    with pytest.raises(ProblemError) as caught:
        await service.allocate("x", SPLIT)
    [problem] = caught.value.errors
    assert (problem.path, problem.type) == ("weights.b", "conflict")
    assert "/v1/experiments/x/resume" in problem.detail
    await service.allocate("x", {"a": 0.6, "b": 0.0, "c": 0.4})
    assert counts((await last_epoch(service)).allocation) == {"a": 6_000, "c": 4_000}
    weights = {"a": 0.2, "b": 0.5, "c": 0.3}
    variants = definition("x", weights=weights)["variants"]
    await service.amend("x", {"variants": variants})
    epoch = await last_epoch(service)
    assert counts(epoch.allocation) == {"a": 7_000, "c": 3_000}
    assert epoch.rolled_back == ("b",)
    with pytest.raises(ProblemError) as caught:
        await use(service, "conclude", "b")
    assert [problem.path for problem in caught.value.errors] == ["ship"]


async def test_a_new_run_has_all_variants_again(service: Service) -> None:
    await service.begin(guarded("rollback_variant"))
    await use(service, "roll_back_variant", "b")
    await service.conclude("x")
    assert (await service.find("x")).rolled_back == ("b",)
    await service.start("x")
    assert (await service.find("x")).rolled_back == ()
    assert (await last_epoch(service)).rolled_back == ()
    await service.tick()
    assert [row["variant"] for row in of(await ledger(service), open=True)] == ["b", "c"]


async def test_variants_come_back_in_any_order(service: Service) -> None:
    await service.begin(guarded("rollback_variant"))
    first = await last_epoch(service)
    for variant in ("b", "c"):
        await use(service, "roll_back_variant", variant)
    assert (await service.find("x")).rolled_back == ("b", "c")
    assert counts((await last_epoch(service)).allocation) == {"a": 10_000}
    await use(service, "resume_variant", "b")
    between = await last_epoch(service)
    assert counts(between.allocation) == {"a": 7_500, "b": 2_500}
    assert between.weights == pytest.approx({"a": 0.75, "b": 0.25, "c": 0.0})
    await use(service, "resume_variant", "c")
    last = await last_epoch(service)
    assert last.allocation == first.allocation
    assert last.weights == pytest.approx(first.weights)


async def test_a_variant_comes_back_to_traffic_that_has_grown_with_its_share_of_it(
    service: Service,
) -> None:
    await service.begin(guarded("rollback_variant", traffic=0.2))
    first = await last_epoch(service)
    await use(service, "roll_back_variant", "b")
    await use(service, "allocate", None, 1.0)
    await use(service, "resume_variant", "b")
    last = await last_epoch(service)
    assert counts(last.allocation) == {"a": 5_000, "b": 2_500, "c": 2_500}
    assert last.weights == first.weights
    owned = [owner for owner, count in first.allocation.runs for _ in range(count)]
    now = [owner for owner, count in last.allocation.runs for _ in range(count)]
    assert all(new == old for old, new in zip(owned, now, strict=True) if old is not None)


@pytest.mark.parametrize(
    ("use_case", "variant", "path", "kind"),
    [
        ("roll_back_variant", "a", "variant", "value"),
        ("roll_back_variant", "z", "variant", "reference"),
        ("resume_variant", "b", "variant", "conflict"),
        ("resume_variant", "z", "variant", "reference"),
    ],
)
async def test_what_cannot_be_rolled_back_or_resumed_is_named(
    service: Service, use_case: str, variant: str, path: str, kind: str
) -> None:
    await service.begin(guarded("rollback"))
    with pytest.raises(ProblemError) as caught:
        await use(service, use_case, variant)
    assert [(p.path, p.type) for p in caught.value.errors] == [(path, kind)]
    assert (await service.find("x")).epoch == 1


async def test_variants_of_a_run_that_is_over_stay_as_they_are(service: Service) -> None:
    await service.begin(guarded("rollback"))
    await use(service, "roll_back_variant", "b")
    with pytest.raises(ProblemError) as caught:
        await use(service, "roll_back_variant", "b")
    assert [(p.path, p.type) for p in caught.value.errors] == [("variant", "conflict")]
    await service.conclude("x")
    for use_case, variant in (("roll_back_variant", "c"), ("resume_variant", "b")):
        with pytest.raises(ProblemError) as caught:
            await use(service, use_case, variant)
        assert caught.value.type == "conflict"


async def test_evidence_of_an_older_release_is_read(service: Service) -> None:
    """Rows and alarms of one that knew one generation and one action."""
    await service.begin(guarded("rollback"))
    await service.tick()
    async with service.pool.acquire() as connection:
        record = await store.get_experiment(connection, SHOP, "x")
        assert record is not None
        [row, _] = await guard.read_ledger(connection, record.id, record.run)
    assert (row.generation, row.acted) == (1, None)
    assert isinstance(row.state, GuardState)
