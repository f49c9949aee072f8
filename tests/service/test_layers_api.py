"""Layers through the API: who has which slots, and that no two have the same."""

import asyncio
from typing import Any

import pytest

from tests.running import Turnout, definition, problem


async def make(turnout: Turnout, layer: str, **body: Any) -> dict[str, Any]:
    """Make a layer; how it is shown."""
    return await turnout.put(f"/v1/layers/{layer}", **body)


async def read(turnout: Turnout, layer: str) -> dict[str, Any]:
    """A layer as it is shown."""
    answer = await turnout.client("analyst").get(f"/v1/layers/{layer}")
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view


async def draft(turnout: Turnout, first: int, end: int, layer: str = "ranking") -> str:
    """An experiment that would have these slots of a layer."""
    return await turnout.define(layer={"key": layer, "slots": [first, end]})


async def act(turnout: Turnout, key: str, verb: str, **body: str) -> Any:
    """Ask for a move of state."""
    path = f"/v1/experiments/{key}/{verb}"
    return await turnout.client("editor").post(path, json={"reason": "a test", **body})


async def test_a_layer_says_what_it_is(turnout: Turnout) -> None:
    made = await make(turnout, "ranking", description="all that ranks")
    assert (made["key"], made["description"], made["unit_type"]) == (
        "ranking",
        "all that ranks",
        "user",
    )
    assert made["salt"] == "#layer.ranking"
    assert (made["owners"], made["free"]) == ([], [[0, 10_000]])
    assert made["actor"] == f"key:{turnout.keys['editor'].split('_')[1]}"
    assert await read(turnout, "ranking") == made


async def test_a_layer_may_be_described_anew_and_keeps_its_units(turnout: Turnout) -> None:
    first = await make(turnout, "pages", unit_type="session", description="pages")
    again = await make(turnout, "pages", description="all pages")
    assert (again["unit_type"], again["description"]) == ("session", "all pages")
    assert (again["salt"], again["created_at"]) == (first["salt"], first["created_at"])
    editor = turnout.client("editor")
    answer = await editor.put("/v1/layers/pages", json={"unit_type": "user"})
    assert problem(answer, 422, "invalid") == [("unit_type", "immutable")]


async def test_what_is_no_layer_is_not_found(turnout: Turnout, stranger: Turnout) -> None:
    await make(turnout, "ranking")
    problem(await turnout.client("analyst").get("/v1/layers/nothing"), 404, "not-found")
    problem(await stranger.client("analyst").get("/v1/layers/ranking"), 404, "not-found")
    for key in ("UPPER", "$holdout"):
        answer = await turnout.client("editor").put(f"/v1/layers/{key}", json={})
        problem(answer, 404, "not-found")


async def test_layers_are_listed_page_by_page_with_their_owners(turnout: Turnout) -> None:
    for layer in ("one", "two", "three"):
        await make(turnout, layer)
    key = await draft(turnout, 0, 100, "two")
    await turnout.move(key, "start")
    reader = turnout.client("analyst")
    first = (await reader.get("/v1/layers?limit=2")).json()
    assert [layer["key"] for layer in first["items"]] == ["three", "two"]
    assert [layer["owners"] for layer in first["items"]] == [
        [],
        [{"experiment": key, "state": "running", "slots": [0, 100]}],
    ]
    rest = (await reader.get("/v1/layers", params={"cursor": first["next_cursor"]})).json()
    assert [layer["key"] for layer in rest["items"]] == ["one"]
    assert rest["next_cursor"] is None


async def test_an_experiment_names_a_layer_that_there_is(turnout: Turnout) -> None:
    layer = {"key": "ranking", "slots": [0, 10]}
    editor = turnout.client("editor")
    answer = await editor.post("/v1/experiments", json=definition(layer=layer))
    assert problem(answer, 422, "invalid") == [("layer.key", "reference")]
    assert "PUT /v1/layers/ranking" in answer.json()["errors"][0]["detail"]
    key = await turnout.define()
    path, headers = f"/v1/experiments/{key}", {"If-Match": '"1"'}
    changed = await editor.patch(path, json={"layer": layer}, headers=headers)
    assert problem(changed, 422, "invalid") == [("layer.key", "reference")]
    await make(turnout, "ranking")
    changed = await editor.patch(path, json={"layer": layer}, headers=headers)
    assert changed.json()["definition"]["layer"] == layer


async def test_a_layer_is_of_units_of_one_type(turnout: Turnout) -> None:
    await make(turnout, "ranking", unit_type="session")
    given = definition(layer={"key": "ranking", "slots": [0, 10]})
    editor = turnout.client("editor")
    answer = await editor.post("/v1/experiments", json=given)
    assert problem(answer, 422, "invalid") == [("layer.key", "conflict")]
    right = given | {"unit": {"type": "session"}}
    assert (await editor.post("/v1/experiments", json=right)).status_code == 201


async def test_an_epoch_pins_the_part_of_the_layer(turnout: Turnout) -> None:
    await make(turnout, "ranking")
    key = await draft(turnout, 2_000, 5_000)
    await turnout.move(key, "start")
    await turnout.move(key, "pause")
    await turnout.move(key, "conclude", ship="new")
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/allocations")
    pin = {"key": "ranking", "salt": "#layer.ranking", "slots": [2_000, 5_000]}
    assert [epoch["layer"] for epoch in answer.json()["items"]] == [None, pin, pin]


async def test_the_slots_of_a_layer_are_shown_with_their_owners(turnout: Turnout) -> None:
    await make(turnout, "ranking")
    later, first = await draft(turnout, 7_000, 10_000), await draft(turnout, 0, 2_500)
    await draft(turnout, 0, 10_000)  # has none of them as long as it is a draft
    for key in (later, first):
        await turnout.move(key, "start")
    await turnout.move(later, "pause")
    view = await read(turnout, "ranking")
    assert view["owners"] == [
        {"experiment": first, "state": "running", "slots": [0, 2_500]},
        {"experiment": later, "state": "paused", "slots": [7_000, 10_000]},
    ]
    assert view["free"] == [[2_500, 7_000]]


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_slots_that_somebody_has_are_refused_with_his_name(
    turnout: Turnout, state: str
) -> None:
    await make(turnout, "ranking")
    owner, other = await draft(turnout, 0, 5_000), await draft(turnout, 4_999, 6_000)
    await turnout.move(owner, "start")
    if state == "paused":
        await turnout.move(owner, "pause")
    answer = await act(turnout, other, "start")
    assert problem(answer, 409, "conflict") == [("layer.slots", "conflict")]
    assert f"{owner} ({state}) has [0, 5000)" in answer.json()["detail"]
    await turnout.move(await draft(turnout, 5_000, 6_000), "start")  # its neighbour is free


@pytest.mark.parametrize("end", ["conclude", "rollback"])
async def test_who_has_ended_has_no_slots(turnout: Turnout, end: str) -> None:
    await make(turnout, "ranking")
    owner, other = await draft(turnout, 0, 5_000), await draft(turnout, 0, 5_000)
    await turnout.move(owner, "start")
    await turnout.move(owner, end, **({"ship": "old"} if end == "conclude" else {}))
    assert (await read(turnout, "ranking"))["free"] == [[0, 10_000]]
    await turnout.move(other, "start")
    problem(await act(turnout, owner, "start"), 409, "conflict")


async def test_slots_of_different_layers_never_conflict(turnout: Turnout) -> None:
    for layer in ("one", "two"):
        await make(turnout, layer)
        await turnout.move(await draft(turnout, 0, 10_000, layer), "start")


async def test_a_part_of_a_layer_is_held_while_a_run_lasts(turnout: Turnout) -> None:
    await make(turnout, "ranking")
    key = await draft(turnout, 0, 5_000)
    await turnout.move(key, "start")
    patch = {"layer": {"slots": [0, 6_000]}}
    path, headers = f"/v1/experiments/{key}", {"If-Match": '"1"'}
    answer = await turnout.client("editor").patch(path, json=patch, headers=headers)
    assert problem(answer, 422, "invalid") == [("layer.slots[1]", "immutable")]


async def test_of_several_that_start_at_once_on_the_same_slots_one_does(turnout: Turnout) -> None:
    await make(turnout, "ranking")
    keys = [await draft(turnout, 0, 5_000) for _ in range(5)]
    answers = await asyncio.gather(*(act(turnout, key, "start") for key in keys))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    [owner] = (await read(turnout, "ranking"))["owners"]
    won = [key for key, a in zip(keys, answers, strict=True) if a.status_code == 200]
    assert [owner["experiment"]] == won


async def test_a_unit_is_in_one_experiment_of_a_layer_at_most(turnout: Turnout) -> None:
    await make(turnout, "ranking")
    keys = [await draft(turnout, 0, 4_000), await draft(turnout, 4_000, 9_000)]
    for key in keys:
        await turnout.move(key, "start")
    met = {0: 0, 1: 0, 2: 0}
    for number in range(200):
        answers = [await turnout.assign(key, f"u{number}", expose=False) for key in keys]
        met[sum(answer["reason"] == "split" for answer in answers)] += 1
    assert met[2] == 0
    assert met[0] > 0
    assert met[1] > 150
