"""The life of an experiment through the API: its states, its runs, its epochs."""

import asyncio
from typing import Any, Final

import pytest

from tests.running import Turnout, definition, problem

ALLOWED: Final[dict[str, dict[str, str]]] = {
    "draft": {"start": "running", "archive": "archived"},
    "running": {"pause": "paused", "conclude": "concluded", "rollback": "rolled_back"},
    "paused": {"resume": "running", "conclude": "concluded", "rollback": "rolled_back"},
    "concluded": {"start": "running", "archive": "archived"},
    "rolled_back": {"start": "running", "archive": "archived"},
    "archived": {},
}
WAY: Final[dict[str, list[str]]] = {
    "draft": [],
    "running": ["start"],
    "paused": ["start", "pause"],
    "concluded": ["start", "conclude"],
    "rolled_back": ["start", "rollback"],
    "archived": ["archive"],
}
VERBS: Final = ("start", "pause", "resume", "conclude", "rollback", "archive")


def body(verb: str) -> dict[str, str]:
    """The least that a move asks for."""
    return {"reason": f"{verb}, for a test"} | ({"ship": "new"} if verb == "conclude" else {})


async def reach(turnout: Turnout, state: str) -> str:
    """A new experiment in this state; its key."""
    key = await turnout.define()
    for verb in WAY[state]:
        answer = await turnout.client("editor").post(
            f"/v1/experiments/{key}/{verb}", json=body(verb)
        )
        assert answer.status_code == 200, answer.text
    return key


async def read(turnout: Turnout, key: str) -> dict[str, Any]:
    """The experiment as it stands."""
    view: dict[str, Any] = (await turnout.client("analyst").get(f"/v1/experiments/{key}")).json()
    return view


async def epochs(turnout: Turnout, key: str) -> list[dict[str, Any]]:
    """All epochs, the oldest first."""
    answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/allocations")
    items: list[dict[str, Any]] = answer.json()["items"]
    return items[::-1]


def owners(epoch: dict[str, Any]) -> list[str | None]:
    """The owner of each slot."""
    return [owner for owner, count in epoch["slots"] for _ in range(count)]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", ALLOWED)
async def test_a_state_allows_its_moves_and_refuses_all_others(
    turnout: Turnout, state: str, verb: str
) -> None:
    key = await reach(turnout, state)
    before = await read(turnout, key)
    answer = await turnout.client("editor").post(f"/v1/experiments/{key}/{verb}", json=body(verb))
    if verb in ALLOWED[state]:
        assert answer.status_code == 200, answer.text
        assert answer.json()["state"] == ALLOWED[state][verb]
    else:
        problem(answer, 409, "conflict")
        assert await read(turnout, key) == before


@pytest.mark.parametrize("verb", VERBS)
async def test_a_move_needs_a_reason(turnout: Turnout, verb: str) -> None:
    key = await turnout.define()
    path = f"/v1/experiments/{key}/{verb}"
    ship = {"ship": "old"} if verb == "conclude" else {}
    editor = turnout.client("editor")
    assert problem(await editor.post(path, json=ship), 422, "invalid") == [("reason", "missing")]
    empty = await editor.post(path, json={"reason": "", **ship})
    assert problem(empty, 422, "invalid") == [("reason", "value")]
    assert (await read(turnout, key))["state"] == "draft"


async def test_a_conclusion_ships_a_variant_that_there_is(turnout: Turnout) -> None:
    key = await reach(turnout, "running")
    path = f"/v1/experiments/{key}/conclude"
    editor = turnout.client("editor")
    without = await editor.post(path, json={"reason": "r"})
    assert problem(without, 422, "invalid") == [("ship", "missing")]
    unknown = await editor.post(path, json={"reason": "r", "ship": "third"})
    assert problem(unknown, 422, "invalid") == [("ship", "reference")]
    assert (await read(turnout, key))["state"] == "running"
    concluded = (await editor.post(path, json={"reason": "r", "ship": "new"})).json()
    assert (concluded["ship"], concluded["weights"]) == ("new", {"new": 1.0})


async def test_a_rollback_gives_all_traffic_to_the_control(turnout: Turnout) -> None:
    key = await reach(turnout, "rolled_back")
    view = await read(turnout, key)
    assert (view["ship"], view["weights"], view["traffic"]) == ("old", {"old": 1.0}, 1.0)


async def test_every_move_is_an_epoch_with_its_author_and_its_reason(turnout: Turnout) -> None:
    key = await reach(turnout, "draft")
    for verb in ("start", "pause", "resume", "conclude"):
        await turnout.client("editor").post(f"/v1/experiments/{key}/{verb}", json=body(verb))
    found = await epochs(turnout, key)
    assert [(e["number"], e["state"], e["reason"]) for e in found] == [
        (1, "running", "start, for a test"),
        (2, "paused", "pause, for a test"),
        (3, "running", "resume, for a test"),
        (4, "concluded", "conclude, for a test"),
    ]
    assert {e["actor"] for e in found} == {f"key:{turnout.keys['editor'].split('_')[1]}"}
    assert found[0]["slots"] == found[1]["slots"] == found[2]["slots"]


async def test_starting_again_makes_a_new_run_with_a_salt_of_its_own(turnout: Turnout) -> None:
    key = await reach(turnout, "concluded")
    answer = await turnout.client("editor").post(f"/v1/experiments/{key}/start", json=body("start"))
    view = answer.json()
    assert (view["run"], view["ship"], view["state"]) == (2, None, "running")
    assert view["weights"] == {"old": 0.5, "new": 0.5}
    assert [(e["run"], e["salt"]) for e in await epochs(turnout, key)] == [
        (1, key),
        (1, key),
        (2, f"{key}#2"),
    ]


async def test_of_several_that_start_it_at_once_one_does(turnout: Turnout) -> None:
    key = await reach(turnout, "draft")
    editor = turnout.client("editor")
    answers = await asyncio.gather(
        *(editor.post(f"/v1/experiments/{key}/start", json=body("start")) for _ in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert (await read(turnout, key))["run"] == 1


async def test_new_weights_move_no_more_slots_than_they_must(turnout: Turnout) -> None:
    key = await turnout.start()
    view = await turnout.allocate(key, weights={"old": 0.4, "new": 0.6})
    assert view["epoch"] == 2
    assert view["weights"] == {"old": 0.4, "new": 0.6}
    before, after = (owners(epoch) for epoch in await epochs(turnout, key))
    moved = [(b, a) for b, a in zip(before, after, strict=True) if b != a]
    assert moved == [("old", "new")] * 1000


async def test_wrong_weights_are_named_by_their_paths(turnout: Turnout) -> None:
    variants = definition()["variants"]
    variants[0]["key"] = "old.1"
    key = await turnout.start(variants=variants)

    async def refused(weights: dict[str, float]) -> list[tuple[str, str]]:
        path = f"/v1/experiments/{key}/allocation"
        body = {"reason": "a test", "weights": weights}
        return problem(await turnout.client("editor").put(path, json=body), 422, "invalid")

    assert await refused({"old.1": 0, "new": 1}) == [('weights["old.1"]', "value")]
    assert await refused({"old.1": 1}) == [("weights.new", "missing")]
    assert await refused({f"v{i}": 0.01 for i in range(65)}) == [("weights", "value")]


async def test_traffic_that_shrinks_releases_slots_and_moves_none(turnout: Turnout) -> None:
    key = await turnout.start()
    view = await turnout.allocate(key, traffic=0.5)
    assert (view["traffic"], view["weights"]) == (0.5, {"old": 0.5, "new": 0.5})
    before, after = (owners(epoch) for epoch in await epochs(turnout, key))
    assert {a for b, a in zip(before, after, strict=True) if b != a} == {None}


async def test_what_a_change_leaves_out_stays_as_it_is(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.allocate(key, weights={"old": 0.3, "new": 0.7})
    view = await turnout.allocate(key, traffic=0.5)
    assert (view["traffic"], view["weights"]) == (0.5, {"old": 0.3, "new": 0.7})


async def test_a_patch_of_the_traffic_keeps_the_weights_that_a_hand_has_set(
    turnout: Turnout,
) -> None:
    key = await turnout.start()
    await turnout.allocate(key, weights={"old": 0.3, "new": 0.7})
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}", json={"traffic": 0.5}, headers={"If-Match": '"1"'}
    )
    view = answer.json()
    assert (view["traffic"], view["weights"]) == (0.5, {"old": 0.3, "new": 0.7})


async def test_a_patch_of_the_weights_is_an_epoch_while_the_experiment_runs(
    turnout: Turnout,
) -> None:
    key = await turnout.start()
    variants = (await read(turnout, key))["definition"]["variants"]
    variants[0]["weight"], variants[1]["weight"] = 0.2, 0.8
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}", json={"variants": variants}, headers={"If-Match": '"1"'}
    )
    view = answer.json()
    assert (view["revision"], view["epoch"]) == (2, 2)
    assert view["weights"] == {"old": 0.2, "new": 0.8}


async def change(turnout: Turnout, key: str, **patch: Any) -> dict[str, Any]:
    """Change the definition, whichever revision it has."""
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{key}", json=patch, headers={"If-Match": "*"}
    )
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view


PRO: Final = {"==": [{"var": "plan"}, "pro"]}
FREE: Final = {"==": [{"var": "plan"}, "free"]}


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_a_patch_of_the_targeting_is_an_epoch_with_the_same_slots(
    turnout: Turnout, state: str
) -> None:
    key = await reach(turnout, state)
    for targeting in (PRO, FREE, None):
        await change(turnout, key, targeting=targeting)
    found = (await epochs(turnout, key))[-4:]
    assert [epoch["targeting"] for epoch in found] == [None, PRO, FREE, None]
    assert {epoch["state"] for epoch in found} == {state}
    assert all(epoch["slots"] == found[0]["slots"] for epoch in found)


async def test_who_is_targeted_from_now_on_the_router_knows(turnout: Turnout) -> None:
    key = await turnout.start(targeting=PRO)
    pro, free = {"plan": "pro"}, {"plan": "free"}
    assert (await turnout.assign(key, "u", attributes=pro))["reason"] == "split"
    assert (await turnout.assign(key, "u", attributes=free))["reason"] == "not_targeted"
    view = await change(turnout, key, targeting=FREE)
    await turnout.wait_for_assignable(key, epoch=view["epoch"])
    assert (await turnout.assign(key, "u", attributes=pro))["reason"] == "not_targeted"
    assert (await turnout.assign(key, "u", attributes=free))["reason"] == "split"


async def test_targeting_and_weights_at_once_are_one_epoch(turnout: Turnout) -> None:
    key = await turnout.start()
    variants = (await read(turnout, key))["definition"]["variants"]
    for weight, epoch in ((0.8, 2), (0.801, 3)):  # the second moves too little by itself
        variants[0]["weight"], variants[1]["weight"] = 1 - weight, weight
        view = await change(turnout, key, variants=variants, targeting=[PRO, FREE][epoch - 2])
        assert view["epoch"] == epoch
        assert view["weights"] == {"old": 0.2, "new": 0.8}
    assert [e["targeting"] for e in await epochs(turnout, key)] == [None, PRO, FREE]


async def test_targeting_that_stays_as_it_is_makes_no_epoch(turnout: Turnout) -> None:
    key = await turnout.start(targeting=PRO)
    assert (await change(turnout, key, targeting=PRO, name="n"))["epoch"] == 1
    assert (await change(turnout, key, when_stale={"after": "1m", "do": "control"}))["epoch"] == 1


@pytest.mark.parametrize(("weight", "epoch"), [(0.5, 1), (0.5099, 1), (0.51, 2)])
async def test_what_would_move_less_than_a_hundredth_makes_no_epoch(
    turnout: Turnout, weight: float, epoch: int
) -> None:
    key = await turnout.start()
    view = await turnout.allocate(key, weights={"old": 1 - weight, "new": weight})
    assert view["epoch"] == epoch
    assert len(await epochs(turnout, key)) == epoch


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, [("weights", "missing")]),
        ({"weights": {"old": 1.0}}, [("weights.new", "missing")]),
        ({"weights": {"old": 0.5, "new": 0.4, "no": 0.1}}, [("weights.no", "unknown")]),
        ({"weights": {"old": 0.5, "new": 0.6}}, [("weights", "value")]),
        (
            {"weights": {"old": -0.5, "new": 1.5}},
            [("weights.old", "value"), ("weights.new", "value")],
        ),
        ({"weights": {"old": 0, "new": 1}}, [("weights.old", "value")]),
        ({"traffic": 0}, [("traffic", "value")]),
        ({"traffic": 1.01}, [("traffic", "value")]),
        ({"traffic": 0.0001}, [("traffic", "value")]),
        ({"traffic": "all"}, [("traffic", "type")]),
        ({"traffic": 0.5, "share": 1}, [("share", "unknown")]),
    ],
)
async def test_a_wrong_allocation_is_refused_by_its_fields(
    turnout: Turnout, change: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    key = await turnout.start()
    answer = await turnout.client("editor").put(
        f"/v1/experiments/{key}/allocation", json={"reason": "a test", **change}
    )
    assert problem(answer, 422, "invalid") == problems
    assert len(await epochs(turnout, key)) == 1


@pytest.mark.parametrize(
    ("weights", "traffic"),
    [({"old": 0.5, "new": 0.5}, 0.0003), ({"old": 0.999, "new": 0.001}, 0.01)],
)
async def test_more_traffic_goes_by_the_weights_as_they_were_stated(
    turnout: Turnout, weights: dict[str, float], traffic: float
) -> None:
    variants = definition()["variants"]
    stated = [variant | {"weight": weights[variant["key"]]} for variant in variants]
    by_hand = await turnout.start(variants=stated, traffic=traffic)
    assert (await turnout.allocate(by_hand, traffic=1.0))["weights"] == weights
    by_patch = await turnout.start(variants=stated, traffic=traffic)
    answer = await turnout.client("editor").patch(
        f"/v1/experiments/{by_patch}", json={"traffic": 1.0}, headers={"If-Match": '"1"'}
    )
    assert answer.json()["weights"] == weights


async def test_every_variant_of_a_bandit_keeps_a_weight(turnout: Turnout) -> None:
    policy = {"kind": "thompson", "metric": "click"}
    key = await turnout.start(policy=policy)
    answer = await turnout.client("editor").put(
        f"/v1/experiments/{key}/allocation",
        json={"reason": "a test", "weights": {"old": 1, "new": 0}},
    )
    assert problem(answer, 422, "invalid") == [("weights.new", "value")]


@pytest.mark.parametrize("state", ["draft", "concluded", "rolled_back", "archived"])
async def test_only_what_runs_or_pauses_has_traffic_to_allocate(
    turnout: Turnout, state: str
) -> None:
    key = await reach(turnout, state)
    answer = await turnout.client("editor").put(
        f"/v1/experiments/{key}/allocation", json={"reason": "a test", "traffic": 0.5}
    )
    problem(answer, 409, "conflict")


async def test_weights_set_during_a_pause_are_those_of_the_resumed_run(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.move(key, "pause")
    await turnout.allocate(key, weights={"old": 0.2, "new": 0.8})
    view = await turnout.move(key, "resume")
    assert (view["state"], view["weights"]) == ("running", {"old": 0.2, "new": 0.8})


async def test_the_list_of_epochs_is_read_page_by_page(turnout: Turnout) -> None:
    key = await turnout.start()
    for weight in (0.6, 0.7):
        await turnout.allocate(key, weights={"old": 1 - weight, "new": weight})
    reader = turnout.client("analyst")
    first = (await reader.get(f"/v1/experiments/{key}/allocations?limit=2")).json()
    assert [epoch["number"] for epoch in first["items"]] == [3, 2]
    path = f"/v1/experiments/{key}/allocations?cursor={first['next_cursor']}"
    rest = (await reader.get(path)).json()
    assert [epoch["number"] for epoch in rest["items"]] == [1]
    assert rest["next_cursor"] is None
