"""The pages of proposals, keys and the audit: who sees what, and what their forms do."""

import re

import msgspec
import pytest

from experiments.keys import Role
from tests.running import Turnout
from tests.service.test_pages_actions import browser as signed_in
from tests.service.test_proposals import demand, propose_start


def fields_of(text: str) -> dict[str, str]:
    """The hidden fields of a page's forms."""
    return dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', text))


async def test_a_start_is_proposed_and_approved_in_two_browsers(turnout: Turnout) -> None:
    await demand(turnout, ["start"])
    key = await turnout.define()
    async with signed_in(turnout, "editor") as editor, signed_in(turnout, "admin") as admin:
        assert "Propose to start" in await editor.read(f"/experiments/{key}")
        assert await editor.act(key, "start") == f"/experiments/{key}?done=proposed"
        own = await editor.read(f"/experiments/{key}?done=proposed")
        assert "Nothing is changed until somebody else approves it" in own
        assert "It is your own" in own

        listed = await admin.read("/experiments?tab=attention")
        assert "A proposal waits" in listed
        page = await admin.read(f"/experiments/{key}")
        waiting = (await turnout.client("admin").get("/v1/proposals")).json()["items"]
        number = waiting[0]["id"]
        path = f"/proposals/{number}/approve"
        assert path in page
        assert path in await admin.read("/proposals")
        fields = {**fields_of(await admin.read(path)), "reason": "looked"}
        done = await admin.client.post(path, data=fields)
        assert done.headers["location"] == f"/experiments/{key}?done=approved"
        shown = await turnout.client("admin").get(f"/v1/experiments/{key}")
        assert shown.json()["state"] == "running"
        again = await admin.client.post(path, data={**fields, "once": "other"})
        assert again.status_code == 409
        assert "is approved already" in again.text


async def test_an_answer_without_the_token_of_the_session_is_refused(turnout: Turnout) -> None:
    await demand(turnout, ["start"])
    number = await propose_start(turnout, await turnout.define())
    async with signed_in(turnout, "admin") as admin:
        for path in (f"/proposals/{number}/approve", "/keys", "/keys/0/revoke"):
            answer = await admin.client.post(path, data={"reason": "x", "role": "admin"})
            assert answer.status_code == 403, path


async def test_a_key_is_shown_once_and_revoked_with_a_question(turnout: Turnout) -> None:
    async with signed_in(turnout, "admin") as admin:
        form = fields_of(await admin.read("/keys"))
        wish = {**form, "role": "analyst", "note": "for the board", "expires_in": "90d"}
        made = await admin.client.post("/keys", data=wish)
        assert made.status_code == 200
        assert made.headers["cache-control"] == "no-store"
        [shown] = [value for value in made.text.split('"') if value.startswith("to_")]
        assert shown not in str(made.url)
        again = await admin.client.post("/keys", data=wish)
        assert "was made by this form before" in again.text
        assert shown not in again.text

        key_id = shown.split("_")[1]
        page = await admin.read("/keys")
        assert "for the board" in page
        assert shown not in page
        question = fields_of(await admin.read(f"/keys/{key_id}/revoke"))
        gone = await admin.client.post(f"/keys/{key_id}/revoke", data=question)
        assert gone.headers["location"] == "/keys?done=revoked"
        assert key_id not in await admin.read("/keys")


async def test_a_wrong_wish_for_a_key_is_told_beside_its_field(turnout: Turnout) -> None:
    async with signed_in(turnout, "admin") as admin:
        form = fields_of(await admin.read("/keys"))
        sent = {**form, "role": "service", "expires_in": "soon", "rate_limit": "many"}
        answer = await admin.client.post("/keys", data=sent)
        assert answer.status_code == 422
        assert 'id="expires_in-wrong"' in answer.text
        assert 'id="rate_limit-wrong"' in answer.text


async def test_the_audit_is_filtered_and_exported(turnout: Turnout) -> None:
    key = await turnout.define()
    async with signed_in(turnout, "admin") as admin:
        page = await admin.read(f"/audit?kind=write&target=experiments/{key}")
        assert "experiment.create" in page
        assert "experiment.create" not in await admin.read("/audit?action=experiment.start")
        assert "must be a date" in await admin.read("/audit?since=tomorrow")
        outside = await admin.read("/audit?since=0001-01-01T00:00%2B23:59")
        assert "must lie in the years 1 to 9999" in outside
        lines = (await admin.client.get("/audit/export")).text.splitlines()
        assert msgspec.json.decode(lines[0])["number"] == 1


@pytest.mark.parametrize("role", ["analyst", "editor"])
async def test_keys_and_audit_are_for_admins(turnout: Turnout, role: Role) -> None:
    async with signed_in(turnout, role) as visitor:
        page = await visitor.read("/experiments")
        assert 'href="/keys"' not in page
        assert 'href="/audit"' not in page
        for path in ("/keys", "/audit", "/audit/export", "/keys/0/revoke"):
            await visitor.read(path, 403)


async def test_an_address_is_told_as_a_browser_behind_a_proxy_finds_it(turnout: Turnout) -> None:
    host = turnout.url.partition("://")[2]
    async with signed_in(turnout, "editor") as visitor:
        assert f"http://{host}" in await visitor.read("/experiments")
    ends_tls = {"X-Forwarded-Proto": "https"}
    anybody = turnout.client(None)
    key = {"key": turnout.keys["editor"]}
    begun = await anybody.post("/sign-in", data=key, headers=ends_tls)
    cookie = {"Cookie": begun.headers["set-cookie"].partition(";")[0]}
    page = await anybody.get("/experiments", headers={**ends_tls, **cookie})
    assert page.status_code == 200
    assert f"https://{host}" in page.text


async def test_a_proposal_shows_all_that_it_would_change(turnout: Turnout) -> None:
    admin = turnout.client("admin")
    await admin.patch("/v1/project", json={"approvals": ["start", "change"]})
    less = {"approvals": ["start"], "origins": ["https://a.example"], "units": "hashed"}
    held = {"share": 0.1, "reason": "yearly", "metrics": [], "record": ["country"]}
    assert (await admin.patch("/v1/project", json=less)).status_code == 202
    assert (await admin.put("/v1/holdout", json=held)).status_code == 202
    async with signed_in(turnout, "admin") as visitor:
        page = await visitor.read("/proposals")
    for words in (
        "demanded for: start.",
        "these origins: https://a.example.",
        "stored hashed",
        "of all experiments: 10 %",
        "report, as defined anew: none.",
        "it records: country.",
    ):
        assert words in page
