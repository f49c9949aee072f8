"""Outcomes as services send them: read item by item, so that a bad one never costs a good one."""

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import Meta

from experiments import paths
from experiments.decoding import decode
from experiments.doors import NOT_JSON, malformed, parse_json
from experiments.json_data import clean
from experiments.model import EventName, Key
from experiments.problems import FieldProblem, ProblemError, invalid
from router.assign import unit_problem
from router.records import OutcomeRecord

MAX_ITEMS: Final = 10_000
MAX_AHEAD: Final = timedelta(minutes=5)
MAX_AGE: Final = timedelta(days=7)
LARGEST_VALUE: Final = 1e30
"""So that sums of values, and of their squares, stay finite however many there are."""
Unit = Annotated[str, Meta(min_length=1, description="a unit's id: 1 to 256 bytes of UTF-8")]
NDJSON: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")


class OutcomeItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One outcome in the body of `POST /v1/outcomes`."""

    event: EventName
    id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    unit: Unit | None = None
    units: Annotated[dict[Key, Unit], Meta(min_length=1, max_length=8)] | None = None
    value: float | None = None
    at: Annotated[datetime, Meta(tz=True)] | None = None
    attributes: Annotated[dict[str, Any], Meta(max_length=64)] | None = None


class ItemError(msgspec.Struct, frozen=True):
    """Why an item of a batch was refused."""

    index: int
    type: str
    path: str
    detail: str


class Context(msgspec.Struct, frozen=True):
    """What reading an item needs to know: whose it is, and when it came."""

    project: str
    default_unit_type: str
    recorded_attributes: frozenset[str]
    now: datetime
    idempotency_key: str | None = None


class Batch(msgspec.Struct, frozen=True):
    """A batch as read: the good items as records, the bad ones as errors."""

    records: list[OutcomeRecord]
    errors: list[ItemError]


_items: msgspec.json.Decoder[list[OutcomeItem]] = msgspec.json.Decoder(list[OutcomeItem])


def read_batch(body: bytes, content_type: str, context: Context) -> Batch:
    """The outcomes in a body: one object, a list, or NDJSON.

    Raises:
        ProblemError: `malformed` where the body is no JSON, `too-large` with more than
            `MAX_ITEMS`, `invalid` where the body is a single outcome and that one is wrong.
    """
    if content_type.split(";", maxsplit=1)[0].strip().lower() in NDJSON:
        return _collect(_read_items(filter(bytes.strip, body.split(b"\n"))), context)
    if body.lstrip()[:1] != b"[":
        batch = _collect(iter([(0, parse_json(body))]), context)
        if batch.errors:
            raise invalid([FieldProblem(e.path, e.type, e.detail) for e in batch.errors])
        return batch
    try:
        items = _items.decode(body)
    except (msgspec.ValidationError, RecursionError):
        return _collect(_read_items(_split_list(body)), context)
    except NOT_JSON as error:
        raise malformed(error) from error
    return _collect(enumerate(items), context)


def _split_list(body: bytes) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=list[msgspec.Raw])
    except NOT_JSON as error:
        raise malformed(error) from error


def _read_items(texts: Iterable[bytes | msgspec.Raw]) -> Iterator[tuple[int, Any]]:
    for index, text in enumerate(texts):
        try:
            yield index, msgspec.json.decode(text)
        except NOT_JSON as error:
            yield index, _Unreadable(str(error))


class _Unreadable(msgspec.Struct, frozen=True):
    detail: str


def _collect(items: Iterator[tuple[int, Any]], context: Context) -> Batch:
    records: list[OutcomeRecord] = []
    errors: list[ItemError] = []
    for index, item in items:
        if index >= MAX_ITEMS:
            raise ProblemError("too-large", f"A batch may have at most {MAX_ITEMS} items")
        problems, record = _read_item(index, item, context)
        if record is not None:
            records.append(record)
        errors.extend(ItemError(index, p.type, p.path, p.detail) for p in problems)
    return Batch(records, errors)


def _read_item(
    index: int, item: Any, context: Context
) -> tuple[list[FieldProblem], OutcomeRecord | None]:
    if isinstance(item, _Unreadable):
        return [FieldProblem("$", "malformed", f"the item cannot be read: {item.detail}")], None
    problems: list[FieldProblem] = []
    if not isinstance(item, OutcomeItem):
        decoded = decode(OutcomeItem, item)
        if decoded.problems:
            return list(decoded.problems), None
        item = decoded.value
    elif item.attributes:
        problems += clean({"attributes": item.attributes}).problems
    problems += _check(item, context.now)
    if problems:
        return problems, None
    return [], _record(index, item, context)


def _check(item: OutcomeItem, now: datetime) -> Iterator[FieldProblem]:
    if (item.unit is None) == (item.units is None):
        kind = "missing" if item.unit is None else "conflict"
        yield FieldProblem("unit", kind, "give either `unit` or `units`")
    named = {paths.field("units", kind): unit for kind, unit in (item.units or {}).items()}
    if item.unit is not None:
        named["unit"] = item.unit
    for path, unit in named.items():
        detail = unit_problem(unit)
        if detail is not None:
            yield FieldProblem(path, "value", detail)
    if item.value is not None and not abs(item.value) <= LARGEST_VALUE:
        detail = f"must be from {-LARGEST_VALUE:g} to {LARGEST_VALUE:g}"
        yield FieldProblem("value", "value", detail)
    if item.at is not None:
        if item.at > now + MAX_AHEAD:
            yield FieldProblem("at", "value", "must be at most 5 minutes ahead of our clock")
        elif item.at < now - MAX_AGE:
            yield FieldProblem("at", "value", "must be at most 7 days old")
    if item.id is not None and "\0" in item.id:
        yield FieldProblem("id", "value", "must not contain U+0000")


def _record(index: int, item: OutcomeItem, context: Context) -> OutcomeRecord:
    name = item.id
    if name is None and context.idempotency_key is not None:
        name = f"{context.idempotency_key}\0{index}"
    units = item.units or {context.default_unit_type: item.unit or ""}
    kept = {
        key: value
        for key, value in (item.attributes or {}).items()
        if key in context.recorded_attributes
    }
    return OutcomeRecord(
        id=None if name is None else outcome_id(context.project, name),
        project=context.project,
        event=item.event,
        units=tuple(units.items()),
        value=item.value,
        at=item.at or context.now,
        received_at=context.now,
        attributes=kept or None,
    )


def outcome_id(project: str, name: str) -> UUID:
    """A client's id of an outcome, as 128 bits that are unique in all projects."""
    text = f"{project}\0{name}".encode()
    return UUID(bytes=hashlib.blake2b(text, digest_size=16).digest())
