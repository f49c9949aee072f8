"""A write that is sent again with the same `Idempotency-Key` is done once."""

import asyncio

from tests.running import Turnout, definition, problem


async def test_a_repeated_definition_is_answered_as_the_first_time(turnout: Turnout) -> None:
    editor, body = turnout.client("editor"), definition()
    headers = {"Idempotency-Key": "define-1"}
    first = await editor.post("/v1/experiments", json=body, headers=headers)
    again = await editor.post("/v1/experiments", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    for name in ("etag", "location"):
        assert first.headers[name] == again.headers[name]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    without = await editor.post("/v1/experiments", json=body)
    assert problem(without, 409, "exists") == []


async def test_of_many_at_once_one_starts_the_experiment(turnout: Turnout) -> None:
    key = await turnout.define()
    editor = turnout.client("editor")
    answers = await asyncio.gather(
        *(
            editor.post(
                f"/v1/experiments/{key}/start",
                json={"reason": "a test"},
                headers={"Idempotency-Key": "start-1"},
            )
            for _ in range(5)
        )
    )
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.text for answer in answers}) == 1
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert sorted(map(str, replayed)) == ["None"] + ["true"] * 4
    view = (await editor.get(f"/v1/experiments/{key}")).json()
    assert (view["run"], view["epoch"]) == (1, 1)


async def test_a_write_that_was_refused_may_be_tried_again(turnout: Turnout) -> None:
    editor = turnout.client("editor")
    headers = {"Idempotency-Key": "start-early"}
    body = {"reason": "a test"}
    name = definition()["key"]
    early = await editor.post(f"/v1/experiments/{name}/start", json=body, headers=headers)
    assert problem(early, 404, "not-found") == []
    key = await turnout.define(key=name)
    later = await editor.post(f"/v1/experiments/{key}/start", json=body, headers=headers)
    assert later.status_code == 200


async def test_a_key_stands_for_one_request(turnout: Turnout, stranger: Turnout) -> None:
    headers = {"Idempotency-Key": "only-one"}
    body = definition()
    editor = turnout.client("editor")
    assert (await editor.post("/v1/experiments", json=body, headers=headers)).status_code == 201
    other = await editor.post("/v1/experiments", json=body | {"name": "N"}, headers=headers)
    assert problem(other, 409, "conflict") == []
    elsewhere = await stranger.client("editor").post("/v1/experiments", json=body, headers=headers)
    assert elsewhere.status_code == 201, "another project's keys are its own"
    empty = await editor.post("/v1/experiments", json=body, headers={"Idempotency-Key": ""})
    assert problem(empty, 422, "invalid") == [("Idempotency-Key", "value")]


async def test_the_text_of_an_api_key_is_not_kept_for_a_retry(turnout: Turnout) -> None:
    admin, headers = turnout.client("admin"), {"Idempotency-Key": "key-1"}
    first = await admin.post("/v1/keys", json={"role": "service"}, headers=headers)
    again = await admin.post("/v1/keys", json={"role": "service"}, headers=headers)
    made, repeated = first.json(), again.json()
    assert made.pop("key").startswith(f"to_{made['id']}_")
    assert repeated == made
    listed = (await admin.get("/v1/keys")).json()["items"]
    assert [key["id"] for key in listed].count(made["id"]) == 1
