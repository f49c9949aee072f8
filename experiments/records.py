"""What the store holds about an experiment, as Structs."""

from datetime import datetime
from typing import Any

import msgspec

from experiments.allocation import Allocation
from experiments.keys import ApiKey
from experiments.model import Experiment, State, Stickiness
from experiments.units import UnitKey


class ExperimentRecord(msgspec.Struct, frozen=True):
    """An experiment as it stands: its definition, its state, and where its run and epoch are."""

    id: int
    project: str
    key: str
    state: State
    revision: int
    run: int
    epoch: int
    definition: Experiment
    ship: str | None
    created_at: datetime
    updated_at: datetime


class Revision(msgspec.Struct, frozen=True):
    """A definition as it stood after a change."""

    number: int
    at: datetime
    actor: str
    reason: str
    definition: Experiment


class Epoch(msgspec.Struct, frozen=True):
    """All that assignment reads, pinned and numbered; immutable. `weights` are as they were stated:
    whole slots can only come near to them, so that the next change of traffic starts from these."""

    number: int
    run: int
    state: State
    salt: str
    allocation: Allocation
    weights: dict[str, float]
    targeting: Any
    layer: Any
    holdout: Any
    stickiness: Stickiness
    ship: str | None
    at: datetime
    actor: str
    reason: str
    decision: int | None


class Live(msgspec.Struct, frozen=True):
    """An experiment together with its current epoch: what a router answers from."""

    record: ExperimentRecord
    epoch: Epoch


class Publication(msgspec.Struct, frozen=True):
    """All that a router needs to know of a project, at one version. `unit_key` is what its units
    are hashed with, None where they are stored as they are; `erasures` is how many there were."""

    project: str
    version: int
    default_unit_type: str
    keys: tuple[ApiKey, ...]
    experiments: tuple[Live, ...]
    unit_key: UnitKey | None
    erasures: int


class Decision(msgspec.Struct, frozen=True):
    """What the controller did, with the evidence from which it can be computed again."""

    id: int
    run: int
    kind: str
    epoch_before: int
    epoch_after: int
    term: int | None
    at: datetime
    actor: str
    reason: str
    evidence: Any
