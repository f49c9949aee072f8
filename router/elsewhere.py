"""Exposures that were evaluated elsewhere: read item by item, and each computed again.

A local evaluator says which variant a unit met, and under which epoch. An epoch pins all that
assignment reads, so what is said can be held against it. What is true is recorded like an exposure
of our own, under the same id; what is not is set aside; and a unit that only met the default answer
is no part of the experiment, so there is nothing to record.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from experiments.decoding import decode
from experiments.model import Key
from experiments.past import Moment
from experiments.problems import FieldProblem
from experiments.units import UnitId, unit_problem
from router.assign import Assignment, assign, attribute_problems, exposures
from router.epochs import AT_ONCE, Bygone, Epochs
from router.items import (
    ITEMS_A_TURN,
    MAX_AHEAD,
    ItemError,
    Read,
    Reading,
    Text,
    read_items,
    time_problems,
)
from router.records import ExposureRecord, SuspectRecord
from router.snapshot import Entry, ProjectSnapshot

MOST_EPOCHS: Final = 2**31 - 1

Verdict: TypeAlias = Literal["enrolled", "not_enrolled", "mismatch"]
"""What a reported exposure is: true; the default answer of a unit that takes no part; or wrong."""


class ExposureItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One exposure in the body of `POST /v1/exposures`.

    `attributes` are those that the evaluator had: what targeting reads of them must be there.
    """

    experiment: Key
    unit: UnitId
    epoch: Annotated[int, Meta(ge=1, le=MOST_EPOCHS)]
    variant: Key
    at: Annotated[datetime, Meta(tz=True)] | None = None
    attributes: Annotated[dict[str, Any], Meta(max_length=64)] | None = None

    @property
    def moment(self) -> Moment:
        """The epoch that it names."""
        return self.experiment, self.epoch


class Suspect(msgspec.Struct, frozen=True):
    """An item that its epoch contradicts, and how."""

    item: ExposureItem
    unit_type: str
    reason: str


class Told(msgspec.Struct, frozen=True):
    """An item that its epoch bears out, as far as there is something to record: the unit is part of
    the experiment, or the holdout was asked whether it has the unit."""

    item: ExposureItem
    bygone: Bygone
    answer: Assignment


class Findings(msgspec.Struct, frozen=True):
    """What became of the good items of a batch."""

    told: list[Told]
    suspects: list[Suspect]
    not_enrolled: int
    errors: list[ItemError]


class Judgement(msgspec.Struct, frozen=True):
    """A verdict, with the answer that the epoch gives and, for a mismatch, the contradiction."""

    verdict: Verdict
    answer: Assignment
    reason: str = ""


# Reading

_item = msgspec.json.Decoder(ExposureItem)


async def read_exposures(body: bytes, content_type: str, now: datetime) -> Reading[ExposureItem]:
    """The exposures in a body: one object, a list, or NDJSON. The event loop gets its turns.

    Raises:
        ProblemError: as `read_items` does.
    """
    return await read_items(body, content_type, partial(_read, now))


def _read(now: datetime, _index: int, text: Text) -> Read[ExposureItem]:
    try:
        item = _item.decode(text)
    except msgspec.ValidationError:
        decoded = decode(ExposureItem, msgspec.json.decode(text))
        if decoded.problems:
            return None, [*decoded.problems]
        item = decoded.value
    problems = _problems(item, now)
    return (None, problems) if problems else (item, problems)


def _problems(item: ExposureItem, now: datetime) -> list[FieldProblem]:
    """What is wrong with an item whose fields are right one by one."""
    detail = unit_problem(item.unit)
    wrong = [] if detail is None else [FieldProblem("unit", "value", detail)]
    return wrong + time_problems(item.at, now)


# Judging


def judge(entry: Entry, item: ExposureItem) -> Judgement:
    """What an exposure is by the epoch that it names.

    Args:
        entry: the experiment in that epoch, with the overrides that are in force now. Whoever has
            one takes no part, whether the evaluator knew of it or not: that needs no record.
    """
    context = {**(item.attributes or {}), entry.unit_attribute: item.unit}
    answer = assign(entry, item.unit, context)
    if answer.reason == "override":
        slotted = assign(replace(entry, overrides=None), item.unit, context)
        if item.variant in {answer.arm.key, slotted.arm.key}:
            return Judgement("not_enrolled", answer)
    if item.variant != answer.arm.key:
        return Judgement("mismatch", answer, _contradiction(entry, answer, item.variant))
    return Judgement("enrolled" if answer.enrolled else "not_enrolled", answer)


def _contradiction(entry: Entry, answer: Assignment, variant: str) -> str:
    if all(arm.key != variant for arm in entry.arms):
        return f"mismatch: {entry.key} has no variant {variant!r}"
    return (
        f"mismatch: {variant!r} was reported; "
        f"epoch {entry.epoch} gives {answer.arm.key!r} ({answer.reason})"
    )


async def examine(
    project: ProjectSnapshot, items: Mapping[int, ExposureItem], epochs: Epochs
) -> Findings:
    """What becomes of the good items of a batch. The event loop gets its turns.

    An epoch is the snapshot's or comes from `epochs`; where nobody can tell of it now, the item is
    an error of the type `unavailable`, to be sent again: nothing is acknowledged and lost.
    """
    known, asked = _current(project, dict.fromkeys(item.moment for item in items.values()))
    bygone, untold = await epochs.of(project.project, asked)
    known |= {moment: _as_now(found, project) for moment, found in bygone.items()}
    findings = Findings([], [], 0, [])
    not_enrolled = 0
    for number, (index, item) in enumerate(items.items()):
        if number % ITEMS_A_TURN == ITEMS_A_TURN - 1:
            await asyncio.sleep(0)
        found = known.get(item.moment)
        if found is None:
            _note_missing(findings, index, item, project, item.moment in untold)
            continue
        problems = [
            *_too_early(found.entry, item),
            *attribute_problems(project, found.entry, item.attributes, "attributes"),
        ]
        if problems:
            findings.errors.extend(ItemError(index, p.type, p.path, p.detail) for p in problems)
            continue
        judgement = judge(found.entry, item)
        if judgement.verdict == "mismatch":
            findings.suspects.append(Suspect(item, found.entry.unit_type, judgement.reason))
            continue
        answer = judgement.answer
        not_enrolled += judgement.verdict == "not_enrolled"
        if answer.enrolled or answer.held is not None:
            findings.told.append(Told(item, found, answer))
    return replace(findings, not_enrolled=not_enrolled)


def _too_early(entry: Entry, item: ExposureItem) -> Iterator[FieldProblem]:
    """What is wrong with a time before the epoch; clocks may differ by what may lie ahead."""
    if item.at is not None and item.at < entry.since - MAX_AHEAD:
        detail = f"must not be before epoch {entry.epoch}, which began {entry.since.isoformat()}"
        yield FieldProblem("at", "conflict", detail)


def _current(
    project: ProjectSnapshot, moments: Iterable[Moment]
) -> tuple[dict[Moment, Bygone], list[Moment]]:
    """Those of these epochs that are in force; and the others."""
    known: dict[Moment, Bygone] = {}
    others: list[Moment] = []
    for moment in moments:
        key, epoch = moment
        entry = project.entries.get(key)
        if entry is not None and entry.epoch == epoch:
            known[moment] = Bygone(entry, project.holdout)
        else:
            others.append(moment)
    return known, others


def _as_now(found: Bygone, project: ProjectSnapshot) -> Bygone:
    """An epoch with the overrides that are in force now."""
    entry = project.entries.get(found.entry.key)
    if entry is None or entry.overrides is None:
        return found
    return Bygone(replace(found.entry, overrides=entry.overrides), found.holdout)


def _note_missing(
    findings: Findings, index: int, item: ExposureItem, project: ProjectSnapshot, untold: bool
) -> None:
    """What becomes of an item whose epoch is not known."""
    entry = project.entries.get(item.experiment)
    if untold:
        detail = (
            f"epoch {item.epoch} of {item.experiment!r} cannot be looked up now: send it again. "
            f"One batch may name {AT_ONCE} epochs that are not in force"
        )
        findings.errors.append(ItemError(index, "unavailable", "epoch", detail))
    elif entry is None:
        detail = f"no experiment {item.experiment!r} was started"
        findings.errors.append(ItemError(index, "reference", "experiment", detail))
    else:
        reason = f"mismatch: {item.experiment} has no epoch {item.epoch}"
        findings.suspects.append(Suspect(item, entry.unit_type, reason))


# Records


class Records(msgspec.Struct, frozen=True):
    """What is to be kept of a batch: the exposures in experiments, those in the holdout that go
    with them, and the suspects."""

    inside: list[ExposureRecord]
    beside: list[ExposureRecord]
    suspects: list[SuspectRecord]

    def as_of(self, received_at: datetime) -> "Records":
        """The same, as received in the turn of the event loop in which they are appended: so
        `Shipper` demands it."""
        return Records(
            [replace(record, received_at=received_at) for record in self.inside],
            [replace(record, received_at=received_at) for record in self.beside],
            [replace(record, received_at=received_at) for record in self.suspects],
        )


async def records_of(project: ProjectSnapshot, findings: Findings, now: datetime) -> Records:
    """The records of all that is to be kept; what does not say when it was happened now. The event
    loop gets its turns."""
    records = Records([], [], [])
    for number, told in enumerate(findings.told):
        if number % ITEMS_A_TURN == ITEMS_A_TURN - 1:
            await asyncio.sleep(0)
        item, entry = told.item, told.bygone.entry
        then = replace(project, holdout=told.bygone.holdout)
        for record in exposures(
            then, entry, told.answer, item.unit, item.attributes, item.at or now
        ):
            inside = record.experiment == entry.experiment
            (records.inside if inside else records.beside).append(record)
    for number, suspect in enumerate(findings.suspects):
        if number % ITEMS_A_TURN == ITEMS_A_TURN - 1:
            await asyncio.sleep(0)
        records.suspects.append(_suspect_record(project, suspect, now))
    return records


def _suspect_record(project: ProjectSnapshot, suspect: Suspect, now: datetime) -> SuspectRecord:
    item = suspect.item
    return SuspectRecord(
        project.project,
        item.experiment,
        item.epoch,
        item.variant,
        suspect.unit_type,
        project.stored(suspect.unit_type, item.unit),
        suspect.reason,
        item.at or now,
        now,
        project.unit_key is not None,
    )
