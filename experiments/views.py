"""Experiments and epochs as they are shown."""

from datetime import datetime
from typing import Any

import msgspec

from experiments import store
from experiments.allocation import propensities, traffic_of
from experiments.model import Experiment, State, Stickiness
from experiments.records import Epoch, ExperimentRecord, HoldoutPin, LayerPin


class ExperimentView(msgspec.Struct, frozen=True):
    """An experiment as it stands. `weights` and `traffic` are what routers use now; those of the
    definition are what a run starts with. `rolled_back` are the variants that get no traffic until
    they are resumed."""

    project: str
    key: str
    state: State
    revision: int
    run: int
    epoch: int
    weights: dict[str, float] | None
    traffic: float | None
    ship: str | None
    created_at: datetime
    updated_at: datetime
    definition: Experiment
    rolled_back: tuple[str, ...] = ()


class EpochView(msgspec.Struct, frozen=True):
    """An epoch: what was allocated from `at` on, by whom and why, and all else that assignment
    reads."""

    number: int
    run: int
    state: State
    at: datetime
    actor: str
    reason: str
    decision: int | None
    weights: dict[str, float]
    traffic: float
    salt: str
    slots: list[tuple[str | None, int]]
    targeting: Any
    layer: LayerPin | None
    holdout: HoldoutPin | None
    stickiness: Stickiness
    ship: str | None
    rolled_back: tuple[str, ...] = ()


def epoch_view(epoch: Epoch) -> EpochView:
    """An epoch as it is shown."""
    return EpochView(
        number=epoch.number,
        run=epoch.run,
        state=epoch.state,
        at=epoch.at,
        actor=epoch.actor,
        reason=epoch.reason,
        decision=epoch.decision,
        weights=propensities(epoch.allocation),
        traffic=traffic_of(epoch.allocation),
        salt=epoch.salt,
        slots=list(epoch.allocation.runs),
        targeting=epoch.targeting,
        layer=epoch.layer,
        holdout=epoch.holdout,
        stickiness=epoch.stickiness,
        ship=epoch.ship,
        rolled_back=epoch.rolled_back,
    )


async def experiment_view(connection: store.Connection, record: ExperimentRecord) -> ExperimentView:
    """An experiment as it is shown."""
    allocation = None
    if record.epoch:
        allocation = (await store.get_epoch(connection, record.id, record.epoch)).allocation
    return ExperimentView(
        project=record.project,
        key=record.key,
        state=record.state,
        revision=record.revision,
        run=record.run,
        epoch=record.epoch,
        weights=None if allocation is None else propensities(allocation),
        traffic=None if allocation is None else traffic_of(allocation),
        ship=record.ship,
        created_at=record.created_at,
        updated_at=record.updated_at,
        definition=record.definition,
        rolled_back=record.rolled_back,
    )
