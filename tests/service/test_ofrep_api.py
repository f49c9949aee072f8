"""OpenFeature Remote Evaluation (OFREP 0.3): an experiment is a flag."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason

from tests.running import Turnout

REASONS = {"STATIC", "TARGETING_MATCH", "SPLIT", "DISABLED", "UNKNOWN"}


async def evaluate(turnout: Turnout, key: str, **context: Any) -> httpx.Response:
    """Evaluate a flag in a context."""
    return await turnout.client("client").post(
        f"/ofrep/v1/evaluate/flags/{key}", json={"context": context}
    )


def failure(answer: httpx.Response, status: int, key: str) -> str:
    """The error code of an answer that is a failure in the form of OFREP."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"key", "errorCode", "errorDetails"}
    assert body["key"] == key
    assert body["errorDetails"]  # the Python client fails without it
    code: str = body["errorCode"]
    return code


async def test_a_flag_gives_the_variant_and_records_the_exposure(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"])
    answer = await evaluate(turnout, key, targetingKey="u1", country="DE", email="a@example.org")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"key", "reason", "variant", "value", "metadata"}
    assert (body["key"], body["reason"]) == (key, "SPLIT")
    assert body["metadata"] == {
        "run": 1,
        "epoch": 1,
        "why": "split",
        "enrolled": True,
        "recorded": True,
    }
    assigned = await turnout.assign(key, "u1", expose=False)
    assert (body["variant"], body["value"]) == (assigned["variant"], assigned["value"])
    rows = await turnout.shipped("exposure", 1)
    assert [(row["unit"], row["variant"]) for row in rows] == [("u1", body["variant"])]
    assert rows[0]["attributes"] == '{"country": "DE"}'


async def test_the_unit_is_the_attribute_that_the_experiment_names(turnout: Turnout) -> None:
    key = await turnout.start(unit={"type": "session", "attribute": "sessionId"})
    body = (await evaluate(turnout, key, targetingKey="u1", sessionId="s1")).json()
    assert body["variant"] == (await turnout.assign(key, "s1"))["variant"]
    row = (await turnout.shipped("exposure", 1))[0]
    assert (row["unit_type"], row["unit"]) == ("session", "s1")
    missing = await evaluate(turnout, key, targetingKey="u1")
    assert failure(missing, 400, key) == "TARGETING_KEY_MISSING"


@pytest.mark.parametrize(
    ("verb", "body", "why", "reason", "variant"),
    [
        ("pause", {}, "paused", "DISABLED", "old"),
        ("rollback", {}, "rolled_back", "DISABLED", "old"),
        ("conclude", {"ship": "new"}, "concluded", "STATIC", "new"),
    ],
)
async def test_what_does_not_run_says_so_in_its_reason(
    turnout: Turnout, verb: str, body: dict[str, str], why: str, reason: str, variant: str
) -> None:
    key = await turnout.start()
    await turnout.move(key, verb, **body)
    answer = (await evaluate(turnout, key, targetingKey="u1")).json()
    assert (answer["reason"], answer["variant"]) == (reason, variant)
    assert answer["metadata"]["why"] == why
    assert answer["metadata"]["recorded"] is False


async def test_who_is_not_enrolled_gets_the_control(turnout: Turnout) -> None:
    key = await turnout.start(traffic=0.5)
    answers = [(await evaluate(turnout, key, targetingKey=f"u{i}")).json() for i in range(40)]
    outside = [a for a in answers if a["metadata"]["why"] == "not_enrolled"]
    assert outside
    assert {(a["variant"], a["metadata"]["recorded"]) for a in outside} == {("old", False)}
    assert {a["reason"] for a in answers} <= REASONS


@pytest.mark.parametrize("key", ["nothing", "UPPER", "a.b", "%00"])
async def test_what_was_not_started_is_no_flag(turnout: Turnout, key: str) -> None:
    answer = await evaluate(turnout, key, targetingKey="u1")
    assert failure(answer, 404, "\0" if key == "%00" else key) == "FLAG_NOT_FOUND"


async def test_a_draft_is_no_flag(turnout: Turnout) -> None:
    key = await turnout.define()
    answer = await evaluate(turnout, key, targetingKey="u1")
    assert failure(answer, 404, key) == "FLAG_NOT_FOUND"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "PARSE_ERROR"),
        (b"{", "PARSE_ERROR"),
        (b"\xff", "PARSE_ERROR"),
        (b"[" * 50_000, "PARSE_ERROR"),
        (b'{"context": {"targetingKey": "\\ud800"}}', "PARSE_ERROR"),
        (b"{}", "INVALID_CONTEXT"),
        (b"[]", "INVALID_CONTEXT"),
        (b'{"context": null}', "INVALID_CONTEXT"),
        (b'{"context": "u1"}', "INVALID_CONTEXT"),
        (b'{"context": {}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": null}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": ""}}', "TARGETING_KEY_MISSING"),
        (b'{"context": {"targetingKey": 7}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": ["u1"]}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "a\\u0000b"}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "%b"}}' % (b"x" * 257), "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "u", "country": "\\u0000"}}', "INVALID_CONTEXT"),
        (b'{"context": {"targetingKey": "u", "country": 1%b}}' % (b"0" * 30), "INVALID_CONTEXT"),
    ],
)
async def test_a_wrong_request_fails_with_its_code(
    turnout: Turnout, body: bytes, code: str
) -> None:
    key = await turnout.start(record=["country"])
    answer = await turnout.client("client").post(f"/ofrep/v1/evaluate/flags/{key}", content=body)
    assert failure(answer, 400, key) == code


async def test_a_body_beyond_64_kibibytes_is_too_large(turnout: Turnout) -> None:
    key = await turnout.start()
    answer = await turnout.client("client").post(
        f"/ofrep/v1/evaluate/flags/{key}", content=b" " * (64 * 1024 + 1)
    )
    assert answer.status_code == 413
    assert set(answer.json()) == {"errorDetails"}


async def test_whoever_may_not_evaluate_is_told_so_without_a_body(turnout: Turnout) -> None:
    key = await turnout.start()
    path = f"/ofrep/v1/evaluate/flags/{key}"
    nobody = await turnout.client(None).post(path, json={"context": {"targetingKey": "u"}})
    assert (nobody.status_code, nobody.content) == (401, b"")
    assert nobody.headers["www-authenticate"] == "Bearer"
    reader = await turnout.client("analyst").post(path, json={"context": {"targetingKey": "u"}})
    assert (reader.status_code, reader.content) == (403, b"")


@pytest.fixture
def feature_client(turnout: Turnout) -> Iterator[OpenFeatureClient]:
    """The public OpenFeature client, on the public OFREP provider, with a client's key."""
    headers = {"Authorization": f"Bearer {turnout.keys['client']}"}
    provider = OFREPProvider(turnout.url, headers_factory=lambda: headers)
    api.set_provider(provider, turnout.project)
    yield api.get_client(turnout.project)
    provider.session.close()
    api.clear_providers()


async def test_the_public_client_gets_the_variants_that_assign_gives(
    turnout: Turnout, feature_client: OpenFeatureClient
) -> None:
    key = await turnout.start()
    units = [f"unit-{i}-é" for i in range(200)]

    def ask() -> list[FlagEvaluationDetails[Any]]:
        return [
            feature_client.get_object_details(key, {"model": "none"}, EvaluationContext(unit))
            for unit in units
        ]

    evaluated = await asyncio.to_thread(ask)
    assigned = [await turnout.assign(key, unit) for unit in units]
    assert [(e.variant, e.value) for e in evaluated] == [
        (a["variant"], a["value"]) for a in assigned
    ]
    assert {e.variant for e in evaluated} == {"old", "new"}
    assert {(e.reason, e.error_code) for e in evaluated} == {(Reason.SPLIT, None)}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("boolean", [True, False]),
        ("string", ["a", "b"]),
        ("integer", [1, 2]),
        ("float", [1.0, 2.5]),
        ("object", [{"a": 1}, {"a": [2]}]),
    ],
)
async def test_the_public_client_reads_values_of_every_type(
    turnout: Turnout, feature_client: OpenFeatureClient, kind: str, values: list[Any]
) -> None:
    variants = [
        {"key": f"v{index}", "control": index == 0, "weight": 0.5, "value": value}
        for index, value in enumerate(values)
    ]
    key = await turnout.start(variants=variants)
    read = getattr(feature_client, f"get_{kind}_details")
    details = await asyncio.to_thread(read, key, values[1], EvaluationContext("u1"))
    assert details.error_code is None, details.error_message
    assert details.variant == (await turnout.assign(key, "u1"))["variant"]
    assert repr(details.value) == repr(values[int(details.variant[1:])])


async def test_the_public_client_falls_back_with_the_code_of_the_failure(
    turnout: Turnout, feature_client: OpenFeatureClient
) -> None:
    key = await turnout.start()

    def ask(flag: str, context: EvaluationContext) -> FlagEvaluationDetails[Any]:
        return feature_client.get_object_details(flag, {"model": "mine"}, context)

    for flag, context, code in (
        ("nothing", EvaluationContext("u"), ErrorCode.FLAG_NOT_FOUND),
        (key, EvaluationContext(None, {"country": "DE"}), ErrorCode.TARGETING_KEY_MISSING),
        (key, EvaluationContext("x" * 257), ErrorCode.INVALID_CONTEXT),
    ):
        details = await asyncio.to_thread(ask, flag, context)
        assert (details.value, details.error_code) == ({"model": "mine"}, code)
