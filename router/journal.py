"""The journal: what a router has acknowledged, on its own disk, until Postgres has it.

A process opens a journal of its own, in a new folder. It adopts those that dead ones left, to ship
them; `segments` says why it does not append to them.

Group commit: one thread writes and syncs; whatever arrives while it does is written together by the
next. The event loop owns all state but the files, and never waits for the disk.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypedDict, Unpack
from uuid import UUID, uuid4

import msgspec

from router.frames import frame
from router.records import Record, encode
from router.segments import (
    OS_DISK,
    Disk,
    JournalError,
    JournalLockedError,
    Segment,
    SegmentFolder,
    read_segment,
)
from router.writer import Writer

__all__ = [
    "DEFAULT_LIMITS",
    "OS_DISK",
    "Disk",
    "Durability",
    "Journal",
    "JournalClosedError",
    "JournalError",
    "JournalFullError",
    "JournalLockedError",
    "JournalWriteError",
    "Limits",
    "Segment",
]

logger = logging.getLogger(__name__)

Durability: TypeAlias = Literal["synced", "written"]

_MIB = 1024 * 1024
_SYNC_SECONDS = 2.0
"""After so long a sealed segment that is only `written` is synced, if Postgres lacks it still. Most
are gone by then: to sync each would hold up the writes to the next, and keep nothing."""
_ATTEMPTS = 5


class JournalFullError(JournalError):
    """There is no room for more; it comes back when segments were shipped."""


class JournalWriteError(JournalError):
    """The disk refused: nothing that waited for this write is kept."""


class JournalClosedError(JournalError):
    """The journal is closed."""


class Limits(msgspec.Struct, frozen=True):
    """How much a journal holds. Each may be exceeded by one append.

    A segment is shipped whole, from memory, in one transaction: a larger one takes longer, and
    commits less often.
    """

    segment_bytes: int = 4 * _MIB
    unshipped_bytes: int = 1024 * _MIB
    waiting_bytes: int = 64 * _MIB


DEFAULT_LIMITS = Limits()


class Options(TypedDict, total=False):
    """What may be said of a new journal: see `Journal.open`."""

    durability: Durability
    limits: Limits
    beside: Callable[[], int]


Settle: TypeAlias = Callable[[JournalWriteError | None], None]
"""Told once what became of records: on disk (or written), or not kept and why."""


class _Entry(msgspec.Struct, frozen=True):
    """Frames that wait to be written, or a wish to seal the segment after what came before."""

    data: bytes
    at: datetime
    settle: Settle
    seals: bool = False


class _Stored(msgspec.Struct, frozen=True):
    """What the thread tells the event loop after a write."""

    batch: list[_Entry]
    sealed: list[Segment]
    size: int
    begun_at: datetime | None
    write_error: Exception | None = None
    seal_error: Exception | None = None


class Journal:
    """An append-only log in a folder of its own, held by one process, used by one event loop."""

    def __init__(
        self,
        files: SegmentFolder,
        clock: Callable[[], datetime],
        limits: Limits,
        beside: Callable[[], int],
    ) -> None:
        """Use `open`, `begin` or `adopt`."""
        self._files = files
        self._clock = clock
        self._limits = limits
        self._beside = beside
        self._sealed = {segment.number: segment for segment in files.take_sealed()}
        self._sealed_bytes = sum(segment.size for segment in self._sealed.values())
        self._active_bytes = files.size
        self._active_begun_at = files.begun_at
        self._damaged = files.damaged
        self._failures = 0
        self._refusal: str | None = None
        self._queue: deque[_Entry] = deque()
        self._waiting_bytes = 0
        self._busy = False
        self._called = False
        self._closing = False
        self._written = asyncio.Event()
        self._writer = Writer()
        self._timers: deque[asyncio.TimerHandle] = deque()
        self._beside_writes: set[asyncio.Future[None]] = set()

    @classmethod
    async def open(
        cls,
        folder: Path,
        clock: Callable[[], datetime],
        *,
        durability: Durability = "synced",
        limits: Limits = DEFAULT_LIMITS,
        beside: Callable[[], int] = int,
        new_id: Callable[[], UUID] = uuid4,
        disk: Disk = OS_DISK,
    ) -> Self:
        """Make a journal in a new folder.

        Args:
            beside: the bytes of other journals that wait on the same disk; they count as this
                one's do towards the limit of what is not shipped.

        Raises:
            JournalLockedError: if another process came in between.
            JournalError: if the folder is the journal of another life.
            OSError: if it cannot be used.
        """
        make = partial(
            SegmentFolder.make, folder, synced=durability == "synced", disk=disk, new_id=new_id
        )
        return await cls._on(make, clock, limits, beside)

    @classmethod
    async def begin(
        cls, journals: Path, clock: Callable[[], datetime], **options: Unpack[Options]
    ) -> Self:
        """`open` a journal in a folder that has a name of its own among others.

        Raises:
            JournalError, OSError: as `open`.
        """
        for _ in range(_ATTEMPTS - 1):
            # Who looks for orphans may take a new folder for one before its lock is taken.
            with contextlib.suppress(JournalLockedError, FileNotFoundError):
                return await cls.open(journals / uuid4().hex, clock, **options)
        return await cls.open(journals / uuid4().hex, clock, **options)

    @classmethod
    async def adopt(
        cls, folder: Path, clock: Callable[[], datetime], new_id: Callable[[], UUID] = uuid4
    ) -> Self:
        """Take a journal that somebody left, and recover what a crash left in it. It can be shipped
        and takes nothing.

        Raises:
            JournalLockedError: if a process holds the folder.
            JournalError: if it is not a journal's.
            OSError: if it cannot be used.
        """
        return await cls._on(
            partial(SegmentFolder.adopt, folder, new_id), clock, DEFAULT_LIMITS, int
        )

    @classmethod
    async def _on(
        cls,
        take: Callable[[], SegmentFolder],
        clock: Callable[[], datetime],
        limits: Limits,
        beside: Callable[[], int],
    ) -> Self:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        taking = asyncio.get_running_loop().run_in_executor(thread, take)
        try:
            files = await asyncio.shield(taking)
        except BaseException:
            # Who was cancelled leaves the thread at work, and the lock to nobody.
            taking.add_done_callback(_let_go)
            raise
        finally:
            thread.shutdown(wait=False)
        return cls(files, clock, limits, beside)

    @property
    def id(self) -> UUID:
        """The journal's own name, kept in its folder."""
        return self._files.id

    @property
    def limit(self) -> int:
        """Bytes at which it is full, together with what is beside it on the same disk."""
        return self._limits.unshipped_bytes

    @property
    def depth(self) -> int:
        """Bytes that Postgres does not have yet."""
        return self._sealed_bytes + self._active_bytes + self._waiting_bytes

    @property
    def oldest_at(self) -> datetime | None:
        """When the oldest record came that Postgres does not have; None if it has all."""
        known = (segment.begun_at for segment in self._sealed.values())
        return next((at for at in known if at is not None), self._active_begun_at)

    @property
    def full(self) -> bool:
        """Whether `append` refuses for want of room."""
        return (
            self.depth + self._beside() >= self._limits.unshipped_bytes
            or self._waiting_bytes >= self._limits.waiting_bytes
        )

    @property
    def failures(self) -> int:
        """Writes and syncs that failed since the start."""
        return self._failures

    @property
    def refusal(self) -> str | None:
        """Why the disk refused, if the last that was to be written was not; None if it was."""
        return self._refusal

    @property
    def torn(self) -> int:
        """Ends of writes that never finished, cut off when it was adopted: 0 or 1."""
        return self._files.torn

    @property
    def damaged(self) -> int:
        """Damaged places that were found, and set aside, since the start."""
        return self._damaged

    def append(self, records: Sequence[Record]) -> asyncio.Future[None]:
        """Queue records; the future is done when all of them are on disk (or written).

        They are queued before this returns, so a `rotate` that begins later covers them.

        Raises:
            JournalFullError: if there is no room; nothing is queued.
            JournalClosedError: if the journal is closed.
            ValueError: if a record cannot be written down, as with a lone surrogate in a text.
            (from the future) JournalWriteError: if the disk refused; none of them is kept.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.put([encode(record) for record in records], partial(_settle, done))
        return done

    def put(self, payloads: Iterable[bytes], settle: Settle) -> None:
        """`append` for who has records encoded already, and a callback instead of a future. That is
        called in the event loop, and never before this returns.

        Raises:
            JournalFullError, JournalClosedError, ValueError: as `append`; then nothing is queued,
                and `settle` is not called.
        """
        if self._closing or not self._files.appends:
            raise JournalClosedError("the journal is closed")
        if self.full:
            raise JournalFullError(
                f"the journal is full: {self.depth} bytes are not shipped, of which"
                f" {self._waiting_bytes} wait to be written"
            )
        self._enqueue(b"".join([frame(payload) for payload in payloads]), settle)

    def now(self) -> datetime:
        """The time by the journal's clock."""
        return self._clock()

    async def rotate(self) -> None:
        """Wait until all that was appended before this call is in sealed segments.

        Raises:
            JournalWriteError: if the disk refused.
            JournalClosedError: if the journal is closed.
        """
        if self._closing:
            raise JournalClosedError("the journal is closed")
        if self._queue or self._busy or self._active_bytes:
            await self._seal()

    def sealed(self) -> list[Segment]:
        """The segments that wait to be shipped, in the order of their numbers."""
        return list(self._sealed.values())

    async def read(self, segment: Segment) -> list[bytes]:
        """The records of a sealed segment, as `records.decode` takes them, by their ordinals.

        What is damaged is set aside and reported; the rest is given.

        Raises:
            OSError: if the file cannot be read.
        """
        payloads, damaged = await read_segment(segment.path)
        self._damaged += damaged
        return payloads

    async def remove(self, segment: Segment) -> None:
        """Remove a sealed segment, since Postgres has it.

        The folder is not synced: after a power cut the segment may be back, and is shipped again,
        which Postgres notices by its number.

        Raises:
            OSError: if the file cannot be removed.
        """
        # First, so that whoever cancels this does not leave a segment without its file.
        if self._sealed.pop(segment.number, None) is not None:
            self._sealed_bytes -= segment.size
        await asyncio.to_thread(segment.path.unlink, missing_ok=True)

    async def close(self, *, clear: bool = False) -> None:
        """Write and seal what waits, end the thread and give the folder free.

        Args:
            clear: remove the folder, if all was shipped and nothing was set aside.
        """
        if self._closing:
            return
        self._closing = True
        sealed = self._seal()
        try:
            await self._written.wait()
            if not self._files.synced:
                for segment in self.sealed():
                    self._do_beside(partial(self._sync, segment))
            await asyncio.gather(*self._beside_writes)
            with contextlib.suppress(JournalWriteError):  # it is logged; who adopts it recovers
                await sealed
            if clear:
                with contextlib.suppress(OSError):  # an empty folder is cleared by the next look
                    await asyncio.to_thread(self._files.clear)
        finally:
            for timer in self._timers:
                timer.cancel()
            self._writer.stop()
            self._files.close()

    def _seal(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._enqueue(b"", partial(_settle, done), seals=True)
        return done

    def _enqueue(self, data: bytes, settle: Settle, *, seals: bool = False) -> None:
        self._queue.append(_Entry(data, self._clock(), settle, seals))
        self._waiting_bytes += len(data)
        if not self._busy and not self._called:
            # Soon, and not now: what comes in this turn of the event loop is one write.
            self._called = True
            asyncio.get_running_loop().call_soon(self._write_next)

    def _write_next(self) -> None:
        """Give the thread what waits, unless it is at work: all that comes meanwhile is next."""
        self._called = False
        if not self._busy and self._queue:
            self._busy = True
            self._writer.do(partial(self._store, self._take()), self._stored)

    def _take(self) -> list[_Entry]:
        """What the next write takes: all that waits, up to a segment's size or a wish to seal."""
        batch: list[_Entry] = []
        size = 0
        while self._queue and size < self._limits.segment_bytes:
            entry = self._queue.popleft()
            batch.append(entry)
            size += len(entry.data)
            if entry.seals:
                break
        return batch

    def _stored(self, stored: _Stored) -> None:
        """In the event loop: take in what the thread tells, and tell all who waited for it."""
        batch = stored.batch
        self._busy = False
        self._waiting_bytes -= sum(len(entry.data) for entry in batch)
        for segment in stored.sealed:
            self._sealed[segment.number] = segment
            self._sealed_bytes += segment.size
            # What takes the disk's time is done beside the writes, and only if it has to be.
            if not self._files.synced:
                loop = asyncio.get_running_loop()
                self._timers.append(loop.call_later(_SYNC_SECONDS, self._sync_soon, segment))
            elif not self._closing:
                self._do_beside(self._files.make_ahead)
        self._active_bytes = stored.size
        self._active_begun_at = stored.begun_at
        if any(entry.data for entry in batch):
            self._refusal = None
        for error in (stored.write_error, stored.seal_error):
            if error is not None:
                self._failures += 1
                self._refusal = str(error)
                logger.error(
                    "journal write failed", extra={"journal": str(self.id), "error": str(error)}
                )
        for entry in batch:
            error = stored.seal_error if entry.seals else stored.write_error
            try:
                entry.settle(None if error is None else _write_error(error))
            except Exception:  # the others have to hear of theirs
                logger.exception("a defect in what waited for the journal")
        self._write_next()
        if self._closing and not self._busy:
            self._written.set()

    def _sync_soon(self, segment: Segment) -> None:
        """Have a segment on disk that Postgres does not have yet."""
        while self._timers and self._timers[0].when() <= asyncio.get_running_loop().time():
            self._timers.popleft()
        if segment.number in self._sealed:
            self._do_beside(partial(self._sync, segment))

    def _do_beside(self, work: Callable[[], None]) -> None:
        """Do something in a thread that no write waits for."""
        doing = asyncio.get_running_loop().run_in_executor(None, work)
        self._beside_writes.add(doing)
        doing.add_done_callback(self._beside_writes.discard)

    def _sync(self, segment: Segment) -> None:
        try:
            self._files.sync(segment)
        except FileNotFoundError:
            pass  # Postgres has it already
        except OSError as error:
            logger.error("segment not synced", extra={"journal": str(self.id), "error": str(error)})

    def _store(self, batch: list[_Entry]) -> _Stored:
        """In the thread: write, sync, and seal if that is due.

        Every kind of error is handed over: whoever waits must hear of it.
        """
        files = self._files
        write_error: Exception | None = None
        seal_error: Exception | None = None
        data = b"".join([entry.data for entry in batch])
        if data:
            try:
                files.write(data, batch[0].at)
            except Exception as error:
                write_error = error
        if batch[-1].seals or files.size >= self._limits.segment_bytes:
            try:
                files.seal()
            except Exception as error:
                seal_error = error
        return _Stored(
            batch, files.take_sealed(), files.size, files.begun_at, write_error, seal_error
        )


def _let_go(taking: asyncio.Future[SegmentFolder]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        taking.result().close()


def _write_error(error: Exception) -> JournalWriteError:
    # One exception for each who waits: a shared one would collect the tracebacks of all.
    failure = JournalWriteError(f"the journal could not write: {error}")
    failure.__cause__ = error
    return failure


def _settle(done: asyncio.Future[None], error: JournalWriteError | None) -> None:
    if done.done():  # whoever waited has gone
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
