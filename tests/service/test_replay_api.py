"""`GET /v1/replay`: what a unit got, and why."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from router.records import exposure_id
from tests.running import Turnout, eventually, problem
from turnout import client, replaying


async def replay(turnout: Turnout, key: str, unit: str, **query: Any) -> dict[str, Any]:
    """What is told of a unit in an experiment."""
    answer = await turnout.client("analyst").get(
        "/v1/replay", params={"experiment": key, "unit": unit, **query}
    )
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def refused(turnout: Turnout, status: int, kind: str, **query: Any) -> list[tuple[str, str]]:
    """The wrong parameters of a query that is refused."""
    return problem(await turnout.client("analyst").get("/v1/replay", params=query), status, kind)


async def recorded(turnout: Turnout, key: str, unit: str) -> dict[str, Any]:
    """What `/v1/assign` answers, once its exposure is in Postgres."""
    given = await turnout.assign(key, unit)

    async def shipped() -> bool | None:
        rows = await turnout.rows(
            "select from exposure where project = $1 and unit = $2 and epoch = $3",
            unit,
            given["epoch"],
        )
        return True if rows else None

    await eventually(shipped, "exposure")
    return given


async def someone(turnout: Turnout, key: str, reason: str, **attributes: Any) -> str:
    """A unit that gets its variant for this reason."""
    for number in range(200):
        given = await turnout.assign(key, f"u{number}", expose=False, attributes=attributes)
        if given["reason"] == reason:
            return f"u{number}"
    raise AssertionError(f"nobody is {reason}")


async def test_a_recorded_exposure_is_told_with_all_that_led_to_it(turnout: Turnout) -> None:
    key = await turnout.start()
    given = await recorded(turnout, key, "u1")
    told = await replay(turnout, key, "u1")
    for name in ("experiment", "run", "epoch", "variant", "value", "reason", "propensity", "slot"):
        assert told[name] == given[name], name
    assert (told["source"], told["agrees"], told["unit"]) == ("exposure", True, "u1")
    assert told["owner"] == given["variant"]
    assert told["propensities"] == {"old": 0.5, "new": 0.5}
    assert told["recomputed"] == {"variant": given["variant"], "reason": "split"}
    assert told["exposure"]["variant"] == given["variant"]
    assert (told["holdout"], told["layer"], told["targeting"], told["override"]) == (None,) * 4
    assert told["pinned"]["salt"] == key
    assert told["pinned"]["reason"] == "a test"
    assert told["pinned"]["actor"].startswith("key:")
    assert told["pinned"]["state"] == "running"


async def test_what_was_not_recorded_is_computed(turnout: Turnout) -> None:
    key = await turnout.start()
    given = await turnout.assign(key, "u1", expose=False)
    told = await replay(turnout, key, "u1")
    assert (told["source"], told["agrees"], told["exposure"]) == ("recomputed", None, None)
    assert told["variant"] == given["variant"]


async def test_an_epoch_is_told_as_it_was(turnout: Turnout) -> None:
    key = await turnout.start()
    before = {f"u{n}": await turnout.assign(key, f"u{n}", expose=False) for n in range(20)}
    await turnout.allocate(key, weights={"old": 0.1, "new": 0.9})
    for unit, given in before.items():
        told = await replay(turnout, key, unit, epoch=1)
        assert (told["epoch"], told["variant"]) == (1, given["variant"])
        now = await replay(turnout, key, unit)
        assert now["epoch"] == 2
        assert now["propensities"] == {"old": 0.1, "new": 0.9}
        assert now["variant"] == (await turnout.assign(key, unit, expose=False))["variant"]


async def test_an_exposure_is_told_by_its_id_with_its_own_epoch(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"], targeting={"==": [{"var": "country"}, "AT"]})
    given = await turnout.assign(key, "u1", attributes={"country": "AT"})
    (row,) = await turnout.shipped("exposure", 1)
    await turnout.allocate(key, weights={"old": 0.1, "new": 0.9})
    told = await replay(turnout, key, "u1", exposure=str(row["id"]))
    assert (told["epoch"], told["variant"]) == (1, given["variant"])
    assert (told["source"], told["agrees"], told["targeting"]) == ("exposure", True, "met")
    assert told["exposure"]["attributes"] == {"country": "AT"}
    assert datetime.fromisoformat(told["at"]) == row["at"]
    assert (await replay(turnout, key, "u1", epoch=1))["exposure"] == told["exposure"]


async def test_an_enrolment_outlives_the_raw_exposure(turnout: Turnout) -> None:
    key = await turnout.start()
    given = await recorded(turnout, key, "u1")
    before = await replay(turnout, key, "u1")

    async def folded() -> bool | None:
        rows = await turnout.rows("select from enrolment where project = $1")
        return True if rows else None

    await eventually(folded, "enrolment")
    await turnout.rows("delete from exposure where project = $1")
    for query in ({}, {"epoch": 1}, {"exposure": before["exposure"]["id"]}):
        told = await replay(turnout, key, "u1", **query)
        assert (told["variant"], told["agrees"]) == (given["variant"], True)
        assert told["exposure"] == before["exposure"]


async def test_a_time_is_told_by_the_epoch_that_was_in_force(turnout: Turnout) -> None:
    key = await turnout.start()
    unit = "u1"
    given = await recorded(turnout, key, unit)
    between = datetime.now(UTC).isoformat()
    await turnout.move(key, "pause")
    then = await replay(turnout, key, unit, at=between)
    assert (then["epoch"], then["source"], then["reason"]) == (1, "exposure", "split")
    assert then["variant"] == given["variant"]
    now = await replay(turnout, key, unit)
    assert (now["epoch"], now["source"], now["reason"]) == (2, "recomputed", "paused")
    assert (now["variant"], now["propensity"]) == ("old", None)
    # It had not met its variant yet.
    (row,) = await turnout.shipped("exposure", 1)
    early = row["at"] - timedelta(microseconds=1)
    assert (await replay(turnout, key, unit, at=early.isoformat()))["source"] == "recomputed"


async def test_each_step_is_told_whether_it_decided_or_not(turnout: Turnout) -> None:
    await turnout.put("/v1/layers/ranking", description="a test")
    key = await turnout.start(
        layer={"key": "ranking", "slots": [0, 5_000]},
        targeting={"==": [{"var": "country"}, "AT"]},
        traffic=0.5,
    )
    await turnout.put("/v1/holdout", share=0.3, reason="a test")
    await turnout.wait_for_assignable(key, epoch=2)
    for reason in ("held_out", "out_of_layer", "not_enrolled", "split"):
        unit = await someone(turnout, key, reason, country="AT")
        told = await replay(turnout, key, unit, attributes='{"country": "AT"}')
        assert told["reason"] == reason
        assert told["holdout"]["held"] is (reason == "held_out")
        if reason != "held_out":
            assert told["layer"]["inside"] is (reason != "out_of_layer")
        assert told["layer"]["key"] == "ranking"
        assert told["layer"]["slots"] == [0, 5_000]
        assert told["targeting"] == "met"
        assert (told["owner"] is None) <= (reason != "split")
        assert 0 <= told["slot"] < 10_000
    unit = await someone(turnout, key, "split", country="AT")
    told = await replay(turnout, key, unit, attributes='{"country": "DE"}')
    assert (told["reason"], told["targeting"]) == ("not_targeted", "not_met")
    assert told["owner"] is not None


async def test_the_holdout_is_told_like_any_experiment(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.put("/v1/holdout", share=0.4, reason="a test")
    await turnout.wait_for_assignable(key, epoch=2)
    held = await someone(turnout, key, "held_out")
    told = await replay(turnout, "$holdout", held)
    assert (told["variant"], told["propensities"]) == ("held", {"held": 0.4, "open": 0.6})


async def test_an_override_is_told_with_who_set_it(turnout: Turnout) -> None:
    key = await turnout.start()
    slot = (await turnout.assign(key, "u1", expose=False))["variant"]
    other = "old" if slot == "new" else "new"
    before = datetime.now(UTC).isoformat()
    number = await turnout.override(key, other, unit="u1")
    told = await replay(turnout, key, "u1")
    assert (told["variant"], told["reason"], told["owner"]) == (other, "override", slot)
    shown = told["override"]
    assert (shown["id"], shown["reason"], shown["attribute"]) == (number, "to try it", None)
    within = datetime.now(UTC).isoformat()
    ended = await turnout.client("editor").delete(f"/v1/experiments/{key}/overrides/{number}")
    assert ended.is_success
    assert (await replay(turnout, key, "u1", at=before))["reason"] == "split"
    assert (await replay(turnout, key, "u1", at=within))["override"] == shown
    assert (await replay(turnout, key, "u1"))["reason"] == "split"


async def test_an_override_by_attribute_is_told_for_those_attributes(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.override(key, "new", attribute="team", value="ours")
    told = await replay(turnout, key, "u1", attributes='{"team": "ours"}')
    assert (told["reason"], told["override"]["attribute"]) == ("override", "team")
    assert (await replay(turnout, key, "u1"))["override"] is None


async def test_a_sticky_unit_is_told_by_its_first_variant(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    units = [f"u{n}" for n in range(12)]
    first = {unit: (await turnout.assign(key, unit))["variant"] for unit in units}
    await turnout.allocate(key, weights={"old": 0.05, "new": 0.95})

    async def folded() -> bool | None:
        rows = await turnout.rows("select from enrolment where project = $1")
        return True if len(rows) >= len(units) else None

    await eventually(folded, "enrolments")
    for unit, variant in first.items():
        told = await replay(turnout, key, unit)
        assert (told["variant"], told["source"]) == (variant, "exposure")
        assert (told["epoch"], told["reason"], told["agrees"]) == (1, "sticky", True)
        assert (await turnout.assign(key, unit))["variant"] == variant


async def test_attributes_that_targeting_read_may_not_be_known(turnout: Turnout) -> None:
    key = await turnout.start(targeting={"==": [{"var": "country"}, "AT"]})
    given = await turnout.assign(key, "u1", attributes={"country": "AT"})
    await turnout.shipped("exposure", 1)
    told = await replay(turnout, key, "u1")
    assert (told["variant"], told["source"]) == (given["variant"], "exposure")
    assert (told["targeting"], told["agrees"]) == ("not_met", None)
    told = await replay(turnout, key, "u1", attributes='{"country": "AT"}')
    assert (told["targeting"], told["agrees"]) == ("met", True)


async def test_a_record_that_its_epoch_contradicts_is_seen(turnout: Turnout) -> None:
    key = await turnout.start()
    given = await recorded(turnout, key, "u1")
    false = "old" if given["variant"] == "new" else "new"
    await turnout.rows("update exposure set variant = $2 where project = $1 and unit = 'u1'", false)
    told = await replay(turnout, key, "u1")
    assert (told["variant"], told["agrees"]) == (false, False)
    assert told["recomputed"]["variant"] == given["variant"]


async def test_a_hashed_unit_is_asked_for_as_it_is_sent(turnout: Turnout) -> None:
    answer = await turnout.client("admin").patch("/v1/project", json={"units": "hashed"})
    assert answer.status_code == 200, answer.text
    key = await turnout.start()
    given = await turnout.assign(key, "u1")
    await turnout.shipped("exposure", 1)
    told = await replay(turnout, key, "u1")
    assert (told["source"], told["agrees"]) == ("exposure", True)
    assert (told["slot"], told["variant"]) == (given["slot"], given["variant"])
    await turnout.override(key, "new", unit="u2")
    assert (await replay(turnout, key, "u2"))["reason"] == "override"


async def test_a_run_that_is_over_and_an_archived_experiment_are_told(turnout: Turnout) -> None:
    key = await turnout.start()
    first = await turnout.assign(key, "u1", expose=False)
    await turnout.move(key, "conclude", ship="new")
    await turnout.move(key, "archive")
    told = await replay(turnout, key, "u1", epoch=first["epoch"])
    assert (told["variant"], told["slot"]) == (first["variant"], first["slot"])


async def test_the_command_tells_it_in_words(turnout: Turnout) -> None:
    await turnout.put("/v1/layers/ranking", description="a test")
    key = await turnout.start(
        layer={"key": "ranking", "slots": [0, 10_000]},
        targeting={"==": [{"var": "country"}, "AT"]},
    )
    given = await turnout.assign(key, "u1", attributes={"country": "AT"})
    await turnout.shipped("exposure", 1)

    def ask(**query: str | int) -> str:
        environment = {"TURNOUT_API_KEY": turnout.keys["analyst"]}
        with client.connect(turnout.url, environment) as connected:
            told = client.replay(connected, {"experiment": key, **query})
        return "\n".join(replaying.lines(told))

    told = await asyncio.to_thread(ask, unit="u1", attributes='{"country": "AT"}')
    assert f"u1 in {key}: {given['variant']} (split)" in told
    for words in ("the recorded exposure", "1, epoch 1", "agrees"):
        assert words in told
    assert f"slot       {given['slot']} of {given['variant']}" in told
    assert "inside [0, 10000)" in told
    assert "targeting  met" in told
    await turnout.override(key, "new", unit="u2")
    told = await asyncio.to_thread(ask, unit="u2")
    assert "new for the unit" in told
    assert "computed" in told
    with pytest.raises(client.ClientError, match="no epoch 9"):
        await asyncio.to_thread(ask, unit="u1", epoch=9)


async def test_an_exposure_that_is_not_there_is_not_found(turnout: Turnout) -> None:
    key = await turnout.start()
    nothing = str(datetime.now(UTC) - timedelta(days=1)).replace(" ", "T")
    name = exposure_id(1, 1, 1, "new", "u1").hex()
    for query in ({"exposure": name}, {"epoch": 7}, {"at": nothing}):
        await refused(turnout, 404, "not-found", experiment=key, unit="u1", **query)
    draft = await turnout.define()
    for unknown in ("nowhere", draft):
        await refused(turnout, 404, "not-found", experiment=unknown, unit="u1")


async def test_experiments_of_another_project_are_not_found(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await stranger.start()
    await refused(turnout, 404, "not-found", experiment=key, unit="u1")


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ({"unit": ""}, [("unit", "value")]),
        ({"unit": "x" * 257}, [("unit", "value")]),
        ({"epoch": 0}, [("epoch", "value")]),
        ({"epoch": "first"}, [("epoch", "value")]),
        ({"at": "yesterday"}, [("at", "value")]),
        ({"at": "2026-01-01T00:00:00"}, [("at", "value")]),
        ({"at": "2126-01-01T00:00:00Z"}, [("at", "value")]),
        ({"at": "0001-01-01T00:00:00+23:59"}, [("at", "value")]),
        ({"exposure": "u1"}, [("exposure", "value")]),
        ({"attributes": "[]"}, [("attributes", "value")]),
        ({"attributes": "{"}, [("attributes", "value")]),
        ({"epoch": 1, "at": "2026-01-01T00:00:00Z"}, [("at", "conflict")]),
    ],
)
async def test_a_wrong_parameter_is_named(
    turnout: Turnout, query: dict[str, Any], wrong: list[tuple[str, str]]
) -> None:
    asked = {"experiment": "x", "unit": "u1", **query}
    assert await refused(turnout, 422, "invalid", **asked) == wrong


async def test_the_experiment_and_the_unit_must_be_named(turnout: Turnout) -> None:
    wrong = await refused(turnout, 422, "invalid")
    assert wrong == [("experiment", "missing"), ("unit", "missing")]


@pytest.mark.parametrize("role", ["client", "service"])
async def test_replay_is_for_those_who_may_read(turnout: Turnout, role: Any) -> None:
    answer = await turnout.client(role).get("/v1/replay?experiment=x&unit=u1")
    problem(answer, 403, "forbidden")
