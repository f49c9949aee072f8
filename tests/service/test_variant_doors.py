"""Rolling a variant back and resuming it by hand, through the API, and what routers answer."""

import pytest

from tests.running import Turnout, eventually, problem
from tests.service.test_batch_api import ask
from tests.service.test_states_api import epochs, owners, read

UNITS = [f"u{number}" for number in range(40)]


async def batch(turnout: Turnout, key: str) -> list[str]:
    """What all units get, asked as a batch."""
    [columns] = (await ask(turnout, UNITS, key))["experiments"]
    return list(columns["variant"])


async def test_a_variant_is_rolled_back_and_resumed_slot_for_slot(turnout: Turnout) -> None:
    key = await turnout.start()
    view = await turnout.move(key, "rollback", variant="new", reason="it is slow")
    assert (view["state"], view["rolled_back"]) == ("running", ["new"])
    assert (view["weights"], view["traffic"]) == ({"old": 1.0}, 1.0)
    assert await read(turnout, key) == view
    resumed = await turnout.move(key, "resume", variant="new")
    assert (resumed["rolled_back"], resumed["weights"]) == ([], {"old": 0.5, "new": 0.5})
    first, rolled_back, last = await epochs(turnout, key)
    assert owners(last) == owners(first)
    assert set(owners(rolled_back)) == {"old"}
    assert [each["rolled_back"] for each in (first, rolled_back, last)] == [[], ["new"], []]
    assert (rolled_back["reason"], rolled_back["state"]) == ("it is slow", "running")
    assert rolled_back["decision"] is not None
    [generation] = await turnout.rows(
        """select g.number, g.epoch, g.actor, g.decision from guard_generation g
           join experiment x on x.id = g.experiment where x.project = $1 and x.key = $2""",
        key,
    )
    assert tuple(generation) == (2, 3, last["actor"], last["decision"])


async def test_a_sticky_unit_leaves_a_rolled_back_variant_and_returns_to_it(
    turnout: Turnout,
) -> None:
    key = await turnout.start(stickiness="sticky")
    before = await batch(turnout, key)
    assert set(before) == {"old", "new"}
    # The slots of all units are the control's by now, but for their stickiness.
    await turnout.allocate(key, weights={"old": 0.9, "new": 0.1})
    assert await batch(turnout, key) == before
    await turnout.move(key, "rollback", variant="new")
    assert set(await batch(turnout, key)) == {"old"}
    unit = UNITS[before.index("new")]
    alone = await turnout.assign(key, unit)
    assert (alone["variant"], alone["reason"], alone["epoch"]) == ("old", "split", 3)
    await turnout.move(key, "resume", variant="new")
    assert await batch(turnout, key) == before


async def test_a_weight_of_zero_is_no_rollback_to_a_sticky_unit(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    before = await batch(turnout, key)
    await turnout.allocate(key, weights={"old": 1.0, "new": 0.0})
    assert await batch(turnout, key) == before


async def test_a_sticky_unit_that_did_not_come_is_not_told_to_have_had_it(
    turnout: Turnout,
) -> None:
    key = await turnout.start(stickiness="sticky")
    unit = UNITS[(await batch(turnout, key)).index("new")]

    async def enrolled() -> bool | None:
        query = "select unit from enrolment where unit = $2 and project = $1"
        return True if await turnout.rows(query, unit) else None

    await eventually(enrolled, "enrolment")

    async def told() -> str:
        answer = await turnout.client("analyst").get(
            "/v1/replay", params={"experiment": key, "unit": unit}
        )
        assert answer.status_code == 200, answer.text
        variant: str = answer.json()["variant"]
        return variant

    assert await told() == "new"
    await turnout.move(key, "rollback", variant="new")
    assert await told() == "old"


async def test_a_tester_still_gets_a_variant_that_is_rolled_back(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.override(key, "new", unit="tester")
    await turnout.move(key, "rollback", variant="new")
    answer = await turnout.assign(key, "tester")
    assert (answer["variant"], answer["reason"]) == ("new", "override")


async def test_weights_for_it_are_refused_and_name_the_door(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.move(key, "rollback", variant="new")
    body = {"reason": "r", "weights": {"old": 0.5, "new": 0.5}}
    answer = await turnout.client("editor").put(f"/v1/experiments/{key}/allocation", json=body)
    assert problem(answer, 422, "invalid") == [("weights.new", "conflict")]
    assert f"POST /v1/experiments/{key}/resume" in answer.json()["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("verb", "variant", "kind"),
    [
        ("rollback", "old", "value"),
        ("rollback", "third", "reference"),
        ("resume", "new", "conflict"),
        ("resume", "third", "reference"),
    ],
)
async def test_a_variant_that_cannot_be_moved_is_named(
    turnout: Turnout, verb: str, variant: str, kind: str
) -> None:
    key = await turnout.start()
    before = await read(turnout, key)
    body = {"reason": "r", "variant": variant}
    answer = await turnout.client("editor").post(f"/v1/experiments/{key}/{verb}", json=body)
    assert problem(answer, 422, "invalid") == [("variant", kind)]
    assert await read(turnout, key) == before


async def test_a_retry_of_a_rollback_is_answered_alike_and_done_once(turnout: Turnout) -> None:
    key = await turnout.start()
    editor, door = turnout.client("editor"), f"/v1/experiments/{key}/rollback"
    body, once = {"reason": "r", "variant": "new"}, {"Idempotency-Key": f"{key}-1"}
    first = await editor.post(door, json=body, headers=once)
    again = await editor.post(door, json=body, headers=once)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert len(await epochs(turnout, key)) == 2
    other = await editor.post(door, json=body)
    assert problem(other, 422, "invalid") == [("variant", "conflict")]
