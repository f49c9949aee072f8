"""What the store holds about an experiment, as Structs."""

from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from experiments.allocation import Allocation
from experiments.keys import ApiKey
from experiments.model import Experiment, State, Stickiness
from experiments.moves import AnyMove
from experiments.units import UnitKey


class ExperimentRecord(msgspec.Struct, frozen=True):
    """An experiment as it stands: its definition, its state, and where its run and epoch are.

    `rolled_back` are the variants of the current run that get no traffic from anything until a hand
    resumes them, in the order of the definition.
    """

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
    rolled_back: tuple[str, ...] = ()


class Revision(msgspec.Struct, frozen=True):
    """A definition as it stood after a change."""

    number: int
    at: datetime
    actor: str
    reason: str
    definition: Experiment


class LayerPin(msgspec.Struct, frozen=True):
    """The part of a layer that an experiment has: slots `[first, end)` under the layer's salt."""

    key: str
    salt: str
    slots: tuple[int, int]


class HoldoutPin(msgspec.Struct, frozen=True):
    """The project's holdout as it stood: who is held takes part in nothing.

    `experiment`, `run` and `epoch` are those of the built-in experiment `$holdout`; `held` are runs
    of slots `[first, end)` under its salt.
    """

    experiment: int
    run: int
    epoch: int
    salt: str
    held: tuple[tuple[int, int], ...]


class Override(msgspec.Struct, frozen=True):
    """Who always gets a variant, for testing: one unit (as the project stores units), or all whose
    `attribute` has this `value` (a string, a number or a boolean)."""

    id: int
    variant: str
    unit: str | None
    attribute: str | None
    value: Any
    created_at: datetime
    actor: str
    reason: str
    ended_at: datetime | None = None
    ended_by: str | None = None


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
    layer: LayerPin | None
    holdout: HoldoutPin | None
    stickiness: Stickiness
    ship: str | None
    at: datetime
    actor: str
    reason: str
    decision: int | None
    rolled_back: tuple[str, ...] = ()


class Live(msgspec.Struct, frozen=True):
    """An experiment together with its current epoch and its overrides: what a router answers
    from."""

    record: ExperimentRecord
    epoch: Epoch
    overrides: tuple[Override, ...] = ()


class Unread(msgspec.Struct, frozen=True):
    """An experiment that cannot be read, such as one that a newer release has written; and why."""

    key: str
    why: str


class Publication(msgspec.Struct, frozen=True):
    """All that a router needs to know of a project at one version, or what of it is new.

    `sticky_id` is random, and no other project's, in this database or another: first variants of
    sticky experiments are kept under it.

    Where `since` is not None, `experiments` are only those that changed after that version, and
    `gone` are the keys of those that were archived after it. All else is complete. `holdout` is
    the built-in experiment `$holdout` while one is in force; it is not among `experiments`.
    `unit_key` is what units are hashed with, None where they are stored as they are; `erasures` is
    how many there were. `unread` are those that would be among `experiments`, could they be read.
    `origins` are those from which browsers may call with a key of the project, `*` for any.
    """

    project: str
    version: int
    default_unit_type: str
    keys: tuple[ApiKey, ...]
    experiments: tuple[Live, ...]
    unit_key: UnitKey | None
    erasures: int
    sticky_id: str
    since: int | None = None
    gone: tuple[str, ...] = ()
    holdout: Live | None = None
    unread: tuple[Unread, ...] = ()
    origins: tuple[str, ...] = ()


RuleName: TypeAlias = Literal["guard", "health", "ramp", "bandit", "stop"]
"""A rule of the controller."""
DecidedBy: TypeAlias = Literal[RuleName, "manual"]
"""What a decision follows from: a rule, or a hand."""
DecisionKind: TypeAlias = Literal[
    "start",
    "pause",
    "resume",
    "conclude",
    "rollback",
    "archive",
    "amend",
    "allocate",
    "rollback_variant",
    "resume_variant",
    "overrule",
    "reallocate",
    "advance",
    "approve",
    "jump",
    "ramp_pause",
    "ramp_resume",
    "holdout",
    "alert",
    "advise",
    "hold",
]
"""What a decision did, in a word."""


class Basis(msgspec.Struct, frozen=True):
    """What a decision of the controller stood on besides its evidence.

    Arguments:
        watermark: all that routers received before it was in the moments; None before any router
            has shipped.
        closed_through: the last block that was closed of each metric of the run, by key.
        generation: of the guard; None where it has opened none.
        alpha_spent: the shares of alpha that this generation had given away.
    """

    watermark: datetime | None
    closed_through: dict[str, int]
    generation: int | None
    alpha_spent: float


class Sealed(msgspec.Struct, frozen=True):
    """All that the seal of a decision is made over.

    `rule` is the one that it follows from (`manual` for a hand), `code` says why without numbers. A
    decision of the kind `hold` did nothing: it says that a rule holds for another reason than
    before. `basis` is None for what a hand did.
    """

    run: int
    kind: str
    rule: str
    code: str
    epoch_before: int
    epoch_after: int
    term: int | None
    at: datetime
    actor: str
    reason: str
    evidence: Any
    basis: Basis | None


class Done(msgspec.Struct, frozen=True):
    """What a decision did: all that the seal of the epoch that it made is made over. `decision` is
    its number, and `move` leads to `allocation`, which says who owns which slot from then on."""

    decision: int | None
    epoch: int
    state: State
    move: AnyMove | None
    allocation: Allocation


class Decision(Sealed, frozen=True, kw_only=True):
    """What the controller did, or a hand on the switch, and why; with the evidence from which it
    can be computed again. `seal` is None in rows of older releases."""

    id: int
    seal: str | None = None
