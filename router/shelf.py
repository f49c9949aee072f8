"""The shelf: what a router knows, in a file, so that it can start while nobody answers.

    snapshot/publications   what was published, of all projects
    snapshot/lock           held by whoever writes: the processes of a data folder share the file
    snapshot/set-aside      the last file that could not be read

The file holds the hashes of API keys and the secrets that units are hashed with: it is for its
owner alone. Its first eight bytes name the format, then comes a checksum of all that follows.

Publications are immutable, so a thread encodes and writes them while the event loop answers from
them. What it encodes at a time is small, for the loop waits for the interpreter meanwhile.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import msgspec

from experiments.keys import ApiKey
from experiments.records import Live, Publication, Unread
from experiments.units import UnitKey

FORMAT: Final = 1
"""Goes up with every change after which an earlier file would be read wrongly, or not at all."""

PAUSE: Final = 1.0
"""Between two saves: the changes of so many seconds go into one file."""
CONFIRM_EVERY: Final = 5.0
LOCK_PATIENCE: Final = 5.0

_NAME: Final = b"turnout"
_START: Final = len(_NAME) + 1
_DIGEST_BYTES: Final = 32
_EXPERIMENTS_AT_ONCE: Final = 8
_LOCK_POLL: Final = 0.02

T = TypeVar("T")
logger = logging.getLogger(__name__)


class UnreadableError(Exception):
    """The file is damaged, or none of ours."""


class _Head(msgspec.Struct, frozen=True):
    """A publication but for its experiments."""

    default_unit_type: str
    keys: tuple[ApiKey, ...]
    unit_key: bytes | None
    erasures: int
    sticky_id: str
    holdout: Live | None
    unread: tuple[Unread, ...] = ()
    origins: tuple[str, ...] = ()


class _Section(msgspec.Struct, frozen=True):
    """A project in the file. Whoever only looks for its version decodes no more of it."""

    version: int
    head: bytes
    experiments: tuple[bytes, ...]


_Sections: TypeAlias = dict[str, _Section]


class Kept(msgspec.Struct, frozen=True):
    """What was on the shelf: the projects, and up to when they are known to have stood so."""

    publications: tuple[Publication, ...]
    as_of: datetime


class Shelf:
    """Keeps the publications of a router on disk."""

    def __init__(self, data_dir: Path) -> None:
        """Nothing is made in the data folder before there is something to keep."""
        self._folder = data_dir / "snapshot"
        self._path = self._folder / "publications"
        self._versions: dict[str, int] = {}
        self._waiting: dict[str, Publication] = {}
        self._fallen: set[str] = set()
        self._changed = asyncio.Event()
        self._confirmed_at: datetime | None = None
        self.refusal: str | None = None
        """Why the last save failed; None if it did not."""

    @property
    def behind(self) -> bool:
        """Whether something that was put is not saved yet."""
        return bool(self._waiting)

    def load(self) -> Kept | None:
        """What a router, this or another one, has left here; None if there is nothing. It blocks.

        What cannot be read is set aside, with a line in the log, and is as if it were not there.
        """
        if not self._path.exists():
            return None
        try:
            with _locked(self._folder):
                as_of = datetime.fromtimestamp(self._path.stat().st_mtime, UTC)
                publications = self._read(_whole)
        except OSError as error:
            _complain("snapshot on disk not read", self._path, error)
            return None
        self._versions |= {found.project: found.version for found in publications.values()}
        return Kept(tuple(publications.values()), as_of) if publications else None

    def put(self, publication: Publication) -> None:
        """Have a whole publication saved soon.

        Those of a project are put in the order in which they were true. If the version falls, the
        database was restored, and the lower one is the truth.
        """
        project, version = publication.project, publication.version
        before = self._versions.get(project)
        if version == before:
            return
        if before is not None and version < before:
            self._fallen.add(project)
        self._versions[project] = version
        self._waiting[project] = publication
        self._changed.set()

    async def run(self, refreshed_at: Callable[[], datetime | None]) -> None:
        """Save what was put, until cancelled.

        Args:
            refreshed_at: up to when all that was put is known to be true. The file's time of change
                follows it, so that a start knows how old the file is, however seldom it changes.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), CONFIRM_EVERY)
            self._changed.clear()
            await self.save()
            at = refreshed_at()
            if at is not None and at != self._confirmed_at and not self._waiting:
                self._confirmed_at = at
                with contextlib.suppress(OSError):  # the next save tells what is wrong
                    await asyncio.to_thread(os.utime, self._path, (at.timestamp(), at.timestamp()))
            await asyncio.sleep(PAUSE)

    async def save(self) -> None:
        """Save what waits. What the disk refuses goes on waiting."""
        news, fallen = dict(self._waiting), set(self._fallen)
        if not news:
            return
        try:
            await asyncio.to_thread(self._write, news, fallen)
        except OSError as error:
            self.refusal = str(error)
            logger.warning("snapshot not saved", extra={"error": error})
            return
        self.refusal = None
        for project, publication in news.items():
            if self._waiting.get(project) is publication:
                del self._waiting[project]
                self._fallen.discard(project)

    def _write(self, news: Mapping[str, Publication], fallen: set[str]) -> None:
        """In a thread: bring the file up to date, unless another process has done so.

        Raises:
            OSError: if the disk refuses.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._folder):
            sections = self._read(lambda sections: sections)
            late = {
                project: publication
                for project, publication in news.items()
                if project not in sections
                or publication.version > sections[project].version
                or (project in fallen and publication.version < sections[project].version)
            }
            if late:
                sections |= {project: _section(item) for project, item in late.items()}
                _replace(self._path, sections)

    def _read(self, decode: Callable[[_Sections], dict[str, T]]) -> dict[str, T]:
        """What is in the file, which is set aside if it cannot be read. The lock is ours."""
        try:
            return decode(_sections(self._path.read_bytes()))
        except FileNotFoundError:
            return {}
        except (UnreadableError, msgspec.MsgspecError) as error:
            aside = self._folder / "set-aside"
            self._path.replace(aside)
            _complain("snapshot on disk set aside", aside, error)
            return {}


def _complain(what: str, path: Path, error: Exception) -> None:
    logger.error(what, extra={"path": str(path), "error": error})


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder, in a thread.

    Raises:
        TimeoutError: if somebody else does for too long.
    """
    deadline = time.monotonic() + LOCK_PATIENCE
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{folder}: another process holds the lock") from None
                time.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


def _sections(data: bytes) -> _Sections:
    name, form = data[: len(_NAME)], data[len(_NAME) : _START]
    digest, body = data[_START : _START + _DIGEST_BYTES], data[_START + _DIGEST_BYTES :]
    if name != _NAME or not form:
        raise UnreadableError("it is no snapshot of Turnout")
    if form[0] != FORMAT:
        raise UnreadableError(f"it has format {form[0]}; this version of Turnout reads {FORMAT}")
    if digest != _digest(body):
        raise UnreadableError("its checksum is wrong: it is damaged")
    return msgspec.msgpack.decode(body, type=_Sections)


def _replace(path: Path, sections: _Sections) -> None:
    """Write the file in one step: after a crash it is the one from before, or this one."""
    body = msgspec.msgpack.encode(sections)
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(_NAME + bytes([FORMAT]) + _digest(body))
        file.write(body)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def _section(publication: Publication) -> _Section:
    head = _Head(
        publication.default_unit_type,
        publication.keys,
        None if publication.unit_key is None else publication.unit_key.secret(),
        publication.erasures,
        publication.sticky_id,
        publication.holdout,
        publication.unread,
        publication.origins,
    )
    experiments: list[bytes] = []
    for number, live in enumerate(publication.experiments, 1):
        experiments.append(msgspec.msgpack.encode(live))
        if number % _EXPERIMENTS_AT_ONCE == 0:
            time.sleep(0)  # give the interpreter to the event loop
    return _Section(publication.version, msgspec.msgpack.encode(head), tuple(experiments))


def _whole(sections: _Sections) -> dict[str, Publication]:
    return {project: _publication(project, section) for project, section in sections.items()}


def _publication(project: str, section: _Section) -> Publication:
    head = msgspec.msgpack.decode(section.head, type=_Head)
    return Publication(
        project=project,
        version=section.version,
        default_unit_type=head.default_unit_type,
        keys=head.keys,
        experiments=tuple(msgspec.msgpack.decode(live, type=Live) for live in section.experiments),
        unit_key=None if head.unit_key is None else UnitKey(head.unit_key),
        erasures=head.erasures,
        sticky_id=head.sticky_id,
        holdout=head.holdout,
        unread=head.unread,
        origins=head.origins,
    )
