"""Assignment: a pure function of snapshot, experiment, unit and attributes (DESIGN 5)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec

from experiments.json_data import clean
from experiments.model import TARGETING_KEY
from experiments.pins import HELD
from experiments.problems import FieldProblem
from router.records import ExposureRecord, exposure_id
from router.snapshot import NOBODY, Arm, Entry, Overrides, ProjectSnapshot, override_value

Why: TypeAlias = Literal[
    "split",
    "sticky",
    "override",
    "not_enrolled",
    "not_targeted",
    "targeting_failed",
    "out_of_layer",
    "held_out",
    "stale",
    "paused",
    "concluded",
    "rolled_back",
]
"""Why a unit gets its variant: by its slot; because it got it first; because somebody said so. Or
it gets the default answer: its slot is nobody's, the targeting is not met (or could not be
evaluated), the layer or the holdout keeps it out, the router has had no news for too long, or the
experiment does not run."""

ENROLLED: Final = frozenset({"split", "sticky"})
"""The reasons of a unit that is part of the experiment: only then is there an exposure."""

_WHY_NOT_RUNNING: Final[dict[str, Why]] = {
    "paused": "paused",
    "concluded": "concluded",
    "rolled_back": "rolled_back",
}


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """Which arm a unit gets, and why.

    `slot` is that of the experiment, None where it was not looked up. `epoch` and `propensity` are
    those under which the arm was given: for a `sticky` answer those of the unit's first variant.
    `held` says whether the project's holdout has the unit, None where it was not asked.
    """

    arm: Arm
    reason: Why
    slot: int | None
    epoch: int
    propensity: float | None
    held: bool | None = None

    @property
    def enrolled(self) -> bool:
        """Whether the unit is part of the experiment."""
        return self.reason in ENROLLED


def assign(  # noqa: PLR0911 - one for each way to be answered, in the order of DESIGN 5
    entry: Entry, unit: str, context: Mapping[str, Any]
) -> Assignment:
    """The arm of a unit in an experiment.

    Args:
        context: what targeting and overrides read: the attributes, and the unit under the name of
            the experiment's unit attribute.
    """
    if entry.state != "running":
        return _default(entry, _WHY_NOT_RUNNING[entry.state])
    if entry.overrides is not None:
        arm = _overridden(entry.overrides, entry.unit_type, unit, context)
        if arm is not None:
            return Assignment(entry.arms[arm], "override", None, entry.epoch, None)
    held = None
    if entry.holdout is not None:
        held = entry.holdout.held[entry.holdout.slot_of(unit)] == 1
        if held:
            return _default(entry, "held_out", held=True)
    layer = entry.layer
    if layer is not None and not layer.first <= layer.slot_of(unit) < layer.end:
        return _default(entry, "out_of_layer", held=held)
    if entry.rule is not None:
        try:
            targeted = entry.rule(context)
        except Exception:  # whatever an expression does with an attribute, the request goes on
            return _default(entry, "targeting_failed", held=held)
        if not targeted:
            return _default(entry, "not_targeted", held=held)
    place = entry.slot_of(unit)
    owner = entry.owners[place]
    if owner == NOBODY:
        return _default(entry, "not_enrolled", place, held)
    arm_of_slot = entry.arms[owner]
    return Assignment(arm_of_slot, "split", place, entry.epoch, arm_of_slot.propensity, held)


def control_while_stale(entry: Entry) -> Assignment:
    """What `when_stale` answers: the control, and no exposure."""
    return Assignment(entry.arms[entry.control], "stale", None, entry.epoch, None)


def _default(
    entry: Entry, reason: Why, place: int | None = None, held: bool | None = None
) -> Assignment:
    return Assignment(entry.arms[entry.default], reason, place, entry.epoch, None, held)


def _overridden(
    overrides: Overrides, unit_type: str, unit: str, context: Mapping[str, Any]
) -> int | None:
    """The arm that somebody gave this unit; one for the unit itself goes before its attributes."""
    if overrides.units:
        key = overrides.unit_key
        arm = overrides.units.get(unit if key is None else key.hashed(unit_type, unit))
        if arm is not None:
            return arm
    for name, arms in overrides.attributes.items():
        value = context.get(name)
        if isinstance(value, str | int | float):
            arm = arms.get(override_value(value))
            if arm is not None:
                return arm
    return None


def exposures(
    project: ProjectSnapshot,
    entry: Entry,
    answer: Assignment,
    unit: str,
    attributes: Mapping[str, Any] | None,
    at: datetime,
) -> list[ExposureRecord]:
    """The records of a unit meeting an arm: one of the experiment, where the unit is enrolled, and
    one of the project's holdout, where that was asked whether it has the unit.

    Each names the unit as the project stores it, and is known by that alone.
    """
    records: list[ExposureRecord] = []
    stored = project.stored(entry.unit_type, unit)
    holdout = project.holdout
    if answer.held is not None and holdout is not None:
        arm = holdout.arms[0 if (holdout.arms[0].key == HELD) is answer.held else 1]
        told = kept(holdout, attributes, entry.unit_attribute)
        records.append(_exposure(project, holdout, arm.key, holdout.epoch, stored, told, at))
    if answer.reason in ENROLLED:
        told = kept(entry, attributes, entry.unit_attribute)
        records.append(_exposure(project, entry, answer.arm.key, answer.epoch, stored, told, at))
    return records


def _exposure(
    project: ProjectSnapshot,
    entry: Entry,
    variant: str,
    epoch: int,
    stored: str,
    attributes: dict[str, Any],
    at: datetime,
) -> ExposureRecord:
    return ExposureRecord(
        exposure_id(entry.experiment, entry.run, epoch, variant, stored),
        entry.project,
        entry.experiment,
        entry.run,
        epoch,
        variant,
        entry.unit_type,
        stored,
        at,
        at,
        attributes or None,
        project.unit_key is not None,
    )


def attribute_problems(
    project: ProjectSnapshot, entry: Entry, attributes: Mapping[str, Any] | None, path: str
) -> list[FieldProblem]:
    """What is wrong with those attributes that are kept; others are never stored."""
    names = kept_names(project, entry)
    if not attributes or not names:
        return []
    return clean({path: {n: attributes[n] for n in names if n in attributes}}).problems


def kept_names(project: ProjectSnapshot, entry: Entry) -> tuple[str, ...]:
    """The attributes that are kept with exposures of an experiment: its own, and the holdout's."""
    if entry.holdout is None or project.holdout is None:
        return entry.recorded_attributes
    return entry.recorded_attributes + project.holdout.recorded_attributes


def kept(entry: Entry, attributes: Mapping[str, Any] | None, unit_attribute: str) -> dict[str, Any]:
    """Those attributes that the experiment keeps. Never the unit itself, which comes under the name
    `unit_attribute` of the experiment that was asked for: it is stored as its project stores units.
    """
    if not attributes or not entry.recorded_attributes:
        return {}
    units = (TARGETING_KEY, unit_attribute)
    return {
        name: attributes[name]
        for name in entry.recorded_attributes
        if name in attributes and name not in units
    }
