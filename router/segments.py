"""The files of a journal: one folder, held by one process, with numbered segments.

Everything here blocks and belongs to one thread at a time. There is always one active segment; it
is sealed by beginning the next, and only sealed ones are shipped and removed.

Who a segment is: Postgres takes a segment once, by the id of its journal and its number. So a pair
of these must never be given to other records than those it was given to first, whatever happens to
the folder: it may be copied, restored from an old backup, or stripped of its segments by hand, and
what it says of its past, be it the highest number or a mark of where it was, may be gone or old.
Nothing in a folder can prove that it is the latest state of itself. Therefore a folder is appended
to by the process that made it, and never again: each opening for appending makes a new folder with
a new random id, whose numbers begin at 1. What a dead process left is adopted: recovered, shipped
under the id and the numbers under which it was written, and removed. From this follows:

- A restored copy of what was shipped has the id and the numbers of what was shipped, so nothing is
  doubled; what it had not shipped goes in now.
- What is acknowledged after a restoration has an id that no copy knows, so nothing of it can be
  taken for something shipped before.
- A folder whose segments were deleted holds nothing, and is removed; no number begins anew in it.

A copy made while its process lives holds the beginning of the active segment. Whichever is shipped
first, the shipper takes from the other what is beyond the records that went in under that name.

The lock is on the folder itself and ends with its process, so who gets it knows that nobody writes.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Self
from uuid import UUID

import msgspec

from router import frames

logger = logging.getLogger(__name__)

_SUFFIX = ".segment"
_DRAFT = ".draft"
_TORN = ".torn"
_DAMAGED = ".damaged"
_ID = "id"


class JournalError(Exception):
    """The journal cannot do what was asked."""


class JournalLockedError(JournalError):
    """Another process holds the folder."""


class Disk(msgspec.Struct, frozen=True):
    """The two calls to the operating system on which durability rests."""

    write: Callable[[int, memoryview], int] = os.write
    sync: Callable[[int], None] = os.fdatasync


OS_DISK = Disk()


class Segment(msgspec.Struct, frozen=True):
    """A sealed segment: it is complete, and waits to be shipped."""

    number: int
    path: Path
    size: int
    begun_at: datetime | None
    """When its first record came; None if its header is damaged."""


class SegmentFolder:
    """The folder of a journal, locked, with its id and its segments. Use `make` or `adopt`."""

    id: UUID

    def __init__(self, folder: Path, *, synced: bool, disk: Disk) -> None:
        """Take the lock of a folder that is there.

        Raises:
            JournalLockedError: if another process holds it, or has just removed it.
            OSError: if the folder cannot be used.
        """
        self.size = 0
        self.begun_at: datetime | None = None
        self.torn = 0
        self.damaged = 0
        self._folder = folder
        self.synced = synced
        self._disk = disk
        self._sealed: list[Segment] = []
        self._unclean = False
        self._spare: tuple[int, int] | None = None  # the number and the file of the next segment
        self._swapping = threading.Lock()
        self._file = -1
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take_lock()
        except BaseException:
            self.close()
            raise

    @classmethod
    def make(cls, folder: Path, *, synced: bool, disk: Disk, new_id: Callable[[], UUID]) -> Self:
        """Make a folder to append to, with a new id.

        Raises:
            JournalLockedError: if another process came in between.
            JournalError: if somebody's segments or id are there: they are only adopted.
            OSError: if the folder cannot be used.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = cls(folder, synced=synced, disk=disk)
        try:
            if _is_journal(folder):
                raise JournalError(f"{folder} is the journal of another life")
            made.id = made._write_id(new_id())
            made._begin(1)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def adopt(cls, folder: Path, new_id: Callable[[], UUID]) -> Self:
        """Take a folder that somebody left, to ship what is in it: what a crash left is recovered,
        and `take_sealed` names all its segments. Nothing can be appended.

        Raises:
            JournalLockedError: if a process holds it.
            JournalError: if it is no journal, or its id cannot be read.
            OSError: if the folder cannot be used.
        """
        taken = cls(folder, synced=True, disk=OS_DISK)
        try:
            if not _is_journal(folder):
                raise JournalError(f"{folder} is no journal")
            taken.id = taken._read_id() or taken._write_id(new_id())
            taken._recover()
        except BaseException:
            taken.close()
            raise
        return taken

    @property
    def appends(self) -> bool:
        """Whether this process made the folder."""
        return self._file >= 0

    def take_sealed(self) -> list[Segment]:
        """The segments that were sealed since this was last asked."""
        sealed, self._sealed = self._sealed, []
        return sealed

    def write(self, data: bytes, at: datetime) -> None:
        """Append to the active segment and, if the journal is `synced`, wait for the disk.

        Raises:
            OSError: if that fails. Nothing of `data` is kept; what was there before is sealed, for
                after a failed sync the kernel may forget which pages it has not written.
        """
        if self._unclean:
            self._begin_anew()
        begins = self.size == 0
        content = frames.header(at) + data if begins else data
        self._unclean = True
        try:
            self._write_all(content)
            if self.synced:
                self._disk.sync(self._file)
        except OSError:
            # If this fails too, the next write tries it again before anything else.
            with contextlib.suppress(OSError):
                self._begin_anew()
            raise
        self._unclean = False
        self.size += len(content)
        if begins:
            self.begun_at = at

    def seal(self) -> None:
        """Complete the active segment, if it holds anything, and begin the next. Where the journal
        is not `synced`, somebody should `sync` the segment, without holding up the next writes.

        Raises:
            OSError: if that fails; then the segment is still the active one.
        """
        if self._unclean:
            self._begin_anew()
        if self.size:
            self._begin_next()

    def sync(self, segment: Segment) -> None:
        """Have a sealed segment on disk: what it holds is then safe from a power cut, too.

        Raises:
            OSError: if that fails, or it has been removed.
        """
        file = os.open(segment.path, os.O_RDONLY)
        try:
            self._disk.sync(file)
        finally:
            os.close(file)
        os.fsync(self._lock)

    def clear(self) -> bool:
        """Remove the folder, if nothing in it is worth keeping; whether it has gone.

        Ends of writes that never finished go with it: nobody was told that they were done. Damage
        that was set aside, segments, and what is not ours stay.
        """
        entries = list(self._folder.iterdir())
        if not all(map(_is_disposable, entries)):
            return False
        # The id goes last: until then, what is left of the folder still is a journal.
        for path in sorted(entries, key=lambda path: path.name == _ID):
            path.unlink()
        self._folder.rmdir()
        return True

    def close(self) -> None:
        """Give the folder free."""
        for file in (self._file, self._lock, -1 if self._spare is None else self._spare[1]):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1
        self._spare = None

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalLockedError(f"another process holds the journal {self._folder}") from error
        # Whoever held it before may have removed it.
        try:
            same = os.path.samestat(self._folder.stat(), os.fstat(self._lock))
        except FileNotFoundError:
            same = False
        if not same:
            raise JournalLockedError(f"another process has removed the journal {self._folder}")

    def _read_id(self) -> UUID | None:
        path = self._folder / _ID
        try:
            return UUID(path.read_text().strip())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise JournalError(f"{path} does not hold the id of a journal") from error

    def _write_id(self, made: UUID) -> UUID:
        _write_whole(self._folder / _ID, f"{made}\n".encode())
        os.fsync(self._lock)
        return made

    def _recover(self) -> None:
        numbers = sorted(
            int(path.stem) for path in self._folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal()
        )
        # The last that holds anything may have been the active one; empty ones were made ahead.
        while numbers and not self._cut(numbers[-1]):
            numbers.pop()
        self._sealed = [self._segment(number) for number in numbers]

    def _cut(self, number: int) -> int:
        """Cut what was never finished off the segment that was active; how much is left."""
        path = self._path(number)
        data = path.read_bytes()
        found = frames.scan(data)
        self.damaged += _report_damage(path, data, found)
        end = found.end if found.payloads or found.damaged else 0
        if end < len(data):
            self.torn += 1
            _set_aside(path, _TORN, data, end, len(data))
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        return end

    def make_ahead(self) -> None:
        """Make the file of the segment after the active one, so that no write waits until its name
        is on disk. It may be called in another thread than the rest; if it comes too late, or
        fails, the file is made when it is needed."""
        number = self._number + 1
        with contextlib.suppress(OSError):
            file = self._make(number)
            with self._swapping:
                spare, self._spare = self._spare, (number, file)
            if spare is not None:
                os.close(spare[1])

    def _make(self, number: int) -> int:
        file = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if self.synced:
                os.fsync(self._lock)
        except OSError:
            os.close(file)
            raise
        return file

    def _begin(self, number: int) -> None:
        with self._swapping:
            spare, self._spare = self._spare, None
        if spare is not None and spare[0] == number:
            file = spare[1]
        else:
            if spare is not None:
                os.close(spare[1])
            file = self._make(number)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._number, self.size, self.begun_at = file, number, 0, None

    def _begin_next(self) -> None:
        sealed = Segment(self._number, self._path(self._number), self.size, self.begun_at)
        self._begin(self._number + 1)
        self._sealed.append(sealed)

    def _begin_anew(self) -> None:
        os.ftruncate(self._file, self.size)
        if self.size:
            self._begin_next()
        self._unclean = False

    def _write_all(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[self._disk.write(self._file, view) :]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:020d}{_SUFFIX}"

    def _segment(self, number: int) -> Segment:
        path = self._path(number)
        with path.open("rb") as file:
            head = file.read(frames.HEADER_SIZE)
            size = os.fstat(file.fileno()).st_size
        return Segment(number, path, size, frames.begun_at(head))


def _is_journal(folder: Path) -> bool:
    return any(
        path.name in {_ID, f"{_ID}{_DRAFT}"} or path.suffix == _SUFFIX for path in folder.iterdir()
    )


def _is_disposable(path: Path) -> bool:
    if path.suffix == _SUFFIX:
        return path.stat().st_size == 0
    return path.name == _ID or path.suffix in {_DRAFT, _TORN}


async def read_segment(path: Path) -> tuple[list[bytes], int]:
    """The payloads of a sealed segment, in order, and how many damaged ranges are new.

    What is damaged is set aside in a file beside the segment, and reported, once. The event loop
    gets its turns; a thread would have it wait for the interpreter again and again, and is asked
    only where there is damage.
    """
    data = await asyncio.to_thread(path.read_bytes)
    steps = frames.intact(data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            payloads: list[bytes] | None = end.value
            break
        await asyncio.sleep(0)
    if payloads is not None:
        return payloads, 0
    return await asyncio.to_thread(_read_damaged, path, data)


def _read_damaged(path: Path, data: bytes) -> tuple[list[bytes], int]:
    found = frames.scan(data)
    if found.end < len(data):  # it was whole when it was sealed
        found = frames.Scan(found.payloads, [*found.damaged, (found.end, len(data))], len(data))
    return found.payloads, _report_damage(path, data, found)


def damage_in(folder: Path) -> list[Path]:
    """The files in which damaged bytes of this folder were set aside."""
    return sorted(folder.glob(f"*{_DAMAGED}"))


def _report_damage(path: Path, data: bytes, found: frames.Scan) -> int:
    return sum(_set_aside(path, _DAMAGED, data, *place) for place in found.damaged)


def _set_aside(path: Path, kind: str, data: bytes, start: int, end: int) -> bool:
    """Keep these bytes in a file of their own; False if they were kept before."""
    side = path.with_name(f"{path.stem}-{start}{kind}")
    if side.exists():
        return False
    _write_whole(side, data[start:end])
    logger.error(
        "journal bytes set aside",
        extra={
            "kind": kind[1:],
            "segment": str(path),
            "start": start,
            "end": end,
            "kept": side.name,
        },
    )
    return True


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    draft = path.with_name(f"{path.name}{_DRAFT}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
