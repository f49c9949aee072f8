"""Recording: what is answered only once it is on disk."""

import logging
from uuid import UUID

import msgspec

from experiments.problems import ProblemError
from router.journal import Journal, JournalError, JournalFullError
from router.metrics import RouterMetrics
from router.outcomes import Batch
from router.recent import RecentIds
from router.records import ExposureRecord, OutcomeRecord

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

    async def expose(self, record: ExposureRecord, experiment_key: str) -> bool:
        """Put an exposure on disk; False where the journal cannot take it.

        A repeat of an exposure that is on disk is not written again: it is the same exposure.
        """
        if record.id in self._exposures:
            return True
        try:
            await self._journal.append([record])
        except JournalError as error:
            self._metrics.unrecorded.labels(record.project, experiment_key).inc()
            logger.warning("exposure not recorded", extra={"error": str(error)})
            return False
        self._exposures.add([record.id])
        return True

    async def accept(self, project: str, batch: Batch) -> Receipt:
        """Put the outcomes of a batch on disk, each id once.

        Raises:
            ProblemError: `journal-full` or `unavailable`; then none of the batch was accepted.
        """
        fresh: list[OutcomeRecord] = []
        ids: set[UUID] = set()
        for record in batch.records:
            if record.id is not None:
                if record.id in ids or record.id in self._outcomes:
                    continue
                ids.add(record.id)
            fresh.append(record)
        if fresh:
            await self._append(fresh)
        self._outcomes.add(ids)
        duplicates = len(batch.records) - len(fresh)
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
