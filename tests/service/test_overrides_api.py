"""Overrides through the API: who always gets a variant, since when, and until when."""

import asyncio
from typing import Any

import pytest

from tests.running import Turnout, definition, eventually, problem
from tests.service.test_erase_api import erase
from tests.service.test_project_api import hash_units


def path(key: str) -> str:
    """The door of an experiment's overrides."""
    return f"/v1/experiments/{key}/overrides"


async def give(turnout: Turnout, key: str, variant: str, **who: Any) -> dict[str, Any]:
    """Give somebody a variant; how the override is shown."""
    body = {"variant": variant, "reason": "a test", **who}
    answer = await turnout.client("editor").post(path(key), json=body)
    assert answer.status_code == 201, answer.text
    view: dict[str, Any] = answer.json()
    return view


async def listed(turnout: Turnout, key: str, **query: str) -> list[dict[str, Any]]:
    """The overrides that are shown."""
    answer = await turnout.client("analyst").get(path(key), params=query)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def gets(turnout: Turnout, key: str, variant: str, unit: str, **more: Any) -> dict[str, Any]:
    """Wait until a unit gets a variant; the router's answer."""

    async def right() -> dict[str, Any] | None:
        answer = await turnout.assign(key, unit, expose=False, **more)
        return answer if answer["variant"] == variant else None

    return await eventually(right, f"{variant} for {unit}")


async def unit_of(turnout: Turnout, key: str, variant: str) -> str:
    """A unit that has a variant by its slot."""
    for number in range(100):
        answer = await turnout.assign(key, f"u{number}", expose=False)
        if answer["variant"] == variant:
            return f"u{number}"
    raise AssertionError(f"nobody gets {variant}")


async def test_a_unit_gets_the_variant_that_it_was_given(turnout: Turnout) -> None:
    key = await turnout.start()
    unit = await unit_of(turnout, key, "old")
    made = await give(turnout, key, "new", unit=unit)
    assert (made["experiment"], made["variant"], made["unit"]) == (key, "new", unit)
    assert (made["attribute"], made["value"]) == (None, None)
    assert (made["ended_at"], made["ended_by"], made["reason"]) == (None, None, "a test")
    assert made["actor"] == f"key:{turnout.keys['editor'].split('_')[1]}"
    assert (await gets(turnout, key, "new", unit))["reason"] == "override"
    assert await listed(turnout, key) == [made]


async def test_all_with_a_value_of_an_attribute_get_the_variant(turnout: Turnout) -> None:
    key = await turnout.start()
    unit = await unit_of(turnout, key, "old")
    await give(turnout, key, "new", attribute="tester", value=True)
    answer = await gets(turnout, key, "new", unit, attributes={"tester": True})
    assert answer["reason"] == "override"
    for other in (1, "true", False, None):
        answer = await turnout.assign(key, unit, expose=False, attributes={"tester": other})
        assert answer["reason"] == "split"


async def test_what_is_ended_is_over_and_stays_in_the_history(turnout: Turnout) -> None:
    key = await turnout.start()
    unit = await unit_of(turnout, key, "old")
    made = await give(turnout, key, "new", unit=unit)
    await gets(turnout, key, "new", unit)
    editor = turnout.client("editor")
    assert (await editor.delete(f"{path(key)}/{made['id']}")).status_code == 204
    assert (await gets(turnout, key, "old", unit))["reason"] == "split"
    assert await listed(turnout, key) == []
    [ended] = await listed(turnout, key, ended="true")
    assert ended["ended_at"] is not None
    assert ended == made | {"ended_at": ended["ended_at"], "ended_by": made["actor"]}
    problem(await editor.delete(f"{path(key)}/{made['id']}"), 404, "not-found")


@pytest.mark.parametrize("who", [{"unit": "ann"}, {"attribute": "plan", "value": "pro"}])
async def test_another_override_of_the_same_replaces_the_first(
    turnout: Turnout, who: dict[str, Any]
) -> None:
    key = await turnout.start()
    first = await give(turnout, key, "new", **who)
    second = await give(turnout, key, "old", **who)
    await give(turnout, key, "new", unit="ben")
    await give(turnout, key, "new", attribute="plan", value="free")
    assert second in await listed(turnout, key)
    assert len(await listed(turnout, key)) == 3
    ended = [o for o in await listed(turnout, key, ended="true") if o["ended_at"]]
    assert [o["id"] for o in ended] == [first["id"]]


async def test_a_value_is_another_than_one_that_looks_like_it(turnout: Turnout) -> None:
    key = await turnout.start()
    values: list[Any] = [1, 1.0, True, "1", "true", 0, False, "", 10**15, 1e30]
    for value in values:
        await give(turnout, key, "new", attribute="n", value=value)
    shown = [item["value"] for item in await listed(turnout, key)]
    assert [repr(value) for value in shown[::-1]] == [repr(value) for value in values]


async def test_overrides_are_listed_page_by_page_the_newest_first(turnout: Turnout) -> None:
    key = await turnout.start()
    ids = [(await give(turnout, key, "new", unit=f"u{number}"))["id"] for number in range(3)]
    reader = turnout.client("analyst")
    first = (await reader.get(path(key), params={"limit": "2"})).json()
    assert [item["id"] for item in first["items"]] == ids[:0:-1]
    rest = (await reader.get(path(key), params={"cursor": first["next_cursor"]})).json()
    assert [item["id"] for item in rest["items"]] == ids[:1]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"variant": "third"}, [("variant", "reference")]),
        ({"variant": None}, [("variant", "type")]),
        ({"reason": ""}, [("reason", "value")]),
        ({"unit": None}, [("unit", "missing")]),
        ({"unit": "x" * 257}, [("unit", "value")]),
        ({"unit": "a\u0000b"}, [("unit", "value")]),
        ({"unit": 5}, [("unit", "type")]),
        ({"attribute": "plan"}, [("attribute", "conflict")]),
        ({"value": False}, [("value", "conflict")]),
        ({"unit": None, "attribute": "plan"}, [("value", "missing")]),
        ({"unit": None, "attribute": "plan", "value": ["pro"]}, [("value", "type")]),
        ({"unit": None, "attribute": "plan", "value": "x" * 257}, [("value", "value")]),
        ({"unit": None, "attribute": "targetingKey", "value": "ann"}, [("attribute", "conflict")]),
        ({"unit": None, "attribute": "who", "value": "ann"}, [("attribute", "conflict")]),
        ({"units": ["ann"]}, [("units", "unknown")]),
    ],
)
async def test_a_wrong_override_is_refused_by_its_fields(
    turnout: Turnout, change: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    key = await turnout.define(unit={"attribute": "who"})
    body = {"variant": "new", "reason": "a test", "unit": "ann"} | change
    answer = await turnout.client("editor").post(path(key), json=body)
    assert problem(answer, 422, "invalid") == problems
    assert await listed(turnout, key) == []


async def test_there_is_nobody_to_override_for_in_what_is_put_away(turnout: Turnout) -> None:
    key = await turnout.define()
    await turnout.move(key, "archive")
    body = {"variant": "new", "reason": "a test", "unit": "ann"}
    problem(await turnout.client("editor").post(path(key), json=body), 409, "conflict")
    problem(await turnout.client("editor").post(path("nothing"), json=body), 404, "not-found")


@pytest.mark.parametrize("override", ["0", "1", "nothing", "-1", "9" * 40])
async def test_an_override_of_another_experiment_cannot_be_ended(
    turnout: Turnout, stranger: Turnout, override: str
) -> None:
    ours, other, theirs = await turnout.define(), await turnout.define(), await stranger.define()
    made = [
        await give(project, key, "new", unit="ann")
        for project, key in ((turnout, other), (stranger, theirs))
    ]
    for number in (override, *(str(o["id"]) for o in made)):
        answer = await turnout.client("editor").delete(f"{path(ours)}/{number}")
        problem(answer, 404, "not-found")
    assert await listed(turnout, other) == made[:1]


async def test_a_draft_that_loses_a_variant_loses_its_overrides(turnout: Turnout) -> None:
    key = await turnout.define()
    await give(turnout, key, "new", unit="ann")
    kept = await give(turnout, key, "old", unit="ben")
    tester = await give(turnout, key, "old", attribute="tester", value=True)
    variants = definition()["variants"]
    variants[1]["key"] = "newer"
    editor = turnout.client("editor")
    await editor.patch(
        f"/v1/experiments/{key}", json={"variants": variants}, headers={"If-Match": '"1"'}
    )
    assert await listed(turnout, key) == [tester, kept]
    await editor.patch(
        f"/v1/experiments/{key}", json={"unit": {"type": "session"}}, headers={"If-Match": '"2"'}
    )
    assert await listed(turnout, key) == [tester]
    await turnout.move(key, "start")
    await gets(turnout, key, "old", "somebody", attributes={"tester": True})


async def test_a_thousand_are_enough(turnout: Turnout) -> None:
    key = await turnout.define()
    await turnout.rows(
        """insert into override (experiment, variant, unit_type, unit, created_at, actor, reason)
           select id, 'new', 'user', 'u' || g, now(), 'a', 'r'
           from experiment, generate_series(1, 1000) g where project = $1""",
    )
    body = {"variant": "new", "reason": "a test", "unit": "one-more"}
    answer = await turnout.client("editor").post(path(key), json=body)
    assert problem(answer, 409, "conflict") == []
    await give(turnout, key, "old", unit="u7")  # this one replaces another


async def test_a_hashed_unit_is_stored_as_a_hash_and_met_by_its_id(turnout: Turnout) -> None:
    await hash_units(turnout)
    key = await turnout.start()
    unit = await unit_of(turnout, key, "old")
    made = await give(turnout, key, "new", unit=unit)
    assert made["unit"] != unit
    assert len(made["unit"]) == 32
    assert (await gets(turnout, key, "new", unit))["reason"] == "override"


@pytest.mark.parametrize("storage", ["plain", "hashed"])
async def test_an_erased_unit_is_gone_from_the_overrides(turnout: Turnout, storage: str) -> None:
    if storage == "hashed":
        await hash_units(turnout)
    key = await turnout.start()
    unit = await unit_of(turnout, key, "old")
    await give(turnout, key, "new", unit=unit)
    await give(turnout, key, "new", unit=unit)
    kept = await give(turnout, key, "new", unit="ben")
    await gets(turnout, key, "new", unit)
    await erase(turnout, {"unit": unit})
    assert await listed(turnout, key, ended="true") == [kept]
    await gets(turnout, key, "old", unit)


async def test_a_retry_makes_no_other_override_and_keeps_no_unit(turnout: Turnout) -> None:
    key = await turnout.start()
    body = {"variant": "new", "reason": "a test", "unit": "ann-of-the-team"}
    headers = {"Idempotency-Key": "once"}
    editor = turnout.client("editor")
    first = await editor.post(path(key), json=body, headers=headers)
    again = await editor.post(path(key), json=body, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json() | {"unit": None}
    assert len(await listed(turnout, key, ended="true")) == 1
    [kept] = await turnout.rows("select body from idempotency where project = $1")
    assert b"ann-of-the-team" not in kept["body"]
    other = await editor.post(path(key), json=body | {"unit": "ben"}, headers=headers)
    problem(other, 409, "conflict")


async def test_an_override_from_before_units_were_hashed_is_hashed_with_them(
    turnout: Turnout,
) -> None:
    key = await turnout.define(traffic=0.0002)
    ended = await give(turnout, key, "old", unit="ann")
    await give(turnout, key, "new", unit="ann")
    await give(turnout, key, "new", unit="ben")
    await give(turnout, key, "new", attribute="plan", value="pro")
    await hash_units(turnout)
    units = {item["id"]: item["unit"] for item in await listed(turnout, key, ended="true")}
    assert {"ann", "ben"}.isdisjoint(units.values())
    assert len(units[ended["id"]]) == 32
    await turnout.move(key, "start")
    assert (await gets(turnout, key, "new", "ann"))["reason"] == "override"
    await erase(turnout, {"unit": "ann"})
    left = await listed(turnout, key, ended="true")
    assert units[ended["id"]] not in {item["unit"] for item in left}
    assert len(left) == 2


async def test_overrides_of_hashed_units_keep_a_project_hashed(turnout: Turnout) -> None:
    """A hash does not tell whose it is."""
    await hash_units(turnout)
    key = await turnout.define()
    made = await give(turnout, key, "new", unit="ann")
    tester = await give(turnout, key, "new", attribute="plan", value="pro")
    admin = turnout.client("admin")
    problem(await admin.patch("/v1/project", json={"units": "plain"}), 409, "conflict")
    await turnout.client("editor").delete(f"{path(key)}/{made['id']}")
    assert (await admin.patch("/v1/project", json={"units": "plain"})).status_code == 200
    assert await listed(turnout, key, ended="true") == [tester]


async def test_an_override_at_the_same_time_as_hashing_is_hashed(turnout: Turnout) -> None:
    key = await turnout.define()
    people = [f"person-{number}" for number in range(12)]
    await asyncio.gather(
        *(give(turnout, key, "new", unit=unit) for unit in people), hash_units(turnout)
    )
    units = [item["unit"] for item in await listed(turnout, key)]
    assert len(units) == len(people)
    assert all(len(unit) == 32 for unit in units)
