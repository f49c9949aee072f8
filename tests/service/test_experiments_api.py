"""Experiments through the API: defined, read, listed, changed."""

import asyncio
from typing import Any

import msgspec
import pytest

from experiments.model import AnalysisPlan
from tests.running import Turnout, definition, problem


async def test_a_defined_experiment_is_a_draft_with_every_default_written_out(
    turnout: Turnout,
) -> None:
    given = definition(name="Ranker", tags=["search"], record=["country"])
    answer = await turnout.client("editor").post("/v1/experiments", json=given)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/experiments/{given['key']}"
    assert answer.headers["etag"] == '"1"'
    view = answer.json()
    assert (view["state"], view["revision"], view["run"], view["epoch"]) == ("draft", 1, 0, 0)
    assert (view["weights"], view["traffic"], view["ship"]) == (None, None, None)
    assert view["project"] == turnout.project
    written = view["definition"]
    assert (written["name"], written["tags"], written["record"]) == (
        "Ranker",
        ["search"],
        ["country"],
    )
    assert written["unit"] == {"type": "user", "attribute": "targetingKey"}
    assert (written["guard"]["alpha"], written["guard"]["action"]) == (0.01, "rollback")
    again = await turnout.client("analyst").get(answer.headers["location"])
    assert again.json() == view
    assert again.headers["etag"] == '"1"'


@pytest.mark.parametrize(
    "value", [1e30, 1.5, 10**15, "text", True, {"b": 1.0, "a": [None, {"deep": -0.5}]}, []]
)
async def test_a_variants_value_comes_back_as_it_was_written(turnout: Turnout, value: Any) -> None:
    variants = [
        {"key": "a", "control": True, "weight": 0.5, "value": value},
        {"key": "b", "weight": 0.5, "value": value},
    ]
    key = await turnout.start(variants=variants)
    editor = turnout.client("editor")
    read = (await editor.get(f"/v1/experiments/{key}")).json()["definition"]["variants"][0]["value"]
    got = (await turnout.assign(key, "u"))["value"]
    assert [repr(read), repr(got)] == [repr(value), repr(value)]  # 1.0 is not 1, nor {b, a} {a, b}
    changed = await editor.patch(
        f"/v1/experiments/{key}", json={"name": "n"}, headers={"If-Match": '"1"'}
    )
    assert changed.status_code == 200, changed.text


async def test_a_list_is_read_page_by_page_the_newest_first(turnout: Turnout) -> None:
    keys = [await turnout.define() for _ in range(5)]
    reader = turnout.client("analyst")
    found: list[str] = []
    sizes: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await reader.get("/v1/experiments", params={"limit": "2", **cursor})).json()
        found += [item["key"] for item in page["items"]]
        sizes.append(len(page["items"]))
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert found == keys[::-1]
    assert sizes == [2, 2, 1]


async def test_a_page_that_is_just_full_has_no_next(turnout: Turnout) -> None:
    for _ in range(2):
        await turnout.define()
    page = (await turnout.client("analyst").get("/v1/experiments?limit=2")).json()
    assert len(page["items"]) == 2
    assert page["next_cursor"] is None


async def test_a_list_can_be_narrowed_to_a_state(turnout: Turnout) -> None:
    await turnout.define()
    started = await turnout.start()
    page = (await turnout.client("analyst").get("/v1/experiments?state=running")).json()
    assert [item["key"] for item in page["items"]] == [started]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=many", "limit"),
        ("cursor=here", "cursor"),
        ("cursor=-1", "cursor"),
        ("state=asleep", "state"),
    ],
)
async def test_a_wrong_parameter_is_named(turnout: Turnout, query: str, path: str) -> None:
    answer = await turnout.client("analyst").get(f"/v1/experiments?{query}")
    assert problem(answer, 422, "invalid") == [(path, "value")]


@pytest.mark.parametrize("door", ["", "/revisions", "/allocations", "/decisions"])
async def test_a_cursor_behind_everything_gives_all_there_is(turnout: Turnout, door: str) -> None:
    key = await turnout.start()
    path = f"/v1/experiments/{key}{door}" if door else "/v1/experiments"
    answer = await turnout.client("analyst").get(path, params={"cursor": "9" * 18})
    assert answer.status_code == 200, answer.text
    assert answer.json()["next_cursor"] is None


@pytest.mark.parametrize("key", ["nothing", "UPPER", "%00", "%ED%A0%80", "a%20b", "x" * 65])
async def test_what_is_no_experiment_is_not_found(turnout: Turnout, key: str) -> None:
    problem(await turnout.client("analyst").get(f"/v1/experiments/{key}"), 404, "not-found")


async def test_a_key_is_never_used_again(turnout: Turnout) -> None:
    key = await turnout.define()
    editor = turnout.client("editor")
    problem(await editor.post("/v1/experiments", json=definition(key=key)), 409, "exists")
    await editor.post(f"/v1/experiments/{key}/archive", json={"reason": "done"})
    problem(await editor.post("/v1/experiments", json=definition(key=key)), 409, "exists")


async def test_of_several_that_use_a_key_at_once_one_gets_it(turnout: Turnout) -> None:
    given = definition()
    editor = turnout.client("editor")
    answers = await asyncio.gather(*(editor.post("/v1/experiments", json=given) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]


async def test_every_wrong_field_is_named_in_one_answer(turnout: Turnout) -> None:
    wrong = definition(key="Not A Key", colour="red", traffic=1.5)
    wrong["variants"][1] |= {"key": "old", "weight": "half"}
    wrong["metrics"].append({"key": "click", "role": "primary", "kind": "mean", "window": "1 day"})
    answer = await turnout.client("editor").post("/v1/experiments", json=wrong)
    assert set(problem(answer, 422, "invalid")) == {
        ("key", "value"),
        ("colour", "unknown"),
        ("traffic", "value"),
        ("variants[1].key", "duplicate"),
        ("variants[1].weight", "type"),
        ("metrics[1].key", "duplicate"),
        ("metrics[1].event", "missing"),
        ("metrics[1].window", "value"),
    }
    assert (await turnout.client("analyst").get("/v1/experiments")).json()["items"] == []


async def test_a_feature_that_is_not_built_is_refused_by_its_path(turnout: Turnout) -> None:
    bandit = definition(policy={"kind": "thompson", "metric": "click", "every": "1m"})
    bandit["metrics"][0] |= {"kind": "quantile", "quantile": 0.5, "role": "secondary"}
    answer = await turnout.client("editor").post("/v1/experiments", json=bandit)
    assert problem(answer, 422, "invalid") == [("policy.metric", "unsupported")]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"key": "\\ud800"}', b"[" * 50_000])
async def test_a_body_that_is_not_json_is_malformed(turnout: Turnout, body: bytes) -> None:
    answer = await turnout.client("editor").post("/v1/experiments", content=body)
    problem(answer, 400, "malformed")


@pytest.mark.parametrize("body", ["[]", "null", '"text"', "1"])
async def test_a_body_that_is_no_object_is_invalid(turnout: Turnout, body: str) -> None:
    answer = await turnout.client("editor").post("/v1/experiments", content=body)
    assert problem(answer, 422, "invalid") == [("$", "type")]


async def test_a_body_beyond_a_mebibyte_is_too_large(turnout: Turnout) -> None:
    large = definition(hypothesis="x" * 1024 * 1024)
    answer = await turnout.client("editor").post("/v1/experiments", json=large)
    problem(answer, 413, "too-large")


async def test_a_change_names_the_revision_that_it_was_made_to(turnout: Turnout) -> None:
    key = await turnout.define()
    editor = turnout.client("editor")
    path = f"/v1/experiments/{key}"
    problem(await editor.patch(path, json={"name": "a"}), 428, "precondition-required")
    for header in ('"2"', '"0"', "one", '"9999999999"', 'W/"1"', '"2", "3"', ""):
        answer = await editor.patch(path, json={"name": "a"}, headers={"If-Match": header})
        problem(answer, 412, "revision-mismatch")
    changed = await editor.patch(path, json={"name": "a"}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200
    assert changed.headers["etag"] == '"2"'
    assert changed.json()["revision"] == 2
    late = await editor.patch(path, json={"name": "b"}, headers={"If-Match": '"1"'})
    problem(late, 412, "revision-mismatch")
    assert (await editor.get(path)).json()["definition"]["name"] == "a"


async def test_if_match_may_name_several_revisions_or_whichever_there_is(turnout: Turnout) -> None:
    key = await turnout.define()
    editor = turnout.client("editor")
    for number, header in enumerate(('"7", "1"', "*"), start=2):
        changed = await editor.patch(
            f"/v1/experiments/{key}", json={"name": header}, headers={"If-Match": header}
        )
        assert changed.json()["revision"] == number


async def test_every_change_honours_if_match_where_it_is_given(turnout: Turnout) -> None:
    key = await turnout.define()
    editor, stale = turnout.client("editor"), {"If-Match": '"7"'}
    path = f"/v1/experiments/{key}"
    early = await editor.post(f"{path}/start", json={"reason": "a test"}, headers=stale)
    problem(early, 412, "revision-mismatch")
    await turnout.move(key, "start")
    change = {"reason": "a test", "weights": {"old": 0.2, "new": 0.8}}
    refused = await editor.put(f"{path}/allocation", json=change, headers=stale)
    problem(refused, 412, "revision-mismatch")
    conclusion = {"reason": "a test", "ship": "new"}
    problem(
        await editor.post(f"{path}/conclude", json=conclusion, headers=stale),
        412,
        "revision-mismatch",
    )
    latest = {"If-Match": '"1"'}
    assert (await editor.put(f"{path}/allocation", json=change, headers=latest)).status_code == 200


async def test_a_name_that_stands_twice_is_refused(turnout: Turnout) -> None:
    text = msgspec.json.encode(definition()).replace(b'"name":', b'"key":"other","name":', 1)
    if b'"key":"other"' not in text:
        text = text.replace(b"{", b'{"key":"other",', 1)
    answer = await turnout.client("editor").post("/v1/experiments", content=text)
    problem(answer, 400, "malformed")
    assert "'key' twice" in answer.json()["detail"]


async def test_a_change_is_told_all_that_is_wrong_with_it_at_once(turnout: Turnout) -> None:
    key = await turnout.start()
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={
            "unit": {"type": 5},
            "salt": "q",
            "analysis": {"alpha": 0.2},
            "guard": {"alpha": 0.001},
            "zz": 1,
        },
        headers={"If-Match": '"1"'},
    )
    assert set(problem(answer, 422, "invalid")) == {
        ("zz", "unknown"),
        ("unit.type", "type"),
        ("salt", "immutable"),
        ("analysis.alpha", "immutable"),
        ("guard.alpha", "immutable"),
    }


async def test_of_two_changes_to_one_revision_one_is_lost_and_told_so(turnout: Turnout) -> None:
    key = await turnout.define()
    editor = turnout.client("editor")
    answers = await asyncio.gather(
        *(
            editor.patch(
                f"/v1/experiments/{key}", json={"name": f"n{i}"}, headers={"If-Match": '"1"'}
            )
            for i in range(5)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412, 412]
    kept = next(answer.json() for answer in answers if answer.status_code == 200)
    assert (await editor.get(f"/v1/experiments/{key}")).json() == kept


async def test_a_change_of_nothing_makes_no_revision(turnout: Turnout) -> None:
    key = await turnout.define(name="a")
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}", json={"name": "a"}, headers={"If-Match": '"1"'}
    )
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"1"'


async def test_a_patch_merges_objects_and_null_restores_a_default(turnout: Turnout) -> None:
    key = await turnout.define(guard={"alpha": 0.02}, name="a")
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={"analysis": {"alpha": 0.1}, "guard": None, "name": None},
        headers={"If-Match": '"1"'},
    )
    written = answer.json()["definition"]
    assert written["analysis"] == msgspec.json.decode(msgspec.json.encode(AnalysisPlan(alpha=0.1)))
    assert written["guard"]["alpha"] == 0.01
    assert written["name"] == ""


async def test_a_wrong_change_names_every_field_and_changes_nothing(turnout: Turnout) -> None:
    key = await turnout.define()
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={"key": "other", "traffic": 2, "colour": "red"},
        headers={"If-Match": '"1"'},
    )
    assert set(problem(answer, 422, "invalid")) == {
        ("key", "immutable"),
        ("traffic", "value"),
        ("colour", "unknown"),
    }
    assert (await turnout.client("editor").get(f"/v1/experiments/{key}")).json()["revision"] == 1


async def test_what_units_have_met_cannot_be_changed_while_they_meet_it(turnout: Turnout) -> None:
    key = await turnout.start()
    variants = definition()["variants"]
    variants[0]["value"] = {"model": "ranker/9"}
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}",
        json={"salt": "another", "unit": {"type": "session"}, "variants": variants},
        headers={"If-Match": '"1"'},
    )
    assert set(problem(answer, 422, "invalid")) == {
        ("salt", "immutable"),
        ("unit.type", "immutable"),
        ("variants[0].value", "immutable"),
    }


async def test_every_revision_stays_with_its_author_and_its_reason(turnout: Turnout) -> None:
    key = await turnout.define(name="first")
    editor = turnout.client("editor")
    for revision in (1, 2):
        await editor.patch(
            f"/v1/experiments/{key}",
            json={"name": f"after {revision}"},
            headers={"If-Match": f'"{revision}"', "X-Reason": f"change {revision}"},
        )
    page = (await editor.get(f"/v1/experiments/{key}/revisions?limit=2")).json()
    rest = await editor.get(f"/v1/experiments/{key}/revisions?cursor={page['next_cursor']}")
    revisions = page["items"] + rest.json()["items"]
    assert [(r["number"], r["definition"]["name"], r["reason"]) for r in revisions] == [
        (3, "after 2", "change 2"),
        (2, "after 1", "change 1"),
        (1, "first", "defined"),
    ]
    assert {r["actor"] for r in revisions} == {f"key:{turnout.keys['editor'].split('_')[1]}"}
