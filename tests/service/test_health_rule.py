"""Health checks that act, against a real Postgres: once, until they clear."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from analysis.inference.health_findings import HealthEvidence, recompute
from experiments import lifecycle
from experiments.records import Decision
from router.records import Record
from tests.service.loop import SHOP, Service, Visitors, definition, metric, rates

ALIKE = {"ok": rates(a=0.5, b=0.5)}


def checked(
    *metrics: dict[str, Any], alpha: float = 0.01, **health: dict[str, Any]
) -> dict[str, Any]:
    """A definition with these health checks."""
    return definition("x", *metrics, guard={"alpha": alpha, "health": health})


async def come(
    service: Service, units: Mapping[str, int], name: str, several: int = 0, seconds: float = 1
) -> None:
    """Let units be enrolled by variant, `several` of those of a meeting b, too."""
    record = await service.find("x")
    begun = service.clock.now
    service.clock.advance(seconds)
    records: list[Record] = []
    for variant, number in units.items():
        for place in range(number):
            unit = f"{name}-{variant}-{place}"
            records.append(service.exposure(record, unit, variant, begun))
            if variant == "a" and place < several:
                records.append(service.exposure(record, unit, "b", begun))
    await service.ship(records)
    await service.shipped()
    await service.tick()


async def wait(service: Service, seconds: float) -> None:
    """Let time pass, in which routers are alive and nobody comes."""
    service.clock.advance(seconds)
    await service.shipped()
    await service.tick()


async def said(service: Service) -> list[tuple[str, str]]:
    """What the health rule has written into the ledger: kind and code."""
    return [(d.kind, d.code) for d in await service.ledger("x") if d.rule == "health"]


def evidence(decision: Decision) -> HealthEvidence:
    """The evidence of a decision, as it comes out of the API's JSON."""
    return msgspec.json.decode(msgspec.json.encode(decision.evidence), type=HealthEvidence)


async def test_a_run_that_is_well_is_told_nothing_of(service: Service) -> None:
    await service.begin(checked(no_data={"after": "1m"}))
    for tick in range(5):
        await come(service, {"a": 30, "b": 30}, f"t{tick}")
    await wait(service, 50)
    assert await said(service) == []


async def test_silence_is_told_once_and_again_only_after_units_came(service: Service) -> None:
    await service.begin(checked(no_data={"after": "10m"}))
    await wait(service, 3_600)
    assert await said(service) == []  # it had no units yet
    await come(service, {"a": 50, "b": 50}, "first")
    for _ in range(3):
        await wait(service, 400)
    assert await said(service) == [("alert", "no_data")]
    await come(service, {"a": 50, "b": 50}, "second")
    await wait(service, 1)
    await wait(service, 700)
    assert await said(service) == [("alert", "no_data"), ("hold", "clear"), ("alert", "no_data")]
    for decision in await service.ledger("x"):
        if decision.rule == "health":
            assert recompute(evidence(decision)) == evidence(decision).finding


async def test_a_silent_router_is_no_silence_of_the_experiment(service: Service) -> None:
    await service.begin(checked(no_data={"after": "10m"}))
    await come(service, {"a": 2, "b": 2}, "first")
    service.clock.advance(3_600)
    await service.tick()  # nothing was shipped since, not even a heartbeat
    assert await said(service) == []


async def test_a_pause_for_silence_waits_for_a_hand_and_counts_from_then_on(
    service: Service,
) -> None:
    await service.begin(checked(no_data={"after": "10m", "action": "pause"}))
    await come(service, {"a": 2, "b": 2}, "first")
    await wait(service, 700)
    paused = await service.find("x")
    assert paused.state == "paused"
    [decision] = await service.decisions("x")
    assert (decision.kind, decision.rule) == ("pause", "health")
    assert (await service.epochs("x"))[-1].decision == decision.id
    await wait(service, 7_200)
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        await lifecycle.resume(connection, record, service.change())
    await wait(service, 500)
    assert (await service.find("x")).state == "running"
    assert await said(service) == [("pause", "no_data"), ("hold", "clear")]
    assert await service.fetch("select from guard_generation") == []
    await wait(service, 200)
    assert (await service.find("x")).state == "paused"


async def test_units_of_several_variants_act_once_until_they_are_few(service: Service) -> None:
    await service.begin(checked(several_variants={"share": 0.1, "action": "alert"}))
    await come(service, {"a": 60, "b": 60}, "first", several=12)
    assert await said(service) == []
    await come(service, {"a": 20, "b": 20}, "second", several=10)
    assert await said(service) == [("alert", "several_variants")]
    await come(service, {"a": 40, "b": 40}, "third")
    assert await said(service) == [("alert", "several_variants")]
    await come(service, {"a": 100, "b": 100}, "fourth")
    assert await said(service) == [("alert", "several_variants"), ("hold", "clear")]


async def test_a_sample_ratio_that_is_off_pauses_and_says_by_how_much(service: Service) -> None:
    await service.begin(checked(sample_ratio={"action": "pause"}))
    for tick in range(4):
        await come(service, {"a": 100, "b": 40}, f"t{tick}")
    assert (await service.find("x")).state == "paused"
    [decision] = await service.decisions("x")
    assert (decision.kind, decision.code) == ("pause", "sample_ratio")
    assert "a 100, expected 70; b 40, expected 70" in decision.reason
    assert recompute(evidence(decision)) == evidence(decision).finding


async def test_a_roll_back_by_the_sample_ratio_is_paid_from_the_guards_alpha(
    service: Service,
) -> None:
    await service.begin(
        checked(metric("ok", "guardrail"), alpha=0.04, sample_ratio={"action": "rollback"})
    )
    await service.tick()
    rows = await service.fetch("select metric, alpha from guard_ledger order by id")
    assert [(row["metric"], row["alpha"]) for row in rows] == [
        ("ok", 0.01),
        ("$sample_ratio", 0.01),
    ]
    for tick in range(6):
        await come(service, {"a": 100, "b": 40}, f"t{tick}")
    record = await service.find("x")
    assert (record.state, record.ship) == ("rolled_back", "a")
    [decision] = await service.decisions("x")
    assert (decision.kind, decision.rule, decision.code) == ("rollback", "health", "sample_ratio")
    stored = evidence(decision)
    assert stored.rule.ledger is not None
    assert stored.rule.ledger.alpha_share == 0.01
    assert recompute(stored) == stored.finding


async def test_what_it_saw_before_it_was_paid_for_is_no_evidence(service: Service) -> None:
    await service.begin(checked(sample_ratio={"action": "alert"}))
    for tick in range(4):
        await come(service, {"a": 100, "b": 40}, f"t{tick}")
    assert await said(service) == [("alert", "sample_ratio")]
    await service.amend("x", {"guard": {"health": {"sample_ratio": {"action": "rollback"}}}})
    await wait(service, 1)
    for tick in range(3):
        await come(service, {"a": 70, "b": 70}, f"even{tick}")
    assert (await service.find("x")).state == "running"
    await service.amend("x", {"guard": {"health": {"sample_ratio": {"action": "alert"}}}})
    await wait(service, 1)
    rows = await service.fetch("select closed_at from guard_ledger")
    assert [row["closed_at"] is None for row in rows] == [False]


async def test_several_findings_stand_and_clear_each_by_itself(service: Service) -> None:
    await service.begin(
        checked(no_data={"after": "10m"}, several_variants={"share": 0.1, "action": "alert"})
    )
    await come(service, {"a": 60, "b": 60}, "first", several=20)
    await wait(service, 700)
    await come(service, {"a": 1, "b": 1}, "second")
    await wait(service, 1)
    await come(service, {"a": 200, "b": 200}, "third")
    assert await said(service) == [
        ("alert", "several_variants"),
        ("alert", "no_data"),
        ("hold", "no_data_clear"),
        ("hold", "clear"),
    ]


async def test_a_finding_ends_when_its_check_is_ignored_and_is_told_anew_when_it_is_not(
    service: Service,
) -> None:
    ignored = {"action": "ignore"}
    await service.begin(
        checked(sample_ratio={"action": "alert"}, no_data=ignored, several_variants=ignored)
    )
    for tick in range(4):
        await come(service, {"a": 100, "b": 40}, f"t{tick}")
    assert await said(service) == [("alert", "sample_ratio")]
    for action in ("ignore", "alert"):
        await service.amend("x", {"guard": {"health": {"sample_ratio": {"action": action}}}})
        for _ in range(2):
            await wait(service, 1)
    told = [decision for decision in await service.ledger("x") if decision.rule == "health"]
    assert [(decision.kind, decision.code) for decision in told] == [
        ("alert", "sample_ratio"),
        ("hold", "clear"),
        ("alert", "sample_ratio"),
    ]
    assert told[1].reason == "the check sample_ratio is ignored now"
    assert all(recompute(evidence(d)) == evidence(d).finding for d in told)


async def test_where_units_are_rare_a_silence_has_to_be_longer_than_their_gaps(
    service: Service,
) -> None:
    await service.begin(checked(no_data={"after": "10m"}))
    for seconds in (500, 1_200, 1_200, 1_200):
        await come(service, {"a": 1}, f"at {service.clock.now}", seconds=seconds)
    await wait(service, 18_000)
    assert await said(service) == []
    await wait(service, 200)
    assert await said(service) == [("alert", "no_data")]
    [decision] = [d for d in await service.ledger("x") if d.rule == "health"]
    assert "more than 5.37 h (20 usual gaps)" in decision.reason
    assert recompute(evidence(decision)) == evidence(decision).finding


@pytest.mark.parametrize("check", ["sample_ratio", "no_data", "several_variants"])
async def test_what_is_to_be_ignored_is_ignored(service: Service, check: str) -> None:
    checks: dict[str, dict[str, Any]] = {
        "no_data": {"after": "1m"},
        "several_variants": {"share": 0.01},
        "sample_ratio": {},
    }
    checks[check]["action"] = "ignore"
    await service.begin(checked() | {"guard": {"health": checks}})
    for tick in range(3):
        await come(service, {"a": 100, "b": 40}, f"t{tick}", several=30)
    await wait(service, 120)
    codes = {code for _, code in await said(service)}
    assert codes == {"sample_ratio", "no_data", "several_variants"} - {check}


async def test_an_alarm_of_the_guard_goes_before_what_health_says(service: Service) -> None:
    """Both at one tick: the guard acts, and the run that is over is asked nothing more."""
    watched = metric("ok", "guardrail")
    await service.begin(checked(watched, no_data={"after": "10s", "action": "pause"}))
    visitors = Visitors(service, "x", seed=1)
    for _ in range(20):
        await visitors.come(40, {"ok": rates(a=0.9, b=0.1)})
    await wait(service, 60)
    assert [d.kind for d in await service.decisions("x")] == ["rollback"]
