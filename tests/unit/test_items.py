"""Bodies with many items: what is too large is refused, item by item, before it costs much."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from experiments.problems import ProblemError
from router.items import BYTES_A_TURN, MAX_ITEM_BYTES, MAX_ITEMS, Read, Reading, Text, read_items

JSON, NDJSON = "application/json", "application/x-ndjson"


def take(_index: int, text: Text) -> Read[Any]:
    """An item as it is."""
    return msgspec.json.decode(text), []


async def read(body: bytes, kind: str = JSON) -> Reading[Any]:
    """A body as it is read."""
    return await read_items(body, kind, take)


def as_list(items: list[Any]) -> tuple[bytes, str]:
    """A list, and its type."""
    return json.dumps(items).encode(), JSON


def as_lines(items: list[Any]) -> tuple[bytes, str]:
    """Lines, and their type."""
    return "\n\n".join(map(json.dumps, items)).encode(), NDJSON


@pytest.mark.parametrize("form", [as_list, as_lines])
async def test_an_item_that_is_too_large_costs_itself_alone(
    form: Callable[[list[Any]], tuple[bytes, str]],
) -> None:
    most = "x" * (MAX_ITEM_BYTES - 2)  # and its quotes
    reading = await read(*form(["a", most, most + "x", "b"]))
    assert reading.items == {0: "a", 1: most, 3: "b"}
    assert [(error.index, error.type, error.path) for error in reading.errors] == [
        (2, "too-large", "$")
    ]


async def test_a_body_that_is_one_item_is_no_larger() -> None:
    most = json.dumps({"a": "x" * (MAX_ITEM_BYTES - 9)}).encode()
    assert (await read(most)).single
    with pytest.raises(ProblemError) as refused:
        await read(most + b" ")
    assert refused.value.type == "too-large"


@pytest.mark.parametrize("form", [as_list, as_lines])
@pytest.mark.parametrize("item", ["x", "x" * 100])
async def test_there_are_only_so_many_items(
    form: Callable[[list[Any]], tuple[bytes, str]], item: str
) -> None:
    assert len((await read(*form([item] * MAX_ITEMS))).items) == MAX_ITEMS
    with pytest.raises(ProblemError) as refused:
        await read(*form([item] * (MAX_ITEMS + 1)))
    assert refused.value.type == "too-large"


@pytest.mark.parametrize(
    ("noise", "kind"),
    [(b"0,", JSON), (b"{},", JSON), (b"\n", NDJSON), (b"0\n", NDJSON), (b"{\n", NDJSON)],
)
async def test_nonsense_without_end_is_refused_before_much_is_made_of_it(
    noise: bytes, kind: str
) -> None:
    body = noise * (8 * 1024 * 1024 // len(noise))
    if kind == JSON:
        body = b"[" + body[:-1] + b"]"
    tracemalloc.start()
    try:
        with pytest.raises(ProblemError) as refused:
            await read(body, kind)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.type == "too-large"
    assert peak < len(body)


async def test_others_get_their_turns_the_sooner_the_larger_the_items() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    body, _ = as_list(["x" * (MAX_ITEM_BYTES - 2)] * 100)
    turning = asyncio.create_task(turn())
    await read(body)
    turning.cancel()
    assert turns >= len(body) // BYTES_A_TURN // 2
