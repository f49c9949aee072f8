"""What the journal holds: exposures and outcomes, as they are written to disk and shipped."""

from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

import msgspec


class ExposureRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="exposure", omit_defaults=True
):
    """A unit met a variant. `id` is made of (experiment, run, unit, epoch, variant)."""

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


class OutcomeRecord(
    msgspec.Struct, frozen=True, array_like=True, tag="outcome", omit_defaults=True
):
    """Something happened to units: `(unit type, unit)` pairs, one or several.

    `id` is a 128-bit hash of the project and the client's id; without one, the outcome is as many
    as it is sent.
    """

    id: UUID | None
    project: str
    event: str
    units: tuple[tuple[str, str], ...]
    value: float | None
    at: datetime
    received_at: datetime
    attributes: dict[str, Any] | None = None


Record: TypeAlias = ExposureRecord | OutcomeRecord

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode(record: Record) -> bytes:
    """The bytes of a record, as the journal frames them."""
    return _encoder.encode(record)


def decode(data: bytes) -> Record:
    """The record of these bytes.

    Raises:
        msgspec.DecodeError: if they are not one.
    """
    return _decoder.decode(data)
