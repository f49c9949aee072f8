"""What the journal holds: exposures and outcomes, as they are written to disk and shipped."""

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Meta

RecordId: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""Not a UUID: many of those are slow to make and to compare, and work for the garbage collector."""


class ExposureRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="exposure", omit_defaults=True, gc=False
):
    """A unit met a variant. `id` is made of (experiment, run, unit, epoch, variant), `hashed` says
    that the unit is the keyed hash of what was sent."""

    id: RecordId
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

    id: RecordId | None
    project: str
    event: str
    units: tuple[tuple[str, str], ...]
    value: float | None
    at: datetime
    received_at: datetime
    attributes: dict[str, Any] | None = None
    hashed: bool = False


class SuspectRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="suspect", omit_defaults=True, gc=False
):
    """A unit was said to have met a variant that its epoch does not give it. It is set aside with
    its reason and counts for nothing. `experiment` is the key, `hashed` as of an exposure."""

    project: str
    experiment: str
    epoch: int
    variant: str
    unit_type: str
    unit: str
    reason: str
    at: datetime
    received_at: datetime
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


class _OlderExposureRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="exposure", omit_defaults=True, gc=False
):
    """An exposure as journals of release 0.1.0 had it: its id is the text of a UUID."""

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


Record: TypeAlias = ExposureRecord | OutcomeRecord | SuspectRecord

_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder: msgspec.msgpack.Decoder[Record | _OlderOutcomeRecord] = msgspec.msgpack.Decoder(
    Record | _OlderOutcomeRecord
)
_older_decoder: msgspec.msgpack.Decoder[_OlderExposureRecord] = msgspec.msgpack.Decoder(
    _OlderExposureRecord
)


def exposure_id(experiment: int, run: int, epoch: int, variant: str, unit: str) -> RecordId:
    """The same for every repeat of an exposure, on any router. `unit` is as it is stored."""
    name = _exposure_name(experiment, run, epoch, variant)
    return hashlib.blake2b(name + unit.encode(), digest_size=16).digest()


_PLAIN: Final = _encoder.encode(None) + _encoder.encode(False)  # attributes, hashed


class ExposureForm:
    """The exposures of one arm in one epoch, encoded but for unit and times.

    It gives the bytes that `encode` gives of a whole record without attributes, of a unit that is
    stored as it was sent, in a fifth of the time.
    """

    __slots__ = ("_middle", "_name", "_start")

    def __init__(
        self, project: str, experiment: int, run: int, epoch: int, variant: str, unit_type: str
    ) -> None:
        self._name = _exposure_name(experiment, run, epoch, variant)
        empty, never = bytes(range(16)), datetime(1970, 1, 1, tzinfo=UTC)
        record = ExposureRecord(
            empty, project, experiment, run, epoch, variant, unit_type, "", never, never
        )
        self._start, rest = encode(record).split(empty)
        self._middle = rest.removesuffix(_encoder.encode("") + encode_times(never))

    def id(self, unit: str) -> RecordId:
        """The id of a unit's exposure."""
        return hashlib.blake2b(self._name + unit.encode(), digest_size=16).digest()

    def encode(self, record_id: RecordId, unit: str, times: bytes) -> bytes:
        """The bytes of a unit's exposure; `times` is what `encode_times` gives."""
        return self._start + record_id + self._middle + _encoder.encode(unit) + times


def encode_times(now: datetime) -> bytes:
    """How an exposure without attributes ends that happens as it is received, of a unit that is
    stored as it was sent."""
    return _encoder.encode(now) * 2 + _PLAIN


def _exposure_name(experiment: int, run: int, epoch: int, variant: str) -> bytes:
    return f"{experiment}\0{run}\0{epoch}\0{variant}\0".encode()


def encode(record: Record) -> bytes:
    """The bytes of a record, as the journal frames them."""
    return _encoder.encode(record)


def decode(data: bytes) -> Record:
    """The record of these bytes.

    Raises:
        msgspec.DecodeError: if they are not one.
    """
    try:
        record = _decoder.decode(data)
    except msgspec.ValidationError as error:
        try:
            older = _older_decoder.decode(data)
        except msgspec.DecodeError:
            raise error from None
        return ExposureRecord(older.id.bytes, *msgspec.structs.astuple(older)[1:])
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
    if isinstance(record, OutcomeRecord):
        return record.units
    return ((record.unit_type, record.unit),)
