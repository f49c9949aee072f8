"""Exposures that cannot be: set aside with their reason; their units are hashed and forgotten as
those of all others are."""

from datetime import UTC, datetime, timedelta

from experiments.units import UnitKey
from router.load import Load, prepare
from router.records import SuspectRecord, decode, encode, names_unit
from router.units import Tombstone, oldest, settle

NOW = datetime(2026, 3, 4, tzinfo=UTC)
KEY = UnitKey(bytes(32))


def suspect(unit: str = "u1", project: str = "p") -> SuspectRecord:
    """A suspect that came now."""
    reason = "mismatch: x has no variant 'newest'"
    return SuspectRecord(project, "x", 3, "newest", "user", unit, reason, NOW, NOW)


async def load_of(*records: SuspectRecord) -> Load:
    """The load of a segment with these suspects."""
    return await prepare([encode(record) for record in records])


async def test_a_suspect_becomes_a_letter_with_its_reason() -> None:
    load = await load_of(suspect())
    assert (load.exposures, load.outcomes, load.received) == ([], [], [])
    assert [letter.reason for letter in load.letters] == [suspect().reason]
    assert decode(load.letters[0].payload) == suspect()
    assert oldest(load) == NOW


async def test_a_suspect_of_a_project_that_hashes_is_hashed_once() -> None:
    load = await load_of(suspect())
    for _ in range(2):
        load = await settle(load, {"p": KEY}, [], {})
    (letter,) = load.letters
    kept = decode(letter.payload)
    assert isinstance(kept, SuspectRecord)
    assert (kept.unit, kept.hashed) == (KEY.hashed("user", "u1"), True)
    assert letter.reason == suspect().reason


async def test_a_suspect_of_an_erased_unit_does_not_come_in() -> None:
    load = await load_of(suspect("u1"), suspect("u2"), suspect("u1", "q"))
    gone = Tombstone("p", "user", KEY.tombstone("user", "u1"), NOW + timedelta(seconds=1))
    settled = await settle(load, {"p": None, "q": None}, [gone], {"p": KEY})
    left = [decode(letter.payload) for letter in settled.letters]
    assert left == [suspect("u2"), suspect("u1", "q")]


def test_a_suspect_names_its_unit() -> None:
    data = encode(suspect())
    assert names_unit(data, "p", "user", "u1")
    assert not names_unit(data, "p", "user", "u2")
    assert not names_unit(data, "q", "user", "u1")
