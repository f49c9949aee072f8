"""`POST /v1/assign`: which variant a unit gets, and what is recorded of it."""

from typing import Any

import pytest

from tests.running import Turnout, problem

UNITS = ["a", "7", "Zoë", "ユニット", "👩‍🔬", "a b:c/d", " ", "x" * 256, "é" * 128]


async def slot_owners(turnout: Turnout, key: str) -> list[str | None]:
    """The owner of each slot in the current epoch, by the list of epochs."""
    page = await turnout.client("analyst").get(f"/v1/experiments/{key}/allocations?limit=1")
    return [owner for owner, count in page.json()["items"][0]["slots"] for _ in range(count)]


@pytest.mark.parametrize("unit", UNITS)
async def test_a_unit_gets_the_same_answer_whenever_it_comes(turnout: Turnout, unit: str) -> None:
    key = await turnout.start()
    first = await turnout.assign(key, unit)
    for _ in range(3):
        assert await turnout.assign(key, unit) == first
    owners = await slot_owners(turnout, key)
    assert first["variant"] == owners[first["slot"]]
    exposure = (await turnout.shipped("exposure", 1))[0]
    assert (exposure["unit"], exposure["variant"]) == (unit, first["variant"])


async def test_an_answer_says_all_that_is_needed_to_account_for_it(turnout: Turnout) -> None:
    variants = [
        {"key": "a", "control": True, "weight": 0.25, "value": {"model": "m/1"}},
        {"key": "b", "weight": 0.75, "value": {"model": "m/2"}},
    ]
    key = await turnout.start(variants=variants)
    answers = {(await turnout.assign(key, f"u{i}"))["variant"]: i for i in range(50)}
    assert set(answers) == {"a", "b"}
    for variant in variants:
        answer = await turnout.assign(key, f"u{answers[str(variant['key'])]}")
        slot = answer.pop("slot")
        assert 0 <= slot < 10_000
        assert answer == {
            "experiment": key,
            "run": 1,
            "variant": variant["key"],
            "value": variant["value"],
            "reason": "split",
            "epoch": 1,
            "propensity": variant["weight"],
            "recorded": True,
        }


async def test_a_repeated_exposure_is_one_exposure(turnout: Turnout) -> None:
    key = await turnout.start()
    for _ in range(5):
        assert (await turnout.assign(key, "again"))["recorded"]
    await turnout.assign(key, "last")
    units = [row["unit"] for row in await turnout.shipped("exposure", 2)]
    assert sorted(units) == ["again", "last"]


async def test_an_exposure_holds_what_the_epoch_does_not(turnout: Turnout) -> None:
    key = await turnout.start(unit={"type": "session"}, record=["country"])
    answer = await turnout.assign(key, "s1", attributes={"country": "AT", "email": "a@example.org"})
    row = (await turnout.shipped("exposure", 1))[0]
    assert (row["run"], row["epoch"], row["variant"]) == (1, 1, answer["variant"])
    assert (row["unit_type"], row["unit"]) == ("session", "s1")
    assert row["attributes"] == '{"country": "AT"}'


async def test_nothing_is_recorded_where_nothing_is_to_be_exposed(turnout: Turnout) -> None:
    key = await turnout.start()
    hidden = await turnout.assign(key, "hidden", expose=False)
    assert hidden["reason"] == "split"
    assert not hidden["recorded"]
    shown = await turnout.assign(key, "hidden")
    assert shown == {**hidden, "recorded": True}
    await turnout.assign(key, "later", expose=False)
    await turnout.assign(key, "last")
    assert {row["unit"] for row in await turnout.shipped("exposure", 2)} == {"hidden", "last"}


async def test_who_is_not_enrolled_gets_the_control_and_is_not_exposed(turnout: Turnout) -> None:
    key = await turnout.start(traffic=0.5)
    answers = [await turnout.assign(key, f"u{i}") for i in range(60)]
    outside = [answer for answer in answers if answer["reason"] == "not_enrolled"]
    inside = [answer for answer in answers if answer["reason"] == "split"]
    assert len(outside) + len(inside) == 60
    assert len(outside) > 10
    assert len(inside) > 10
    for answer in outside:
        assert (answer["variant"], answer["propensity"]) == ("old", None)
        assert not answer["recorded"]
    assert {answer["propensity"] for answer in inside} == {0.5}
    assert len(await turnout.shipped("exposure", len(inside))) == len(inside)


@pytest.mark.parametrize(
    ("verb", "body", "reason", "variant"),
    [
        ("pause", {}, "paused", "old"),
        ("rollback", {}, "rolled_back", "old"),
        ("conclude", {"ship": "new"}, "concluded", "new"),
        ("conclude", {"ship": "old"}, "concluded", "old"),
    ],
)
async def test_what_does_not_run_gives_all_units_one_answer_and_exposes_none(
    turnout: Turnout, verb: str, body: dict[str, str], reason: str, variant: str
) -> None:
    key = await turnout.start()
    moved = await turnout.move(key, verb, **body)
    for unit in ("a", "b", "c", "d"):
        answer = await turnout.assign(key, unit)
        assert (answer["reason"], answer["variant"]) == (reason, variant)
        assert (answer["slot"], answer["propensity"], answer["recorded"]) == (None, None, False)
        assert answer["epoch"] == moved["epoch"]


async def test_a_resumed_experiment_splits_as_before(turnout: Turnout) -> None:
    key = await turnout.start()
    before = [(await turnout.assign(key, f"u{i}"))["variant"] for i in range(20)]
    await turnout.move(key, "pause")
    await turnout.move(key, "resume")
    after = [await turnout.assign(key, f"u{i}") for i in range(20)]
    assert [answer["variant"] for answer in after] == before
    assert {answer["epoch"] for answer in after} == {3}


async def test_another_run_splits_anew(turnout: Turnout) -> None:
    key = await turnout.start()
    before = [(await turnout.assign(key, f"u{i}"))["slot"] for i in range(20)]
    await turnout.move(key, "rollback")
    await turnout.move(key, "start")
    after = [await turnout.assign(key, f"u{i}") for i in range(20)]
    assert [answer["slot"] for answer in after] != before
    assert {answer["run"] for answer in after} == {2}


async def test_a_reallocation_moves_only_units_whose_slot_moved(turnout: Turnout) -> None:
    key = await turnout.start()
    before = {f"u{i}": (await turnout.assign(key, f"u{i}"))["variant"] for i in range(60)}
    await turnout.allocate(key, weights={"old": 0.3, "new": 0.7})
    after = {unit: await turnout.assign(key, unit) for unit in before}
    moves = {(before[unit], answer["variant"]) for unit, answer in after.items()}
    assert moves == {("old", "old"), ("new", "new"), ("old", "new")}
    shares = {answer["variant"]: answer["propensity"] for answer in after.values()}
    assert shares == {"old": 0.3, "new": 0.7}


async def test_what_was_not_started_or_is_put_away_is_not_found(turnout: Turnout) -> None:
    draft = await turnout.define()
    archived = await turnout.start()
    await turnout.move(archived, "rollback")
    await turnout.move(archived, "archive")
    for key in ("nothing", draft, archived):
        answer = await turnout.client("service").post(
            "/v1/assign", json={"experiment": key, "unit": "u"}
        )
        problem(answer, 404, "not-found")


@pytest.mark.parametrize("unit", ["", "x" * 257, "é" * 128 + "x", "a\0b", "\0"])
async def test_a_unit_has_1_to_256_bytes_and_no_nul(turnout: Turnout, unit: str) -> None:
    key = await turnout.start()
    answer = await turnout.client("service").post(
        "/v1/assign", json={"experiment": key, "unit": unit}
    )
    assert problem(answer, 422, "invalid") == [("unit", "value")]


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        ({}, [("experiment", "missing"), ("unit", "missing")]),
        ({"experiment": "e", "unit": 7}, [("unit", "type")]),
        ({"experiment": "e", "unit": None}, [("unit", "type")]),
        ({"experiment": "Not A Key", "unit": "u"}, [("experiment", "value")]),
        ({"experiment": "e", "unit": "u", "attributes": []}, [("attributes", "type")]),
        ({"experiment": "e", "unit": "u", "expose": "no"}, [("expose", "type")]),
        ({"experiment": "e", "unit": "u", "user": "u"}, [("user", "unknown")]),
        ([], [("$", "type")]),
    ],
)
async def test_a_wrong_request_is_refused_by_its_fields(
    turnout: Turnout, body: Any, problems: list[tuple[str, str]]
) -> None:
    answer = await turnout.client("service").post("/v1/assign", json=body)
    assert problem(answer, 422, "invalid") == problems


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"unit=u",
        b'{"experiment": "e", "unit": "u"',
        b'{"experiment": 5, nonsense',
        b'{"experiment": "e", "unit": "\\ud800"}',
        b'{"experiment": "e", "unit": "\xed\xa0\x80"}',
        b'{"experiment": "e", "unit": "\xff"}',
        b'{"experiment": "e", "unit": "u", "attributes": {"a": ' + b"[" * 30_000,
    ],
)
async def test_a_body_that_is_not_json_is_malformed(turnout: Turnout, body: bytes) -> None:
    answer = await turnout.client("service").post("/v1/assign", content=body)
    problem(answer, 400, "malformed")


@pytest.mark.parametrize(
    ("country", "path"),
    [("\0", ""), ({"a": ["\0"]}, ".a[0]"), ({"\0": 1}, '["\\u0000"]'), (10**30, "")],
)
async def test_an_attribute_that_could_not_be_kept_is_refused(
    turnout: Turnout, country: Any, path: str
) -> None:
    key = await turnout.start(record=["country"])
    answer = await turnout.client("service").post(
        "/v1/assign", json={"experiment": key, "unit": "u", "attributes": {"country": country}}
    )
    assert problem(answer, 422, "invalid") == [(f"attributes.country{path}", "value")]


async def test_attributes_too_deep_to_keep_are_refused(turnout: Turnout) -> None:
    key = await turnout.start(record=["country"])
    deep = b"[" * 500 + b"]" * 500
    body = b'{"experiment":"%b","unit":"u","attributes":{"%b":%b}}'
    service = turnout.client("service")
    kept = await service.post("/v1/assign", content=body % (key.encode(), b"country", deep))
    assert problem(kept, 422, "invalid")[0][1] == "value"
    ignored = await service.post("/v1/assign", content=body % (key.encode(), b"other", deep))
    assert ignored.json()["recorded"]


async def test_a_body_beyond_64_kibibytes_is_too_large(turnout: Turnout) -> None:
    answer = await turnout.client("service").post("/v1/assign", content=b" " * (64 * 1024 + 1))
    problem(answer, 413, "too-large")


async def test_a_client_key_may_assign_too(turnout: Turnout) -> None:
    key = await turnout.start()
    answer = await turnout.client("client").post(
        "/v1/assign", json={"experiment": key, "unit": "u"}
    )
    assert answer.json()["recorded"]
