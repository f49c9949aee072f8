"""What the journal holds: exposures and outcomes, as they are written to disk and shipped."""

import hashlib
from datetime import datetime
from typing import Annotated, Any, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Meta

OutcomeId: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""Not a UUID: many of those are slow to make and to compare, and work for the garbage collector."""


class ExposureRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="exposure", omit_defaults=True, gc=False
):
    """A unit met a variant. `id` is made of (experiment, run, unit, epoch, variant), `hashed` says
    that the unit is the keyed hash of what was sent."""

    id: UUID
    project: str
    experiment: int
    run: int
    epoch: int
    variant: str
    unit_type: str
    unit: str
    at: datetime
    received_at: datetime
    attributes: dict[str, Any] | None = None
    hashed: bool = False


class OutcomeRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="happened", omit_defaults=True, gc=False
):
    """Something happened to units: `(unit type, unit)` pairs, one or several.

    `id` is a 128-bit hash of the project and the client's id; without one, the outcome is as many
    as it is sent. `hashed` says that the units are keyed hashes of what was sent.
    """

    id: OutcomeId | None
    project: str
    event: str
    units: tuple[tuple[str, str], ...]
    value: float | None
    at: datetime
    received_at: datetime
    attributes: dict[str, Any] | None = None
    hashed: bool = False


class _OlderOutcomeRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="outcome", omit_defaults=True, gc=False
):
    """An outcome as journals had it when its id was a UUID; those have to be shipped, too."""

    id: UUID | None
    project: str
    event: str
    units: tuple[tuple[str, str], ...]
    value: float | None
    at: datetime
    received_at: datetime
    attributes: dict[str, Any] | None = None


Record: TypeAlias = ExposureRecord | OutcomeRecord

_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder: msgspec.msgpack.Decoder[Record | _OlderOutcomeRecord] = msgspec.msgpack.Decoder(
    Record | _OlderOutcomeRecord
)


def exposure_id(experiment: int, run: int, epoch: int, variant: str, unit: str) -> UUID:
    """The same for every repeat of an exposure, on any router. `unit` is as it is stored."""
    name = f"{experiment}\0{run}\0{epoch}\0{variant}\0{unit}"
    return UUID(bytes=hashlib.blake2b(name.encode(), digest_size=16).digest())


def encode(record: Record) -> bytes:
    """The bytes of a record, as the journal frames them."""
    return _encoder.encode(record)


def decode(data: bytes) -> Record:
    """The record of these bytes.

    Raises:
        msgspec.DecodeError: if they are not one.
    """
    record = _decoder.decode(data)
    return _renewed(record) if isinstance(record, _OlderOutcomeRecord) else record


def _renewed(record: _OlderOutcomeRecord) -> OutcomeRecord:
    return OutcomeRecord(
        None if record.id is None else record.id.bytes,
        record.project,
        record.event,
        record.units,
        record.value,
        record.at,
        record.received_at,
        record.attributes,
    )


def names_unit(data: bytes, project: str, unit_type: str, unit: str) -> bool:
    """Whether bytes that were set aside name a unit of a project.

    Those that are no record, for they are damaged, do if they have all three texts in them.
    """
    try:
        record = decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return all(_encoder.encode(text) in data for text in (project, unit_type, unit))
    return record.project == project and (unit_type, unit) in units_of(record)


def units_of(record: Record) -> tuple[tuple[str, str], ...]:
    """The units that a record names: pairs of unit type and unit."""
    if isinstance(record, ExposureRecord):
        return ((record.unit_type, record.unit),)
    return record.units
