"""The values of an arm that the guard of a quantile remembers, in the buckets of `bins.py`.

Buckets are disjoint stretches of the line in the order of their numbers, so a value in a bucket
above another one is larger, whatever the two are. Nothing is taken to be spread evenly within a
bucket where a bound stands on it.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from analysis.inference.bins import edges

Buckets: TypeAlias = tuple[tuple[int, int], ...]
"""(bucket, units whose value lies in it), in the order of the buckets; none is without a unit."""

Side: TypeAlias = Literal["above", "below"]

MOST_DENSITY_RATIO: Final = 3.0
"""Densities are known too roughly for more."""


class ValueCounts(msgspec.Struct, frozen=True):
    """Units of an arm, and the buckets of those that have a value.

    Arguments:
        units: how many, at least as many as have a value.
        buckets: of the values.
    """

    units: int = 0
    buckets: Buckets = ()

    @property
    def valued(self) -> int:
        """How many of the units have a value."""
        return sum(n for _, n in self.buckets)


class Place(NamedTuple):
    """A place in the order of values: what lies beyond the bucket counts 1, what lies in it counts
    `within`, and what lies on the other side counts 0."""

    bucket: int
    within: float
    side: Side


class Tally(NamedTuple):
    """Units by what they count at a place."""

    without: int
    on_this_side: int
    at: int
    beyond: int


def remember(seen: ValueCounts, new: ValueCounts, most: int) -> ValueCounts:
    """All of these units; those before fade once there are twice as many as are to be remembered.

    To fade, every second unit (or all but every k-th) is forgotten in the order of their values, so
    that counts stay whole and a quantile moves by one unit at most.
    """
    units = seen.units + new.units
    counts = dict(seen.buckets)
    for bucket, n in new.buckets:
        counts[bucket] = counts.get(bucket, 0) + n
    both = ValueCounts(units, ordered(counts))
    return _thinned(both, most) if units > 2 * most else both


def ordered(counts: Mapping[int, int]) -> Buckets:
    """The buckets that have units, in their order."""
    return tuple(sorted((bucket, n) for bucket, n in counts.items() if n > 0))


def _thinned(values: ValueCounts, most: int) -> ValueCounts:
    thinned: dict[int, int] = {}
    through = 0
    for bucket, n in values.buckets:
        before = through * most // values.units
        through += n
        thinned[bucket] = through * most // values.units - before
    return ValueCounts(most, ordered(thinned))


def place_of(values: ValueCounts, level: float, side: Side) -> Place:
    """Where the quantile of this level lies. Beyond it lies exactly the share 1 - level of the
    values (`level`, below), of its own bucket as much counted in as that takes.

    Raises:
        ValueError: where no unit has a value.
    """
    rank = level * values.valued
    through = 0
    for bucket, n in values.buckets:
        through += n
        if through >= rank:
            inside = through - rank if side == "above" else rank - (through - n)
            return Place(bucket, min(max(inside / n, 0.0), 1.0), side)
    raise ValueError("without a value there is no quantile")


def tally(values: ValueCounts, place: Place) -> Tally:
    """How many units lie where."""
    sign = 1 if place.side == "above" else -1
    at = beyond = this_side = 0
    for bucket, n in values.buckets:
        ahead = sign * (bucket - place.bucket)
        if ahead > 0:
            beyond += n
        elif ahead == 0:
            at += n
        else:
            this_side += n
    without = max(values.units - at - beyond - this_side, 0)
    return Tally(without, this_side, at, beyond)


def density_ratio(treatment: ValueCounts, control: ValueCounts, level: float) -> float:
    """The treatment's density at its quantile of this level over the control's, from the values
    that the ranks around it span: `MOST_DENSITY_RATIO` at most and one over it at least, and 1
    where both are a heap."""
    h = min(level, 1.0 - level) / 2.0
    width0, width1 = (
        _value_at(values, level + h) - _value_at(values, level - h)
        for values in (control, treatment)
    )
    if width1 <= 0.0:
        return MOST_DENSITY_RATIO if width0 > 0.0 else 1.0
    return min(max(width0 / width1, 1.0 / MOST_DENSITY_RATIO), MOST_DENSITY_RATIO)


def _value_at(values: ValueCounts, level: float) -> float:
    """A quantile, the values of its bucket being spread evenly."""
    place = place_of(values, level, "below")
    low, high = edges(place.bucket)
    return low + place.within * (high - low)
