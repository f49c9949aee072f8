"""Snapshots of reports: what was shown stays as it was, for those who may see it."""

import base64
import hashlib
import re
from typing import Any, Final

import asyncpg
import httpx
import msgspec
import pytest

from analysis.reports import snapshots
from experiments.keys import Role
from tests.running import Turnout, problem

FORMATS: Final = {
    "json": "application/json",
    "html": "text/html",
    "markdown": "text/markdown",
    "csv": "text/csv",
}


async def take(turnout: Turnout, key: str, note: str = "", role: Role = "analyst") -> Any:
    """A new snapshot of an experiment."""
    answer = await turnout.client(role).post(
        f"/v1/experiments/{key}/snapshots", json={"note": note} if note else {}
    )
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert answer.headers["location"] == f"/v1/snapshots/{view['id']}"
    return view


async def files_of(turnout: Turnout, number: str) -> dict[str, httpx.Response]:
    """Every file of a snapshot, as the API gives it."""
    analyst = turnout.client("analyst")
    return {
        kind: await analyst.get(f"/v1/snapshots/{number}", headers={"Accept": media_type})
        for kind, media_type in FORMATS.items()
    }


async def test_a_snapshot_stays_byte_for_byte_what_it_was(turnout: Turnout) -> None:
    key = await turnout.start(name="Before", record=["country"])
    taken = await take(turnout, key, "for the review")
    before = await files_of(turnout, taken["id"])
    for kind in ("html", "markdown", "csv"):
        digest = hashlib.sha256(before[kind].content)
        assert digest.hexdigest() == taken["files"][kind]["sha256"]
        shown = base64.b64encode(digest.digest()).decode()
        assert before[kind].headers["repr-digest"] == f"sha256=:{shown}:".replace(
            "sha256", "sha-256"
        )
        assert before[kind].headers["content-type"].startswith(FORMATS[kind])
        assert "immutable" in before[kind].headers["cache-control"]
    whole = msgspec.json.decode(before["json"].content, type=dict[str, msgspec.Raw])
    report = bytes(whole["report"])
    assert hashlib.sha256(report).hexdigest() == taken["files"]["json"]["sha256"]
    assert msgspec.json.decode(report)["state"] == "running"

    await turnout.move(key, "conclude", ship="new")
    after = await files_of(turnout, taken["id"])
    assert {kind: answer.content for kind, answer in after.items()} == {
        kind: answer.content for kind, answer in before.items()
    }


async def test_it_says_of_what_it_is_when_it_was_taken_by_whom_and_why(turnout: Turnout) -> None:
    key = await turnout.start()
    taken = await take(turnout, key, "for the review")
    [row] = await turnout.rows("select id from api_key where project = $1 and role = 'analyst'")
    assert (taken["experiment"], taken["run"], taken["epoch"]) == (key, 1, 1)
    assert (taken["actor"], taken["taken_by"]) == (f"key:{row['id']}", "for a test")
    assert (taken["note"], taken["project"]) == ("for the review", turnout.project)
    assert re.fullmatch(r"[0-9a-f]{32}", taken["id"])


async def test_the_database_refuses_to_change_or_remove_one(turnout: Turnout) -> None:
    taken = await take(turnout, await turnout.define())
    for query in (
        "update report_snapshot set note = 'other'",
        "delete from report_snapshot",
        "update report_snapshot_file set packed = ''",
        "delete from report_snapshot_file",
        "truncate report_snapshot_file",
        "truncate report_snapshot cascade",
    ):
        with pytest.raises(asyncpg.RaiseError, match="never changes"):
            await turnout.host.pool.execute(query)
    assert (await turnout.client("analyst").get(f"/v1/snapshots/{taken['id']}")).status_code == 200


async def test_who_may_read_may_take_one_and_nobody_else(turnout: Turnout) -> None:
    key = await turnout.define()
    for role in ("client", "service"):
        answer = await turnout.client(role).post(f"/v1/experiments/{key}/snapshots", json={})
        problem(answer, 403, "forbidden")
    missing = await turnout.client("analyst").post("/v1/experiments/none/snapshots", json={})
    problem(missing, 404, "not-found")
    long = await turnout.client("analyst").post(
        f"/v1/experiments/{key}/snapshots", json={"note": "a" * 1_001, "by": "me"}
    )
    assert set(problem(long, 422, "invalid")) == {("note", "value"), ("by", "unknown")}


async def test_another_project_sees_nothing_of_it(turnout: Turnout, stranger: Turnout) -> None:
    key = await turnout.define()
    taken = await take(turnout, key)
    for path in (f"/v1/snapshots/{taken['id']}", f"/v1/experiments/{key}/snapshots"):
        problem(await stranger.client("admin").get(path), 404, "not-found")


async def test_a_repeated_request_takes_one_snapshot(turnout: Turnout) -> None:
    key, headers = await turnout.define(), {"Idempotency-Key": "monday"}
    answers = [
        await turnout.client("analyst").post(
            f"/v1/experiments/{key}/snapshots", json={"note": "a"}, headers=headers
        )
        for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotent-replayed"] == "true"
    listed = await turnout.client("analyst").get(f"/v1/experiments/{key}/snapshots")
    assert [item["id"] for item in listed.json()["items"]] == [answers[0].json()["id"]]


async def test_they_are_listed_the_newest_first_in_pages(turnout: Turnout) -> None:
    key = await turnout.define()
    taken = [await take(turnout, key, note) for note in ("one", "two", "three")]
    await take(turnout, await turnout.define(), "of another")
    analyst, address = turnout.client("analyst"), f"/v1/experiments/{key}/snapshots?limit=2"
    first = (await analyst.get(address)).json()
    second = (await analyst.get(f"{address}&cursor={first['next_cursor']}")).json()
    assert [item["note"] for item in first["items"] + second["items"]] == ["three", "two", "one"]
    assert second["next_cursor"] is None
    assert second["items"] == [taken[0]]


async def test_a_project_takes_a_bounded_number_a_day(
    turnout: Turnout, stranger: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MOST_A_DAY", 2)
    key = await turnout.define()
    for _ in range(2):
        await take(turnout, key)
    refused = await turnout.client("analyst").post(f"/v1/experiments/{key}/snapshots", json={})
    problem(refused, 429, "rate-limited")
    assert int(refused.headers["retry-after"]) > 0
    await take(stranger, await stranger.define())


async def test_the_html_that_is_kept_can_do_nothing_in_a_browser(turnout: Turnout) -> None:
    key = await turnout.define(name="<script>alert(1)</script>", hypothesis="</style><b>x")
    taken = await take(turnout, key, "<img src=x onerror=alert(1)>")
    kept = (await files_of(turnout, taken["id"]))["html"]
    policy = kept.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "<script" not in kept.text
    assert "<img" not in kept.text
    assert kept.text.count("</style>") == 1
    assert not re.search(r'(?:src|href)="(?!#)', kept.text), "nothing is loaded from anywhere"
    [style] = re.findall(r"<style>(.*?)</style>", kept.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in kept.text
