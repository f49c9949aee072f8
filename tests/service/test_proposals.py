"""Where a project demands it, a second pair of eyes approves a start, a change of what runs and a
move of traffic by hand; the way to safety is always open."""

import asyncio
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.running import Turnout, definition, eventually, problem
from turnout.client import apply

ALL = ["start", "change", "allocation"]


async def demand(turnout: Turnout, approvals: list[str]) -> None:
    """Say in the database what the project demands: its door is tested elsewhere."""
    async with turnout.host.pool.acquire() as connection:
        await connection.execute(
            "update project set approvals = $2 where key = $1", turnout.project, approvals
        )


@pytest_asyncio.fixture
async def guarded(turnout: Turnout) -> Turnout:
    """A project that demands approval of all there is."""
    await demand(turnout, ALL)
    return turnout


async def proposed(answer: httpx.Response) -> int:
    """The number of the proposal that a write was answered with."""
    assert answer.status_code == 202, answer.text
    number: int = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/proposals/{number}"
    return number


async def propose_start(turnout: Turnout, key: str) -> int:
    answer = await turnout.client("editor").post(
        f"/v1/experiments/{key}/start", json={"reason": "it is ready"}
    )
    return await proposed(answer)


async def settle(
    turnout: Turnout, number: int, verb: str = "approve", role: Any = "admin", **headers: str
) -> httpx.Response:
    return await turnout.client(role).post(
        f"/v1/proposals/{number}/{verb}", json={"reason": "I have looked"}, headers=headers
    )


async def started(turnout: Turnout, **changes: Any) -> str:
    """The key of an experiment that runs, in a project that demands all."""
    await demand(turnout, [])
    key = await turnout.start(**changes)
    await demand(turnout, ALL)
    return key


async def test_a_start_waits_for_another_and_both_are_named(guarded: Turnout) -> None:
    key = await guarded.define()
    number = await propose_start(guarded, key)
    editor, admin = guarded.client("editor"), guarded.client("admin")
    assert (await editor.get(f"/v1/experiments/{key}")).json()["state"] == "draft"

    own = await settle(guarded, number, role="editor")
    assert problem(own, 403, "forbidden") == []
    assert "your own proposal" in own.json()["detail"]

    approved = await settle(guarded, number)
    assert approved.status_code == 200, approved.text
    assert approved.json()["state"] == "approved"
    epochs = (await admin.get(f"/v1/experiments/{key}/allocations")).json()["items"]
    proposer, approver = approved.json()["proposer"], approved.json()["settled_by"]
    assert proposer != approver
    assert epochs[0]["actor"] == f"{proposer}, approved by {approver}"
    decisions = (await admin.get(f"/v1/experiments/{key}/decisions")).json()["items"]
    assert decisions[0]["actor"] == epochs[0]["actor"]
    assert (await editor.get(f"/v1/experiments/{key}")).json()["state"] == "running"
    assert (await editor.get(f"/v1/proposals/{number}")).json() == approved.json()


async def test_what_could_never_be_done_is_refused_at_once(guarded: Turnout) -> None:
    key = await started(guarded)
    editor = guarded.client("editor")
    again = await editor.post(f"/v1/experiments/{key}/start", json={"reason": "again"})
    problem(again, 409, "conflict")
    wrong = await editor.put(
        f"/v1/experiments/{key}/allocation", json={"reason": "x", "weights": {"old": 1.0}}
    )
    assert ("weights.new", "missing") in problem(wrong, 422, "invalid")
    assert (await editor.get("/v1/proposals")).json()["items"] == []


@pytest.mark.parametrize(
    ("verb", "body"),
    [("pause", {}), ("rollback", {}), ("conclude", {"ship": "old"})],
)
async def test_the_way_to_safety_is_open(guarded: Turnout, verb: str, body: Any) -> None:
    key = await started(guarded)
    answer = await guarded.client("editor").post(
        f"/v1/experiments/{key}/{verb}", json={"reason": "it harms", **body}
    )
    assert answer.status_code == 200, answer.text


async def test_what_moves_what_runs_waits(guarded: Turnout) -> None:
    key = await started(guarded)
    editor, path = guarded.client("editor"), f"/v1/experiments/{key}"
    tag = (await editor.get(path)).headers["etag"]
    await proposed(await editor.patch(path, json={"name": "another"}, headers={"If-Match": tag}))
    moved = {"reason": "more", "weights": {"old": 0.2, "new": 0.8}}
    await proposed(await editor.put(f"{path}/allocation", json=moved))
    await proposed(await editor.post(f"{path}/conclude", json={"reason": "won", "ship": "new"}))
    held = {"reason": "hold", "share": 0.1}
    await proposed(await editor.put("/v1/holdout", json=held))
    waiting = (await editor.get("/v1/proposals", params={"experiment": key})).json()["items"]
    assert [one["verb"] for one in waiting] == ["conclude", "allocate", "amend"]
    assert [one["demand"] for one in waiting] == ["change", "allocation", "change"]
    assert (await editor.get(path)).json()["epoch"] == 1

    same = await editor.patch(path, json={}, headers={"If-Match": tag})
    assert same.status_code == 200  # nothing to approve
    paused = await editor.post(f"{path}/pause", json={"reason": "look"})
    assert paused.status_code == 200
    resumed = await editor.post(f"{path}/resume", json={"reason": "fine"})
    assert resumed.status_code == 200  # it goes on with what was there


async def test_what_has_moved_since_makes_a_proposal_stale(guarded: Turnout) -> None:
    key = await started(guarded)
    editor, path = guarded.client("editor"), f"/v1/experiments/{key}"
    number = await proposed(
        await editor.put(f"{path}/allocation", json={"reason": "more", "traffic": 0.5})
    )
    await guarded.move(key, "pause")
    late = await settle(guarded, number)
    problem(late, 409, "conflict")
    assert "stale" in late.json()["detail"]
    assert (await editor.get(f"/v1/proposals/{number}")).json()["state"] == "stale"
    assert (await editor.get(path)).json()["traffic"] == 1.0
    again = await settle(guarded, number)
    assert "is stale already" in again.json()["detail"]


async def test_of_two_approvals_at_once_one_wins(guarded: Turnout) -> None:
    key = await guarded.define()
    number = await propose_start(guarded, key)
    both = await asyncio.gather(settle(guarded, number), settle(guarded, number))
    assert sorted(answer.status_code for answer in both) == [200, 409]
    epochs = (await guarded.client("admin").get(f"/v1/experiments/{key}/allocations")).json()
    assert len(epochs["items"]) == 1


async def test_a_proposal_and_an_approval_sent_again_are_done_once(guarded: Turnout) -> None:
    key = await guarded.define()
    path, body = f"/v1/experiments/{key}/start", {"reason": "it is ready"}
    once = {"Idempotency-Key": "start-1"}
    editor = guarded.client("editor")
    first = await editor.post(path, json=body, headers=once)
    number = await proposed(first)
    second = await editor.post(path, json=body, headers=once)
    assert (second.status_code, second.json()) == (202, first.json())
    # The same without a key is found, too: whoever asks every minute fills nobody's list.
    assert await proposed(await editor.post(path, json=body)) == number
    answers = [await settle(guarded, number, **{"Idempotency-Key": "yes"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


async def test_an_editor_rejects_and_its_proposer_withdraws(guarded: Turnout) -> None:
    key = await guarded.define()
    number = await propose_start(guarded, key)
    other = await settle(guarded, number, "withdraw", "admin")
    problem(other, 403, "forbidden")
    mine = await settle(guarded, number, "withdraw", "editor")
    assert mine.json()["state"] == "withdrawn"
    number = await propose_start(guarded, key)
    no = await settle(guarded, number, "reject", "admin")
    assert no.json()["state"] == "rejected"
    late = await settle(guarded, number)
    assert "is rejected already" in late.json()["detail"]


async def test_a_proposal_expires(guarded: Turnout) -> None:
    key = await guarded.define()
    number = await propose_start(guarded, key)
    async with guarded.host.pool.acquire() as connection:
        await connection.execute("update proposal set expires_at = at where id = $1", number)
    late = await settle(guarded, number)
    assert "is expired already" in late.json()["detail"]
    expired = await guarded.client("analyst").get("/v1/proposals", params={"state": "expired"})
    assert [one["id"] for one in expired.json()["items"]] == [number]


async def test_so_many_proposals_wait_and_no_more(guarded: Turnout) -> None:
    key = await guarded.define()
    editor, path = guarded.client("editor"), f"/v1/experiments/{key}/start"
    for turn in range(20):
        await proposed(await editor.post(path, json={"reason": f"reason {turn}"}))
    problem(await editor.post(path, json={"reason": "one more"}), 409, "conflict")


async def test_nobody_approves_a_step_of_a_run_that_they_started(guarded: Turnout) -> None:
    steps = [{"traffic": 0.1, "hold": "1h", "approval": True}, {"traffic": 1.0, "hold": "1h"}]
    key = await started(guarded, policy={"kind": "ramp", "steps": steps})
    path, body = f"/v1/experiments/{key}/ramp/approve", {"step": 1, "reason": "fine"}
    own = await guarded.client("editor").post(path, json=body)
    problem(own, 403, "forbidden")
    other = await guarded.client("admin").post(path, json=body)
    assert other.status_code == 200, other.text
    await proposed(
        await guarded.client("editor").post(
            f"/v1/experiments/{key}/ramp/jump", json={"step": 2, "reason": "now"}
        )
    )


async def test_moves_of_the_bandit_leave_a_proposal_as_it_is(guarded: Turnout) -> None:
    policy = {"kind": "thompson", "metric": "click", "every": "1m", "warmup": 100}
    key = await started(guarded, policy=policy)
    editor, path = guarded.client("editor"), f"/v1/experiments/{key}"
    tag = (await editor.get(path)).headers["etag"]
    number = await proposed(
        await editor.patch(path, json={"name": "another"}, headers={"If-Match": tag})
    )
    await demand(guarded, [])
    await guarded.allocate(key, weights={"old": 0.3, "new": 0.7})
    async with guarded.host.pool.acquire() as connection:  # as if the bandit had done it
        await connection.execute(
            "update decision set rule = 'bandit' where id = ("
            " select decision from epoch where number = 2 and experiment ="
            " (select id from experiment where project = $1 and key = $2))",
            guarded.project,
            key,
        )
    approved = await settle(guarded, number)
    assert approved.status_code == 200, approved.text
    assert (await editor.get(path)).json()["definition"]["name"] == "another"


async def test_no_proposal_of_another_project_is_seen_or_settled(
    guarded: Turnout, stranger: Turnout
) -> None:
    key = await guarded.define()
    number = await propose_start(guarded, key)
    problem(await stranger.client("admin").get(f"/v1/proposals/{number}"), 404, "not-found")
    problem(await settle(stranger, number), 404, "not-found")
    assert (await stranger.client("admin").get("/v1/proposals")).json()["items"] == []


async def test_who_may_not_write_settles_nothing(guarded: Turnout) -> None:
    number = await propose_start(guarded, await guarded.define())
    for role in ("analyst", "service", "client"):
        problem(await settle(guarded, number, role=role), 403, "forbidden")


async def test_without_the_demand_all_is_done_at_once(turnout: Turnout) -> None:
    await demand(turnout, ["allocation"])
    key = await turnout.define(**definition())
    answer = await turnout.client("editor").post(
        f"/v1/experiments/{key}/start", json={"reason": "go"}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "patch",
    [
        {"traffic": 0.5},
        {"variants": {"new": {"weight": 0.9}, "old": {"weight": 0.1}}},
        {"policy": {"kind": "thompson", "metric": "click", "every": "1m"}},
    ],
)
async def test_a_change_that_moves_traffic_goes_around_no_demand_of_that(
    turnout: Turnout, patch: dict[str, Any]
) -> None:
    key = await turnout.start()
    await demand(turnout, ["allocation"])
    editor, path = turnout.client("editor"), f"/v1/experiments/{key}"
    before = (await editor.get(path)).json()
    if "variants" in patch:
        variants = before["definition"]["variants"]
        patch = {"variants": [{**each, **patch["variants"][each["key"]]} for each in variants]}
    waits = await editor.patch(path, json=patch, headers={"If-Match": '"1"'})
    await proposed(waits)
    assert waits.json()["demand"] == "allocation"
    assert (await editor.get(path)).json() == before
    plain = await editor.patch(path, json={"name": "another"}, headers={"If-Match": '"1"'})
    assert plain.status_code == 200, plain.text
    all_of = {"variant": "new", "reason": "x", "attribute": "country", "value": "DE"}
    problem(await editor.post(f"{path}/overrides", json=all_of), 409, "conflict")


async def test_what_is_approved_is_carried_out_as_it_was_sent_and_told(guarded: Turnout) -> None:
    key = await started(guarded)
    patch = {"targeting": {"<": [{"var": "size"}, 1e200]}}  # no whole number of 64 bits
    path, headers = f"/v1/experiments/{key}", {"If-Match": '"1"'}
    editor, admin = guarded.client("editor"), guarded.client("admin")
    number = await proposed(await editor.patch(path, json=patch, headers=headers))
    assert await proposed(await editor.patch(path, json=patch, headers=headers)) == number
    approved = await settle(guarded, number)
    assert approved.status_code == 200, approved.text
    after = (await editor.get(path)).json()["definition"]["targeting"]
    assert after == patch["targeting"]
    query = {"action": "proposal.approve"}
    [entry] = (await admin.get("/v1/audit", params=query)).json()["items"]
    told = {"experiment": key, "verb": "amend", "body": patch, "reason": "I have looked"}
    assert entry["detail"]["body"] == {**told, "proposer": approved.json()["proposer"]}


async def test_what_a_key_has_proposed_ends_with_it(guarded: Turnout) -> None:
    number = await propose_start(guarded, await guarded.define())
    key_id = guarded.keys["editor"].split("_")[1]
    assert (await guarded.client("admin").delete(f"/v1/keys/{key_id}")).status_code == 204
    refused = await settle(guarded, number)
    problem(refused, 409, "conflict")
    assert "was revoked" in refused.json()["detail"]
    assert (await settle(guarded, number, "reject")).status_code == 200


async def test_to_demand_less_takes_another_admin(guarded: Turnout) -> None:
    admin = guarded.client("admin")
    less = {"approvals": ["start"]}
    number = await proposed(await admin.patch("/v1/project", json=less))
    problem(await settle(guarded, number), 403, "forbidden")  # one's own
    problem(await settle(guarded, number, role="editor"), 403, "forbidden")  # no admin
    text = await guarded.host.make_key(guarded.project, "admin")
    second = {"Authorization": f"Bearer {text}"}

    async def known() -> bool | None:
        answer = await admin.get("/v1/project", headers=second)
        return True if answer.status_code == 200 else None

    await eventually(known, "second admin")
    assert (await settle(guarded, number, **second)).status_code == 200
    assert (await admin.get("/v1/project")).json()["approvals"] == ["start"]
    more = await admin.patch("/v1/project", json={"approvals": ["start", "change"]})
    assert more.status_code == 200  # to demand more takes nobody


async def test_a_holdout_is_approved(guarded: Turnout) -> None:
    held = {"reason": "yearly", "share": 0.1}
    number = await proposed(await guarded.client("editor").put("/v1/holdout", json=held))
    assert (await settle(guarded, number)).status_code == 200
    assert (await guarded.client("analyst").get("/v1/holdout")).json()["share"] == 0.1


async def test_no_override_goes_around_the_demand(guarded: Turnout) -> None:
    key = await started(guarded)
    path, editor = f"/v1/experiments/{key}/overrides", guarded.client("editor")
    all_of = {"variant": "new", "reason": "x", "attribute": "country", "value": "DE"}
    problem(await editor.post(path, json=all_of), 409, "conflict")
    tester = {"variant": "new", "reason": "x", "unit": "tester"}
    assert (await editor.post(path, json=tester)).status_code == 201


async def test_an_applied_change_says_that_it_waits(guarded: Turnout) -> None:
    key = await started(guarded)
    wanted = definition(key=key, name="another")

    def applied() -> list[str]:
        headers = {"Authorization": f"Bearer {guarded.keys['editor']}"}
        with httpx.Client(base_url=guarded.url, headers=headers, timeout=30) as client:
            return [*apply(client, [wanted]), *apply(client, [wanted])]

    lines = await asyncio.to_thread(applied)
    waiting = (await guarded.client("analyst").get("/v1/proposals")).json()["items"]
    assert lines == [f"{key}: waits for approval: proposal {waiting[0]['id']}"] * 2
    assert len(waiting) == 1


async def test_the_document_tells_which_doors_propose(turnout: Turnout) -> None:
    paths = (await turnout.client(None).get("/schema/openapi.json")).json()["paths"]
    proposing = {
        (method, path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "202" in operation["responses"]
    }
    assert ("post", "/v1/experiments/{key}/start") in proposing
    assert ("post", "/v1/experiments/{key}/pause") not in proposing
    assert ("post", "/v1/experiments/{key}/rollback") not in proposing
