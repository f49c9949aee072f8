"""The doors of webhooks, and a whole Turnout that tells what was decided."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from experiments.webhooks.model import EVENT_TYPES, MOST_WEBHOOKS
from tests.receiving import Receiver, receiving
from tests.running import Turnout, eventually, problem
from tests.unit.test_signing import accepts

URL = "https://hooks.example.com/services/T0/B0/secret-token?also=secret"


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Somebody who is told."""
    async with receiving() as one:
        yield one


async def make(turnout: Turnout, **body: Any) -> Any:
    """A new webhook, as it is shown."""
    answer = await turnout.client("admin").post("/v1/webhooks", json={"url": URL, **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def told(receiver: Receiver, number: int) -> None:
    """Wait until so many messages have come."""

    async def enough() -> bool | None:
        return True if len(receiver.got) >= number else None

    await eventually(enough, f"{number} messages")


async def test_what_is_done_by_hand_is_told_and_can_be_verified(
    turnout: Turnout, receiver: Receiver
) -> None:
    webhook = await make(turnout, url=receiver.url)
    key = await turnout.start()
    await turnout.move(key, "pause")
    await told(receiver, 2)
    assert receiver.kinds(key) == ["start", "pause"]
    assert all(accepts(webhook["secret"], got.headers, got.body) for got in receiver.got)
    pause = receiver.got[1].data
    assert (pause["project"], pause["reason"]) == (turnout.project, "a test")
    assert pause["links"]["decisions"] == f"/v1/experiments/{key}/decisions"

    async def all_done() -> Any:
        answer = await turnout.client("admin").get(f"/v1/webhooks/{webhook['id']}/deliveries")
        page = answer.json()
        return page if {d["state"] for d in page["items"]} == {"delivered"} else None

    page = await eventually(all_done, "deliveries that are noted")
    assert page["next_cursor"] is None
    assert [d["type"] for d in page["items"]] == ["experiment.pause", "experiment.start"]
    assert [d["message"] for d in page["items"]] == [got.id for got in receiver.got[::-1]]
    assert [(d["status"], d["attempts"], d["error"]) for d in page["items"]] == [(200, 1, "")] * 2


async def test_a_secret_is_shown_once_and_an_address_never(turnout: Turnout) -> None:
    made = await make(turnout, note="the search team")
    assert made["origin"] == "https://hooks.example.com"
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", made["secret"])
    client = turnout.client("admin")
    for shown in (
        await client.get("/v1/webhooks"),
        await client.get(f"/v1/webhooks/{made['id']}"),
        await client.patch(f"/v1/webhooks/{made['id']}", json={"note": "ours"}),
        await client.patch(f"/v1/webhooks/{made['id']}", json={"url": URL}),
    ):
        assert shown.status_code == 200
        assert "secret-token" not in shown.text
        assert made["secret"] not in shown.text
    [kept] = (await client.get("/v1/webhooks")).json()["items"]
    assert kept == {**made, "secret": None, "note": "ours"}


async def test_one_that_is_sent_again_is_made_once_and_shows_no_secret_again(
    turnout: Turnout,
) -> None:
    client, headers = turnout.client("admin"), {"Idempotency-Key": "once"}
    first, second = [
        await client.post("/v1/webhooks", json={"url": URL}, headers=headers) for _ in range(2)
    ]
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.json() == {**first.json(), "secret": None}
    assert len((await client.get("/v1/webhooks")).json()["items"]) == 1
    rows = await turnout.rows("select * from idempotency where project = $1")
    assert first.json()["secret"] not in str([dict(row) for row in rows])


async def test_a_rotation_gives_another_secret_and_the_old_one_signs_for_a_day(
    turnout: Turnout, receiver: Receiver
) -> None:
    made = await make(turnout, url=receiver.url)
    client = turnout.client("admin")
    rotated = (await client.post(f"/v1/webhooks/{made['id']}/rotate")).json()
    assert rotated["secret"] != made["secret"]
    assert rotated["rotated_at"] is not None
    trial = (await client.post(f"/v1/webhooks/{made['id']}/test")).json()
    assert trial == {"arrived": True, "status": 200, "error": ""}
    [got] = receiver.got
    assert b'"turnout.test"' in got.body
    assert accepts(made["secret"], got.headers, got.body)
    assert accepts(rotated["secret"], got.headers, got.body)


async def test_a_trial_says_what_went_wrong(turnout: Turnout, receiver: Receiver) -> None:
    made = await make(turnout, url=receiver.url, format="slack")
    assert made["secret"] is None
    receiver.status = 404
    client = turnout.client("admin")
    trial = (await client.post(f"/v1/webhooks/{made['id']}/test")).json()
    assert trial == {"arrived": False, "status": 404, "error": "the answer was 404"}
    nowhere = f"https://{'a' * 70}.example.com/secret-token"
    assert (
        await client.patch(f"/v1/webhooks/{made['id']}", json={"url": nowhere})
    ).status_code == 200
    trial = (await client.post(f"/v1/webhooks/{made['id']}/test", json={})).json()
    assert (trial["arrived"], trial["status"]) == (False, None)
    assert "secret-token" not in trial["error"]
    refused = await client.post(f"/v1/webhooks/{made['id']}/rotate")
    assert problem(refused, 409, "conflict") == []


async def test_a_webhook_is_changed_by_a_merge_patch(turnout: Turnout) -> None:
    key = await turnout.define()
    made = await make(turnout, types=["experiment.rollback"], experiments=[key])
    client, path = turnout.client("admin"), f"/v1/webhooks/{made['id']}"
    changed = (await client.patch(path, json={"types": None, "note": "n"})).json()
    assert (changed["types"], changed["experiments"], changed["note"]) == (None, [key], "n")
    changed = (await client.patch(path, json={"enabled": False})).json()
    assert (changed["enabled"], changed["note"]) == (False, "n")
    await turnout.rows(
        "update webhook set why_disabled = 'it answered 410 Gone' where project = $1"
    )
    changed = (await client.patch(path, json={"enabled": True})).json()
    assert (changed["enabled"], changed["why_disabled"]) == (True, "")
    moved = (await client.patch(path, json={"url": "http://[::1]:8000/x"})).json()
    assert (moved["origin"], moved["secret"]) == ("http://[::1]:8000", None)


async def test_a_deleted_webhook_is_gone(turnout: Turnout, receiver: Receiver) -> None:
    made = await make(turnout, url=receiver.url)
    client, path = turnout.client("admin"), f"/v1/webhooks/{made['id']}"
    assert (await client.delete(path)).status_code == 204
    for answer in (
        await client.get(path),
        await client.delete(path),
        await client.patch(path, json={}),
        await client.post(f"{path}/rotate"),
        await client.post(f"{path}/test"),
        await client.get(f"{path}/deliveries"),
    ):
        problem(answer, 404, "not-found")
    await turnout.start()
    assert receiver.got == []
    [row] = await turnout.rows("select address from webhook where project = $1")
    assert row["address"] == b""


WRONG: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "no address": ({}, [("url", "missing")]),
    "another scheme": ({"url": "ftp://example.com/x"}, [("url", "value")]),
    "no scheme": ({"url": "example.com/x"}, [("url", "value")]),
    "no host": ({"url": "https:///x"}, [("url", "value")]),
    "a user": ({"url": "https://me:secret@example.com/"}, [("url", "value")]),
    "a fragment": ({"url": "https://example.com/#x"}, [("url", "value")]),
    "a port that is none": ({"url": "https://example.com:99999/"}, [("url", "value")]),
    "a space": ({"url": "https://example.com/a b"}, [("url", "value")]),
    "a line": ({"url": "https://example.com/a\r\nX: y"}, [("url", "value")]),
    "not ASCII": ({"url": "https://exämple.com/"}, [("url", "value")]),
    "no form of ours": ({"url": URL, "format": "teams"}, [("format", "value")]),
    "no type of ours": ({"url": URL, "types": ["experiment.nothing"]}, [("types[0]", "value")]),
    "no types": ({"url": URL, "types": []}, [("types", "value")]),
    "no such experiment": (
        {"url": URL, "experiments": ["nothing"]},
        [("experiments[0]", "reference")],
    ),
    "a secret": ({"url": URL, "secret": "whsec_x"}, [("secret", "unknown")]),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_is_named(turnout: Turnout, case: str) -> None:
    body, errors = WRONG[case]
    answer = await turnout.client("admin").post("/v1/webhooks", json=body)
    assert problem(answer, 422, "invalid") == errors
    assert "secret@" not in answer.text
    assert (await turnout.client("admin").get("/v1/webhooks")).json()["items"] == []


async def test_webhooks_are_for_admins_and_of_their_project(
    turnout: Turnout, stranger: Turnout
) -> None:
    made = await make(turnout)
    path = f"/v1/webhooks/{made['id']}"
    for role in ("editor", "analyst", "service"):
        assert (await turnout.client(role).get("/v1/webhooks")).status_code == 403
        assert (await turnout.client(role).post("/v1/webhooks", json={})).status_code == 403
    other = stranger.client("admin")
    assert (await other.get("/v1/webhooks")).json()["items"] == []
    assert (await other.get(path)).status_code == 404
    assert (await other.delete(path)).status_code == 404


async def test_a_project_has_few_webhooks(turnout: Turnout) -> None:
    for _ in range(MOST_WEBHOOKS):
        await make(turnout)
    answer = await turnout.client("admin").post("/v1/webhooks", json={"url": URL})
    assert problem(answer, 409, "conflict") == []


async def test_every_kind_that_the_ledger_has_can_be_asked_for(turnout: Turnout) -> None:
    key = await turnout.start()
    for verb in ("pause", "resume", "rollback", "start"):
        await turnout.move(key, verb)
    await turnout.allocate(key, weights={"old": 0.1, "new": 0.9})
    await turnout.move(key, "conclude", ship="new")
    await turnout.move(key, "archive")
    rows = await turnout.rows(
        """select d.kind from decision d join experiment x on x.id = d.experiment
           where x.project = $1"""
    )
    kinds = {f"experiment.{row['kind']}" for row in rows}
    assert len(kinds) >= 7
    assert kinds <= set(EVENT_TYPES)
