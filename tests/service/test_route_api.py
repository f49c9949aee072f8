"""`GET /v1/route/{experiment}`: the door for proxies, whose question and answer are headers."""

import asyncio
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx
import pytest

from tests.running import Turnout, eventually, problem

VALUES = ({"service": "search-v6", "note": "a\r\nX-Evil: 1 é \u2028 🚂 \x7f"}, {"service": "b"})


def variants(*values: object) -> list[dict[str, object]]:
    """Two variants with these values."""
    control, other = values
    return [
        {"key": "old", "control": True, "weight": 0.5, "value": control},
        {"key": "new", "weight": 0.5, "value": other},
    ]


async def ask(
    turnout: Turnout, key: str, headers: Mapping[str, str | bytes], role: str = "service"
) -> httpx.Response:
    """What a proxy is answered."""
    sent = [
        (name.encode(), v if isinstance(v, bytes) else v.encode()) for name, v in headers.items()
    ]
    return await turnout.client(role).get(f"/v1/route/{key}", headers=sent)  # type: ignore[arg-type]


async def test_a_proxy_is_told_what_assign_says_of_every_unit(turnout: Turnout) -> None:
    key = await turnout.start(traffic=0.8)
    for number in range(60):
        unit = f"unit-{number} é"
        told = await ask(turnout, key, {"X-Turnout-Unit": unit})
        said = await turnout.assign(key, unit, expose=False)
        assert (told.status_code, told.content) == (200, b"")
        assert told.headers["cache-control"] == "no-store"
        given = told.headers
        assert given["x-turnout-variant"] == said["variant"]
        assert given["x-turnout-reason"] == said["reason"]
        assert int(given["x-turnout-epoch"]) == said["epoch"]
        assert json.loads(given["x-turnout-value"]) == said["value"]
        propensity = given.get("x-turnout-propensity")
        assert (None if propensity is None else float(propensity)) == said["propensity"]
        assert given["x-turnout-recorded"] == ("true" if said["propensity"] else "false")


async def test_what_a_proxy_was_told_is_an_exposure(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"])
    told = {"X-Turnout-Unit": "anna", "X-Turnout-Attributes": '{"country": "DE", "x": 1}'}
    answer = await ask(turnout, key, told)
    await ask(turnout, key, told)
    await ask(turnout, key, {"X-Turnout-Unit": "looked-at", "X-Turnout-Expose": "false"})
    assert answer.headers["x-turnout-recorded"] == "true"
    await ask(turnout, key, {"X-Turnout-Unit": "berta"})
    rows = await turnout.shipped("exposure", 2)
    assert sorted((row["unit"], row["attributes"]) for row in rows) == [
        ("anna", '{"country": "DE"}'),
        ("berta", None),
    ]


async def test_attributes_decide_as_they_do_in_assign(turnout: Turnout) -> None:
    key = await turnout.start(targeting={"==": [{"var": "country"}, "Österreich"]})
    unit = {"X-Turnout-Unit": "anna"}
    for text in ('{"country": "Österreich"}', r'{"country": "\u00d6sterreich"}'):
        answer = await ask(turnout, key, {**unit, "X-Turnout-Attributes": text})
        assert answer.headers["x-turnout-reason"] == "split"
    assert (await ask(turnout, key, unit)).headers["x-turnout-reason"] == "not_targeted"


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "X-Turnout-Unit is needed"),
        ({"X-Turnout-Unit": ""}, "X-Turnout-Unit is needed"),
        ({"X-Turnout-Unit": "x" * 257}, "X-Turnout-Unit must have 1 to 256 bytes"),
        ({"X-Turnout-Unit": b"\xff"}, "X-Turnout-Unit must be UTF-8"),
        ({"X-Turnout-Unit": "a", "x-turnout-unit": "b"}, "X-Turnout-Unit may come once only"),
        ({"X-Turnout-Unit": "a", "X-Turnout-Expose": "no"}, "X-Turnout-Expose must be"),
        ({"X-Turnout-Unit": "a", "X-Turnout-Attributes": "[1]"}, "X-Turnout-Attributes must be"),
        ({"X-Turnout-Unit": "a", "X-Turnout-Attributes": "{"}, "X-Turnout-Attributes must be"),
        (
            {"X-Turnout-Unit": "a", "X-Turnout-Attributes": '{"a":' * 1400 + "1" + "}" * 1400},
            "X-Turnout-Attributes ",
        ),
        (
            {"X-Turnout-Unit": "a", "X-Turnout-Attributes": json.dumps({"a": "x" * 8192})},
            "X-Turnout-Attributes may have at most",
        ),
    ],
)
async def test_a_wrong_header_is_named(
    turnout: Turnout, headers: Mapping[str, str | bytes], named: str
) -> None:
    answer = await ask(turnout, "any", headers)
    problem(answer, 400, "malformed")
    assert named in answer.json()["detail"]


async def test_who_asks_needs_a_key_and_an_experiment(turnout: Turnout) -> None:
    unit = {"X-Turnout-Unit": "anna"}
    key = await turnout.start()
    assert (await ask(turnout, key, unit, "client")).status_code == 200
    for role, status in (("analyst", 403), (None, 401)):
        assert (await ask(turnout, key, unit, role)).status_code == status  # type: ignore[arg-type]
    for name in ("no-such-one", "$holdout", "a%0d%0aX-Evil:%201"):
        assert (await ask(turnout, name, unit)).status_code == 404


async def test_no_value_can_write_a_header_of_its_own(turnout: Turnout) -> None:
    """Looked at on the wire: a client of HTTP would hide a second header from us."""
    key = await turnout.start(variants=variants(VALUES[0], {"service": "x" * 3000}))
    place = urlsplit(turnout.url)
    seen: dict[str, str] = {}
    for number in range(20):
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        lines = (
            f"GET /v1/route/{key} HTTP/1.1",
            "Host: turnout",
            "Connection: close",
            f"Authorization: Bearer {turnout.keys['service']}",
            f"X-Turnout-Unit: unit-{number}",
        )
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await reader.read()).partition(b"\r\n\r\n")[0]
        writer.close()
        await writer.wait_closed()
        given = dict(line.split(": ", 1) for line in head.decode("ascii").split("\r\n")[1:])
        assert "X-Evil" not in {name.title() for name in given}
        seen[given["x-turnout-variant"]] = given.get("x-turnout-value", "none")
    assert json.loads(seen["old"]) == VALUES[0]
    assert seen["new"] == "none"  # too long for a proxy's buffer: the variant's key still stands


async def test_an_answer_of_a_stopped_experiment_is_the_control_s(turnout: Turnout) -> None:
    key = await turnout.start()
    await turnout.move(key, "pause")

    async def paused() -> bool | None:
        answer = await ask(turnout, key, {"X-Turnout-Unit": "anna"})
        return True if answer.headers["x-turnout-reason"] == "paused" else None

    await eventually(paused, "answer of a paused experiment")
    answer = await ask(turnout, key, {"X-Turnout-Unit": "anna"})
    assert answer.headers["x-turnout-variant"] == "old"
    assert "x-turnout-propensity" not in answer.headers
    assert answer.headers["x-turnout-recorded"] == "false"
