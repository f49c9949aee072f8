"""The doors of a ramp, in a running service: what they show, take and refuse."""

from typing import Any

import httpx
import pytest

from tests.running import Turnout, eventually, problem

STEPS = (
    {"traffic": 0.1, "approval": True},
    {"traffic": 0.4, "approval": True},
    {"traffic": 1.0},
)


def policy(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "ramp", "steps": list(steps or STEPS)}


async def do(turnout: Turnout, key: str, verb: str, **body: Any) -> httpx.Response:
    path = f"/v1/experiments/{key}/ramp/{verb}"
    return await turnout.client("editor").post(path, json={"reason": "a test", **body})


async def read(turnout: Turnout, key: str) -> dict[str, Any]:
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/ramp")
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def until(turnout: Turnout, key: str, **wanted: Any) -> dict[str, Any]:
    """The ramp, once it stands so."""

    async def probe() -> dict[str, Any] | None:
        shown = await read(turnout, key)
        return shown if all(shown[name] == value for name, value in wanted.items()) else None

    return await eventually(probe, f"ramp with {wanted}")


async def test_a_ramp_waits_for_its_approvals_and_goes_on_at_once(turnout: Turnout) -> None:
    key = await turnout.start(policy=policy())
    shown = await until(turnout, key, status="awaiting_approval")
    assert (shown["step"], shown["traffic"], shown["waits_for"]) == (1, 0.1, ["approval"])
    assert [(s["place"], s["approved"]) for s in shown["steps"]] == [
        ("now", False),
        ("ahead", False),
        ("ahead", None),
    ]
    assert (await do(turnout, key, "approve", step=1)).status_code == 200
    shown = await until(turnout, key, step=2, status="awaiting_approval")
    assert (shown["traffic"], shown["watched"]) == (0.4, [])
    assert shown["reason"].endswith("no guardrail watches this ramp")
    assert (await do(turnout, key, "approve", step=2)).status_code == 200
    shown = await until(turnout, key, status="complete")
    assert (shown["traffic"], shown["steps"][2]["place"]) == (1.0, "done")
    epochs = (await turnout.client("analyst").get(f"/v1/experiments/{key}/allocations")).json()
    assert [epoch["traffic"] for epoch in epochs["items"]] == [1.0, 0.4, 0.1]


async def test_a_hand_pauses_resumes_and_jumps_and_each_is_a_decision(turnout: Turnout) -> None:
    key = await turnout.start(policy=policy({"traffic": 0.1, "hold": "1h"}, {"traffic": 1.0}))
    shown = (await do(turnout, key, "pause")).json()
    assert (shown["status"], shown["paused"], shown["due_at"]) == ("paused", True, None)
    problem(await do(turnout, key, "pause"), 409, "conflict")
    shown = (await do(turnout, key, "resume")).json()
    assert (shown["status"], shown["waits_for"]) == ("holding", ["time"])
    assert shown["due_at"] > shown["since"]
    shown = (await do(turnout, key, "jump", step=2)).json()
    assert (shown["step"], shown["traffic"]) == (2, 1.0)
    ledger = await turnout.client("analyst").get(
        f"/v1/experiments/{key}/decisions", params={"rule": "manual"}
    )
    kinds = [decision["kind"] for decision in ledger.json()["items"]]
    assert kinds == ["jump", "ramp_resume", "ramp_pause", "start"]


async def test_a_jump_that_is_sent_again_is_done_once(turnout: Turnout) -> None:
    key = await turnout.start(policy=policy())
    path, body = f"/v1/experiments/{key}/ramp/jump", {"step": 2, "reason": "go"}
    headers = {"Idempotency-Key": "the jump"}
    editor = turnout.client("editor")
    first = await editor.post(path, json=body, headers=headers)
    again = await editor.post(path, json=body, headers=headers)
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_what_a_door_refuses_it_says_why(turnout: Turnout) -> None:
    key = await turnout.define(policy=policy())
    assert (await read(turnout, key))["status"] == "not_started"
    problem(await do(turnout, key, "pause"), 409, "conflict")
    await turnout.move(key, "start")
    for body, wrong in (
        ({}, [("step", "missing")]),
        ({"step": 0}, [("step", "value")]),
        ({"step": 4}, [("step", "reference")]),
        ({"step": 1, "to": 2}, [("to", "unknown")]),
    ):
        assert problem(await do(turnout, key, "jump", **body), 422, "invalid") == wrong
    problem(await do(turnout, key, "approve", step=3), 409, "conflict")
    problem(await do(turnout, key, "resume"), 409, "conflict")
    by_hand = {"traffic": 1.0, "reason": "now"}
    editor = turnout.client("editor")
    answer = await editor.put(f"/v1/experiments/{key}/allocation", json=by_hand)
    problem(answer, 409, "conflict")
    assert f"/v1/experiments/{key}/ramp/jump" in answer.json()["detail"]
    await turnout.move(key, "conclude", ship="old")
    assert (await read(turnout, key))["status"] == "ended"
    problem(await do(turnout, key, "jump", step=2), 409, "conflict")


async def test_an_experiment_without_a_ramp_has_no_door_to_one(turnout: Turnout) -> None:
    key = await turnout.start()
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/ramp")
    problem(answer, 409, "conflict")
    assert "fixed" in answer.json()["detail"]
    problem(await do(turnout, key, "approve", step=1), 409, "conflict")
    analyst = turnout.client("analyst")
    answer = await analyst.post(f"/v1/experiments/{key}/ramp/pause", json={"reason": "r"})
    problem(answer, 403, "forbidden")


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ([], [("policy.steps", "value")]),
        ([{"traffic": 0.0001}], [("policy.steps[0].traffic", "value")]),
        ([{"traffic": 0.0, "hold": "1h"}, {"traffic": 1}], [("policy.steps[0].traffic", "value")]),
        (
            [{"traffic": 0.5, "hold": "1h"}, {"traffic": 0.5}],
            [("policy.steps[1].traffic", "value")],
        ),
        ([{"traffic": 0.1}, {"traffic": 1}], [("policy.steps[0]", "missing")]),
        ([{"traffic": 0.1, "hold": "100d"}, {"traffic": 1}], [("policy.steps[0].hold", "value")]),
        ([{"traffic": 0.1, "hold": "1ms"}, {"traffic": 1}], [("policy.steps[0].hold", "value")]),
        ([{"traffic": 0.1, "units": 0}, {"traffic": 1}], [("policy.steps[0].units", "value")]),
        ([{"traffic": 0.1, "when": 3}], [("policy.steps[0].when", "unknown")]),
    ],
)
async def test_wrong_steps_are_named_by_their_paths(
    turnout: Turnout, steps: list[dict[str, Any]], wrong: list[tuple[str, str]]
) -> None:
    key = await turnout.define()
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={"policy": {"kind": "ramp", "steps": steps}},
        headers={"If-Match": "*"},
    )
    assert problem(answer, 422, "invalid") == wrong


async def test_under_a_ramp_the_traffic_is_that_of_its_steps(turnout: Turnout) -> None:
    key = await turnout.define()
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={"traffic": 0.5, "policy": policy()},
        headers={"If-Match": "*"},
    )
    assert problem(answer, 422, "invalid") == [("traffic", "conflict")]
