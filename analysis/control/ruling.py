"""What a rule says of an experiment at a tick: to do something, or to hold, and why.

Rules are consulted in a fixed order (`decide.RULES`): guard, health, ramp, bandit, stop. Each reads
what it stands on, hands it to a pure function, and keeps what that gives; so a simulation can play
the same functions without a database.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from analysis.folding.blocks import Closed
from experiments.records import ExperimentRecord, RuleName

STALE_AFTER: Final = timedelta(seconds=60)

Propensities: TypeAlias = Mapping[int, Mapping[str, float]]
"""The propensity of each variant, by epoch."""


class RollBack(msgspec.Struct, frozen=True, tag_field="kind", tag="rollback"):
    """End the run and give all traffic to the control."""


class RollBackVariant(msgspec.Struct, frozen=True, tag_field="kind", tag="rollback_variant"):
    """Give the slots of a variant to the control; the others stay as they are."""

    variant: str


class Pause(msgspec.Struct, frozen=True, tag_field="kind", tag="pause"):
    """Let the control answer everybody until a hand resumes."""


class Alert(msgspec.Struct, frozen=True, tag_field="kind", tag="alert"):
    """Tell people; the traffic stays."""


class Reallocate(msgspec.Struct, frozen=True, tag_field="kind", tag="reallocate"):
    """Split the traffic in other weights."""

    weights: dict[str, float]


class Advance(msgspec.Struct, frozen=True, tag_field="kind", tag="advance"):
    """Go on to a step of a ramp, with its share of traffic."""

    step: int
    traffic: float


class Conclude(msgspec.Struct, frozen=True, tag_field="kind", tag="conclude"):
    """End the run and ship a variant."""

    ship: str


class Advise(msgspec.Struct, frozen=True, tag_field="kind", tag="advise"):
    """Tell people to ship a variant; the traffic stays."""

    ship: str


Act: TypeAlias = (
    RollBack | RollBackVariant | Pause | Alert | Reallocate | Advance | Conclude | Advise
)


class Ruling(msgspec.Struct, frozen=True):
    """What a rule says at a tick.

    Arguments:
        rule: which one.
        code: why, stable and short: `harm`, `warming_up`, `awaiting_approval`. A rule that holds
            is written into the ledger only when its code changes.
        reason: the same in words, with the numbers.
        act: what is to be done; None to hold.
        evidence: a Struct of all that the ruling was computed from, and what it gave.
    """

    rule: RuleName
    code: str
    reason: str
    act: Act | None
    evidence: msgspec.Struct | Mapping[str, Any]


class Situation(msgspec.Struct, frozen=True):
    """What all rules are told of an experiment at a tick.

    Arguments:
        record: the experiment, locked, with its definition as it was written.
        term: of the leader.
        watermark: all that routers received before it is in the moments.
        lateness: how late an outcome's time may be for its block.
        now: the time that decisions are dated by.
        clock: what the clock says: it lies behind `now` where it was put back since the experiment
            last changed.
        stale: whether the moments are too old to move traffic to a variant by: the watermark lies
            further back than `STALE_AFTER`. What harms is rolled back all the same.
        closed: the blocks of each metric that closed just now.
        propensities: of all epochs that these blocks name.
    """

    record: ExperimentRecord
    term: int
    watermark: datetime
    lateness: timedelta
    now: datetime
    clock: datetime
    stale: bool
    closed: Sequence[Closed]
    propensities: Propensities
