"""`POST /v1/outcomes`: what came of it, kept once, refused item by item; and the report on it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from analysis.reports import sheet
from analysis.reports.model import Facts
from analysis.reports.report import Report, make_report
from tests.running import Turnout, eventually, problem


async def send(turnout: Turnout, body: Any, **headers: str) -> httpx.Response:
    """Send outcomes as JSON."""
    return await turnout.client("service").post("/v1/outcomes", json=body, headers=headers)


async def answer_to(turnout: Turnout, body: Any, **headers: str) -> dict[str, Any]:
    """The answer to a batch that was taken."""
    answer = await send(turnout, body, **headers)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def only_error(turnout: Turnout, item: Any) -> tuple[str, str]:
    """The path and type of the one thing that is wrong with an item, between two good ones, which
    are kept."""
    good = {"event": "click", "unit": "good"}
    result = await answer_to(turnout, [good, item, good])
    assert (result["accepted"], result["duplicates"]) == (2, 0)
    assert [error["index"] for error in result["errors"]] == [1]
    assert result["errors"][0]["detail"]
    return result["errors"][0]["path"], result["errors"][0]["type"]


def ago(**length: float) -> str:
    """A time that long ago, as RFC 3339 writes it."""
    return (datetime.now(UTC) - timedelta(**length)).isoformat()


async def test_one_outcome_is_kept_with_all_that_it_says(turnout: Turnout) -> None:
    await turnout.start(record=["country"])
    at = ago(hours=1)
    result = await answer_to(
        turnout,
        {
            "id": "order-1",
            "event": "purchase",
            "unit": "u1",
            "value": 12.5,
            "at": at,
            "attributes": {"country": "AT", "email": "a@example.org"},
        },
    )
    assert result == {"accepted": 1, "duplicates": 0, "errors": []}
    row = (await turnout.shipped("outcome", 1))[0]
    assert (row["event"], row["unit_type"], row["unit"], row["value"]) == (
        "purchase",
        "user",
        "u1",
        12.5,
    )
    assert row["at"] == datetime.fromisoformat(at)
    assert row["attributes"] == '{"country": "AT"}'


async def test_an_outcome_without_a_time_happened_when_it_came(turnout: Turnout) -> None:
    before = datetime.now(UTC)
    await answer_to(turnout, {"event": "click", "unit": "u1"})
    row = (await turnout.shipped("outcome", 1))[0]
    assert before <= row["at"] == row["received_at"] <= datetime.now(UTC)
    assert row["value"] is None


async def test_an_outcome_of_several_units_is_a_row_for_each(turnout: Turnout) -> None:
    await answer_to(turnout, {"event": "click", "units": {"user": "u1", "session": "s1"}})
    rows = await turnout.shipped("outcome", 2)
    assert {(row["unit_type"], row["unit"]) for row in rows} == {("user", "u1"), ("session", "s1")}
    assert len({(row["segment"], row["ordinal"]) for row in rows}) == 1


async def test_a_list_is_taken_as_a_whole(turnout: Turnout) -> None:
    items = [{"event": "click", "unit": f"u{i}", "value": i} for i in range(300)]
    assert await answer_to(turnout, items) == {"accepted": 300, "duplicates": 0, "errors": []}
    rows = await turnout.shipped("outcome", 300)
    assert sorted(row["value"] for row in rows) == list(range(300))


async def test_an_empty_list_is_nothing_wrong(turnout: Turnout) -> None:
    assert await answer_to(turnout, []) == {"accepted": 0, "duplicates": 0, "errors": []}


@pytest.mark.parametrize("kind", ["application/x-ndjson", "Application/NDJSON; charset=utf-8"])
async def test_lines_are_taken_one_by_one(turnout: Turnout, kind: str) -> None:
    lines = [
        b'{"event": "click", "unit": "u1"}',
        b"",
        b'{"event": "click"',
        b'{"event": "click", "unit": "\xff"}',
        b'{"event": "click"}',
        b'{"event": "click", "unit": "u2"}\r',
    ]
    answer = await turnout.client("service").post(
        "/v1/outcomes", content=b"\n".join(lines), headers={"Content-Type": kind}
    )
    result = answer.json()
    assert (result["accepted"], result["duplicates"]) == (2, 0)
    assert [(e["index"], e["path"], e["type"]) for e in result["errors"]] == [
        (1, "$", "malformed"),
        (2, "$", "malformed"),
        (3, "unit", "missing"),
    ]
    assert {row["unit"] for row in await turnout.shipped("outcome", 2)} == {"u1", "u2"}


@pytest.mark.parametrize(
    ("wrong", "path", "kind"),
    [
        ({"event": None}, "event", "type"),
        ({"event": "a click"}, "event", "value"),
        ({"unit": ""}, "unit", "value"),
        ({"unit": 7}, "unit", "type"),
        ({"unit": "x" * 257}, "unit", "value"),
        ({"unit": "é" * 129}, "unit", "value"),
        ({"unit": "a\0b"}, "unit", "value"),
        ({"unit": None}, "unit", "missing"),
        ({"units": {"session": "s"}}, "unit", "conflict"),
        ({"unit": None, "units": {}}, "units", "value"),
        ({"unit": None, "units": {"session": "x" * 257}}, "units.session", "value"),
        ({"unit": None, "units": {"A Type": "s"}}, 'units["A Type"]', "value"),
        ({"unit": None, "units": {"a.type": "a\0b"}}, 'units["a.type"]', "value"),
        ({"id": ""}, "id", "value"),
        ({"id": "a\0b"}, "id", "value"),
        ({"id": "x" * 257}, "id", "value"),
        ({"value": "much"}, "value", "type"),
        ({"value": True}, "value", "type"),
        ({"value": 1e31}, "value", "value"),
        ({"value": -1e300}, "value", "value"),
        ({"at": "yesterday"}, "at", "value"),
        ({"at": 1_700_000_000}, "at", "type"),
        ({"at": "2026-01-01T00:00:00"}, "at", "value"),
        ({"at": "0001-01-01T00:00:00+23:59"}, "at", "value"),
        ({"at": "9999-12-31T23:59:59-23:59"}, "at", "value"),
        ({"attributes": []}, "attributes", "type"),
        ({"attributes": {"a": "\0"}}, "attributes.a", "value"),
        ({"attributes": {"a": [{"b": "\0"}]}}, "attributes.a[0].b", "value"),
        ({"attributes": {"a": 10**20}}, "attributes.a", "value"),
        ({"attributes": {str(i): i for i in range(65)}}, "attributes", "value"),
        ({"user": "u"}, "user", "unknown"),
    ],
    ids=repr,
)
async def test_a_wrong_item_is_refused_by_its_index_and_the_good_ones_are_kept(
    turnout: Turnout, wrong: dict[str, Any], path: str, kind: str
) -> None:
    item = {"event": "click", "unit": "u", **wrong}
    assert await only_error(turnout, item) == (path, kind)
    assert {row["unit"] for row in await turnout.shipped("outcome", 2)} == {"good"}


@pytest.mark.parametrize("item", [None, 7, "click", []])
async def test_an_item_that_is_no_object_is_refused(turnout: Turnout, item: Any) -> None:
    assert await only_error(turnout, item) == ("$", "type")


@pytest.mark.parametrize("value", [b"1e400", b"-1e400", b"1" + b"0" * 400])
async def test_a_number_beyond_all_floats_is_refused_alone(turnout: Turnout, value: bytes) -> None:
    body = b'[{"event":"e","unit":"u","value":%b},{"event":"e","unit":"u","value":1}]' % value
    answer = await turnout.client("service").post("/v1/outcomes", content=body)
    result = answer.json()
    assert result["accepted"] == 1
    assert [error["index"] for error in result["errors"]] == [0]


async def test_attributes_too_deep_to_keep_are_refused(turnout: Turnout) -> None:
    body = b'[{"event":"e","unit":"u","attributes":{"a":%b}}]' % (b"[" * 500 + b"]" * 500)
    answer = await turnout.client("service").post("/v1/outcomes", content=body)
    result = answer.json()
    assert (result["accepted"], len(result["errors"])) == (0, 1)


async def test_everything_wrong_with_an_item_is_named(turnout: Turnout) -> None:
    result = await answer_to(turnout, [{"unit": "", "value": "x", "colour": 1}])
    assert {(e["index"], e["path"], e["type"]) for e in result["errors"]} == {
        (0, "event", "missing"),
        (0, "unit", "value"),
        (0, "value", "type"),
        (0, "colour", "unknown"),
    }


async def test_a_single_outcome_that_is_wrong_is_an_invalid_request(turnout: Turnout) -> None:
    answer = await send(turnout, {"event": "click", "at": "2026-01-01T00:00:00"})
    assert problem(answer, 422, "invalid") == [("at", "value")]
    answer = await send(turnout, {"event": "click"})
    assert problem(answer, 422, "invalid") == [("unit", "missing")]


@pytest.mark.parametrize(
    ("at", "taken"),
    [
        (timedelta(minutes=-4.9), True),
        (timedelta(minutes=-5.1), False),
        (timedelta(days=6.99), True),
        (timedelta(days=7.01), False),
    ],
)
async def test_a_time_may_be_5_minutes_ahead_and_7_days_ago(
    turnout: Turnout, at: timedelta, taken: bool
) -> None:
    item = {"event": "click", "unit": "u", "at": (datetime.now(UTC) - at).isoformat()}
    result = await answer_to(turnout, [item])
    assert result["accepted"] == taken
    assert [error["path"] for error in result["errors"]] == ([] if taken else ["at"])


async def test_a_time_of_any_zone_is_a_time(turnout: Turnout) -> None:
    moment = datetime.now(UTC).replace(microsecond=0)
    text = (moment + timedelta(hours=5, minutes=30)).strftime("%Y-%m-%dT%H:%M:%S+05:30")
    await answer_to(turnout, {"event": "click", "unit": "u", "at": text})
    assert (await turnout.shipped("outcome", 1))[0]["at"] == moment


async def test_an_id_counts_once_within_a_batch_and_across_requests(turnout: Turnout) -> None:
    first = {"id": "a", "event": "click", "unit": "u", "value": 1}
    again = {"id": "a", "event": "click", "unit": "u", "value": 2}
    other = {"id": "b", "event": "click", "unit": "u", "value": 3}
    result = await answer_to(turnout, [first, again, other])
    assert (result["accepted"], result["duplicates"]) == (2, 1)
    result = await answer_to(turnout, [again, {**other, "id": "c", "value": 4}])
    assert (result["accepted"], result["duplicates"]) == (1, 1)
    result = await answer_to(turnout, again)
    assert (result["accepted"], result["duplicates"]) == (0, 1)
    await answer_to(turnout, {"event": "click", "unit": "last", "value": 5})
    rows = await turnout.shipped("outcome", 4)
    assert sorted(row["value"] for row in rows) == [1, 3, 4, 5]


async def test_what_has_no_id_counts_as_often_as_it_is_sent(turnout: Turnout) -> None:
    for _ in range(2):
        result = await answer_to(turnout, [{"event": "click", "unit": "u"}] * 2)
        assert (result["accepted"], result["duplicates"]) == (2, 0)
    assert len(await turnout.shipped("outcome", 4)) == 4


async def test_a_request_with_an_idempotency_key_counts_once(turnout: Turnout) -> None:
    items = [{"event": "click", "unit": "u", "value": i} for i in range(3)]
    for expected in ((3, 0), (0, 3)):
        result = await answer_to(turnout, items, **{"Idempotency-Key": "request-1"})
        assert (result["accepted"], result["duplicates"]) == expected
    result = await answer_to(turnout, items, **{"Idempotency-Key": "request-2"})
    assert (result["accepted"], result["duplicates"]) == (3, 0)
    assert len(await turnout.shipped("outcome", 6)) == 6


async def test_an_empty_idempotency_key_is_none(turnout: Turnout) -> None:
    for _ in range(2):
        result = await answer_to(
            turnout, {"event": "click", "unit": "u"}, **{"Idempotency-Key": ""}
        )
        assert (result["accepted"], result["duplicates"]) == (1, 0)


async def test_a_refused_item_may_come_again_corrected(turnout: Turnout) -> None:
    wrong = [{"id": "a", "event": "click", "unit": ""}]
    assert (await answer_to(turnout, wrong))["accepted"] == 0
    assert (await answer_to(turnout, [{**wrong[0], "unit": "u"}]))["accepted"] == 1


async def test_a_batch_has_at_most_10_000_items(turnout: Turnout) -> None:
    item = {"event": "click", "unit": "u"}
    problem(await send(turnout, [item] * 10_001), 413, "too-large")
    lines = "\n".join([json.dumps(item)] * 10_001)
    answer = await turnout.client("service").post(
        "/v1/outcomes", content=lines, headers={"Content-Type": "application/x-ndjson"}
    )
    problem(answer, 413, "too-large")
    assert (await answer_to(turnout, [item] * 10_000))["accepted"] == 10_000
    assert len(await turnout.shipped("outcome", 10_000)) == 10_000


async def test_a_batch_has_at_most_8_mebibytes(turnout: Turnout) -> None:
    item = b'{"event": "click", "unit": "u"}'
    most = b"[" + item + b" " * (8 * 1024 * 1024 - len(item) - 2) + b"]"
    service = turnout.client("service")

    async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 20):
            yield body[start : start + (1 << 20)]

    problem(await service.post("/v1/outcomes", content=most + b" "), 413, "too-large")
    problem(await service.post("/v1/outcomes", content=in_pieces(most + b" ")), 413, "too-large")
    assert (await service.post("/v1/outcomes", content=most)).json()["accepted"] == 1
    assert (await service.post("/v1/outcomes", content=in_pieces(most))).json()["accepted"] == 1


@pytest.mark.parametrize("body", [b"", b"click", b'{"event"', b"[{]", b'[{"event": "\\ud800"}]'])
async def test_a_body_that_is_not_json_is_malformed(turnout: Turnout, body: bytes) -> None:
    answer = await turnout.client("service").post("/v1/outcomes", content=body)
    problem(answer, 400, "malformed")


async def report_of(turnout: Turnout, key: str, units: int, clicks: int) -> dict[str, Any]:
    """The report, once so many units and clicks are in it."""

    async def folded() -> dict[str, Any] | None:
        answer = await turnout.client("analyst").get(f"/v1/experiments/{key}/report")
        report: dict[str, Any] = answer.json()
        counted = sum(report["units"].values()) == units
        arms = report["metrics"][0]["comparisons"][0]["fixed"]
        means = arms["mean_control"], arms["mean_treatment"]
        if not counted or None in means:
            return None
        shares = zip(("old", "new"), means, strict=True)
        found = sum(report["units"][variant] * mean for variant, mean in shares)
        return report if round(found) == clicks else None

    return await eventually(folded, f"report of {units} units and {clicks} clicks")


async def test_a_report_counts_each_unit_and_each_outcome_once(turnout: Turnout) -> None:
    key = await turnout.start()
    variants = {f"u{i}": (await turnout.assign(key, f"u{i}"))["variant"] for i in range(40)}
    clicks = [{"id": unit, "event": "click", "unit": unit} for unit in list(variants)[:15]]
    for _ in range(2):
        await answer_to(turnout, [*clicks, {"event": "click", "unit": "a stranger"}])
        for unit in variants:
            await turnout.assign(key, unit)
    report = await report_of(turnout, key, 40, 15)
    held = {v: [u for u in variants if variants[u] == v] for v in ("old", "new")}
    assert report["units"] == {v: len(units) for v, units in held.items()}
    assert (report["experiment"], report["run"], report["state"]) == (key, 1, "running")
    fixed = report["metrics"][0]["comparisons"][0]["fixed"]
    clicked = {click["unit"] for click in clicks}
    for variant, mean in (("old", "mean_control"), ("new", "mean_treatment")):
        expected = len(clicked & set(held[variant])) / len(held[variant])
        assert fixed[mean] == pytest.approx(expected)
    assert report["conclusion"]


async def test_a_report_is_markdown_for_whoever_asks(turnout: Turnout) -> None:
    key = await turnout.start()
    answer = await turnout.client("analyst").get(
        f"/v1/experiments/{key}/report", headers={"Accept": "text/markdown"}
    )
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.text.startswith(f"# {key}, run 1\n")
    assert "No units yet: nothing is known." in answer.text


async def test_a_report_is_csv_for_whoever_asks(turnout: Turnout) -> None:
    key = await turnout.start()
    answer = await turnout.client("analyst").get(
        f"/v1/experiments/{key}/report", headers={"Accept": "text/csv"}
    )
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    header, *rows = answer.text.splitlines()
    assert header.startswith("experiment,run,metric,role,kind,goal,treatment,control,attribute,")
    assert all(row.startswith(f"{key},1,") for row in rows)
    assert rows


async def test_while_a_report_is_made_others_are_answered(
    turnout: Turnout, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await turnout.start()
    begun, answered = threading.Event(), threading.Event()

    def slow(facts: Facts) -> Report:
        begun.set()
        assert answered.wait(5), "nobody is answered meanwhile"
        return make_report(facts)

    monkeypatch.setattr(sheet, "make_report", slow)
    client = turnout.client("analyst")
    report = asyncio.create_task(client.get(f"/v1/experiments/{key}/report"))
    assert await asyncio.to_thread(begun.wait, 5)
    assert (await client.get(f"/v1/experiments/{key}")).status_code == 200
    answered.set()
    assert (await report).status_code == 200


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/plain, */*;q=0.5", ""])
async def test_a_report_is_json_otherwise(turnout: Turnout, accept: str) -> None:
    key = await turnout.start()
    answer = await turnout.client("analyst").get(
        f"/v1/experiments/{key}/report", headers={"Accept": accept}
    )
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["conclusion"] == "No units yet: nothing is known."


async def test_a_draft_has_a_report_that_knows_nothing_yet(turnout: Turnout) -> None:
    key = await turnout.define()
    reader = turnout.client("analyst")
    report = (await reader.get(f"/v1/experiments/{key}/report")).json()
    assert (report["state"], report["run"]) == ("draft", 0)
    assert report["conclusion"] == "No units yet: nothing is known."
    decisions = (await reader.get(f"/v1/experiments/{key}/decisions")).json()
    assert decisions == {"items": [], "next_cursor": None}
