"""Assignment: a pure function of snapshot, experiment and unit (DESIGN 5)."""

from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from experiments.json_data import clean
from experiments.problems import FieldProblem
from router.records import ExposureRecord, exposure_id
from router.snapshot import NOBODY, Arm, Entry

Why: TypeAlias = Literal["split", "not_enrolled", "paused", "concluded", "rolled_back"]
"""Why a unit gets its variant: by its slot; or the default answer, because its slot is nobody's or
because the experiment does not run."""


class Assignment(msgspec.Struct, frozen=True):
    """Which arm a unit gets, and why. `slot` is None where the experiment does not run."""

    arm: Arm
    reason: Why
    slot: int | None

    @property
    def enrolled(self) -> bool:
        """Whether the unit is part of the experiment: only then is there an exposure."""
        return self.reason == "split"


_WHY_NOT_RUNNING: dict[str, Why] = {
    "paused": "paused",
    "concluded": "concluded",
    "rolled_back": "rolled_back",
}


def assign(entry: Entry, unit: str) -> Assignment:
    """The arm of a unit in an experiment."""
    if entry.state != "running":
        return Assignment(entry.arms[entry.default], _WHY_NOT_RUNNING[entry.state], None)
    place = entry.slot_of(unit)
    owner = entry.owners[place]
    if owner == NOBODY:
        return Assignment(entry.arms[entry.default], "not_enrolled", place)
    return Assignment(entry.arms[owner], "split", place)


def exposure(
    entry: Entry, arm: Arm, unit: str, attributes: dict[str, Any] | None, at: datetime
) -> ExposureRecord:
    """The record of a unit meeting an arm, with the attributes that the experiment keeps.

    It names the unit as the project stores it, and is known by that alone.
    """
    key = entry.unit_key
    stored = unit if key is None else key.hashed(entry.unit_type, unit)
    return ExposureRecord(
        id=exposure_id(entry.experiment, entry.run, entry.epoch, arm.key, stored),
        project=entry.project,
        experiment=entry.experiment,
        run=entry.run,
        epoch=entry.epoch,
        variant=arm.key,
        unit_type=entry.unit_type,
        unit=stored,
        at=at,
        received_at=at,
        attributes=_kept(entry, attributes) or None,
        hashed=key is not None,
    )


def attribute_problems(
    entry: Entry, attributes: dict[str, Any] | None, path: str
) -> list[FieldProblem]:
    """What is wrong with those attributes that the experiment keeps; the others are never read."""
    return clean({path: _kept(entry, attributes)}).problems


def _kept(entry: Entry, attributes: dict[str, Any] | None) -> dict[str, Any]:
    if not attributes:
        return {}
    return {name: attributes[name] for name in entry.recorded_attributes if name in attributes}
