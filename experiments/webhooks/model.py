"""What a webhook is, and what becomes of its deliveries, as Structs."""

from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Meta

from experiments.model import ExperimentKey, State

Format: TypeAlias = Literal["standard", "slack"]
EventType: TypeAlias = Literal[
    "experiment.start",
    "experiment.pause",
    "experiment.resume",
    "experiment.conclude",
    "experiment.rollback",
    "experiment.archive",
    "experiment.amend",
    "experiment.allocate",
    "experiment.rollback_variant",
    "experiment.resume_variant",
    "experiment.overrule",
    "experiment.reallocate",
    "experiment.advance",
    "experiment.approve",
    "experiment.jump",
    "experiment.ramp_pause",
    "experiment.ramp_resume",
    "experiment.holdout",
    "experiment.alert",
    "experiment.clear",
    "experiment.advise",
    "experiment.hold",
]
"""A kind of decision, as others are told of it; `clear` is the end of a finding about the data."""

EVENT_TYPES: Final[tuple[EventType, ...]] = get_args(EventType)
HOLD: Final[EventType] = "experiment.hold"
"""Sent only to those who ask for it by name: it says that a rule did nothing."""
TEST: Final = "turnout.test"

MOST_WEBHOOKS: Final = 20
"""Of a project. Each costs a row a decision."""

Types: TypeAlias = Annotated[tuple[EventType, ...], Meta(min_length=1, max_length=64)]
Experiments: TypeAlias = Annotated[tuple[ExperimentKey, ...], Meta(min_length=1, max_length=200)]
Note: TypeAlias = Annotated[str, Meta(max_length=200)]


class Webhook(msgspec.Struct, frozen=True):
    """Who is told of a project's decisions, and how.

    Arguments:
        origin: scheme and host of its address: all of it that is ever shown, for the rest may be a
            secret, as it is with Slack.
        address: its address, sealed.
        key_id: which signing key has sealed it, and signs.
        types: of which decisions; None for all but `hold`.
        experiments: of which experiments; None for all.
        generation: how often its secret was made, by a rotation at `rotated_at` but for the first.
        enabled: whether it is told anything; where a machine decided that it is not, `why_disabled`
            says why.
        failing_since: since when nothing has arrived; None while all is well.
    """

    id: str
    project: str
    format: Format
    origin: str
    address: bytes
    key_id: str
    types: tuple[str, ...] | None
    experiments: tuple[str, ...] | None
    note: str
    generation: int
    rotated_at: datetime | None
    enabled: bool
    why_disabled: str
    failing_since: datetime | None
    created_at: datetime
    actor: str


class Side(msgspec.Struct, frozen=True):
    """An experiment at an epoch: its state, the traffic, and the propensities of its variants."""

    epoch: int
    state: State
    traffic: float
    weights: dict[str, float]


class Story(msgspec.Struct, frozen=True):
    """A decision as others are told of it: small, and the same however late it is told, for it
    stands on rows that never change. `before` and `after` are None where there was no epoch."""

    decision: int
    project: str
    experiment: str
    run: int
    kind: str
    rule: str
    code: str
    reason: str
    actor: str
    at: datetime
    before: Side | None
    after: Side | None


class Delivery(msgspec.Struct, frozen=True):
    """A decision on its way to a webhook, and what became of it.

    Arguments:
        message: its `webhook-id`, the same at each attempt.
        state: `waiting`, `delivered`, or `given_up`.
        status: of the last answer; None where none came.
        error: what was wrong with the last attempt; empty where nothing was.
    """

    id: int
    message: str
    type: str
    experiment: str
    decision: int
    state: Literal["waiting", "delivered", "given_up"]
    attempts: int
    offered_at: datetime
    tried_at: datetime | None
    finished_at: datetime | None
    status: int | None
    error: str


def event_type(kind: str, rule: str) -> str:
    """The type under which a decision of a rule is told. A health check holds only when its finding
    has cleared: who was told of the finding is to hear of that, too."""
    return "experiment.clear" if (kind, rule) == ("hold", "health") else f"experiment.{kind}"


def message_id(webhook: str, decision: int) -> str:
    """The id of the message about a decision: no other message of any Turnout has it."""
    return f"msg_{webhook}_{decision}"
