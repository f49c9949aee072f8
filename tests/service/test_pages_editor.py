"""The editor as browsers use it: checked while one types, saved as the API saves."""

import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Any

import httpx
import pytest
import pytest_asyncio

from dashboard.editor.yaml_text import write
from experiments.keys import Role
from tests.running import Turnout, definition, problem

Fields = dict[str, str]
_TAG = re.compile(r"<(input|select|textarea|option)\b([^>]*)>(?:\n?([^<]*)</(?:textarea|option)>)?")
_PART = re.compile(r'([a-z-]+)(?:="([^"]*)")?')


def fields_of(page: str) -> Fields:
    """What a browser without scripts would send of a page's form."""
    sent: Fields = {}
    chosen = ""
    for tag, inside, text in _TAG.findall(page):
        parts = {name: unescape(value) for name, value in _PART.findall(inside)}
        if tag == "select":
            chosen = parts.get("name", "") if "disabled" not in parts else ""
        elif tag == "option" and chosen and "selected" in parts:
            sent[chosen] = parts["value"]
        elif tag == "textarea" and "disabled" not in parts:
            sent[parts["name"]] = unescape(text)
        elif tag == "input" and "disabled" not in parts and is_on(parts):
            sent[parts["name"]] = parts.get("value", "")
    return sent


def is_on(parts: Fields) -> bool:
    """Whether an input is sent."""
    return parts.get("type") not in {"radio", "checkbox"} or "checked" in parts


def told(page: str) -> dict[str, str]:
    """The wrong fields that a page lists: path -> words."""
    found = re.findall(r'<li><a href="#[^"]*"[^>]*><code>([^<]*)</code></a> ([^<]*)', page)
    return {unescape(path): unescape(words).strip() for path, words in found}


class Visit:
    """A browser of somebody who is signed in."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def open(self, address: str) -> str:
        """A page."""
        answer = await self.client.get(address)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def send(self, to: str, fields: Fields, status: int) -> httpx.Response:
        """Send a form."""
        answer = await self.client.post(to, data=fields)
        assert answer.status_code == status, answer.text
        return answer

    async def save(self, fields: Fields, status: int = 303, do: str = "save") -> httpx.Response:
        """Press a button that saves."""
        return await self.send("/editor/save", {**fields, "do": do}, status)


async def visit_of(turnout: Turnout, role: Role) -> Visit:
    """Sign in with the key of a role."""
    client = httpx.AsyncClient(base_url=turnout.url, timeout=30)
    answer = await client.post("/sign-in", data={"key": turnout.keys[role], "to": "/"})
    assert answer.status_code == 303
    return Visit(client)


@pytest_asyncio.fixture
async def visit(turnout: Turnout) -> AsyncIterator[Visit]:
    """An editor of the test's project, signed in."""
    signed_in = await visit_of(turnout, "editor")
    yield signed_in
    await signed_in.client.aclose()


async def read(turnout: Turnout, key: str) -> dict[str, Any]:
    """An experiment as the API has it."""
    answer = await turnout.client("editor").get(f"/v1/experiments/{key}")
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view


async def test_a_new_experiment_is_filled_in_saved_and_led_to_its_start(
    visit: Visit, turnout: Turnout
) -> None:
    page = await visit.open("/editor")
    assert "2 still to be filled in" in page
    fields = fields_of(page) | {"f.key": "from-a-form", "f.metrics[0].event": "click"}
    answer = await visit.save(fields, do="start")
    assert answer.headers["location"] == "/experiments/from-a-form/actions/start"
    view = await read(turnout, "from-a-form")
    assert (view["state"], view["revision"]) == ("draft", 1)
    assert view["definition"]["metrics"][0]["event"] == "click"


async def test_the_yaml_can_be_typed_instead(visit: Visit, turnout: Turnout) -> None:
    document = definition(owner="me")
    fields = fields_of(await visit.open("/editor")) | {"yaml": "# mine\n" + write(document)}
    await visit.save(fields)
    assert (await read(turnout, document["key"]))["definition"]["owner"] == "me"


async def test_wrong_fields_come_back_with_the_words_of_the_api(
    visit: Visit, turnout: Turnout
) -> None:
    wrong = definition(owner=5, layer={"key": "nowhere", "slots": [0, 10]})
    wrong["metrics"][0]["window"] = "soon"
    answer = await turnout.client("editor").post("/v1/experiments", json=wrong)
    problem(answer, 422, "invalid")
    expected = {error["path"]: error["detail"] for error in answer.json()["errors"]}
    fields = fields_of(await visit.open("/editor")) | {"yaml": write(wrong)}
    for to, status in (("/editor/check", 200), ("/editor/save", 422)):
        page = (await visit.send(to, {**fields, "do": "save"}, status)).text
        assert told(page) == expected
        assert 'aria-invalid="true"' in page
    assert "soon" in page


async def test_what_only_the_project_knows_is_checked_too(visit: Visit, turnout: Turnout) -> None:
    taken = await turnout.define()
    fields = fields_of(await visit.open("/editor")) | {"f.metrics[0].event": "click"}
    page = (await visit.send("/editor/check", {**fields, "f.key": taken}, 200)).text
    assert told(page)["key"].endswith("keys are never used again")
    await visit.save({**fields, "f.key": taken}, status=409)
    await turnout.put("/v1/layers/shared")
    layer = {"layer": {"key": "shared", "slots": [0, 5000]}}
    owner = await turnout.start(**layer)
    fields = fields_of(await visit.open("/editor")) | {"yaml": write(definition(**layer))}
    page = (await visit.send("/editor/check", fields, 200)).text
    assert f"{owner} (running) has [0, 5000)" in page
    fields["yaml"] = write(definition(layer={"key": "nowhere", "slots": [0, 5000]}))
    page = (await visit.send("/editor/check", fields, 200)).text
    assert told(page)["layer.key"].startswith("there is no such layer")


async def test_a_copy_has_all_but_the_key(visit: Visit, turnout: Turnout) -> None:
    key = await turnout.define(owner="me", salt="own")
    fields = fields_of(await visit.open(f"/editor?copy={key}"))
    await visit.save({**fields, "f.key": "a-copy"})
    copied, original = (await read(turnout, "a-copy")), await read(turnout, key)
    assert copied["definition"] == original["definition"] | {"key": "a-copy", "salt": None}


async def test_buttons_change_the_form_and_save_nothing_without_scripts(visit: Visit) -> None:
    fields = fields_of(await visit.open("/editor"))
    page = (await visit.save(fields, 200, do="add:variants")).text
    assert 'value="variant-3"' in page
    again = (await visit.save(fields_of(page), 200, do="remove:variants[2]")).text
    assert 'value="variant-3"' not in again


async def test_a_running_experiment_says_what_a_change_does_and_asks_why(
    visit: Visit, turnout: Turnout
) -> None:
    key = await turnout.start()
    page = await visit.open(f"/editor?experiment={key}")
    assert "Greyed out: Stays as it is while the run goes on." in page
    fields = fields_of(page)
    assert "f.unit.type" not in fields
    assert "f.metrics[0].window" not in fields
    changed = {**fields, "f.traffic": "50", "f.owner": "night"}
    page = (await visit.send("/editor/check", changed, 200)).text
    assert "Assignment changes, how traffic is split: epoch 2 begins." in page
    page = (await visit.save(changed, 422)).text
    assert "say why" in page
    await visit.save({**changed, "reason": "less load"})
    view = await read(turnout, key)
    assert (view["revision"], view["epoch"], view["traffic"]) == (2, 2, 0.5)
    latest = await turnout.client("editor").get(f"/v1/experiments/{key}/revisions")
    assert latest.json()["items"][0]["reason"] == "less load"


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": {"type": "session"}},
        {"guard": {"alpha": 0.001}},
        {"metrics": []},
        {"policy": {"kind": "ramp", "steps": [{"traffic": 1}]}},
        {"key": "another"},
        {"targeting": {"==": [{"var": "plan"}, "pro"]}},
    ],
)
async def test_a_change_is_checked_as_the_api_checks_it(
    visit: Visit, turnout: Turnout, changes: dict[str, Any]
) -> None:
    rule = {"in": [{"var": "country"}, ["DE"]]}
    key = await turnout.start(targeting=rule)
    fields = fields_of(await visit.open(f"/editor?experiment={key}"))
    document = {**definition(targeting=rule), "key": key, **changes}
    page = (await visit.send("/editor/check", {**fields, "yaml": write(document)}, 200)).text
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}", json=changes, headers={"If-Match": '"1"'}
    )
    errors = answer.json().get("errors", [])
    assert told(page) == {error["path"]: error["detail"] for error in errors}
    assert ("epoch 2 begins" in page) is ("targeting" in changes)


async def test_who_comes_too_late_sees_both_versions_and_can_go_on(
    visit: Visit, turnout: Turnout
) -> None:
    key = await turnout.define(owner="first")
    fields = fields_of(await visit.open(f"/editor?experiment={key}"))
    meanwhile = await turnout.client("admin").patch(
        f"/v1/experiments/{key}", json={"name": "Theirs"}, headers={"If-Match": '"1"'}
    )
    assert meanwhile.status_code == 200
    page = (await visit.save({**fields, "f.owner": "me"}, 412)).text
    assert "<code>owner</code>" in page
    assert "<code>name</code>" in page
    shown = (await visit.save(fields_of(page), 200, do="show")).text
    await visit.save(fields_of(shown))
    changed = (await read(turnout, key))["definition"]
    assert (changed["name"], changed["owner"]) == ("Theirs", "me")


async def test_a_form_of_another_page_or_a_role_that_only_reads_saves_nothing(
    visit: Visit, turnout: Turnout
) -> None:
    fields = fields_of(await visit.open("/editor")) | {"f.key": "x", "f.metrics[0].event": "e"}
    for to in ("/editor/save", "/editor/check"):
        await visit.send(to, {**fields, "csrf": "forged", "do": "save"}, 403)
    analyst = await visit_of(turnout, "analyst")
    try:
        assert (await analyst.client.get("/editor")).status_code == 403
        for to in ("/editor/save", "/editor/check"):
            await analyst.send(to, {**fields, "do": "save"}, 403)
    finally:
        await analyst.client.aclose()
    answer = await turnout.client("editor").get("/v1/experiments/x")
    problem(answer, 404, "not-found")


async def test_an_experiment_of_another_project_is_not_there(
    visit: Visit, stranger: Turnout
) -> None:
    key = await stranger.define(key="of-a-stranger")
    for name in ("experiment", "copy"):
        assert (await visit.client.get(f"/editor?{name}={key}")).status_code == 404
    fields = fields_of(await visit.open("/editor")) | {"experiment": key, "revision": "1"}
    await visit.send("/editor/check", fields, 404)
    await visit.save(fields, 404)


async def test_the_planner_answers_beside_the_form(visit: Visit) -> None:
    page = await visit.open("/editor?p.baseline=0.1&p.effect=5%25&p.units_per_day=5000")
    assert "with power 80 % takes" in page
    fields = fields_of(page)
    assert fields["p.baseline"] == "0.1"
    page = (await visit.send("/editor/check", {**fields, "p.effect": "none"}, 200)).text
    assert "must be a number" in page
