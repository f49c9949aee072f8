"""`turnout ship`: a journal that was brought from a dead machine goes to Postgres."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec

from experiments import store
from router.journal import Journal, JournalError
from router.orphans import journals_of
from router.segments import damage_in
from router.shipper import Shipper
from turnout.admin import database
from turnout.backends import CannotRunError, line_of, utc_now
from turnout.embedded import EmbeddedError, running
from turnout.embedded.folder import Folder
from turnout.settings import Settings

_LETTERS = """
    select s.number, d.ordinal, d.reason
    from dead_letter d join segment s on s.id = d.segment
    where s.journal = $1 order by s.number, d.ordinal limit 100
"""


class Shipment(msgspec.Struct, frozen=True):
    """What became of a journal."""

    segments: int
    known: int
    """Segments that Postgres had before."""
    records: int
    duplicates: int
    torn: int
    dead_letters: int
    letters: tuple[str, ...]
    """The first of the records that cannot be stored: where they are, and why they are there."""
    damage: tuple[Path, ...]
    """The files in which damaged bytes were set aside."""

    @property
    def whole(self) -> bool:
        """Whether all that was in it could be shipped."""
        return not self.dead_letters and not self.damage

    def lines(self) -> Iterator[str]:
        """What an operator should see."""
        yield f"segments: {self.segments} shipped, {self.known} were in Postgres before"
        yield f"records: {self.records}"
        yield f"duplicates: {self.duplicates}"
        yield f"writes that never finished: {self.torn}"
        yield f"dead letters: {self.dead_letters}"
        yield from (f"  {letter}" for letter in self.letters)
        yield f"damaged places: {len(self.damage)}"
        yield from (f"  {path}" for path in self.damage)


async def ship(settings: Settings, folder: Path) -> Shipment:
    """Ship a journal's folder. Its segments are removed as Postgres has them; a journal that is
    shipped again ships nothing again.

    Raises:
        CannotRunError: if it is no journal, a process lives that holds it, or the database that the
            settings name cannot be reached.
    """
    _require_database(settings)
    try:
        journal = await Journal.adopt(folder, utc_now)
    except (JournalError, OSError) as error:
        raise CannotRunError(f"cannot ship {folder}: {_advice(folder, error)}") from error
    try:
        async with database(settings) as (pool, _):
            return await _ship(journal, folder, pool)
    except (JournalError, OSError) as error:
        raise CannotRunError(f"cannot ship {folder}: {line_of(error)}") from error
    finally:
        await journal.close()


async def _ship(journal: Journal, folder: Path, pool: store.Pool) -> Shipment:
    waiting = len(journal.sealed())
    shipper = Shipper(pool, journal, utc_now, random.Random())  # noqa: S311 - jitter, not secrets
    await shipper.announce()
    await shipper.finish()
    rows = await pool.fetch(_LETTERS, journal.id) if shipper.letters else []
    return Shipment(
        segments=shipper.segments,
        known=waiting - shipper.segments,
        records=shipper.records,
        duplicates=shipper.duplicates,
        torn=journal.torn,
        dead_letters=shipper.letters,
        letters=tuple(
            f"segment {row['number']}, record {row['ordinal']}: {row['reason']}" for row in rows
        ),
        damage=tuple(damage_in(folder)),
    )


def _require_database(settings: Settings) -> None:
    """What is shipped leaves the journal, so the database must be one that somebody keeps."""
    data = settings.data_path
    try:
        known = settings.database_url or running(data) or Folder(root=data).postgres.is_dir()
    except EmbeddedError as error:
        raise CannotRunError(str(error)) from error
    if not known:
        raise CannotRunError(
            f"no database to ship to: set TURNOUT_DATABASE_URL, or name the data folder of a"
            f" Turnout with --data-dir ({data} is none)"
        )


def _advice(folder: Path, error: Exception) -> str:
    inside = journals_of(folder)
    hint = f"; journals are the folders in {inside}" if inside.is_dir() else ""
    return line_of(error) + hint
