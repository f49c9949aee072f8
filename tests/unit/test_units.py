"""Units' ids: hashed with a key where a project wants it so, left out where they were erased."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from experiments.units import UnitKey, unit_problem
from router.load import Load, prepare
from router.outcomes import Context, read_batch
from router.records import ExposureRecord, OutcomeRecord, Record, decode, encode, names_unit
from router.units import Tombstone, hash_units, oldest, settle

NOW = datetime(2026, 5, 6, 12, 0, tzinfo=UTC)
KEY, OTHER = UnitKey(bytes(32)), UnitKey(bytes(31) + b"\1")


def exposure(unit: str, project: str = "shop", received_at: datetime = NOW) -> ExposureRecord:
    """A user meets a variant."""
    name = uuid4().bytes
    return ExposureRecord(name, project, 1, 1, 1, "a", "user", unit, NOW, received_at)


def outcome(*units: tuple[str, str], value: float = 1.0) -> OutcomeRecord:
    """Something happens to units."""
    return OutcomeRecord(None, "shop", "click", units, value, NOW, NOW)


async def load_of(*records: Record) -> Load:
    """A segment of these records."""
    return await prepare([encode(record) for record in records])


def units_in(load: Load) -> list[tuple[tuple[str, str], ...]]:
    """The units of each record that is to be stored."""
    records = [decode(entry.payload) for entry in [*load.exposures, *load.outcomes]]
    return [
        record.units if isinstance(record, OutcomeRecord) else ((record.unit_type, record.unit),)
        for record in records
    ]


def test_a_stored_unit_is_a_keyed_hash_of_128_bits() -> None:
    expected = hashlib.blake2b(
        b"user\x0042", digest_size=16, key=bytes(32), person=b"turnout.unit"
    ).hexdigest()
    assert KEY.hashed("user", "42") == expected
    assert len(expected) == 32


def test_hashes_differ_by_type_unit_key_and_purpose() -> None:
    hashes = {
        KEY.hashed("user", "42"),
        KEY.hashed("user", "43"),
        KEY.hashed("session", "42"),
        OTHER.hashed("user", "42"),
        KEY.tombstone("user", "42").hex()[:32],
    }
    assert len(hashes) == 5
    assert KEY.tombstone("user", "42") == UnitKey(bytes(32)).tombstone("user", "42")


@pytest.mark.parametrize("unit", ["", "x" * 257, "é" * 129, "a\0b"])
def test_what_is_no_id_is_told(unit: str) -> None:
    assert unit_problem(unit) is not None
    assert unit_problem("x" * 256) is None


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
async def test_outcomes_are_read_with_their_units_hashed(kind: str) -> None:
    item = {"event": "click", "units": {"user": "42", "session": "s"}}
    context = Context("shop", "user", frozenset(), NOW, unit_key=KEY)
    for sent, units in (
        (item, {"user": "42", "session": "s"}),
        ({"event": "click", "unit": "7"}, {"user": "7"}),
    ):
        batch = await read_batch(json.dumps(sent).encode(), kind, context)
        assert batch.hashed
        assert dict(batch.outcomes[0].units) == {t: KEY.hashed(t, u) for t, u in units.items()}


async def test_a_load_says_whose_units_are_plain() -> None:
    load = await load_of(
        exposure("1", "a"), hash_units(exposure("1", "b"), KEY), exposure("1", "c")
    )
    assert (load.projects, load.plain) == ({"a", "b", "c"}, {"a", "c"})


async def test_a_load_without_erased_units_is_left_as_it_is() -> None:
    load = await load_of(exposure("42"), outcome(("user", "42")))
    elsewhere = Tombstone("another", "user", KEY.tombstone("user", "42"), NOW)
    assert await settle(load, {"shop": None}, [], {}) is load
    assert await settle(load, {"shop": None}, [elsewhere], {"another": KEY}) is load


async def test_erased_units_are_left_out() -> None:
    later = NOW + timedelta(seconds=1)
    load = await load_of(
        exposure("42"),
        exposure("42", received_at=later),
        exposure("43"),
        outcome(("user", "42"), ("session", "42")),
        outcome(("user", "42")),
    )
    tombstone = Tombstone("shop", "user", KEY.tombstone("user", "42"), NOW)
    left = await settle(load, {"shop": None}, [tombstone], {"shop": KEY})
    assert units_in(left) == [(("user", "42"),), (("user", "43"),), (("session", "42"),)]
    assert [len(entry.rows) for entry in left.outcomes] == [1]
    assert left.records == 5


async def test_plain_units_of_a_project_that_hashes_are_hashed_once() -> None:
    load = await load_of(outcome(("user", "42")), hash_units(outcome(("user", "43")), KEY))
    settled = await settle(load, {"shop": KEY}, [], {})
    assert units_in(settled) == [(("user", KEY.hashed("user", unit)),) for unit in ("42", "43")]


async def test_the_oldest_record_may_be_one_that_cannot_be_stored() -> None:
    flawed = OutcomeRecord(None, "shop", "click", (), None, NOW, NOW - timedelta(seconds=1))
    load = await load_of(exposure("42"), flawed)
    assert oldest(load) == NOW - timedelta(seconds=1)
    assert oldest(await prepare([b"\xc1"])) is None
    assert oldest(await load_of()) is None


def test_a_record_names_the_units_of_its_project() -> None:
    data = encode(outcome(("user", "42"), ("session", "s")))
    assert names_unit(data, "shop", "user", "42")
    assert names_unit(data, "shop", "session", "s")
    assert not names_unit(data, "shop", "user", "s")
    assert not names_unit(data, "shop", "user", "4")
    assert not names_unit(data, "another", "user", "42")


def test_damaged_bytes_name_a_unit_if_they_have_its_texts() -> None:
    data = encode(outcome(("user", "42"))).replace(b"click", b"cl\xffck")
    assert names_unit(data, "shop", "user", "42")
    assert not names_unit(data, "shop", "user", "4")
    assert not names_unit(b"\xc1", "shop", "user", "42")
