"""What a unit got, and why: any assignment of the past, computed again (DESIGN 1.2).

An epoch pins all that assignment reads but overrides, which are dated, and the first variant of a
unit in a sticky experiment, which its enrolment tells. So `explain` needs nothing but these, and
all else here finds them. Each query goes by an index, to one epoch and to one unit.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import msgspec

from experiments import store
from experiments.model import State, Stickiness
from experiments.past import epoch_of
from experiments.problems import ProblemError
from experiments.records import Epoch, ExperimentRecord, Live, Override
from router.assign import Assignment, Why, assign
from router.items import MAX_AGE, MAX_AHEAD
from router.records import exposure_id
from router.snapshot import NOBODY, Entry, ProjectSnapshot, compile_entry, override_value

Targeting: TypeAlias = Literal["met", "not_met", "failed"]
Source: TypeAlias = Literal["exposure", "recomputed"]

_STICKS: Final[frozenset[Why]] = frozenset({"split", "not_enrolled"})
_OUT_OF_REACH: Final[frozenset[Why]] = frozenset({"not_targeted", "targeting_failed"})

EPOCH_AT: Final = """
    select number from epoch where experiment = $1 and at <= $2
    order by at desc, number desc limit 1
"""
_NEXT_EPOCH_AT: Final = "select at from epoch where experiment = $1 and number = $2"
_OVERRIDES_AT: Final = """
    select id, variant, unit, attribute, value, created_at, actor, reason, ended_at, ended_by
    from override
    where experiment = $1 and created_at <= $2 and (ended_at is null or ended_at > $2)
      and (unit is null or unit = $3)
    order by id
"""
# `received_at` bounds the days whose partitions are looked into.
_EXPOSURE: Final = """
    select id, epoch, variant, at, attributes from exposure
    where hashtextextended(unit, 0) = hashtextextended($2, 0) and unit = $2 and experiment = $1
      and received_at >= $3 and received_at <= $4 and at <= $5 and (epoch = $6 or at >= $7)
    order by at desc, epoch desc limit 1
"""
_EXPOSURE_BY_ID: Final = """
    select id, epoch, variant, at, attributes from exposure
    where hashtextextended(unit, 0) = hashtextextended($2, 0) and unit = $2 and experiment = $1
      and id = $3
    order by at limit 1
"""
_ENROLMENTS: Final = """
    select e.run, a.epoch, a.variant, e.at from enrolment e join arm a on a.id = e.arm
    where e.unit = $1 and e.experiment = $2 and ($3::int is null or e.run = $3)
"""


class HoldoutStep(msgspec.Struct, frozen=True):
    """Where a unit is in the project's holdout, and whether that keeps it out."""

    slot: int
    held: bool


class LayerStep(msgspec.Struct, frozen=True):
    """Where a unit is in a layer; the slots `[first, end)` are the experiment's."""

    key: str
    slot: int
    slots: tuple[int, int]
    inside: bool


class Steps(msgspec.Struct, frozen=True):
    """Every step on the way to a variant, also those behind the one that decided. `slot_of_layer`
    and `holdout` are None, and `targeting` too, where the experiment has none."""

    answer: Assignment
    slot: int
    owner: str | None
    holdout: HoldoutStep | None
    slot_of_layer: int | None
    targeting: Targeting | None


def explain(entry: Entry, unit: str, context: Mapping[str, Any]) -> Steps:
    """What `assign` says, and each step to it.

    Args:
        entry: an experiment in one of its epochs.
        context: as for `assign`.
    """
    slot = entry.slot_of(unit)
    owner = entry.owners[slot]
    holdout = None
    if entry.holdout is not None:
        place = entry.holdout.slot_of(unit)
        holdout = HoldoutStep(place, entry.holdout.held[place] == 1)
    return Steps(
        assign(entry, unit, context),
        slot,
        None if owner == NOBODY else entry.arms[owner].key,
        holdout,
        None if entry.layer is None else entry.layer.slot_of(unit),
        _targeting(entry, context),
    )


def _targeting(entry: Entry, context: Mapping[str, Any]) -> Targeting | None:
    if entry.rule is None:
        return None
    try:
        return "met" if entry.rule(context) else "not_met"
    except Exception:  # whatever it is, assignment takes it for "not targeted"
        return "failed"


def override_of(
    overrides: Iterable[Override], stored: str, context: Mapping[str, Any]
) -> Override | None:
    """The override that decides for a unit: one for itself goes before those by its attributes, of
    which the first name decides that any override has.

    Args:
        overrides: those in force, in the order of their ids.
        stored: the unit as the project stores it.
    """
    by_name: dict[str, list[Override]] = {}
    for override in overrides:
        if override.unit is not None and override.unit == stored:
            return override
        if override.attribute is not None:
            by_name.setdefault(override.attribute, []).append(override)
    for name, several in by_name.items():
        value = context.get(name)
        if isinstance(value, str | int | float):
            written = override_value(value)
            for override in several:
                if override_value(override.value) == written:
                    return override
    return None


class Question(msgspec.Struct, frozen=True):
    """Whose assignment: that of an exposure, that in an epoch, or that at a time. `attributes` are
    what targeting read then; None where the asker does not know."""

    unit: str
    at: datetime
    exposure: UUID | None = None
    epoch: int | None = None
    attributes: Mapping[str, Any] | None = None


class Pinned(msgspec.Struct, frozen=True):
    """The epoch: since when, by whom and why, and what it pins beside what is told of the unit."""

    at: datetime
    actor: str
    reason: str
    decision: int | None
    state: State
    salt: str
    stickiness: Stickiness
    targeting: Any


class OverrideShown(msgspec.Struct, frozen=True):
    """The override that decided: who set it, when and why. `attribute` is null where it names the
    unit itself."""

    id: int
    variant: str
    attribute: str | None
    created_at: datetime
    actor: str
    reason: str


class ExposureShown(msgspec.Struct, frozen=True):
    """What was recorded of the unit meeting a variant."""

    id: UUID
    epoch: int
    variant: str
    at: datetime
    attributes: dict[str, Any] | None


class Recomputed(msgspec.Struct, frozen=True):
    """What the epoch gives the unit, whatever was recorded."""

    variant: str
    reason: Why


class Replay(msgspec.Struct, frozen=True):
    """What a unit got, and why.

    `variant` and `epoch` are those of the recorded exposure where there is one for the question
    (`source` says so), else those that are computed. `agrees` says whether both are the same; null
    where there is but one, or where the targeting read attributes that are not known here.
    `propensity` is null unless the unit was enrolled. `slot` and what follows it are told whether
    they decided or not: `owner` is the variant whose slot it is.
    """

    experiment: str
    unit: str
    at: datetime
    source: Source
    run: int
    epoch: int
    variant: str
    value: msgspec.Raw
    reason: Why
    propensity: float | None
    propensities: dict[str, float]
    slot: int
    owner: str | None
    holdout: HoldoutStep | None
    layer: LayerStep | None
    targeting: Targeting | None
    override: OverrideShown | None
    exposure: ExposureShown | None
    recomputed: Recomputed
    agrees: bool | None
    pinned: Pinned


class _Scene(msgspec.Struct, frozen=True):
    """An epoch in which a unit is looked at, and what is seen."""

    epoch: Epoch
    entry: Entry
    steps: Steps
    override: Override | None


class _Stage(msgspec.Struct, frozen=True):
    """What all of a replay works with: the experiment, and the unit as it is stored."""

    connection: store.Connection
    project: ProjectSnapshot
    record: ExperimentRecord
    question: Question
    stored: str

    async def scene(
        self, number: int, overrides: tuple[Override, ...], recorded: Mapping[str, Any] | None
    ) -> _Scene:
        """The unit in an epoch; `recorded` are the attributes that its exposure kept."""
        live = (await epoch_of(self.connection, self.record, number)).live
        entry = compile_entry(
            Live(live.record, live.epoch, overrides), unit_key=self.project.unit_key
        )
        unit = self.question.unit
        context = {
            **(recorded or {}),
            **(self.question.attributes or {}),
            entry.unit_attribute: unit,
        }
        steps = explain(entry, unit, context)
        decided = steps.answer.reason == "override"
        override = override_of(overrides, self.stored, context) if decided else None
        return _Scene(live.epoch, entry, steps, override)

    async def enrolments(self, run: int | None) -> list[ExposureShown]:
        """The unit's enrolments, one a run, which stay when raw exposures are dropped: in one run,
        or in all."""
        rows = await self.connection.fetch(_ENROLMENTS, self.stored, self.record.id, run)
        return [
            ExposureShown(
                UUID(bytes=exposure_id(self.record.id, run, epoch, variant, self.stored)),
                epoch,
                variant,
                at,
                None,
            )
            for run, epoch, variant, at in rows
        ]

    async def overrides(self, at: datetime) -> tuple[Override, ...]:
        """The overrides in force at a time that could concern the unit."""
        rows = await self.connection.fetch(_OVERRIDES_AT, self.record.id, at, self.stored)
        return tuple(store.read_override(row) for row in rows)


async def replay(
    connection: store.Connection,
    project: ProjectSnapshot,
    record: ExperimentRecord,
    question: Question,
) -> Replay:
    """What a unit got, and why.

    Raises:
        ProblemError: `not-found` where there was no such exposure or epoch, or the experiment was
            not started by the time.
    """
    definition = record.definition
    stored = project.stored(definition.unit.type, question.unit)
    stage = _Stage(connection, project, record, question, stored)
    if question.exposure is not None:
        return await _of_exposure(stage, question.exposure)
    if question.epoch is not None:
        return await _in_epoch(stage, question.epoch)
    return await _at_time(stage, question.at)


async def _of_exposure(stage: _Stage, name: UUID) -> Replay:
    row = await stage.connection.fetchrow(_EXPOSURE_BY_ID, stage.record.id, stage.stored, name)
    known = await stage.enrolments(None) if row is None else [_exposure(row)]
    exposure = next((exposure for exposure in known if exposure.id == name), None)
    if exposure is None:
        raise ProblemError(
            "not-found", f"Unit and experiment have no exposure {name}; it may not be shipped yet"
        )
    scene = await stage.scene(exposure.epoch, (), exposure.attributes)
    return _told(stage, scene, exposure.at, exposure, "exposure")


async def _in_epoch(stage: _Stage, number: int) -> Replay:
    if not 1 <= number <= stage.record.epoch:
        raise ProblemError("not-found", f"{stage.record.key} has no epoch {number}")
    # Overrides are of no epoch: those count that were in force when it ended, or are now.
    ended = await stage.connection.fetchval(_NEXT_EPOCH_AT, stage.record.id, number + 1)
    until = stage.question.at if ended is None else ended
    scene = await stage.scene(number, await stage.overrides(until), None)
    return await _with_exposure(stage, scene, until, "recomputed")


async def _at_time(stage: _Stage, at: datetime) -> Replay:
    number = await stage.connection.fetchval(EPOCH_AT, stage.record.id, at)
    if number is None:
        raise ProblemError("not-found", f"{stage.record.key} was not started by {at.isoformat()}")
    scene = await stage.scene(number, await stage.overrides(at), None)
    return await _with_exposure(stage, scene, at, "exposure")


async def _with_exposure(stage: _Stage, scene: _Scene, at: datetime, preferred: Source) -> Replay:
    """The scene with what was recorded of the unit in it, which decides what it got if that is
    `preferred`."""
    why = scene.steps.answer.reason
    if why == "override":
        return _told(stage, scene, at)  # it is answered, but makes no exposure
    by_time = preferred == "exposure"
    exposure = await _recorded(stage, scene.epoch, at, by_time=by_time)
    if exposure is None and why in _STICKS:
        exposure = await _enrolled(stage, scene.epoch, at, by_time=by_time)
    if exposure is None:
        return _told(stage, scene, at)
    sticky = scene.epoch.stickiness == "sticky" and exposure.epoch != scene.epoch.number
    if exposure.epoch != scene.epoch.number or exposure.attributes:
        scene = await stage.scene(exposure.epoch, (), exposure.attributes)
    return _told(stage, scene, at, exposure, preferred, "sticky" if sticky else "split")


async def _recorded(
    stage: _Stage, epoch: Epoch, at: datetime, *, by_time: bool
) -> ExposureShown | None:
    """The last exposure of the unit in this epoch. By time it is the last up to then, which may be
    of an epoch before, for a router still answered from that: it had not heard of this one."""
    row = await stage.connection.fetchrow(
        _EXPOSURE,
        stage.record.id,
        stage.stored,
        epoch.at - MAX_AHEAD,
        at + MAX_AGE + MAX_AHEAD,
        at if by_time else at + MAX_AGE,
        epoch.number,
        epoch.at if by_time else None,
    )
    return None if row is None else _exposure(row)


async def _enrolled(
    stage: _Stage, epoch: Epoch, at: datetime, *, by_time: bool
) -> ExposureShown | None:
    """The unit's enrolment: if it was in this epoch, or by time decides in it, for the experiment
    is sticky and the variant not rolled back."""
    sticky = by_time and epoch.stickiness == "sticky"
    for enrolment in await stage.enrolments(epoch.run):
        kept = sticky and enrolment.variant not in epoch.rolled_back
        if enrolment.at <= at and (kept or enrolment.epoch == epoch.number):
            return enrolment
    return None


def _exposure(row: Mapping[str, Any]) -> ExposureShown:
    text = row["attributes"]
    attributes = None if text is None else msgspec.json.decode(text, type=dict[str, Any])
    return ExposureShown(row["id"], row["epoch"], row["variant"], row["at"], attributes)


# The answer


def _told(
    stage: _Stage,
    scene: _Scene,
    at: datetime,
    exposure: ExposureShown | None = None,
    preferred: Source = "recomputed",
    why: Why = "split",
) -> Replay:
    """The answer. `why` is the reason of what the exposure says, where that is preferred."""
    entry, epoch, steps = scene.entry, scene.epoch, scene.steps
    answer = steps.answer
    variant, reason, enrolled = answer.arm.key, answer.reason, answer.enrolled
    if exposure is not None and preferred == "exposure":
        variant, reason, enrolled = exposure.variant, why, True
    arm = next(arm for arm in entry.arms if arm.key == variant)
    return Replay(
        experiment=entry.key,
        unit=stage.question.unit,
        at=at,
        source=preferred,
        run=epoch.run,
        epoch=epoch.number,
        variant=variant,
        value=arm.value,
        reason=reason,
        propensity=arm.propensity if enrolled else None,
        propensities={arm.key: arm.propensity for arm in entry.arms},
        slot=steps.slot,
        owner=steps.owner,
        holdout=steps.holdout,
        layer=_layer(epoch, steps),
        targeting=steps.targeting,
        override=None if scene.override is None else _override(scene.override),
        exposure=exposure,
        recomputed=Recomputed(answer.arm.key, answer.reason),
        agrees=_agrees(stage.question, answer, exposure),
        pinned=Pinned(
            epoch.at,
            epoch.actor,
            epoch.reason,
            epoch.decision,
            epoch.state,
            epoch.salt,
            epoch.stickiness,
            epoch.targeting,
        ),
    )


def _layer(epoch: Epoch, steps: Steps) -> LayerStep | None:
    layer, slot = epoch.layer, steps.slot_of_layer
    if layer is None or slot is None:
        return None
    first, end = layer.slots
    return LayerStep(layer.key, slot, layer.slots, first <= slot < end)


def _override(override: Override) -> OverrideShown:
    return OverrideShown(
        override.id,
        override.variant,
        override.attribute,
        override.created_at,
        override.actor,
        override.reason,
    )


def _agrees(question: Question, answer: Assignment, exposure: ExposureShown | None) -> bool | None:
    if exposure is None:
        return None
    if answer.reason in _OUT_OF_REACH and question.attributes is None:
        return None  # what the targeting read is not known
    return answer.enrolled and answer.arm.key == exposure.variant
