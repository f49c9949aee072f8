"""A hand overrules the guard, whose alarm has only alerted: gates and ramps go on, in a generation
of its own; against a real Postgres."""

from typing import Any

import pytest

from analysis.control.overruling import overrule
from experiments import lifecycle
from experiments.problems import ProblemError
from experiments.records import ExperimentRecord
from tests.running import Turnout, eventually, problem
from tests.service.loop import SHOP, Respond, Service, Visitors, definition, metric, rates
from tests.service.test_gates import asked

BAD: dict[str, Respond] = {"ok": rates(a=0.9, b=0.1)}
WELL: dict[str, Respond] = {"ok": rates(a=0.9, b=0.9)}


def guarded(action: str = "alert", **others: Any) -> dict[str, Any]:
    """A definition with one guardrail, and this action of the guard."""
    guard = {"alpha": 0.02, "action": action}
    return definition("x", metric("ok", "guardrail"), guard=guard, **others)


async def use(service: Service, use_case: Any, *arguments: Any) -> ExperimentRecord:
    """Let a hand do something to x."""
    async with service.pool.acquire() as connection, connection.transaction():
        record = await lifecycle.find(connection, SHOP, "x", lock=True)
        done: ExperimentRecord = await use_case(
            connection, record, *arguments, service.change("bots, not the model")
        )
        return done


async def alarmed(service: Service, data: dict[str, Any]) -> Visitors:
    """Begin x, and let units come until the guard has acted."""
    await service.begin(data)
    visitors = Visitors(service, "x", seed=7)
    for _ in range(60):
        await visitors.come(60, BAD)
        await service.tick()
        if await service.decisions("x"):
            return visitors
    raise AssertionError("there was no alarm")


async def live(service: Service, visitors: Visitors, ticks: int, responses: Any) -> None:
    """Let units come, and the controller tick."""
    for _ in range(ticks):
        await visitors.come(60, responses)
        await service.tick()


async def test_an_alarm_that_only_alerted_shuts_the_gate_until_a_hand_overrules_it(
    service: Service,
) -> None:
    visitors = await alarmed(service, guarded())
    await live(service, visitors, 5, WELL)
    assert [reason.code for reason in (await asked(service, "x")).reasons] == ["guard_alarm"]
    before = await service.find("x")
    assert await use(service, overrule) == before  # nothing that assignment reads has changed
    assert (await asked(service, "x")).go  # at once: no tick lies between
    decision = (await service.ledger("x"))[-1]
    assert (decision.kind, decision.rule, decision.code) == ("overrule", "manual", "overrule")
    assert (decision.actor, decision.reason) == ("tester", "bots, not the model")
    assert (decision.epoch_before, decision.epoch_after) == (before.epoch, before.epoch)
    assert decision.evidence["asked"] == {"alarms": [{"guardrail": "ok", "variant": "b"}]}
    [generation] = await service.fetch("select * from guard_generation")
    assert (generation["number"], generation["epoch"]) == (2, before.epoch)
    assert (generation["at"], generation["decision"]) == (decision.at, decision.id)
    assert (generation["actor"], generation["reason"]) == (decision.actor, decision.reason)
    await live(service, visitors, 20, WELL)
    assert (await asked(service, "x")).go
    assert [d.kind for d in await service.decisions("x")] == ["alert"]


async def test_what_harms_after_that_is_told_again(service: Service) -> None:
    visitors = await alarmed(service, guarded())
    await use(service, overrule)
    await live(service, visitors, 40, BAD)
    alerts = await service.decisions("x")
    assert [(d.kind, d.evidence["generation"]) for d in alerts] == [("alert", 1), ("alert", 2)]
    assert not (await asked(service, "x")).go


async def test_a_ramp_goes_on_once_the_alarm_is_overruled(service: Service) -> None:
    steps = [{"traffic": 0.5, "hold": "2m"}, {"traffic": 1.0}]
    visitors = await alarmed(service, guarded(policy={"kind": "ramp", "steps": steps}))
    service.clock.advance(120)
    await live(service, visitors, 5, WELL)
    assert [d.kind for d in await service.decisions("x")] == ["alert"]
    await use(service, overrule)
    await live(service, visitors, 10, WELL)
    assert [d.kind for d in await service.decisions("x")] == ["alert", "advance"]


async def test_it_is_overruled_once(service: Service) -> None:
    await alarmed(service, guarded())
    await use(service, overrule)
    ledger = len(await service.ledger("x"))
    with pytest.raises(ProblemError, match="No alarm that only alerted stands"):
        await use(service, overrule)
    assert len(await service.ledger("x")) == ledger
    assert len(await service.fetch("select from guard_generation")) == 1


@pytest.mark.parametrize(
    ("action", "text"),
    [
        ("pause", "The guard has paused this experiment: `POST /v1/experiments/x/resume`"),
        ("rollback_variant", "Rolled back: b; `POST /v1/experiments/x/resume` with `variant`"),
        ("rollback", "An experiment that is rolled_back has no alarm to overrule"),
    ],
)
async def test_what_the_guard_has_done_is_undone_by_another_door(
    service: Service, action: str, text: str
) -> None:
    await alarmed(service, guarded(action))
    with pytest.raises(ProblemError) as refused:
        await use(service, overrule)
    assert text in refused.value.detail
    assert await service.fetch("select from guard_generation") == []


async def test_what_was_resumed_is_not_overruled_as_well(service: Service) -> None:
    await alarmed(service, guarded("pause"))
    await use(service, lifecycle.resume)
    with pytest.raises(ProblemError, match="No alarm that only alerted stands"):
        await use(service, overrule)  # though no tick has taken the generation in


async def test_the_door_is_for_editors_and_its_use_is_told(turnout: Turnout) -> None:
    margin = {"absolute": 0.01}
    key = await turnout.start(
        metrics=[metric("errors", "guardrail", goal="decrease", margin=margin)],
        guard={"action": "alert"},
    )
    door, body = f"/v1/experiments/{key}/overrule", {"reason": "bots"}
    editor = turnout.client("editor")
    assert (await turnout.client("analyst").post(door, json=body)).status_code == 403
    assert problem(await editor.post(door, json={}), 422, "invalid") == [("reason", "missing")]
    refused = await editor.post(door, json=body)
    assert problem(refused, 409, "conflict") == []
    assert "there is nothing to overrule" in refused.json()["detail"]

    async def alarm() -> Any:
        return (
            await turnout.rows(
                """update guard_ledger g set acted = 'alert' from experiment x
               where x.id = g.experiment and x.project = $1 and x.key = $2 returning g.id""",
                key,
            )
            or None
        )

    await eventually(alarm, "row of the ledger")
    answer = await editor.post(door, json=body)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["state"], answer.json()["epoch"]) == ("running", 1)
    assert problem(await editor.post(door, json=body), 409, "conflict") == []
    listed = (await editor.get(f"/v1/experiments/{key}/decisions?rule=manual")).json()["items"]
    assert [row["kind"] for row in listed] == ["overrule", "start"]
