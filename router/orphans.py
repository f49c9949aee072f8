"""Orphans: journals of processes that are gone, shipped by any process that lives.

The journals of a data folder lie side by side, and the lock of each tells whether its process
lives. One that is free is adopted, announced, shipped, withdrawn and removed. What Postgres does
not take now is held, and tried again at the next look.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from router.journal import Journal, JournalLockedError
from router.segments import damage_in
from router.shipper import Shipper

LOOK_EVERY: Final = 10.0
_HELD_AT_MOST: Final = 16
_SHIPPED_AT_ONCE: Final = 4
logger = logging.getLogger(__name__)


def journals_of(data_dir: Path) -> Path:
    """The folder in which each process has the folder of its journal."""
    return data_dir / "journals"


class _Orphan(msgspec.Struct, frozen=True):
    folder: Path
    journal: Journal
    shipper: Shipper


class Orphans:
    """Looks for journals without a process, and ships them."""

    def __init__(
        self,
        data_dir: Path,
        clock: Callable[[], datetime],
        new_shipper: Callable[[Journal], Shipper],
    ) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._new_shipper = new_shipper
        self._held: dict[Path, _Orphan] = {}
        self._kept: set[Path] = set()
        self.shipped = 0
        """Journals shipped since the start; so are the counts below."""
        self.segments = 0
        self.records = 0
        self.letters = 0
        self.damaged = 0
        self.failures = 0

    @property
    def waiting(self) -> int:
        """Journals that are held, and not all in Postgres yet."""
        return len(self._held)

    @property
    def kept(self) -> int:
        """Folders that were left for an operator: with damage in them, or unreadable."""
        return len(self._kept)

    @property
    def depth(self) -> int:
        """Bytes in them that Postgres does not have yet."""
        return sum(orphan.journal.depth for orphan in self._held.values())

    @property
    def oldest_at(self) -> datetime | None:
        """When the oldest record in them came that Postgres does not have; None if it has all."""
        times = (orphan.journal.oldest_at for orphan in self._held.values())
        return min((at for at in times if at is not None), default=None)

    async def run(self) -> None:
        """Look for ever, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:  # the routers, which live beside this, must not stop
                self._failed(error, self._data_dir)
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Adopt what is free, and ship what is held. A failure is counted and logged."""
        await self.claim()
        turns = asyncio.Semaphore(_SHIPPED_AT_ONCE)
        beating = asyncio.create_task(self._beat(), name="orphans' heartbeat")
        try:
            async with asyncio.TaskGroup() as tasks:
                for orphan in list(self._held.values()):
                    tasks.create_task(self._settle(orphan, turns))
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self) -> None:
        """Say of all that are held that they are on their way, however long each has to wait."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            waiting = [orphan for orphan in self._held.values() if orphan.journal.depth]
            for orphan in waiting:  # what is shipped is withdrawn, and must stay so
                with contextlib.suppress(Exception):  # the shipping itself says what is wrong
                    await orphan.shipper.announce()

    async def claim(self) -> None:
        """Adopt what is free, and announce all that is held, so that the watermark waits for it.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError: if Postgres cannot be told.
        """
        for folder in await asyncio.to_thread(self._folders):
            if len(self._held) >= _HELD_AT_MOST:
                break
            if folder not in self._held and folder not in self._kept:
                await self._adopt(folder)
        for orphan in self._held.values():
            await orphan.shipper.announce()

    async def close(self) -> None:
        """Give free what is held, for others to adopt."""
        while self._held:
            _, orphan = self._held.popitem()
            await orphan.journal.close()

    def _folders(self) -> list[Path]:
        """Where a journal may be. Before there were several, it was `journal`."""
        candidates = [self._data_dir / "journal"]
        with contextlib.suppress(FileNotFoundError):
            candidates += sorted(journals_of(self._data_dir).iterdir())
        return [folder for folder in candidates if folder.is_dir() and not _removed(folder)]

    async def _adopt(self, folder: Path) -> None:
        try:
            journal = await Journal.adopt(folder, self._clock)
        except (JournalLockedError, FileNotFoundError):
            return  # its process lives, or another one was faster
        except Exception as error:  # whatever it is, there are others to adopt
            self._keep(folder, f"{type(error).__name__}: {error}")
            return
        self._held[folder] = _Orphan(folder, journal, self._new_shipper(journal))

    async def _settle(self, orphan: _Orphan, turns: asyncio.Semaphore) -> None:
        """Ship an orphan, and remove its folder."""
        shipper, journal = orphan.shipper, orphan.journal
        async with turns:
            try:
                await shipper.finish()
            except Exception as error:  # the others shall go on
                self._failed(error, orphan.folder)
                return
        await journal.close(clear=True)
        del self._held[orphan.folder]
        self.shipped += 1
        self.segments += shipper.segments
        self.records += shipper.records
        self.letters += shipper.letters
        self.damaged += journal.damaged
        logger.info(
            "orphan journal shipped",
            extra={
                "journal": str(journal.id),
                "folder": str(orphan.folder),
                "segments": shipper.segments,
                "records": shipper.records,
            },
        )
        if damage := await asyncio.to_thread(damage_in, orphan.folder):
            self._keep(orphan.folder, f"damaged bytes were set aside in {len(damage)} files")

    def _keep(self, folder: Path, reason: str) -> None:
        self._kept.add(folder)
        logger.error("orphan journal kept", extra={"folder": str(folder), "reason": reason})

    def _failed(self, error: Exception, folder: Path) -> None:
        self.failures += 1
        logger.warning(
            "orphan journal not shipped",
            extra={"folder": str(folder), "error": error},
        )


def _removed(folder: Path) -> bool:
    """Whether this was empty, as a start or an end leaves it that was cut off, and has gone."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
