"""Recording: what is answered only once it is on disk."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence, Set
from datetime import datetime
from functools import partial
from typing import TypeAlias

import msgspec

from experiments.problems import ProblemError
from router.assign import exposures
from router.evaluation import Evaluation
from router.journal import Journal, JournalError, JournalFullError
from router.metrics import RouterMetrics
from router.outcomes import Batch, Outcome
from router.recent import RecentIds
from router.records import (
    ExposureForm,
    ExposureRecord,
    OutcomeRecord,
    Record,
    RecordId,
    SuspectRecord,
    encode,
    encode_times,
)
from router.snapshot import Entry

RETRY_AFTER_SECONDS = 5
logger = logging.getLogger(__name__)


class Receipt(msgspec.Struct, frozen=True):
    """What became of a batch of outcomes."""

    accepted: int
    duplicates: int


_Waiting: TypeAlias = tuple[Entry, Callable[[bool], None]]


class Recorder:
    """The seam between the doors and the journal."""

    def __init__(self, journal: Journal, metrics: RouterMetrics) -> None:
        self._journal = journal
        self._metrics = metrics
        self._exposures = RecentIds()
        self._outcomes = RecentIds()
        self._refused = False
        self._soon: list[tuple[Evaluation, Callable[[bool], None]]] = []

    def expose_soon(self, asked: Evaluation, settle: Callable[[bool], None]) -> None:
        """Put the exposures of an evaluation on disk, with those of all others of this turn of the
        event loop: what costs the same for one and for many is done once. `settle` is told whether
        they are there, and never before this returns.

        A repeat of an exposure that is on disk is not written again: it is the same exposure. (But
        after an erasure of the project all are, for one of them may have been erased.) They get
        their time when the journal takes them, as `Shipper` demands.
        """
        if not self._soon:
            asyncio.get_running_loop().call_soon(self._expose_all)
        self._soon.append((asked, settle))

    async def expose(self, asked: Evaluation) -> bool:
        """`expose_soon` for who can wait."""
        known: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def settle(recorded: bool) -> None:
            if not known.done():  # whoever waited may have gone
                known.set_result(recorded)

        self.expose_soon(asked, settle)
        return await known

    async def expose_many(
        self, records: Sequence[ExposureRecord], entry: Entry, erasures: int
    ) -> bool:
        """Put exposures on disk: whether all of them are there.

        Args:
            records: made in this turn of the event loop.
            erasures: how many the project had.
        """
        tail = erasures.to_bytes(8)
        fresh = {
            known_as: record
            for record in records
            if (known_as := record.id + tail) not in self._exposures
        }
        if not fresh:
            return True
        try:
            await self._journal.append(list(fresh.values()))
        except (JournalError, ValueError, OverflowError) as error:
            self._unrecorded(entry, error)
            return False
        self._refused = False
        self._exposures.add(fresh.keys())
        return True

    def _expose_all(self) -> None:
        waiting, self._soon = self._soon, []
        now = self._journal.now()
        times = encode_times(now)
        made: list[tuple[Entry, Callable[[bool], None], dict[bytes, bytes]]] = []
        for asked, settle in waiting:
            try:
                made.append((asked.entry, settle, _payloads(asked, now, times)))
            except Exception as error:  # it cannot be written down; the others can
                self._unrecorded(asked.entry, error)
                _tell(settle, False)
        repeats = self._exposures.among({known_as for _, _, some in made for known_as in some})
        fresh: dict[bytes, bytes] = {}
        later: list[_Waiting] = []
        for entry, settle, payloads in made:
            if repeats.issuperset(payloads):
                _tell(settle, True)
            else:
                later.append((entry, settle))
                fresh.update(payloads)
        for known_as in repeats:
            fresh.pop(known_as, None)
        if fresh:
            try:
                self._journal.put(fresh.values(), partial(self._exposed, fresh.keys(), later))
            except Exception as error:  # full, closed, or a defect: all have to hear of it
                self._exposed(frozenset(), later, error)

    def _exposed(
        self, fresh: Set[bytes], waiting: Sequence[_Waiting], error: Exception | None
    ) -> None:
        if error is None:
            self._refused = False
            self._exposures.add(fresh)
        for entry, settle in waiting:
            if error is not None:
                self._unrecorded(entry, error)
            _tell(settle, error is None)

    def _unrecorded(self, entry: Entry, error: Exception) -> None:
        self._metrics.unrecorded.add(entry.project, entry.key)
        if not self._refused:  # once: a line for each request would be a flood
            logger.warning("exposures are not recorded", extra={"error": error})
        self._refused = True

    async def take_in(
        self, exposures: Sequence[ExposureRecord], suspects: Sequence[SuspectRecord], erasures: int
    ) -> frozenset[RecordId]:
        """Put exposures that were evaluated elsewhere on disk, and the suspects to be set aside;
        the ids of those exposures that were there before.

        Args:
            exposures: with `received_at` of this turn of the event loop, as are the suspects.
            erasures: as for `submit`.

        Raises:
            ProblemError: `journal-full` or `unavailable`; then none of them was taken.
        """
        tail = erasures.to_bytes(8)
        named = {record.id + tail: record for record in reversed(exposures)}  # the first of each
        doubted = {_suspect_id(suspect) + tail: suspect for suspect in suspects}
        known = self._exposures.among({*named, *doubted})
        fresh: list[Record] = [
            *(record for known_as, record in named.items() if known_as not in known),
            *(record for known_as, record in doubted.items() if known_as not in known),
        ]
        if fresh:
            await self._append(fresh)
        self._exposures.add(named.keys() | doubted.keys())
        return frozenset(named[known_as].id for known_as in known if known_as in named)

    async def accept(self, project: str, batch: Batch, received_at: datetime) -> Receipt:
        """Put the outcomes of a batch on disk, each id once.

        Args:
            received_at: the time of this turn of the event loop, as `Shipper` demands.

        Raises:
            ProblemError: `journal-full` or `unavailable`; then none of the batch was accepted.
        """
        ids = {outcome.id for outcome in batch.outcomes if outcome.id is not None}
        fresh = _first_of_each(batch.outcomes, self._outcomes.among(ids))
        if fresh:
            await self._append(
                [_record(project, outcome, received_at, batch.hashed) for outcome in fresh]
            )
        self._outcomes.add(ids)
        duplicates = len(batch.outcomes) - len(fresh)
        for result, count in (
            ("accepted", len(fresh)),
            ("duplicate", duplicates),
            ("refused", len(batch.errors)),
        ):
            self._metrics.outcomes.add(project, result, count=count)
        return Receipt(len(fresh), duplicates)

    async def _append(self, records: Sequence[Record]) -> None:
        retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        try:
            await self._journal.append(records)
        except JournalFullError as error:
            raise ProblemError("journal-full", str(error), headers=retry) from error
        except JournalError as error:
            raise ProblemError("unavailable", str(error), headers=retry) from error


def _payloads(asked: Evaluation, now: datetime, times: bytes) -> dict[bytes, bytes]:
    """The exposures of an evaluation as the journal keeps them, by what they are known by."""
    project, entry, answer = asked.project, asked.entry, asked.answer
    tail = project.erasures.to_bytes(8)
    if (
        answer.held is None
        and answer.epoch == entry.epoch
        and project.unit_key is None
        and not (entry.recorded_attributes and asked.attributes)
    ):
        form = _form(entry, answer.arm.key)
        record_id = form.id(asked.unit)
        return {record_id + tail: form.encode(record_id, asked.unit, times)}
    records = exposures(project, entry, answer, asked.unit, asked.attributes, now)
    return {record.id + tail: encode(record) for record in records}


def _form(entry: Entry, variant: str) -> ExposureForm:
    form = entry.forms.get(variant)
    if form is None:
        form = entry.forms[variant] = ExposureForm(
            entry.project, entry.experiment, entry.run, entry.epoch, variant, entry.unit_type
        )
    return form


def _tell(settle: Callable[[bool], None], recorded: bool) -> None:
    try:
        settle(recorded)
    except Exception:  # the others have to hear of theirs
        logger.exception("a defect in what waited for an exposure")


def _suspect_id(suspect: SuspectRecord) -> RecordId:
    """The same for every repeat of a suspect."""
    name = msgspec.json.encode(msgspec.structs.astuple(suspect)[:6])
    return hashlib.blake2b(name, digest_size=16).digest()


def _first_of_each(outcomes: Sequence[Outcome], known: set[RecordId]) -> list[Outcome]:
    """The outcomes without those whose ids are known, or came with an earlier one of them."""
    seen = set(known)
    fresh: list[Outcome] = []
    for outcome in outcomes:
        if outcome.id is not None:
            if outcome.id in seen:
                continue
            seen.add(outcome.id)
        fresh.append(outcome)
    return fresh


def _record(project: str, outcome: Outcome, received_at: datetime, hashed: bool) -> OutcomeRecord:
    return OutcomeRecord(
        outcome.id,
        project,
        outcome.event,
        outcome.units,
        outcome.value,
        outcome.at or received_at,
        received_at,
        outcome.attributes,
        hashed,
    )
