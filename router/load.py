"""From the payloads of a segment to the rows of Postgres."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime

import msgspec

from router.records import ExposureRecord, RecordId, SuspectRecord, decode
from router.rows import exposure_row, outcome_rows

_RECORDS_A_TURN = 250


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record to store: its rows stand or fall together."""

    ordinal: int
    payload: bytes
    rows: Sequence[bytes]
    id: RecordId | None = None


class Letter(msgspec.Struct, frozen=True):
    """A record that cannot be stored, and why."""

    ordinal: int
    payload: bytes
    reason: str


class Load(msgspec.Struct, frozen=True):
    """What a segment of so many records brings."""

    records: int
    exposures: list[Entry]
    outcomes: list[Entry]
    letters: list[Letter]
    ids: list[RecordId]
    """The outcomes' ids, each once, in order: those who take them in one order cannot deadlock."""
    duplicates: int
    """Outcomes left out, since an earlier one of the segment has their id."""
    received: list[datetime]
    """When the records were received: each time once, in order."""
    projects: set[str]
    """Whose the records are."""
    plain: set[str]
    """Those of the projects that have records whose units are as they were sent."""

    @property
    def received_between(self) -> tuple[datetime | None, datetime | None]:
        """When the first and the last of the records were received; nothing if there are none."""
        return (self.received[0], self.received[-1]) if self.received else (None, None)

    @property
    def days(self) -> list[date]:
        """The days (UTC) of receipt, whose partitions must be there."""
        return sorted({at.astimezone(UTC).date() for at in self.received})


async def prepare(payloads: Sequence[bytes]) -> Load:
    """Decode a segment's records and make their rows; what has a flaw becomes a letter.

    The event loop gets its turns. A thread would hold it up for longer: whoever of the two
    has the interpreter keeps it for a while, again and again.
    """
    exposures: list[Entry] = []
    outcomes: list[Entry] = []
    letters: list[Letter] = []
    ids: set[RecordId] = set()
    duplicates = 0
    received: set[datetime] = set()
    last: datetime | None = None
    projects: dict[bool, set[str]] = {False: set(), True: set()}
    for ordinal, payload in enumerate(payloads):
        if ordinal % _RECORDS_A_TURN == _RECORDS_A_TURN - 1:
            await asyncio.sleep(0)
        try:
            record = decode(payload)
            projects[record.hashed].add(record.project)
            if isinstance(record, ExposureRecord):
                exposures.append(Entry(ordinal, payload, (exposure_row(record),)))
            elif isinstance(record, SuspectRecord):
                letters.append(Letter(ordinal, payload, record.reason))
                continue
            else:
                rows = outcome_rows(ordinal, record)
                if record.id in ids:
                    duplicates += 1
                    continue
                if record.id is not None:
                    ids.add(record.id)
                outcomes.append(Entry(ordinal, payload, rows, record.id))
        except Exception as error:  # whatever is wrong with one record must not block the rest
            letters.append(Letter(ordinal, payload, f"{type(error).__name__}: {error}"))
            continue
        if record.received_at != last:  # hashing every one would cost more
            last = record.received_at
            received.add(last)
    return Load(
        len(payloads),
        exposures,
        outcomes,
        letters,
        sorted(ids),
        duplicates,
        sorted(received),
        projects[False] | projects[True],
        projects[False],
    )
