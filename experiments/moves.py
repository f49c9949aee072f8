"""How an epoch's allocation follows from the one before: kept with each epoch, so that anybody can
compute it again a year later.

A move is pure data, and `carry_out` a pure function of it, of the allocation before, and of the
earlier ones of the run. Weights are pairs in the order in which they were taken: a JSON object has
none, and it decides who gets the slot of a tie. Whoever moves slots in another way adds a move.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from experiments.allocation import Allocation, initial, reallocate, resize, restore, withdraw

Weights: TypeAlias = tuple[tuple[str, float], ...]


class Move(msgspec.Struct, frozen=True, tag_field="how"):
    """What all moves have in common: the tag `how`."""


class Begin(Move, frozen=True, tag="begin"):
    """The first allocation of a run: `allocation.initial`."""

    weights: Weights
    traffic: float


class Keep(Move, frozen=True, tag="keep"):
    """Every slot stays where it is."""


class Divide(Move, frozen=True, tag="divide"):
    """Other weights or another traffic: `allocation.reallocate`."""

    weights: Weights
    traffic: float


class Resize(Move, frozen=True, tag="resize"):
    """Another traffic at unchanged weights: `allocation.resize`."""

    weights: Weights
    traffic: float


class Withdraw(Move, frozen=True, tag="withdraw"):
    """The slots of one variant become another's: `allocation.withdraw`."""

    variant: str
    heir: str


class Restore(Move, frozen=True, tag="restore"):
    """A variant has the slots again that it owned in an earlier epoch: `allocation.restore`."""

    variant: str
    earlier: Allocation
    weights: Weights | None


class End(Move, frozen=True, tag="end"):
    """One variant has every slot."""

    ship: str


AnyMove: TypeAlias = Begin | Keep | Divide | Resize | Withdraw | Restore | End


def in_order(weights: Mapping[str, float]) -> Weights:
    """Weights as a move keeps them."""
    return tuple(weights.items())


def carry_out(
    move: AnyMove, current: Allocation | None, history: Sequence[Allocation] = ()
) -> Allocation:
    """The allocation that a move leads to.

    Args:
        current: The allocation before; None before the first one.
        history: The allocations of the run up to then, as `store.run_allocations` gives them.

    Raises:
        ValueError: where the move needs an allocation before it, and there is none.
    """
    match move:
        case Begin(weights, traffic):
            return initial(dict(weights), traffic)
        case End(ship):
            return initial({ship: 1.0}, 1.0)
    if current is None:
        raise ValueError(f"{move.__struct_config__.tag} needs the allocation before it")
    return _go_on(move, current, history)


def _go_on(
    move: Keep | Divide | Resize | Withdraw | Restore,
    current: Allocation,
    history: Sequence[Allocation],
) -> Allocation:
    match move:
        case Divide(weights, traffic):
            return reallocate(current, dict(weights), traffic, history)
        case Resize(weights, traffic):
            return resize(current, dict(weights), traffic, history)
        case Withdraw(variant, heir):
            return withdraw(current, variant, heir)
        case Restore(variant, earlier, stated):
            split = None if stated is None else dict(stated)
            return restore(current, earlier, variant, split, history)
        case Keep():
            return current


def read_move(text: str | bytes | None) -> AnyMove | None:
    """A move out of its JSON, or None where there is none: an older release kept none."""
    return None if text is None else msgspec.json.decode(text, type=AnyMove)
