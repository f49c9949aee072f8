"""Recording: what is answered only once it is on disk."""

import logging
from collections.abc import Sequence
from datetime import datetime

import msgspec

from experiments.problems import ProblemError
from router.journal import Journal, JournalError, JournalFullError
from router.metrics import RouterMetrics
from router.outcomes import Batch, Outcome
from router.recent import RecentIds
from router.records import ExposureRecord, OutcomeId, OutcomeRecord

RETRY_AFTER_SECONDS = 5
logger = logging.getLogger(__name__)


class Receipt(msgspec.Struct, frozen=True):
    """What became of a batch of outcomes."""

    accepted: int
    duplicates: int


class Recorder:
    """The seam between the doors and the journal."""

    def __init__(self, journal: Journal, metrics: RouterMetrics) -> None:
        self._journal = journal
        self._metrics = metrics
        self._exposures = RecentIds()
        self._outcomes = RecentIds()

    async def expose(self, record: ExposureRecord, experiment_key: str, erasures: int) -> bool:
        """Put an exposure on disk; False where the journal cannot take it.

        A repeat of an exposure that is on disk is not written again: it is the same exposure.

        Args:
            erasures: how many the project had. With each, all exposures of it that were on disk
                before are written again, for one of them may have been erased.
        """
        known_as = record.id.bytes + erasures.to_bytes(8)
        if known_as in self._exposures:
            return True
        try:
            await self._journal.append([record])
        except JournalError as error:
            self._metrics.unrecorded.labels(record.project, experiment_key).inc()
            logger.warning("exposure not recorded", extra={"error": str(error)})
            return False
        self._exposures.add({known_as})
        return True

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
            self._metrics.outcomes.labels(project, result).inc(count)
        return Receipt(len(fresh), duplicates)

    async def _append(self, records: list[OutcomeRecord]) -> None:
        retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        try:
            await self._journal.append(records)
        except JournalFullError as error:
            raise ProblemError("journal-full", str(error), headers=retry) from error
        except JournalError as error:
            raise ProblemError("unavailable", str(error), headers=retry) from error


def _first_of_each(outcomes: Sequence[Outcome], known: set[OutcomeId]) -> list[Outcome]:
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
