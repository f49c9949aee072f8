"""Decisions as they are shown, and all that it takes to compute one again."""

from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from experiments.allocation import Allocation
from experiments.model import State
from experiments.moves import AnyMove
from experiments.records import Basis, Done, Sealed

Slots: TypeAlias = list[tuple[str | None, int]]
"""Runs of slots `(variant or none, count)`, as an allocation has them."""


class Standing(msgspec.Struct, frozen=True):
    """How an epoch splits the traffic: the propensity of each variant for a unit that is enrolled,
    and the share of the units that are."""

    epoch: int
    state: State
    weights: dict[str, float]
    traffic: float


class DecisionView(msgspec.Struct, frozen=True):
    """A decision, with the split before and after it; None before the first epoch."""

    id: int
    experiment: str
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
    seal: str | None
    before: Standing | None
    after: Standing | None


class WholeDecision(DecisionView, frozen=True, kw_only=True):
    """A decision with all that it takes to compute it again: who owned which slot before and after,
    the `move` that leads from the one to the other (None where nothing moved, or an older release
    did not keep it), and the allocations of the run up to then between which its traffic changed,
    which say what slots were released. `seal_of_epoch` is that of the epoch that it made; None
    where it made none, or an older release did."""

    slots_before: Slots | None
    slots_after: Slots | None
    move: AnyMove | None
    history: list[Slots]
    seal_of_epoch: str | None = None

    @property
    def sealed(self) -> Sealed:
        """What its seal is made over."""
        return Sealed(**{name: getattr(self, name) for name in Sealed.__struct_fields__})

    @property
    def done(self) -> Done | None:
        """What the seal of the epoch that it made is made over; None where there is no epoch."""
        if self.after is None or self.slots_after is None:
            return None
        allocation = Allocation(tuple(self.slots_after))
        return Done(self.id, self.epoch_after, self.after.state, self.move, allocation)
