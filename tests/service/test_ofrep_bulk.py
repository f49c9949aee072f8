"""OFREP 0.3, bulk evaluation: all flags of a project for one context, with an entity tag."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tests.running import Turnout, eventually
from tests.spec.ofrep import complaints

PATH = "/ofrep/v1/evaluate/flags"


async def ask(
    turnout: Turnout, context: Mapping[str, Any], query: str = "", **headers: str
) -> httpx.Response:
    """Evaluate all flags; `headers` have underscores for hyphens."""
    answer = await turnout.client("client").post(
        PATH + query,
        json={"context": context},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    if answer.status_code == 200:
        assert complaints("bulkEvaluationSuccess", answer.json()) == []
    return answer


async def flags(turnout: Turnout, context: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The flags by their keys."""
    answer = await ask(turnout, context)
    assert answer.status_code == 200, answer.text
    return {flag["key"]: flag for flag in answer.json()["flags"]}


async def version(turnout: Turnout) -> int:
    """The project's version."""
    number: int = (await ask(turnout, {})).json()["metadata"]["version"]
    return number


# Flags.


async def test_every_started_experiment_is_a_flag_and_none_is_exposed(turnout: Turnout) -> None:
    keys = [await turnout.start() for _ in range(3)]
    await turnout.define()
    archived = await turnout.start()
    await turnout.move(archived, "conclude", ship="old")
    await turnout.move(archived, "archive")
    answer = await ask(turnout, {"targetingKey": "u1"})
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert [flag["key"] for flag in told["flags"]] == sorted(keys)
    for flag in told["flags"]:
        assigned = await turnout.assign(flag["key"], "u1", expose=False)
        assert (flag["variant"], flag["value"]) == (assigned["variant"], assigned["value"])
        assert (flag["reason"], flag["metadata"]["recorded"]) == ("SPLIT", False)
    # Of all that was answered so far only what comes now was an exposure.
    await turnout.assign(keys[1], "u1")
    assert len(await turnout.shipped("exposure", 1)) == 1


async def test_a_project_without_experiments_has_no_flags(turnout: Turnout) -> None:
    assert await flags(turnout, {"targetingKey": "u1"}) == {}


async def test_nobody_sees_the_flags_of_another_project(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await turnout.start()
    assert list(await flags(turnout, {"targetingKey": "u1"})) == [key]
    assert await flags(stranger, {"targetingKey": "u1"}) == {}


@pytest.mark.parametrize(
    ("verb", "body", "reason", "variant"),
    [
        ("pause", {}, "DISABLED", "old"),
        ("rollback", {}, "DISABLED", "old"),
        ("conclude", {"ship": "new"}, "STATIC", "new"),
    ],
)
async def test_what_does_not_run_says_so(
    turnout: Turnout, verb: str, body: dict[str, str], reason: str, variant: str
) -> None:
    key = await turnout.start()
    await turnout.move(key, verb, **body)
    flag = (await flags(turnout, {"targetingKey": "u1"}))[key]
    assert (flag["reason"], flag["variant"]) == (reason, variant)


async def test_every_answer_of_the_single_evaluation_fits_the_description(
    turnout: Turnout,
) -> None:
    keys = [
        await turnout.start(traffic=0.5),
        await turnout.start(targeting={"==": [{"var": "plan"}, "gold"]}),
        await turnout.start(targeting={"sem_ver": [{"var": "version"}, ">", "1.0.0"]}),
    ]
    for number in range(10):
        context = {"targetingKey": f"u{number}", "plan": ["gold", "tin"][number % 2]}
        told = await flags(turnout, context)  # which the description takes
        for key in keys:
            answer = await turnout.client("client").post(f"{PATH}/{key}", json={"context": context})
            body = answer.json()
            assert complaints("serverEvaluationSuccess", body) == []
            del body["metadata"]["recorded"], told[key]["metadata"]["recorded"]
            assert body == told[key]
    missing = await turnout.client("client").post(f"{PATH}/{keys[0]}", json={"context": {}})
    assert complaints("evaluationFailure", missing.json()) == []
    nothing = await turnout.client("client").post(f"{PATH}/nothing", json={"context": {}})
    assert complaints("flagNotFound", nothing.json()) == []


async def test_a_flag_that_fails_fails_alone(turnout: Turnout) -> None:
    by_user = await turnout.start(record=["country"])
    by_session = await turnout.start(unit={"type": "session", "attribute": "sessionId"})
    for context, codes in (
        ({"targetingKey": "u1"}, {by_session: "TARGETING_KEY_MISSING"}),
        ({"sessionId": "s1"}, {by_user: "TARGETING_KEY_MISSING"}),
        ({"targetingKey": 7, "sessionId": "s1"}, {by_user: "INVALID_CONTEXT"}),
        ({"targetingKey": "u" * 257, "sessionId": "s1"}, {by_user: "INVALID_CONTEXT"}),
        ({"targetingKey": "u", "sessionId": "s", "country": "\0"}, {by_user: "INVALID_CONTEXT"}),
        ({}, {by_user: "TARGETING_KEY_MISSING", by_session: "TARGETING_KEY_MISSING"}),
    ):
        told = await flags(turnout, context)
        assert {k: f["errorCode"] for k, f in told.items() if "errorCode" in f} == codes
        assert all(told[key]["errorDetails"] for key in codes)
        assert all("variant" in flag for key, flag in told.items() if key not in codes)


# A request that fails as a whole.


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "PARSE_ERROR"),
        (b"{", "PARSE_ERROR"),
        (b"\xff", "PARSE_ERROR"),
        (b"[" * 50_000, "PARSE_ERROR"),
        (b"{}", "INVALID_CONTEXT"),
        (b"[]", "INVALID_CONTEXT"),
        (b'{"context": null}', "INVALID_CONTEXT"),
        (b'{"context": "u1"}', "INVALID_CONTEXT"),
    ],
)
async def test_a_wrong_request_fails_as_a_whole(turnout: Turnout, body: bytes, code: str) -> None:
    answer = await turnout.client("client").post(PATH, content=body)
    assert answer.status_code == 400
    assert complaints("bulkEvaluationFailure", answer.json()) == []
    assert answer.json()["errorCode"] == code
    assert answer.json()["errorDetails"]


async def test_a_context_is_answered_or_refused_however_deep_it_is(turnout: Turnout) -> None:
    for depth in (100, 800, 900, *range(960, 1000, 2), 2000, 9000):
        nested = b'{"context": {"a": %b}}' % (b"[" * depth + b"]" * depth)
        answer = await turnout.client("client").post(PATH, content=nested)
        assert answer.status_code in {200, 400}, (depth, answer.text)


async def test_a_body_beyond_64_kibibytes_is_too_large(turnout: Turnout) -> None:
    answer = await turnout.client("client").post(PATH, content=b" " * (64 * 1024 + 1))
    assert (answer.status_code, set(answer.json())) == (413, {"errorDetails"})


async def test_whoever_may_not_evaluate_is_told_so_without_a_body(turnout: Turnout) -> None:
    body = {"context": {"targetingKey": "u1"}}
    nobody = await turnout.client(None).post(PATH, json=body)
    assert (nobody.status_code, nobody.content) == (401, b"")
    assert nobody.headers["www-authenticate"] == "Bearer"
    reader = await turnout.client("analyst").post(PATH, json=body)
    assert (reader.status_code, reader.content) == (403, b"")


# Entity tags.


async def test_who_has_the_answer_is_told_that_it_still_holds(turnout: Turnout) -> None:
    await turnout.start()
    tag = (await ask(turnout, {"targetingKey": "u1", "plan": "gold"})).headers["etag"]
    same = {"plan": "gold", "targetingKey": "u1"}
    for header in (tag, f'"x", W/{tag}', tag.strip('"'), "*"):
        answer = await ask(turnout, same, if_none_match=header)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    for header in ('"x"', "", tag[:-2] + '"'):
        assert (await ask(turnout, same, if_none_match=header)).status_code == 200


async def test_another_context_is_another_answer(turnout: Turnout) -> None:
    await turnout.start()
    tag = (await ask(turnout, {"targetingKey": "u1"})).headers["etag"]
    for context in ({"targetingKey": "u2"}, {"targetingKey": "u1", "plan": "gold"}, {}):
        answer = await ask(turnout, context, if_none_match=tag)
        assert answer.status_code == 200
        assert answer.headers["etag"] != tag


async def test_every_change_is_another_answer(turnout: Turnout) -> None:
    key = await turnout.start()
    context = {"targetingKey": "u1"}
    tags = [(await ask(turnout, context)).headers["etag"]]
    for change in (
        turnout.start(),
        turnout.allocate(key, weights={"old": 0.9, "new": 0.1}),
        turnout.move(key, "pause"),
        turnout.move(key, "resume"),
    ):
        await change
        answer = await ask(turnout, context, if_none_match=tags[-1])
        assert answer.status_code == 200
        tags.append(answer.headers["etag"])
    assert len(set(tags)) == len(tags)


async def test_each_key_has_a_tag_and_a_stream_of_its_own(turnout: Turnout) -> None:
    await turnout.start()
    context = {"targetingKey": "u1"}
    mine = await ask(turnout, context)
    again = await ask(turnout, context)
    other = await turnout.client("service").post(PATH, json={"context": context})
    assert again.json() == mine.json()
    assert other.json()["flags"] == mine.json()["flags"]
    assert other.json()["eventStreams"] != mine.json()["eventStreams"]
    assert other.headers["etag"] != mine.headers["etag"]


async def test_what_redis_decides_is_asked_for_each_time(turnout: Turnout) -> None:
    await turnout.start()
    key = await turnout.start(stickiness="sticky")
    units = [f"u{number}" for number in range(20)]
    first = {unit: (await turnout.assign(key, unit))["variant"] for unit in units}
    assert set(first.values()) == {"old", "new"}
    await turnout.allocate(key, weights={"old": 0.01, "new": 0.99})
    for unit in units:
        answer = await ask(turnout, {"targetingKey": unit}, if_none_match="*")
        assert answer.status_code == 200
        assert "etag" not in answer.headers
        told = {flag["key"]: flag["variant"] for flag in answer.json()["flags"]}
        assert told[key] == first[unit]


async def test_a_bulk_answer_makes_nobody_stick(turnout: Turnout) -> None:
    key = await turnout.start(stickiness="sticky")

    async def variants() -> list[str]:
        contexts = [{"targetingKey": f"u{number}"} for number in range(20)]
        return [(await flags(turnout, context))[key]["variant"] for context in contexts]

    assert set(await variants()) == {"old", "new"}
    await turnout.allocate(key, weights={"old": 0.0001, "new": 0.9999})
    assert set(await variants()) == {"new"}


# What events lead to.


async def test_who_heard_of_a_change_gets_no_older_answer(turnout: Turnout) -> None:
    key = await turnout.start()
    known = await version(turnout)
    heard = asyncio.create_task(
        ask(turnout, {"targetingKey": "u1"}, f"?flagConfigEtag={known + 1}")
    )
    await asyncio.sleep(0)
    await turnout.client("editor").post(f"/v1/experiments/{key}/pause", json={"reason": "a test"})
    answer = (await heard).json()
    assert answer["metadata"]["version"] > known
    assert answer["flags"][0]["reason"] == "DISABLED"


@pytest.mark.parametrize(
    "query",
    [
        "?flagConfigEtag=999999999",
        "?flagConfigEtag=1&flagConfigLastModified=1771622898",
        "?flagConfigEtag=abc&flagConfigLastModified=2026-02-20T21:28:18Z",
        "?flagConfigEtag=%C2%B2",
        "?flagConfigEtag=" + "9" * 5000,
        "?flagConfigEtag=&flagConfigLastModified=",
        "?unknown=1",
    ],
)
async def test_what_an_event_said_is_no_condition(turnout: Turnout, query: str) -> None:
    await turnout.start()
    context = {"targetingKey": "u1"}
    plain = await ask(turnout, context)
    answer = await ask(turnout, context, query)
    assert (answer.status_code, answer.json()) == (200, plain.json())
    again = await ask(turnout, context, query, if_none_match=plain.headers["etag"])
    assert again.status_code == 304


async def test_an_answer_tells_where_changes_are_heard(turnout: Turnout) -> None:
    await turnout.start()
    answer = (await ask(turnout, {"targetingKey": "u1"})).json()
    (stream,) = answer["eventStreams"]
    assert complaints("eventStream", stream) == []
    assert stream["type"] == "sse"
    # Without an origin: the client's own for OFREP, whatever proxy is in front.
    assert list(stream["endpoint"]) == ["requestUri"]
    address = stream["endpoint"]["requestUri"]
    async with turnout.client(None).stream("GET", address) as opened:
        assert opened.status_code == 200
    assert turnout.keys["client"].split("_")[2] not in json.dumps(answer)


async def test_a_change_is_in_the_next_answer(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.client("editor").post(f"/v1/experiments/{key}/pause", json={"reason": "a test"})

    async def paused() -> bool | None:
        flag = (await flags(turnout, {"targetingKey": "u1"}))[key]
        return True if flag["reason"] == "DISABLED" else None

    await eventually(paused, "paused flag")
