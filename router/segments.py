"""The files of a journal: one folder, held by one process, with numbered segments.

Everything here blocks and belongs to one thread at a time. There is always one active segment, and
its number is above all that ever were: a segment is sealed by beginning the next, and only sealed
ones may be removed. So numbers never restart, also when everything was shipped and the process
starts again.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

import msgspec

from router import frames

logger = logging.getLogger(__name__)

_SUFFIX = ".segment"
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
    """The folder of a journal, locked, with its id and its active segment.

    Making one takes the lock and recovers what the last process left: `sealed` then names the
    segments to ship, and the active one is empty.
    """

    def __init__(
        self, folder: Path, *, synced: bool, disk: Disk, new_id: Callable[[], UUID]
    ) -> None:
        """Take the folder, making it if it is not there.

        Raises:
            JournalLockedError: if another process holds it.
            JournalError: if its id cannot be read.
            OSError: if the folder cannot be used.
        """
        self.size = 0
        self.begun_at: datetime | None = None
        self.torn = 0
        self.damaged = 0
        self._folder = folder
        self._synced = synced
        self._disk = disk
        self._sealed: list[Segment] = []
        self._unclean = False
        self._file = -1
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._take_lock()
            self.id = self._load_id(new_id)
            self._recover()
        except BaseException:
            self.close()
            raise

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
            if self._synced:
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
        """Complete the active segment, if it holds anything, and begin the next.

        Raises:
            OSError: if that fails; then the segment is still the active one.
        """
        if self._unclean:
            self._begin_anew()
        if self.size:
            if not self._synced:
                self._disk.sync(self._file)  # a power cut costs at most one segment
            self._begin_next()

    def close(self) -> None:
        """Give the folder free."""
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalLockedError(f"another process holds the journal {self._folder}") from error

    def _load_id(self, new_id: Callable[[], UUID]) -> UUID:
        path = self._folder / _ID
        try:
            return UUID(path.read_text().strip())
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise JournalError(f"{path} does not hold the id of a journal") from error
        made = new_id()
        _write_whole(path, f"{made}\n".encode())
        os.fsync(self._lock)
        return made

    def _recover(self) -> None:
        numbers = sorted(
            int(path.stem) for path in self._folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal()
        )
        for number in numbers[:-1]:
            self._sealed.append(self._segment(number))
        last = numbers[-1] if numbers else 0
        if not last:
            self._begin(1)
        elif self._cut(last):
            self._sealed.append(self._segment(last))
            self._begin(last + 1)
        else:
            self._begin(last)

    def _cut(self, number: int) -> int:
        """Cut what was never finished off the segment that was active; how much is left."""
        path = self._path(number)
        data = path.read_bytes()
        found = frames.scan(data)
        self.damaged += _report_damage(path, data, found)
        end = found.end if found.payloads or found.damaged else 0
        if end < len(data):
            self.torn += 1
            _set_aside(path, "torn", data, end, len(data))
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        return end

    def _begin(self, number: int) -> None:
        file = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.fsync(self._lock)
        except OSError:
            os.close(file)
            raise
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


def read_segment(path: Path) -> tuple[list[bytes], int]:
    """The payloads of a sealed segment, in order, and how many damaged ranges are new.

    What is damaged is set aside in a file beside the segment, and reported, once.
    """
    data = path.read_bytes()
    found = frames.scan(data)
    if found.end < len(data):  # it was whole when it was sealed
        found = frames.Scan(found.payloads, [*found.damaged, (found.end, len(data))], len(data))
    return found.payloads, _report_damage(path, data, found)


def _report_damage(path: Path, data: bytes, found: frames.Scan) -> int:
    return sum(_set_aside(path, "damaged", data, *place) for place in found.damaged)


def _set_aside(path: Path, kind: str, data: bytes, start: int, end: int) -> bool:
    """Keep these bytes in a file of their own; False if they were kept before."""
    side = path.with_name(f"{path.stem}-{start}.{kind}")
    if side.exists():
        return False
    _write_whole(side, data[start:end])
    logger.error(
        "journal bytes set aside",
        extra={"kind": kind, "segment": str(path), "start": start, "end": end, "kept": side.name},
    )
    return True


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
