"""Bodies with many items: one item, a list, or NDJSON. A bad item never costs a good one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec

from experiments import paths
from experiments.doors import NOT_JSON, malformed
from experiments.problems import FieldProblem, ProblemError, invalid

T = TypeVar("T")
Text: TypeAlias = bytes | msgspec.Raw
"""An item in JSON."""
AnyText = TypeVar("AnyText", bytes, msgspec.Raw)
Read: TypeAlias = tuple[T | None, list[FieldProblem]]
"""An item, or None and what is wrong with it."""

MAX_ITEMS: Final = 10_000
MAX_ITEM_BYTES: Final = 64 * 1024
MAX_AHEAD: Final = timedelta(minutes=5)
MAX_AGE: Final = timedelta(days=7)
ITEMS_A_TURN: Final = 250
"""How many items are read, in about half a millisecond, before others get their turn."""
BYTES_A_TURN: Final = MAX_ITEM_BYTES
"""How much is read of large ones before others get theirs. One that is wrong and has tens of
thousands of values can take 50 milliseconds, so two of them never share a turn."""
_NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
TOO_LARGE: Final = f"an item may have at most {MAX_ITEM_BYTES} bytes"
_list = msgspec.json.Decoder(list[msgspec.Raw])
_ABSENT: Final = msgspec.Raw(b"")
_bounded_list = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Items",
        [(f"item_{number}", msgspec.Raw, _ABSENT) for number in range(MAX_ITEMS)],
        array_like=True,
        forbid_unknown_fields=True,
    )
)
"""Stops at the first item that is too many. msgspec counts those of a `list` when it has made all:
of the 8 MiB `[0,0,...` that takes a quarter of a second."""


class ItemError(msgspec.Struct, frozen=True):
    """Why an item of a batch was refused."""

    index: int
    type: str
    path: str
    detail: str


class Reading(msgspec.Struct, Generic[T], frozen=True):
    """A body as read: the good items by their index, and what is wrong with the bad ones. `single`
    says that the body was one item, and no list of one."""

    items: dict[int, T]
    errors: list[ItemError]
    single: bool = False


async def read_items(
    body: bytes, content_type: str, read: Callable[[int, Text], Read[T]]
) -> Reading[T]:
    """The items in a body: one object, a list, or NDJSON. The event loop gets its turns.

    Args:
        read: reads an item, from its index and its text. Where the text is no JSON it raises what
            `NOT_JSON` names.

    Raises:
        ProblemError: `malformed` where the body is no JSON, `too-large` with more than `MAX_ITEMS`
            or where a single item has more than `MAX_ITEM_BYTES`, `invalid` where the body is a
            single item and that one is wrong.
    """
    try:
        if content_type.split(";", maxsplit=1)[0].strip().lower() in _NDJSON:
            return await _read_each(_lines(body), read, NOT_JSON)
        if body.lstrip()[:1] == b"[":
            forgiven = (msgspec.ValidationError, RecursionError)
            return await _read_each(split_list(body), read, forgiven)
        if len(body) > MAX_ITEM_BYTES:
            raise ProblemError("too-large", TOO_LARGE)
        reading = await _read_each([body], read, ())
    except NOT_JSON as error:
        raise malformed(error) from error
    if reading.errors:
        raise invalid([FieldProblem(e.path, e.type, e.detail) for e in reading.errors])
    return Reading(reading.items, [], single=True)


def split_list(text: Text) -> list[msgspec.Raw]:
    """The items of a text that is a list, if it is JSON.

    Raises:
        ProblemError: `too-large` with more than `MAX_ITEMS`.
        msgspec.DecodeError: if it is no JSON.
    """
    if len(text) <= MAX_ITEM_BYTES:
        return _list.decode(text)
    try:
        items = msgspec.structs.astuple(_bounded_list.decode(text))
    except msgspec.ValidationError:
        raise _too_many() from None
    return [item for item in items if item is not _ABSENT]


def _lines(body: bytes) -> list[bytes]:
    """The lines that are not blank.

    Raises:
        ProblemError: `too-large` with many more than there may be items.
    """
    if body.count(b"\n") > 2 * MAX_ITEMS:
        raise _too_many()
    return [line for line in body.split(b"\n") if line.strip()]


def _too_many() -> ProblemError:
    return ProblemError("too-large", f"A batch may have at most {MAX_ITEMS} items")


async def _read_each(
    texts: Sequence[Text],
    read: Callable[[int, Text], Read[T]],
    forgiven: tuple[type[Exception], ...],
) -> Reading[T]:
    """Args: `forgiven` is what an unreadable text may raise at the cost of this one item."""
    if len(texts) > MAX_ITEMS:
        raise _too_many()
    items: dict[int, T] = {}
    errors: list[ItemError] = []
    async for index, text in in_turns(texts):
        if len(text) > MAX_ITEM_BYTES:
            errors.append(ItemError(index, "too-large", paths.ROOT, TOO_LARGE))
            continue
        try:
            item, problems = read(index, text)
        except forgiven as error:
            detail = f"the item cannot be read: {error}"
            item, problems = None, [FieldProblem(paths.ROOT, "malformed", detail)]
        if item is None:
            errors += [ItemError(index, p.type, p.path, p.detail) for p in problems]
        else:
            items[index] = item
    return Reading(items, errors)


async def in_turns(texts: Sequence[AnyText]) -> AsyncIterator[tuple[int, AnyText]]:
    """These texts with their indices. Others get their turns, the sooner the larger the texts."""
    size = 0
    for index, text in enumerate(texts):
        weight = max(len(text), BYTES_A_TURN // ITEMS_A_TURN)
        size += weight
        if size > BYTES_A_TURN:
            size = weight
            await asyncio.sleep(0)
        yield index, text


def time_problems(at: datetime | None, now: datetime) -> list[FieldProblem]:
    """What is wrong with the time that an item says it is of."""
    if at is None:
        return []
    ahead = at - now
    if ahead > MAX_AHEAD:
        return [FieldProblem("at", "value", "must be at most 5 minutes ahead of our clock")]
    if ahead < -MAX_AGE:
        return [FieldProblem("at", "value", "must be at most 7 days old")]
    return []
