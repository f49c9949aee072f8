"""Buttons: what a hand does in a browser is what the API would have done."""

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from experiments.keys import Role
from tests.running import Turnout, eventually

RAMP = {
    "kind": "ramp",
    "steps": [{"traffic": 0.2, "approval": True}, {"traffic": 0.5, "hold": "1h"}, {"traffic": 1.0}],
}
THREE = [
    {"key": "old", "control": True, "weight": 0.5, "value": 1},
    {"key": "new", "weight": 0.25, "value": 2},
    {"key": "other", "weight": 0.25, "value": 3},
]
_ALARM = """
    update guard_ledger g set acted = 'alert' from experiment x
    where x.id = g.experiment and x.project = $1 and x.key = $2 returning g.id
"""


class Browser:
    """A browser in which somebody has signed in, without scripts."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def read(self, path: str, status: int = 200, *, by_script: bool = False) -> str:
        """The text of a page, or of the part that a script asks for."""
        answer = await self.client.get(path, headers={"HX-Request": "true"} if by_script else {})
        assert answer.status_code == status, answer.text
        return answer.text

    async def form(self, key: str, verb: str) -> dict[str, str]:
        """The fields of a form as it is opened."""
        return fields_of(await self.read(f"/experiments/{key}/actions/{verb}"))

    async def send(self, key: str, verb: str, **fields: str) -> httpx.Response:
        """Send the fields of a form."""
        return await self.client.post(f"/experiments/{key}/actions/{verb}", data=fields)

    async def act(self, key: str, verb: str, **fields: str) -> str:
        """Open a form, fill it in, and send it; where that leads."""
        opened = await self.form(key, verb)
        answer = await self.send(key, verb, **{**opened, "reason": "a test", **fields})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]


def fields_of(text: str) -> dict[str, str]:
    """The fields of a form, as a browser would send them at once."""
    found: dict[str, str] = {}
    for tag in re.findall(r"<input [^>]*>", text):
        attributes = dict(re.findall(r'(\S+)="([^"]*)"', tag))
        if attributes.get("type") != "radio" or " checked" in tag:
            found[attributes["name"]] = html.unescape(attributes["value"])
    return found


@asynccontextmanager
async def browser(turnout: Turnout, role: Role = "editor") -> AsyncIterator[Browser]:
    """A browser in which the key of a role has signed in."""
    async with httpx.AsyncClient(base_url=turnout.url, timeout=30) as client:
        answer = await client.post("/sign-in", data={"key": turnout.keys[role]})
        assert answer.status_code == 303
        yield Browser(client)


async def view(turnout: Turnout, key: str) -> dict[str, Any]:
    """An experiment as the API shows it."""
    found: dict[str, Any] = (await turnout.client("analyst").get(f"/v1/experiments/{key}")).json()
    return found


async def decisions(turnout: Turnout, key: str) -> list[dict[str, Any]]:
    """The ledger by hand, the newest first."""
    answer = await turnout.client("analyst").get(
        f"/v1/experiments/{key}/decisions", params={"rule": "manual"}
    )
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def test_a_whole_life_goes_by_buttons(turnout: Turnout) -> None:
    key = await turnout.define(variants=THREE)
    async with browser(turnout) as someone:
        assert await someone.act(key, "start") == f"/experiments/{key}?done=start"
        assert "Started." in await someone.read(f"/experiments/{key}?done=start")
        await someone.act(key, "pause")
        await someone.act(key, "resume")
        traffic = {"weights.old": "40", "weights.new": "20.5", "weights.other": "39,5"}
        await someone.act(key, "allocate", **traffic)
        shown = await view(turnout, key)
        assert shown["weights"] == {"old": 0.4, "new": 0.205, "other": 0.395}
        assert shown["traffic"] == 1.0
        await someone.act(key, "rollback_variant", variant="other")
        assert (await view(turnout, key))["rolled_back"] == ["other"]
        await someone.act(key, "resume_variant", variant="other")
        assert (await view(turnout, key))["rolled_back"] == []
        await someone.act(key, "conclude", ship="new")
        assert (await view(turnout, key))["ship"] == "new"
        await someone.act(key, "start")
        await someone.act(key, "rollback")
        await someone.act(key, "archive")
    ended = await view(turnout, key)
    assert (ended["state"], ended["run"]) == ("archived", 2)
    did = [(each["kind"], each["reason"]) for each in await decisions(turnout, key)]
    kinds = "start pause resume allocate rollback_variant resume_variant conclude"
    kinds += " start rollback archive"
    assert did == [(kind, "a test") for kind in reversed(kinds.split())]


async def test_a_ramp_is_driven_by_buttons(turnout: Turnout) -> None:
    key = await turnout.start(policy=RAMP)
    async with browser(turnout) as someone:
        page = await someone.read(f"/experiments/{key}")
        assert "Approve a step" in page or "Approve step 1" in page
        form = await someone.form(key, "approve")
        assert form["step"] == "1"  # the one that waits for it, or will
        await someone.act(key, "ramp_pause")
        await someone.act(key, "approve")
        await someone.act(key, "ramp_resume")
        await someone.act(key, "jump", step="3")
        assert (await view(turnout, key))["traffic"] == 1.0
        assert "traffic" not in await someone.form(key, "allocate")  # the ramp says it
        refused = await someone.send(key, "jump", **await someone.form(key, "jump"), reason="on")
        assert refused.status_code == 422  # at the last step, nothing is chosen beforehand


async def test_an_analyst_sees_no_buttons_and_opens_no_form(turnout: Turnout) -> None:
    key = await turnout.start()
    async with browser(turnout, "analyst") as someone, browser(turnout) as editor:
        assert "data-act" not in await someone.read(f"/experiments/{key}")
        await someone.read(f"/experiments/{key}/actions/pause", 403)
        form = await editor.form(key, "pause")
        own = re.findall(r'name="csrf" value="(\w+)"', await someone.read("/experiments"))[0]
        refused = await someone.send(key, "pause", **{**form, "csrf": own, "reason": "no"})
        assert refused.status_code == 403
    assert (await view(turnout, key))["state"] == "running"


async def test_another_projects_experiment_cannot_be_acted_on(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await turnout.start()
    async with browser(turnout) as owner, browser(stranger) as someone:
        await someone.read(f"/experiments/{key}/actions/pause", 404)
        token = re.findall(r'name="csrf" value="(\w+)"', await someone.read("/experiments"))[0]
        form = {**await owner.form(key, "pause"), "csrf": token, "reason": "mine"}
        assert (await someone.send(key, "pause", **form)).status_code == 404
    assert (await view(turnout, key))["state"] == "running"


async def test_a_form_without_the_token_of_its_session_does_nothing(turnout: Turnout) -> None:
    key = await turnout.start()
    async with browser(turnout) as someone:
        form = await someone.form(key, "pause")
        for token in ("", "0" * 64):
            sent = {**form, "csrf": token, "reason": "forged"}
            assert (await someone.send(key, "pause", **sent)).status_code == 403
    assert (await view(turnout, key))["state"] == "running"


async def test_a_form_that_is_sent_twice_is_done_once(turnout: Turnout) -> None:
    key = await turnout.start()
    async with browser(turnout) as someone:
        form = await someone.form(key, "allocate")
        form |= {"weights.old": "60", "weights.new": "40", "reason": "more of the old"}
        for _ in range(2):
            answer = await someone.send(key, "allocate", **form)
            assert answer.headers["location"] == f"/experiments/{key}?done=allocate"
    assert [each["kind"] for each in await decisions(turnout, key)] == ["allocate", "start"]


async def test_a_form_that_no_page_of_ours_made_is_refused_in_words(turnout: Turnout) -> None:
    key = await turnout.start()
    async with browser(turnout) as someone:
        form = await someone.form(key, "allocate") | {"reason": "by hand"}
        for opened in ("", "²", "9" * 5_000):
            answer = await someone.send(key, "allocate", **{**form, "opened": opened})
            assert answer.status_code == 400
        del form["traffic"]
        answer = await someone.send(key, "allocate", **form)
        assert answer.status_code == 303
        for address in ("/live?experiment=%00", "/editor?copy=%00", "/editor?experiment=%00"):
            await someone.read(address, 404)
    assert [each["kind"] for each in await decisions(turnout, key)] == ["start"]
    course = await turnout.client("analyst").get(
        f"/v1/experiments/{key}/course", params={"metric": "\0"}
    )
    assert course.json()["lines"] == []


async def test_a_form_that_somebody_overtook_does_nothing_and_says_so(turnout: Turnout) -> None:
    key = await turnout.start()
    async with browser(turnout) as someone:
        form = {**await someone.form(key, "conclude"), "ship": "new", "reason": "it is better"}
        await turnout.client("editor").patch(
            f"/v1/experiments/{key}", json={"name": "Other"}, headers={"If-Match": '"1"'}
        )
        answer = await someone.send(key, "conclude", **form)
        assert answer.status_code == 412
        assert "Somebody has changed this experiment" in answer.text
        assert "it is better" in answer.text  # nobody types it twice
        fresh = fields_of(answer.text)
        assert fresh["opened"].startswith("2.1.")
        await turnout.move(key, "pause")  # of which the revision knows nothing
        again = await someone.send(key, "conclude", **{**fresh, "reason": "still"})
        assert again.status_code == 412
        last = {**fields_of(again.text), "reason": "still"}
        assert (await someone.send(key, "conclude", **last)).status_code == 303
    assert (await view(turnout, key))["state"] == "concluded"


async def test_what_the_state_does_not_allow_has_no_button_and_no_form(turnout: Turnout) -> None:
    key = await turnout.define()
    async with browser(turnout) as someone:
        page = await someone.read(f"/experiments/{key}")
        assert set(re.findall(r"actions/(\w+)", page)) == {"start", "archive"}
        assert "Pause: the experiment is draft" in await someone.read(
            f"/experiments/{key}/actions/pause", 409
        )
        await someone.read(f"/experiments/{key}/actions/destroy", 404)


async def test_a_wrong_field_is_named_and_what_was_typed_stays(turnout: Turnout) -> None:
    key = await turnout.start()
    async with browser(turnout) as someone:
        form = await someone.form(key, "allocate")
        for weights, said in (
            ({"weights.new": "70"}, "must sum to 100 %, sum to 120 %"),
            ({"weights.new": "a lot"}, "must be a number of per cent"),
            ({"weights.new": "0", "weights.old": "100", "reason": " "}, "reason"),
        ):
            sent = {**form, "reason": "try", **weights}
            answer = await someone.send(key, "allocate", **sent)
            assert answer.status_code == 422
            assert said in answer.text
            assert fields_of(answer.text)["weights.new"] == weights["weights.new"]
        small = {**form, "weights.old": "50.2", "weights.new": "49.8", "reason": "a bit"}
        answer = await someone.send(key, "allocate", **small)
        assert answer.headers["location"].endswith("?done=unmoved")
    assert len(await decisions(turnout, key)) == 1


async def test_a_script_gets_the_form_alone_and_is_told_where_to_go(turnout: Turnout) -> None:
    key = await turnout.start()
    async with browser(turnout) as someone:
        part = await someone.read(f"/experiments/{key}/actions/pause", by_script=True)
        assert part.lstrip().startswith("<form")
        answer = await someone.client.post(
            f"/experiments/{key}/actions/pause",
            data={**fields_of(part), "reason": "by a script"},
            headers={"HX-Request": "true"},
        )
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["hx-redirect"] == f"/experiments/{key}?done=pause"


async def test_an_alarm_that_only_alerted_has_a_button_to_overrule_it(turnout: Turnout) -> None:
    metrics = [
        {"key": "errors", "role": "guardrail", "kind": "proportion", "event": "error"}
        | {"window": "1s", "goal": "decrease", "margin": {"absolute": 0.01}},
    ]
    key = await turnout.start(metrics=metrics, guard={"action": "alert"})
    async with browser(turnout) as someone:
        assert "actions/overrule" not in await someone.read(f"/experiments/{key}")
        refused = await someone.read(f"/experiments/{key}/actions/overrule", 409)
        assert "as it stands that cannot be done" in refused

        async def watched() -> bool | None:
            return bool(await turnout.rows(_ALARM, key)) or None

        await eventually(watched, "row of the guard's ledger")
        assert "actions/overrule" in await someone.read(f"/experiments/{key}")
        form = await someone.read(f"/experiments/{key}/actions/overrule")
        assert "Evidence of harm: errors of new" in form
        await someone.act(key, "overrule")
        assert "actions/overrule" not in await someone.read(f"/experiments/{key}")
    assert (await decisions(turnout, key))[0]["kind"] == "overrule"


async def test_reasons_are_shown_as_they_were_typed_and_are_no_markup(turnout: Turnout) -> None:
    key = await turnout.start()
    odd = '<script>alert("x")</script>\n\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe & {{ 7 * 7 }}'
    async with browser(turnout) as someone:
        await someone.act(key, "pause", reason=odd.replace("\n", "\r\n"))
        page = await someone.read(f"/experiments/{key}")
    assert "<script>alert" not in page
    assert html.escape(odd, quote=False).replace('"', "&#34;") in page
    [pause, _] = await decisions(turnout, key)
    assert pause["reason"] == odd
    assert msgspec.json.encode(pause["evidence"]) == b'{"type":"manual","asked":{}}'
