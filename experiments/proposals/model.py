"""What a proposal is: a write that waits for a second pair of eyes."""

from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from experiments.model import Reason

Demand: TypeAlias = Literal["start", "change", "allocation", "approvals"]
"""What a project demands approval of: a start, a change of what holds traffic, a move of traffic by
hand; and, without being asked, to demand less."""
ProposalState: TypeAlias = Literal[
    "pending", "approved", "rejected", "withdrawn", "expired", "stale"
]

LIFE: Final = timedelta(days=7)
MOST_PENDING: Final = 20
"""Proposals of one experiment that may wait at a time."""
APPROVED_BY: Final = ", approved by "
"""Between the two whom epochs, revisions and decisions name as their actor."""


class Proposal(msgspec.Struct, frozen=True):
    """A write that somebody has proposed, and what became of it.

    Arguments:
        experiment: its key; None where the project's own settings are to change.
        verb: what is to be done; `body` is as it was sent.
        demand: what of the project's `approvals` asks for the second pair of eyes.
        proposer: who asked for it, and why; `settled_by` is who approved, rejected or withdrew it.
        revision, run, epoch: what it was made to. When a hand, the guard or a ramp has moved the
            experiment since, it is stale: what was looked at is no more.
        expires_at: when nobody can approve it any more.
    """

    id: int
    project: str
    experiment: str | None
    verb: str
    demand: Demand
    body: Any
    reason: str
    proposer: str
    revision: int
    run: int
    epoch: int
    at: datetime
    expires_at: datetime
    state: ProposalState
    settled_at: datetime | None = None
    settled_by: str | None = None
    settled_reason: str | None = None


class Settlement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `approve`, `reject` and `withdraw`."""

    reason: Reason


class StaleError(Exception):
    """What a proposal was made to has moved on; `why` says how."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
