"""API keys through the API: made, shown once, listed, revoked."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from experiments.keys import ROLES
from tests.running import Turnout, eventually, problem


@pytest.mark.parametrize("role", ROLES)
async def test_a_new_key_is_told_once(turnout: Turnout, role: str) -> None:
    admin = turnout.client("admin")
    answer = await admin.post("/v1/keys", json={"role": role, "note": "for the shop"})
    assert answer.status_code == 201
    made = answer.json()
    assert re.fullmatch(f"to_{made['id']}_[0-9a-f]{{64}}", made["key"])
    assert (made["role"], made["note"], made["project"]) == (role, "for the shop", turnout.project)
    assert made["expires_at"] is None
    listed = await admin.get("/v1/keys")
    assert made["id"] in [item["id"] for item in listed.json()["items"]]
    assert made["key"].rpartition("_")[2] not in listed.text


async def test_a_new_key_opens_doors(turnout: Turnout) -> None:
    made = (await turnout.client("admin").post("/v1/keys", json={"role": "analyst"})).json()

    async def works() -> bool | None:
        headers = {"Authorization": f"Bearer {made['key']}"}
        answer = await turnout.client(None).get("/v1/experiments", headers=headers)
        return True if answer.status_code == 200 else None

    await eventually(works, "use for a new key")


async def test_the_database_does_not_hold_a_secret(turnout: Turnout) -> None:
    made = (await turnout.client("admin").post("/v1/keys", json={"role": "service"})).json()
    secret = made["key"].rpartition("_")[2]
    rows = await turnout.rows("select k::text as text from api_key k where project = $1")
    texts = [row["text"] for row in rows]
    assert any(made["id"] in text for text in texts)
    assert not any(secret in text or bytes.fromhex(secret).hex() in text for text in texts)


async def test_a_key_may_expire(turnout: Turnout) -> None:
    before = datetime.now(UTC)
    answer = await turnout.client("admin").post(
        "/v1/keys", json={"role": "client", "expires_in": "30d"}
    )
    expires_at = datetime.fromisoformat(answer.json()["expires_at"])
    assert timedelta() <= expires_at - before - timedelta(days=30) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ({}, [("role", "missing")]),
        ({"role": "owner"}, [("role", "value")]),
        ({"role": 1}, [("role", "type")]),
        ({"role": "client", "project": "another"}, [("project", "unknown")]),
        ({"role": "client", "expires_in": "soon"}, [("expires_in", "value")]),
        ({"role": "client", "expires_in": "0d"}, [("expires_in", "value")]),
        ({"role": "client", "expires_in": "999999999d"}, [("expires_in", "value")]),
        ({"role": "client", "note": "\0"}, [("note", "value")]),
        ({"role": "client", "scope": []}, [("scope", "value")]),
        ({"role": "client", "scope": ["write"]}, [("scope", "value")]),
        ({"role": "client", "scope": ["fly"]}, [("scope[0]", "value")]),
        ({"role": "client", "rate_limit": 0}, [("rate_limit", "value")]),
        ({"role": "client", "rate_limit": 1.5}, [("rate_limit", "type")]),
    ],
)
async def test_a_wrong_request_for_a_key_is_refused_by_its_fields(
    turnout: Turnout, body: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    answer = await turnout.client("admin").post("/v1/keys", json=body)
    assert problem(answer, 422, "invalid") == problems


async def test_a_revoked_key_is_gone(turnout: Turnout) -> None:
    admin = turnout.client("admin")
    key_id = turnout.keys["client"].split("_")[1]
    answer = await admin.delete(f"/v1/keys/{key_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    listed = (await admin.get("/v1/keys")).json()["items"]
    assert key_id not in [item["id"] for item in listed]
    problem(await admin.delete(f"/v1/keys/{key_id}"), 404, "not-found")


@pytest.mark.parametrize("key_id", ["nothing", "%00", "%ED%A0%80"])
async def test_what_is_no_key_cannot_be_revoked(turnout: Turnout, key_id: str) -> None:
    problem(await turnout.client("admin").delete(f"/v1/keys/{key_id}"), 404, "not-found")


async def test_nobody_gives_what_they_do_not_have(turnout: Turnout) -> None:
    admin = turnout.client("admin")
    wanted = {"role": "admin", "scope": ["administer", "record"]}
    made = (await admin.post("/v1/keys", json=wanted)).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    client = turnout.client(None)

    async def works() -> bool | None:
        answer = await client.get("/v1/keys", headers=headers)
        return True if answer.status_code == 200 else None

    await eventually(works, "use for a new key")
    problem(await client.get("/v1/experiments", headers=headers), 403, "forbidden")
    for beyond in ({"role": "admin"}, {"role": "service"}, {"role": "editor", "scope": ["write"]}):
        problem(await client.post("/v1/keys", json=beyond, headers=headers), 403, "forbidden")
    within = {"role": "service", "scope": ["record"]}
    assert (await client.post("/v1/keys", json=within, headers=headers)).status_code == 201


async def test_keys_of_another_project_are_not_there(turnout: Turnout, stranger: Turnout) -> None:
    key_id = stranger.keys["client"].split("_")[1]
    admin = turnout.client("admin")
    problem(await admin.delete(f"/v1/keys/{key_id}"), 404, "not-found")
    assert key_id not in (await admin.get("/v1/keys")).text
    listed = (await stranger.client("admin").get("/v1/keys")).json()["items"]
    assert key_id in [item["id"] for item in listed], "it lives"
