"""Gates, as Flagger and Argo Rollouts ask at them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from analysis.control.gates import Alarm, Seen, Standing, Verdict, look, verdict
from experiments import store
from tests.running import Turnout, eventually, problem
from tests.service.loop import SHOP, Service, Visitors, definition, metric, rates

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SOUND = Seen(
    state="running",
    control="a",
    ship=None,
    rolled_back=(),
    alarms=(),
    findings=(),
    watermark=NOW - timedelta(seconds=2),
    now=NOW,
)
FLAGGER = {"name": "podinfo", "namespace": "test", "phase": "Progressing", "checksum": "85d557f47b"}

SHUT: dict[str, tuple[dict[str, Any], list[str], bool]] = {
    "a draft": ({"state": "draft"}, ["not_started"], False),
    "a pause": ({"state": "paused"}, ["paused"], False),
    "a rollback": ({"state": "rolled_back", "ship": "a"}, ["rolled_back"], True),
    "its control was shipped": ({"state": "concluded", "ship": "a"}, ["control_shipped"], False),
    "it was put away": ({"state": "archived"}, ["archived"], False),
    "a variant was rolled back": ({"rolled_back": ("b",)}, ["variant_rolled_back"], True),
    "an alarm": ({"alarms": (Alarm("errors", "b"),)}, ["guard_alarm"], False),
    "unsound data": ({"findings": (Standing("no_data", "alert"),)}, ["health_no_data"], False),
    "nobody watches": ({"watermark": NOW - timedelta(seconds=61)}, ["not_watched"], False),
    "nobody ever watched": ({"watermark": None}, ["not_watched"], False),
    "two things": (
        {"state": "paused", "alarms": (Alarm("errors", ""),)},
        ["paused", "guard_alarm"],
        False,
    ),
}


@pytest.mark.parametrize("case", SHUT)
def test_what_shuts_a_gate(case: str) -> None:
    changes, codes, roll_back = SHUT[case]
    said = verdict(msgspec.structs.replace(SOUND, **changes))
    assert (said.go, [reason.code for reason in said.reasons]) == (False, codes)
    assert said.roll_back == roll_back


def test_what_opens_it() -> None:
    opened = Verdict(go=True, roll_back=False, reasons=())
    assert verdict(SOUND) == opened
    shipped = msgspec.structs.replace(SOUND, state="concluded", ship="b", watermark=None)
    assert verdict(shipped) == opened


async def asked(service: Service, key: str) -> Verdict:
    """What the gate of an experiment says now."""
    record = await service.find(key)
    async with service.pool.acquire() as connection:
        seen = await look(connection, record)
        return verdict(msgspec.structs.replace(seen, now=service.clock.now))


async def test_an_alarm_of_the_guard_shuts_the_gate_and_a_rollback_sends_back(
    service: Service,
) -> None:
    guarded = metric("errors", "guardrail", goal="decrease", margin={"absolute": 0.01})
    for action in ("alert", "rollback_variant", "rollback"):
        await service.begin(definition(action, guarded, guard={"action": action}))
        visitors = Visitors(service, action, seed=5)
        await visitors.come(20, {"errors": rates(a=0.05, b=0.05)})
        await service.tick()
        assert (await asked(service, action)).go
        for _ in range(60):
            await visitors.come(20, {"errors": rates(a=0.05, b=0.9)})
            await service.tick()
            if await service.decisions(action):
                break
        said = await asked(service, action)
        assert not said.go
        assert said.roll_back == (action != "alert")
        assert said.reasons[0].code in {"guard_alarm", "variant_rolled_back", "rolled_back"}


async def test_a_gate_goes_by_the_clock_of_the_database(service: Service) -> None:
    """As whoever folds does: a process with a clock of its own would shut gates, or keep them open,
    for as long as that is off."""
    record = await service.begin(definition("x"))
    async with service.pool.acquire() as connection:
        before = await connection.fetchval("select clock_timestamp()")
        seen = await look(connection, record)
        assert before < seen.now < await connection.fetchval("select clock_timestamp()")


async def test_a_gate_shuts_when_nobody_folds(service: Service) -> None:
    await service.begin(definition("x"))
    await service.settle()
    assert (await asked(service, "x")).go
    service.clock.advance(61)
    said = await asked(service, "x")
    assert [reason.code for reason in said.reasons] == ["not_watched"]


async def test_a_finding_shuts_the_gate_until_it_clears(service: Service) -> None:
    record = await service.begin(definition("x"))
    await service.settle()
    async with service.pool.acquire() as connection:
        await connection.execute(
            "insert into health_finding (experiment, run, name, action, since)"
            " values ($1, 1, 'sample_ratio', 'alert', $2)",
            record.id,
            service.clock.now,
        )
        await store.create_project(connection, SHOP, service.clock.now)
    assert [r.code for r in (await asked(service, "x")).reasons] == ["health_sample_ratio"]
    await service.execute("delete from health_finding")
    assert (await asked(service, "x")).go


async def opened(turnout: Turnout, key: str) -> Any:
    """What the gate says once it is open: somebody has to have folded."""

    async def says_go() -> Any:
        answer = await turnout.client("analyst").get(f"/v1/gates/{key}")
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.json()["go"] else None

    return await eventually(says_go, "open gate")


async def test_flagger_is_answered_by_the_status(turnout: Turnout) -> None:
    client = turnout.client("analyst")
    key = await turnout.define()
    path = f"/v1/gates/{key}"
    waits = await client.post(path, json=FLAGGER)
    problem(waits, 409, "conflict")
    assert waits.json()["detail"] == f"{key}: the experiment was not started"
    await turnout.move(key, "start")
    await opened(turnout, key)
    assert (await client.post(path, json=FLAGGER | {"metadata": {"a": "b"}})).status_code == 200
    stays = await client.post(path, params={"gate": "rollback"}, json=FLAGGER)
    problem(stays, 409, "conflict")
    await turnout.move(key, "pause")
    problem(await client.post(path, json=FLAGGER), 409, "conflict")
    problem(await client.post(path, params={"gate": "rollback"}, json=FLAGGER), 409, "conflict")
    await turnout.move(key, "rollback")
    problem(await client.post(path, json=FLAGGER), 409, "conflict")
    back = await client.post(path, params={"gate": "rollback"}, json=FLAGGER)
    assert (back.status_code, back.json()["roll_back"]) == (200, True)


async def test_argo_is_answered_by_the_body(turnout: Turnout) -> None:
    client = turnout.client("analyst")
    key = await turnout.start()
    view = await opened(turnout, key)
    assert view == {
        "experiment": key,
        "state": "running",
        "run": 1,
        "epoch": 1,
        "go": True,
        "roll_back": False,
        "reasons": [],
    }
    await turnout.move(key, "pause")
    for answer in (
        await client.get(f"/v1/gates/{key}"),
        await client.post(f"/v1/gates/{key}"),
        await client.post(f"/v1/gates/{key}", json={"service": "podinfo"}),
    ):
        assert answer.status_code == 200
        body = answer.json()
        assert (body["go"], body["roll_back"]) == (False, False)
        assert [reason["code"] for reason in body["reasons"]] == ["paused"]


async def test_a_gate_is_for_those_who_may_read(turnout: Turnout, stranger: Turnout) -> None:
    key = await turnout.define()
    assert (await turnout.client("service").get(f"/v1/gates/{key}")).status_code == 403
    assert (await turnout.client(None).post(f"/v1/gates/{key}")).status_code == 401
    problem(await stranger.client("analyst").get(f"/v1/gates/{key}"), 404, "not-found")
    client = turnout.client("analyst")
    problem(await client.post(f"/v1/gates/{key}", content=b"{"), 400, "malformed")
    problem(await client.post(f"/v1/gates/{key}?gate=maybe"), 422, "invalid")
