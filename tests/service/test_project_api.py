"""A project's settings: how its units are stored, said before there are any."""

import asyncio
import re
from typing import Any

import msgspec
import pytest

from experiments.projects import approvals_of
from tests.running import Turnout, definition, eventually, problem, readings_of
from tests.service.test_erase_api import click, erase, folded, lived

PROJECT = "/v1/project"


async def hash_units(turnout: Turnout) -> None:
    """Units are hashed from now on, and the router knows."""
    answer = await turnout.client("admin").patch(PROJECT, json={"units": "hashed"})
    assert answer.status_code == 200, answer.text
    # The router has all of a version or nothing: with this key it has the setting.
    made = (await turnout.client("admin").post("/v1/keys", json={"role": "analyst"})).json()

    async def knows() -> bool | None:
        answer = await turnout.client(None).get(PROJECT, headers={"X-API-Key": made["key"]})
        return True if answer.status_code == 200 else None

    await eventually(knows, "use for a new key")


async def stored(turnout: Turnout) -> dict[str, set[str]]:
    """The units in each table of events."""
    return {
        table: {
            row["unit"]
            for row in await turnout.rows(f"select unit from {table} where project = $1")  # noqa: S608
        }
        for table in ("exposure", "outcome", "enrolment")
    }


async def test_a_project_says_what_it_is(turnout: Turnout) -> None:
    answer = await turnout.client("analyst").get(PROJECT)
    assert answer.status_code == 200
    view = answer.json()
    assert view.keys() == {
        *("key", "default_unit_type", "units", "created_at", "version"),
        *("origins", "approvals"),
    }
    assert view["origins"] == view["approvals"] == []
    assert (view["key"], view["default_unit_type"], view["units"]) == (
        turnout.project,
        "user",
        "plain",
    )
    problem(await turnout.client("service").get(PROJECT), 403, "forbidden")


async def test_an_admin_says_how_units_are_stored(turnout: Turnout) -> None:
    admin = turnout.client("admin")
    before = (await admin.get(PROJECT)).json()
    changed = (await admin.patch(PROJECT, json={"units": "hashed"})).json()
    assert changed == before | {"units": "hashed", "version": before["version"] + 1}
    assert (await admin.get(PROJECT)).json() == changed
    assert (await admin.patch(PROJECT, json={"units": "hashed"})).json() == changed
    back = (await admin.patch(PROJECT, json={"units": "plain"})).json()
    assert back["units"] == "plain"
    problem(
        await turnout.client("editor").patch(PROJECT, json={"units": "hashed"}), 403, "forbidden"
    )


async def test_an_admin_says_who_may_call_and_what_waits_for_approval(turnout: Turnout) -> None:
    admin = turnout.client("admin")
    before = (await admin.get(PROJECT)).json()
    settings = {"origins": ["https://shop.example.com", "http://localhost:3000"]}
    settings["approvals"] = ["start", "allocation"]
    changed = (await admin.patch(PROJECT, json=settings)).json()
    assert changed == before | settings | {"version": before["version"] + 1}
    assert (await admin.patch(PROJECT, json=settings)).json() == changed, "no change"
    async with turnout.host.pool.acquire() as connection:
        assert await approvals_of(connection, turnout.project) == {"start", "allocation"}
    more = (
        await admin.patch(PROJECT, json={"approvals": ["start", "change", "allocation"]})
    ).json()
    assert (more["origins"], more["version"]) == (settings["origins"], changed["version"] + 1)
    assert (await admin.patch(PROJECT, json={"approvals": []})).status_code == 202, "less waits"
    assert (await admin.get(PROJECT)).json() == more


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, ("$", "missing")),
        ({"units": "secret"}, ("units", "value")),
        ({"units": None}, ("units", "type")),
        ({"units": "plain", "unit_key": "00"}, ("unit_key", "unknown")),
        ({"origins": ["*", "https://shop.example.com/"]}, ("origins[1]", "value")),
        ({"origins": ["null"]}, ("origins[0]", "value")),
        ({"origins": [7]}, ("origins[0]", "type")),
        ({"origins": ["*"] * 101}, ("origins", "value")),
        ({"approvals": ["start", "stop"]}, ("approvals[1]", "value")),
        ({"approvals": None}, ("approvals", "type")),
    ],
)
async def test_a_wrong_change_is_told_field_by_field(
    turnout: Turnout, body: dict[str, Any], wrong: tuple[str, str]
) -> None:
    answer = await turnout.client("admin").patch(PROJECT, json=body)
    assert problem(answer, 422, "invalid") == [wrong]


async def test_after_a_start_it_is_too_late(turnout: Turnout) -> None:
    await turnout.define()
    admin = turnout.client("admin")
    assert (await admin.patch(PROJECT, json={"units": "hashed"})).status_code == 200
    assert (await admin.patch(PROJECT, json={"units": "plain"})).status_code == 200
    await turnout.start()
    assert problem(await admin.patch(PROJECT, json={"units": "hashed"}), 409, "conflict") == []
    assert (await admin.patch(PROJECT, json={"units": "plain"})).status_code == 200, "no change"


async def test_after_an_event_it_is_too_late(turnout: Turnout) -> None:
    await click(turnout, unit="ann")
    await turnout.shipped("outcome", 1)
    answer = await turnout.client("admin").patch(PROJECT, json={"units": "hashed"})
    assert problem(answer, 409, "conflict") == []


async def test_a_start_at_the_same_time_is_before_or_after(turnout: Turnout) -> None:
    key = await turnout.define()
    changing, _ = await asyncio.gather(
        turnout.client("admin").patch(PROJECT, json={"units": "hashed"}),
        turnout.move(key, "start"),
    )
    units = (await turnout.client("admin").get(PROJECT)).json()["units"]
    assert (changing.status_code, units) in {(200, "hashed"), (409, "plain")}
    await turnout.assign(key, "ann")
    [row] = await turnout.shipped("exposure", 1)
    assert (row["unit"] == "ann") == (units == "plain")


async def test_hashed_units_are_assigned_and_counted_as_plain_ones(
    turnout: Turnout, stranger: Turnout
) -> None:
    await hash_units(turnout)
    people = [f"person-{number}" for number in range(8)]
    same = definition()
    for project in (turnout, stranger):
        assert (
            await project.client("editor").post("/v1/experiments", json=same)
        ).status_code == 201
        await project.move(same["key"], "start")
        for unit in people:
            await project.assign(same["key"], unit)
            await click(project, unit=unit)
        await project.shipped("outcome", len(people))
        await folded(project, same["key"], len(people))
    for unit in people:
        assert await turnout.assign(same["key"], unit) == await stranger.assign(same["key"], unit)
    ours, theirs = [
        (await project.client("analyst").get(f"/v1/experiments/{same['key']}/report")).json()
        for project in (turnout, stranger)
    ]
    assert ours["units"] == theirs["units"]
    assert readings_of(ours) == readings_of(theirs) != []
    for units in (await stored(turnout)).values():
        assert len(units) == len(people)
        assert all(re.fullmatch("[0-9a-f]{32}", unit) for unit in units)
    assert (await stored(stranger))["outcome"] == set(people)


async def test_types_do_not_meet_in_a_hash(turnout: Turnout) -> None:
    await hash_units(turnout)
    await click(turnout, units={"user": "42", "session": "42"})
    await click(turnout, unit="42")
    rows = await turnout.shipped("outcome", 3)
    by_type = {row["unit_type"]: row["unit"] for row in rows}
    assert by_type["user"] != by_type["session"]
    assert len({(row["unit_type"], row["unit"]) for row in rows}) == 2


async def test_a_hashed_unit_is_forgotten_by_its_own_id(turnout: Turnout) -> None:
    await hash_units(turnout)
    key = await lived(turnout, "ann", "ben")
    assert await erase(turnout, {"unit": "ann"}) == {
        "exposures": 1,
        "outcomes": 1,
        "enrolments": 1,
        "dead_letters": 0,
    }
    await folded(turnout, key, 1)


async def test_the_secret_is_nowhere_to_be_seen(
    turnout: Turnout, caplog: pytest.LogCaptureFixture
) -> None:
    await hash_units(turnout)
    await lived(turnout, "ann")
    await erase(turnout, {"unit": "ann"})
    [row] = await turnout.rows("select unit_key from project where key = $1")
    secret: bytes = row["unit_key"]
    assert len(secret) == 32
    admin = turnout.client("admin")
    answers = [
        await admin.get(PROJECT),
        await admin.get("/v1/keys"),
        await admin.patch(PROJECT, json={"units": "plain"}),
        await admin.get("/metrics"),
    ]
    for text in (*(answer.text for answer in answers), caplog.text):
        assert secret.hex() not in text
        assert repr(secret) not in text


async def test_attributes_never_tell_a_hashed_unit(turnout: Turnout) -> None:
    """Not by the record of the experiment, which may be older than the rule, nor by that of the
    holdout, whose units come under another name."""
    await hash_units(turnout)
    names = ["plan", "targetingKey", "who"]
    await turnout.put("/v1/holdout", share=0.5, reason="a test", record=["plan", "who"])
    key = await turnout.define(unit={"attribute": "who"}, record=["plan"])
    await turnout.rows(
        """update experiment set definition = jsonb_set(definition::jsonb, '{record}', $3)
           where project = $1 and key = $2""",
        key,
        msgspec.json.encode(names).decode(),
    )
    await turnout.move(key, "start")
    people = [f"person-{number}" for number in range(20)]
    for unit in people:
        context = {"targetingKey": unit, "who": unit, "plan": "pro"}
        answer = await turnout.client("service").post(
            f"/ofrep/v1/evaluate/flags/{key}", json={"context": context}
        )
        assert answer.status_code == 200, answer.text
    rows = await turnout.shipped("exposure", len(people) + 1)
    assert len({row["experiment"] for row in rows}) == 2
    assert {row["attributes"] for row in rows} == {'{"plan": "pro"}'}


async def test_the_holdout_does_not_record_its_unit(turnout: Turnout) -> None:
    answer = await turnout.client("editor").put(
        "/v1/holdout",
        json={"share": 0.1, "reason": "a test", "record": ["plan", "targetingKey"]},
        headers={"If-Match": "*"},
    )
    assert problem(answer, 422, "invalid") == [("record[1]", "conflict")]
