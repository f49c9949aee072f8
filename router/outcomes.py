"""Outcomes as services send them: read item by item, so that a bad one never costs a good one."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, partial
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from experiments import paths
from experiments.decoding import decode
from experiments.doors import NOT_JSON
from experiments.model import EventName, Key
from experiments.problems import FieldProblem
from experiments.units import UnitKey, unit_problem
from router.items import ItemError, Read, Text, read_items, time_problems
from router.records import RecordId

LARGEST_VALUE: Final = 1e30
"""So that sums of values, and of their squares, stay finite however many there are."""
Unit = Annotated[str, Meta(min_length=1, description="a unit's id: 1 to 256 bytes of UTF-8")]


class OutcomeItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One outcome in the body of `POST /v1/outcomes`."""

    event: EventName
    id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    unit: Unit | None = None
    units: Annotated[dict[Key, Unit], Meta(min_length=1, max_length=8)] | None = None
    value: float | None = None
    at: Annotated[datetime, Meta(tz=True)] | None = None
    attributes: Annotated[dict[str, Any], Meta(max_length=64)] | None = None


class Context(msgspec.Struct, frozen=True):
    """What reading an item needs to know: whose it is, and about when it came.

    `unit_key` is None where units are stored as they are sent.
    """

    project: str
    default_unit_type: str
    recorded_attributes: frozenset[str]
    now: datetime
    idempotency_key: str | None = None
    unit_key: UnitKey | None = None


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a good item says, in the terms of its record: its units are as they are stored. Without
    `at` it happened when received."""

    id: RecordId | None
    event: str
    units: tuple[tuple[str, str], ...]
    value: float | None
    at: datetime | None
    attributes: dict[str, Any] | None


class Batch(msgspec.Struct, frozen=True):
    """A batch as read: the good items, and what is wrong with the bad ones. `hashed` says that the
    units of the good ones are."""

    outcomes: list[Outcome]
    errors: list[ItemError]
    hashed: bool = False


_Scalar: TypeAlias = str | Annotated[int, Meta(ge=-(2**53), le=2**53)] | float | bool | None
_Kind: TypeAlias = Annotated[str, Meta(max_length=64)]


class _PlainItem(OutcomeItem, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """An item as nearly all are, in types that are checked while it is decoded."""

    event: Annotated[str, Meta(max_length=128)]
    """Its pattern would cost more than all the rest. Names are few: each is matched once. So are
    the kinds of units."""
    units: Annotated[dict[_Kind, Unit], Meta(min_length=1, max_length=8)] | None = None
    attributes: Annotated[dict[str, _Scalar], Meta(max_length=64)] | None = None


_plain_item = msgspec.json.Decoder(_PlainItem)
_NUL: Final = b"\\u0000"


async def read_batch(body: bytes, content_type: str, context: Context) -> Batch:
    """The outcomes in a body: one object, a list, or NDJSON. The event loop gets its turns.

    Raises:
        ProblemError: as `read_items` does.
    """
    # Only where it is written this way can a text have U+0000 in it.
    read = _read_plain if _NUL not in body else _read_any
    reading = await read_items(body, content_type, partial(_read, context, read))
    return Batch([*reading.items.values()], reading.errors, context.unit_key is not None)


def _read(
    context: Context, read: Callable[[Text], Read[OutcomeItem]], index: int, text: Text
) -> Read[Outcome]:
    item, problems = read(text)
    if item is None:
        return None, problems
    problems = _problems(item, context.now)
    return (None, problems) if problems else (_outcome(index, item, context), problems)


def _read_plain(text: Text) -> Read[OutcomeItem]:
    """As `_read_any`, and much faster where nothing is wrong. It does not look for U+0000."""
    try:
        item = _plain_item.decode(text)
    except NOT_JSON:
        return _read_any(text)
    if _is_event_name(item.event) and (item.units is None or all(map(_is_key, item.units))):
        return item, []
    return _read_any(text)


def _read_any(text: Text) -> Read[OutcomeItem]:
    """An item, or None and what is wrong with its fields.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the text is no JSON.
    """
    decoded = decode(OutcomeItem, msgspec.json.decode(text))
    return (None, [*decoded.problems]) if decoded.problems else (decoded.value, [])


@lru_cache(maxsize=4_096)
def _is_event_name(text: str) -> bool:
    return _matches(text, EventName)


@lru_cache(maxsize=4_096)
def _is_key(text: str) -> bool:
    return _matches(text, Key)


def _matches(text: str, kind: Any) -> bool:
    try:
        msgspec.convert(text, kind)
    except msgspec.ValidationError:
        return False
    return True


def _problems(item: OutcomeItem, now: datetime) -> list[FieldProblem]:
    """What is wrong with an item whose fields are right one by one."""
    problems: list[FieldProblem] = []
    if (item.unit is None) == (item.units is None):
        kind = "missing" if item.unit is None else "conflict"
        problems.append(FieldProblem("unit", kind, "give either `unit` or `units`"))
    if item.unit is not None and (detail := unit_problem(item.unit)) is not None:
        problems.append(FieldProblem("unit", "value", detail))
    for kind, unit in item.units.items() if item.units is not None else ():
        if (detail := unit_problem(unit)) is not None:
            problems.append(FieldProblem(paths.field("units", kind), "value", detail))
    if item.value is not None and not -LARGEST_VALUE <= item.value <= LARGEST_VALUE:
        detail = f"must be from {-LARGEST_VALUE:g} to {LARGEST_VALUE:g}"
        problems.append(FieldProblem("value", "value", detail))
    return problems + time_problems(item.at, now)


def _outcome(index: int, item: OutcomeItem, context: Context) -> Outcome:
    name = item.id
    if name is None and context.idempotency_key is not None:
        name = f"{context.idempotency_key}\0{index}"
    units = (
        ((context.default_unit_type, item.unit or ""),)
        if item.units is None
        else (*item.units.items(),)
    )
    if context.unit_key is not None:
        units = tuple((kind, context.unit_key.hashed(kind, unit)) for kind, unit in units)
    return Outcome(
        None if name is None else outcome_id(context.project, name),
        item.event,
        units,
        item.value,
        item.at,
        _kept(item.attributes, context.recorded_attributes) if item.attributes else None,
    )


def _kept(attributes: dict[str, Any], recorded: frozenset[str]) -> dict[str, Any] | None:
    return {name: value for name, value in attributes.items() if name in recorded} or None


def outcome_id(project: str, name: str) -> RecordId:
    """A client's id of an outcome, as 128 bits that are unique in all projects."""
    return hashlib.blake2b(f"{project}\0{name}".encode(), digest_size=16).digest()
