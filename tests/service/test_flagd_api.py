"""`GET /v1/flagd`: a local evaluator that reads it answers as `/v1/assign` does."""

from typing import Any

import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from tests.running import Turnout, problem

UNITS = [f"u{number}" for number in range(60)]


async def flag_set(turnout: Turnout, role: Any = "service") -> dict[str, Any]:
    """The flag set as a caller of this role gets it."""
    answer = await turnout.client(role).get("/v1/flagd")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    flags: dict[str, Any] = answer.json()
    return flags


async def test_a_local_evaluator_answers_as_the_router(turnout: Turnout) -> None:
    await turnout.put("/v1/layers/ranking", description="a test")
    keys = [
        await turnout.start(),
        await turnout.start(traffic=0.4),
        await turnout.start(layer={"key": "ranking", "slots": [0, 6_000]}),
        await turnout.start(
            layer={"key": "ranking", "slots": [6_000, 10_000]},
            targeting={"in": [{"var": "country"}, ["AT", "DE"]]},
        ),
    ]
    again = await turnout.start()
    await turnout.move(again, "conclude", ship="old")
    await turnout.move(again, "start")
    await turnout.allocate(keys[0], weights={"old": 0.7, "new": 0.3})
    await turnout.put("/v1/holdout", share=0.2, reason="a test")
    await turnout.wait_for_assignable(again, epoch=4)
    await turnout.override(keys[1], "new", unit="u7")
    core = FlagdCore()
    core.set_flags(await flag_set(turnout))
    reasons = set()
    for key in [*keys, again]:
        for number, unit in enumerate(UNITS):
            attributes = {"country": ["AT", "FR"][number % 2]}
            given = await turnout.assign(key, unit, attributes=attributes, expose=False)
            found = core.resolve_object_value(key, {}, EvaluationContext(unit, attributes))
            assert (found.variant, found.value) == (given["variant"], given["value"])
            assert found.flag_metadata["epoch"] == given["epoch"]
            reasons.add(given["reason"])
    assert reasons == {
        "split",
        "not_enrolled",
        "out_of_layer",
        "not_targeted",
        "held_out",
        "override",
    }


async def test_who_has_the_flags_is_not_sent_them_again(turnout: Turnout) -> None:
    key = await turnout.start()
    client = turnout.client("client")
    first = await client.get("/v1/flagd")
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await client.get("/v1/flagd", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    await turnout.move(key, "pause")
    after = await client.get("/v1/flagd", headers={"If-None-Match": etag})
    assert after.status_code == 200
    assert after.headers["etag"] != etag
    assert after.json()["flags"][key]["metadata"]["state"] == "paused"


async def test_flags_are_those_of_the_project_alone(turnout: Turnout, stranger: Turnout) -> None:
    key = await turnout.start()
    await turnout.define()
    archived = await turnout.start()
    await turnout.move(archived, "rollback")
    await turnout.move(archived, "archive")
    assert set((await flag_set(turnout))["flags"]) == {key}
    assert (await flag_set(stranger))["flags"] == {}


async def test_a_sticky_experiment_is_left_out_by_name(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")
    flags = await flag_set(turnout)
    assert flags["flags"] == {}
    assert [left["experiment"] for left in flags["left_out"]] == [key]


async def test_units_with_overrides_are_told_only_to_who_may_record(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.override(key, "new", unit="secret-tester")
    assert "secret-tester" in str(await flag_set(turnout, "service"))
    public = await flag_set(turnout, "client")
    assert "secret-tester" not in str(public)
    assert [(left["experiment"], left["what"]) for left in public["left_out"]] == [
        (key, "overrides")
    ]


async def test_values_with_overrides_are_told_only_to_who_may_record(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.override(key, "new", attribute="email", value="qa@example.org")
    assert "qa@example.org" in str(await flag_set(turnout, "service"))
    public = await flag_set(turnout, "client")
    assert "qa@example.org" not in str(public)
    assert [(left["experiment"], left["what"]) for left in public["left_out"]] == [
        (key, "overrides")
    ]


@pytest.mark.parametrize("role", ["analyst", "editor"])
async def test_flags_are_for_those_who_may_evaluate(turnout: Turnout, role: Any) -> None:
    problem(await turnout.client(role).get("/v1/flagd"), 403, "forbidden")
