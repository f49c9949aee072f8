"""How batches of outcomes are read: alike in every form, and in turns with others."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from experiments.problems import ProblemError
from router.outcomes import Batch, Context, outcome_id, read_batch

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
WITH_NUL = {"event": "click", "unit": "a\0b"}
GOOD: list[dict[str, Any]] = [
    {"event": "click", "unit": "u1"},
    {"event": "a/click:7", "unit": "ünït-😀", "value": -2},
    {"event": "click", "units": {"user": "u1", "session": "s.1"}, "value": 1e30},
    {"id": "order\\u0000-1", "event": "click", "unit": "u" * 256},
    {"event": "click", "unit": "u", "at": "2026-03-02T17:29:59.5+05:30"},
    {"event": "click", "unit": "u", "attributes": {}},
    {"event": "click", "unit": "u", "attributes": {"country": "AT", "email": "a@example.org"}},
    {"event": "click", "unit": "u", "attributes": {"plan": [{"a": None}, 1.5, True]}},
    {"event": "click", "unit": "u", "attributes": {"plan": 2**63 - 1, "country": None}},
]
BAD: list[Any] = [
    {"event": "a click", "unit": "u"},
    {"event": "x" * 129, "unit": "u"},
    {"event": "click", "units": {"A Type": "s"}},
    {"event": "click", "units": {"t" * 65: "s"}},
    {"event": "click", "unit": "u", "units": {"session": "s"}},
    {"event": "click", "unit": "u", "value": "much"},
    {"event": "click", "unit": "u", "value": 1e31},
    {"event": "click", "unit": "u", "at": "2026-03-02T12:05:01Z"},
    {"event": "click", "unit": "u", "at": "2026-02-23T11:59:59Z"},
    {"event": "click", "unit": "u", "attributes": {"a": 2**63}},
    {"event": "click", "unit": "u", "colour": "red"},
    7,
]


def context(key: str | None = None) -> Context:
    """A project that keeps two attributes."""
    return Context("shop", "user", frozenset({"country", "plan"}), NOW, key)


async def read_list(items: list[Any], key: str | None = None) -> Batch:
    """A list as it is read."""
    return await read_batch(json.dumps(items).encode(), "application/json", context(key))


async def read_lines(items: list[Any]) -> Batch:
    """NDJSON as it is read."""
    body = "\n".join(map(json.dumps, items))
    return await read_batch(body.encode(), "application/x-ndjson", context())


async def test_a_list_and_lines_are_read_alike() -> None:
    assert await read_list(GOOD + BAD) == await read_lines(GOOD + BAD)


async def test_a_single_outcome_is_read_as_one_in_a_list() -> None:
    for item in GOOD:
        single = await read_batch(json.dumps(item).encode(), "application/json", context())
        assert single == await read_list([item])
    for item in BAD:
        with pytest.raises(ProblemError) as refused:
            await read_batch(json.dumps(item).encode(), "application/json", context())
        told = [(problem.type, problem.path) for problem in refused.value.errors]
        in_list = (await read_list([item])).errors
        assert told == [(error.type, error.path) for error in in_list]
        assert told


async def test_the_good_are_taken_and_each_bad_one_is_named() -> None:
    batch = await read_list([*GOOD, *BAD])
    assert len(batch.outcomes) == len(GOOD)
    assert {error.index for error in batch.errors} == set(range(len(GOOD), len(GOOD + BAD)))


async def test_what_a_neighbour_is_like_changes_nothing() -> None:
    """Though a text with U+0000 in it has all of its batch read in another way."""
    alone = await read_list(GOOD)
    beside = await read_list([*GOOD, WITH_NUL])
    assert beside.outcomes == alone.outcomes
    assert [(error.index, error.path) for error in beside.errors] == [(len(GOOD), "unit")]


async def test_only_attributes_that_are_recorded_are_kept() -> None:
    kept = [outcome.attributes for outcome in (await read_list(GOOD[-4:])).outcomes]
    assert kept == [
        None,
        {"country": "AT"},
        {"plan": [{"a": None}, 1.5, True]},
        {"plan": 2**63 - 1, "country": None},
    ]


async def test_an_id_is_the_projects_own_and_a_key_of_a_request_stands_in_for_it() -> None:
    items = [{"id": "a", "event": "click", "unit": "u"}, {"event": "click", "unit": "u"}]
    ids = [outcome.id for outcome in (await read_list(items, "request-1")).outcomes]
    assert ids == [outcome_id("shop", "a"), outcome_id("shop", "request-1\0001")]
    assert outcome_id("shop", "a") != outcome_id("store", "a")
    assert [outcome.id for outcome in (await read_list(items)).outcomes] == [ids[0], None]


async def test_others_get_their_turns_while_a_large_batch_is_read() -> None:
    items = [{"event": "click", "unit": f"u{n}", "id": f"{n}"} for n in range(10_000)]
    reading = asyncio.create_task(read_list(items))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 40
    assert len(reading.result().outcomes) == 10_000


async def test_a_time_in_another_zone_is_the_same_time() -> None:
    outcome = (await read_list(GOOD[4:5])).outcomes[0]
    assert outcome.at == NOW - timedelta(seconds=0.5)
