"""The audit through the doors: who did what, without a secret or a unit in it."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import httpx
import pytest

from experiments.audit.chain import Link, hash_of
from experiments.keys import Role
from tests.running import Turnout, definition, problem
from tests.service.test_doors import EVERY
from tests.service.test_pages_signing_in import Browser, browser, sign_in  # noqa: F401 - a fixture
from tests.service.visiting import csrf_of

UNIT: Final = "anna.marker@example.com"
URL: Final = "https://hooks.example.com/services/T0/marker-token?also=marker"
MARKERS: Final = ("anna.marker", "marker-token", "also=marker", "berlin-marker")
WHY: Final = {"reason": "a test"}
NO_WRITES: Final = {
    ("POST", "/v1/plan"),
    ("POST", "/v1/gates/{key:str}"),
    ("POST", "/v1/webhooks/{webhook:str}/test"),  # sends a message, and changes nothing
}
ELSEWHERE: Final = {
    # They need an alarm of the guard, and a project that demands approval; their way is the one
    # by which `start` goes.
    ("POST", "/v1/experiments/{key:str}/overrule"),
    ("POST", "/v1/proposals/{proposal:str}/approve"),
    ("POST", "/v1/proposals/{proposal:str}/reject"),
    ("POST", "/v1/proposals/{proposal:str}/withdraw"),
}


class Step(NamedTuple):
    """A write: its door, what it sends, who sends it, and how it is noted. `$` in a path is the id
    that was answered last."""

    method: str
    path: str
    action: str
    body: Any = WHY
    role: Role = "editor"


def writes(key: str) -> list[Step]:
    """A write at every door, in an order in which each succeeds."""
    of, ramped = f"/v1/experiments/{key}", f"/v1/experiments/{key}-ramp"
    steps = [
        {"traffic": 0.1, "approval": True},
        {"traffic": 0.5, "approval": True},
        {"traffic": 1.0},
    ]
    ramp = definition(key=f"{key}-ramp", policy={"kind": "ramp", "steps": steps})
    of_unit = {"reason": f"for {UNIT}", "variant": "old", "unit": UNIT}
    of_city = {**WHY, "variant": "old", "attribute": "city", "value": "berlin-marker"}
    return [
        Step("PATCH", "/v1/project", "project.settings", {"units": "plain"}, "admin"),
        Step("POST", "/v1/experiments", "experiment.create", definition(key=key)),
        Step("PATCH", of, "experiment.amend", {"name": "N"}),
        Step("POST", f"{of}/start", "experiment.start"),
        Step("PUT", f"{of}/allocation", "experiment.allocate", {**WHY, "traffic": 0.5}),
        Step("POST", f"{of}/pause", "experiment.pause"),
        Step("POST", f"{of}/resume", "experiment.resume"),
        Step("POST", f"{of}/overrides", "override.create", of_unit),
        Step("DELETE", f"{of}/overrides/$", "override.end", None),
        Step("POST", f"{of}/overrides", "override.create", of_city),
        Step("POST", f"{of}/snapshots", "snapshot.take", {"note": "n"}, "analyst"),
        Step("POST", f"{of}/conclude", "experiment.conclude", {**WHY, "ship": "old"}),
        Step("POST", f"{of}/start", "experiment.start"),
        Step("POST", f"{of}/rollback", "experiment.rollback"),
        Step("POST", f"{of}/archive", "experiment.archive"),
        Step("POST", "/v1/experiments", "experiment.create", ramp),
        Step("POST", f"{ramped}/start", "experiment.start"),
        Step("POST", f"{ramped}/ramp/approve", "experiment.approve", {**WHY, "step": 1}),
        Step("POST", f"{ramped}/ramp/pause", "experiment.ramp_pause"),
        Step("POST", f"{ramped}/ramp/resume", "experiment.ramp_resume"),
        Step("POST", f"{ramped}/ramp/jump", "experiment.jump", {**WHY, "step": 2}),
        Step("PUT", "/v1/layers/ranking", "layer.set", {"description": "d"}),
        Step("PUT", "/v1/holdout", "project.holdout", {**WHY, "share": 0.01}),
        Step("POST", "/v1/keys", "key.create", {"role": "client"}, "admin"),
        Step("DELETE", "/v1/keys/$", "key.revoke", None, "admin"),
        Step("POST", "/v1/webhooks", "webhook.create", {"url": URL}, "admin"),
        Step("PATCH", "/v1/webhooks/$", "webhook.change", {"url": URL}, "admin"),
        Step("POST", "/v1/webhooks/$/rotate", "webhook.rotate", None, "admin"),
        Step("DELETE", "/v1/webhooks/$", "webhook.delete", None, "admin"),
        Step("POST", "/v1/units/erase", "unit.erase", {**WHY, "unit": UNIT}, "admin"),
    ]


def is_at(step: Step, path: str) -> bool:
    """Whether a step knocks at this door."""
    pattern = re.sub(r"\\\{[^}]*\}", "[^/]+", re.escape(path))
    return re.fullmatch(pattern, step.path) is not None


async def entries(turnout: Turnout, **query: str | int) -> list[dict[str, Any]]:
    """The newest entries of the audit."""
    answer = await turnout.client("admin").get("/v1/audit", params=query)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def send(turnout: Turnout, step: Step, last_id: str, **headers: str) -> httpx.Response:
    """Do a step."""
    if step.method == "PATCH" and step.action == "experiment.amend":
        headers["If-Match"] = '"1"'
    return await turnout.client(step.role).request(
        step.method, step.path.replace("$", last_id), json=step.body, headers=headers
    )


async def head(turnout: Turnout) -> int:
    """How many entries there are."""
    answer = await turnout.client("admin").get("/v1/audit/head")
    number: int = answer.json()["number"]
    assert answer.json()["mark"] == f"{number}:{answer.json()['hash']}"
    return number


def test_the_walk_leaves_out_no_door_that_writes() -> None:
    walked = writes("k")
    doors = {
        (door.method, door.path)
        for door in EVERY
        if door.method not in {"GET", "HEAD", "OPTIONS"}
        and door.permission in {"read", "write", "administer"}
    }
    missed = {
        (method, path)
        for method, path in doors
        if not any(step.method == method and is_at(step, path) for step in walked)
    }
    assert missed == NO_WRITES | ELSEWHERE


async def test_every_write_has_one_entry_without_a_secret_or_a_unit(turnout: Turnout) -> None:
    last_id, number, secrets = "", await head(turnout), list(MARKERS)
    for place, step in enumerate(writes("audited")):
        name = f"request-{place}"
        answer = await send(turnout, step, last_id, **{"X-Request-Id": name})
        assert answer.is_success, (step, answer.text)
        shown = answer.json() if answer.content else {}
        last_id = str(shown.get("id", last_id))
        secrets += [
            shown[part] for part in ("key", "secret") if shown.get(part) and "role" in shown
        ]
        noted = [e for e in await entries(turnout, kind="write") if e["number"] > number]
        assert [e["action"] for e in noted] == [step.action], step
        [entry] = noted
        assert entry["actor"] == f"key:{turnout.keys[step.role].split('_')[1]}", step
        assert entry["request_id"] == name == answer.headers["x-request-id"]
        assert entry["detail"]["status"] == answer.status_code
        number = await head(turnout)
    rows = await turnout.rows("select a::text as row from audit a where project = $1")
    kept = "\n".join(row["row"] for row in rows)
    assert [secret for secret in secrets if secret in kept] == []
    assert "https://hooks.example.com" in kept
    [erased] = await turnout.rows(
        "select encode(unit_hash, 'hex') as h from erasure where project = $1"
    )
    of_unit = [e for e in await entries(turnout) if erased["h"] in json.dumps(e["detail"])]
    assert [e["action"] for e in of_unit] == ["unit.erase", "override.create"]  # one hash for both


async def test_a_write_that_is_refused_or_sent_again_has_no_entry(turnout: Turnout) -> None:
    body, client = definition(), turnout.client("editor")
    before = await head(turnout)
    for _ in range(2):
        again = await client.post("/v1/experiments", json=body, headers={"Idempotency-Key": "once"})
        assert again.status_code == 201
    problem(await client.post("/v1/experiments", json=body), 409, "exists")
    assert [e["number"] for e in await entries(turnout)][:1] == [before + 1]
    assert await head(turnout) == before + 1


async def test_a_long_body_is_told_by_its_hash(turnout: Turnout) -> None:
    long = definition(hypothesis="long " * 100, tags=[f"t{n}" for n in range(20)])
    long["variants"][0]["value"] = {"model": "x" * 20_000}
    answer = await turnout.client("editor").post("/v1/experiments", json=long)
    assert answer.status_code == 201, answer.text
    [entry] = await entries(turnout, action="experiment.create")
    assert entry["detail"]["body_bytes"] > 20_000
    assert len(entry["detail"]["body_sha256"]) == 64
    assert "body" not in entry["detail"]


async def test_signing_in_and_out_and_a_refusal_are_noted(
    turnout: Turnout,
    browser: Browser,  # noqa: F811 - the fixture
) -> None:
    key, client = turnout.keys["editor"], browser()
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    for _ in range(3):  # a stranger cannot fill the audit: one of a minute is noted
        assert (await sign_in(client, wrong)).status_code == 401
    assert (await sign_in(client, "to_000000000000_" + "0" * 64)).status_code == 401
    assert (await sign_in(client, key)).status_code == 303
    form = {"csrf": csrf_of(await client.get("/experiments"))}
    assert (await client.post("/sign-out", data=form)).status_code == 303
    noted = await entries(turnout, kind="sign_in")
    name = f"key:{key.split('_')[1]}"
    assert [(e["action"], e["actor"]) for e in noted] == [
        ("sign_out", name),
        ("sign_in", name),
        ("sign_in.refused", "system"),
    ]
    assert {e["target"] for e in noted} == {f"keys/{key.split('_')[1]}"}
    assert all(e["request_id"] for e in noted)


def ids(found: Sequence[dict[str, Any]]) -> list[int]:
    """Numbers of entries."""
    return [e["number"] for e in found]


async def test_the_list_is_filtered_and_paged(turnout: Turnout) -> None:
    key = await turnout.start()
    every = await entries(turnout)
    assert ids(every) == sorted(ids(every), reverse=True)
    first = await turnout.client("admin").get("/v1/audit", params={"limit": 2})
    second = await turnout.client("admin").get(
        "/v1/audit", params={"limit": 2, "cursor": first.json()["next_cursor"]}
    )
    assert ids(first.json()["items"]) + ids(second.json()["items"]) == ids(every)[:4]
    target, actor = f"experiments/{key}", f"key:{turnout.keys['editor'].split('_')[1]}"
    of_key = await entries(turnout, target=target, actor=actor)
    assert {e["action"] for e in of_key} == {
        "experiment.create",
        "experiment.start",
        "decision.start",
    }
    [started] = await entries(turnout, target=target, kind="decision")
    assert await entries(turnout, action="decision.start", since=started["at"]) == [started]
    assert await entries(turnout, until="2020-01-01T00:00:00Z") == []


async def test_a_wrong_filter_is_told(turnout: Turnout) -> None:
    client = turnout.client("admin")
    assert problem(await client.get("/v1/audit?since=2026-01-01T00:00:00"), 422, "invalid") == [
        ("since", "value")
    ]
    outside = {"since": "0001-01-01T00:00:00+23:59", "until": "9999-12-31T23:59:59-23:59"}
    assert problem(await client.get("/v1/audit", params=outside), 422, "invalid") == [
        ("since", "value"),
        ("until", "value"),
    ]
    assert problem(await client.get("/v1/audit?kind=nothing"), 422, "invalid")
    assert problem(await client.get("/v1/audit?actor=%00"), 422, "invalid") == [("actor", "value")]
    assert problem(await client.get("/v1/audit/export?after=-1"), 422, "invalid")


async def test_an_export_can_be_verified_elsewhere(turnout: Turnout, stranger: Turnout) -> None:
    await turnout.start()
    await stranger.define()
    answer = await turnout.client("admin").get("/v1/audit/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    links = [Link(**json.loads(line)) for line in answer.text.splitlines()]
    assert {link.project for link in links} == {turnout.project}
    assert [hash_of(link) for link in links] == [link.hash for link in links]
    assert [link.number for link in links] == list(range(1, await head(turnout) + 1))
    rest = await turnout.client("admin").get("/v1/audit/export", params={"after": 1})
    assert rest.text == answer.text.partition("\n")[2]


@pytest.mark.parametrize("path", ["", "/head", "/export"])
async def test_the_audit_is_for_admins(turnout: Turnout, path: str) -> None:
    problem(await turnout.client("editor").get(f"/v1/audit{path}"), 403, "forbidden")
