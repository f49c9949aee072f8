"""Many units at once: their slots, and what an experiment gives them by these.

It is `router.hashing.slot` and `router.assign.assign` over columns. Units are encoded once, however
many salts they are hashed under, and what depends on a salt and a length alone is made once for
each. The hash itself is the plain one, unit by unit: 0.07 us. The same hash over columns of words
in numpy needs 0.08 us for a thousand units under ten salts, and 0.09 to 0.16 us for ten thousand
under one. It wins only where both are many, which is more than a request may ask for.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Final, TypeAlias

import mmh3
import msgspec
import numpy as np
from numpy.typing import NDArray

from experiments.model import SLOTS
from router.assign import Assignment, Why
from router.hashing import head
from router.snapshot import NOBODY, Arm, Entry

Slots: TypeAlias = NDArray[np.int64]
"""A slot for each of some units, in their order."""

NO_SLOT: Final = -1
"""Stands among slots where none was looked up."""
TARGETED: Final = 0
NOT_TARGETED: Final = 1
FAILED: Final = 2
"""What targeting says of a unit: yes, no, or nothing, for it could not be evaluated."""


class Column:
    """Units, encoded, with their slots under the salts that were asked for."""

    def __init__(self, units: Iterable[str]) -> None:
        """Make units ready to be hashed.

        Raises:
            UnicodeEncodeError: if a unit is no Unicode text, for it holds half a surrogate pair.
        """
        self.units = [unit.encode() for unit in units]
        self._slots: dict[str, Slots] = {}

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def lengths(self) -> frozenset[int]:
        """The lengths in bytes that occur among the units."""
        return frozenset(map(len, self.units))

    def slots(self, salt: str) -> Slots:
        """The slots of the units under a salt: 0 to 9,999, the same in every process and for ever.

        Experiments of a layer, and all of a project under a holdout, ask for the same: not to be
        changed.
        """
        found = self._slots.get(salt)
        if found is None:
            found = self._slots[salt] = self._hashed(salt)
        return found

    def _hashed(self, salt: str) -> Slots:
        prefix = f"{salt}:".encode()
        # The text that is hashed begins with its length, so units of one length begin alike.
        begins = {length: head(len(prefix) + length) + prefix for length in self.lengths}
        digest = mmh3.mmh3_32_uintdigest
        hashes = [digest(begins[len(unit)] + unit) for unit in self.units]
        found = np.fromiter(hashes, np.int64, len(hashes))
        found *= SLOTS
        found >>= 32
        return found


class Assignments(msgspec.Struct, frozen=True):
    """What units get: `answers[which[i]]` is what unit `i` gets, but for its slot, `slots[i]`."""

    answers: tuple[Assignment, ...]
    which: NDArray[np.uint8]
    slots: Slots


def follows_slots(entry: Entry) -> bool:
    """Whether what a unit gets in an experiment is told by slots and targeting alone."""
    return (
        entry.state == "running"
        and entry.overrides is None
        and entry.stale_after is None
        and not entry.sticky
    )


def let_in(entry: Entry, units: Column) -> NDArray[np.bool_]:
    """Whom neither the holdout nor the layer keeps out of an experiment."""
    return ~(_held_out(entry, units) | _out_of_layer(entry, units))


def assign_all(
    entry: Entry, units: Column, targeting: NDArray[np.uint8] | None = None
) -> Assignments:
    """What `assign` gives each of these units in an experiment that follows slots.

    Args:
        targeting: whether each unit is `TARGETED`, `NOT_TARGETED` or its targeting `FAILED`; None
            where the experiment has no rule. It is not read for those who are not let in.
    """
    places = units.slots(entry.salt)
    which = np.frombuffer(entry.owners, np.uint8)[places]
    arms, held = len(entry.arms), None if entry.holdout is None else False
    not_enrolled, not_targeted, failed, out_of_layer, held_out = range(arms, arms + 5)
    which[which == NOBODY] = not_enrolled
    looked_up = let_in(entry, units)
    if targeting is not None:
        which[targeting == NOT_TARGETED] = not_targeted
        which[targeting == FAILED] = failed
        looked_up &= targeting == TARGETED
    which[_out_of_layer(entry, units)] = out_of_layer
    which[_held_out(entry, units)] = held_out

    def split(arm: Arm) -> Assignment:
        return Assignment(arm, "split", None, entry.epoch, arm.propensity, held)

    def default(reason: Why, is_held: bool | None) -> Assignment:
        return Assignment(entry.arms[entry.default], reason, None, entry.epoch, None, is_held)

    return Assignments(
        answers=(
            *map(split, entry.arms),
            default("not_enrolled", held),
            default("not_targeted", held),
            default("targeting_failed", held),
            default("out_of_layer", held),
            default("held_out", True),
        ),
        which=which,
        slots=np.where(looked_up, places, NO_SLOT),
    )


def _held_out(entry: Entry, units: Column) -> NDArray[np.bool_]:
    if entry.holdout is None:
        return np.zeros(len(units), np.bool_)
    return np.frombuffer(entry.holdout.held, np.bool_)[units.slots(entry.holdout.salt)]


def _out_of_layer(entry: Entry, units: Column) -> NDArray[np.bool_]:
    if entry.layer is None:
        return np.zeros(len(units), np.bool_)
    places = units.slots(entry.layer.salt)
    return (places < entry.layer.first) | (places >= entry.layer.end)
