"""The health of a run's data: how they came, and whether units are split as they should be.

These are counters that grow batch by batch as events are folded, so they watch and no estimate is
made of them. A unit that is erased, or whose enrolment moves to an earlier exposure, stays counted
as it was first seen.
"""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, TypeVar

import msgspec

from analysis.inference.ratio_watch import RatioWatch

BUCKETS_PER_DOUBLING: Final = 2
"""Buckets of delays in a factor of 2: a quantile of them is known to a factor of √2."""
SHORTEST_DELAY: Final = 0.001
"""Seconds: what was received sooner, or before it happened, counts as this."""

LEAST_PAUSE: Final = timedelta(minutes=10)
GAPS: Final = 20
"""Gaps between one and the next that count as silence: were they independent, it would happen by
chance once in e^20 of them."""
ENOUGH_TO_KNOW: Final = 20

_Key = TypeVar("_Key", int, str)


class Arrivals(msgspec.Struct, frozen=True):
    """When things of one kind came.

    Arguments:
        n: how many.
        first, last: the times of the earliest and the latest; None while there are none.
        longest_pause: the longest time in seconds from the last of one batch to the first of the
            next.
    """

    n: int = 0
    first: datetime | None = None
    last: datetime | None = None
    longest_pause: float = 0.0

    @property
    def gap(self) -> float:
        """The mean time in seconds between one and the next; 0 of fewer than two."""
        if self.first is None or self.last is None or self.n < 2:
            return 0.0
        return (self.last - self.first).total_seconds() / (self.n - 1)

    @property
    def longest_usual_pause(self) -> timedelta | None:
        """After which silence something has stopped: `GAPS` usual gaps, or the longest pause so
        far, and no less than `LEAST_PAUSE`. None of too few to know what is usual.

        The longest pause is one of the run's own: a night without visitors is told once.
        """
        if self.first is None or self.last is None or self.n < ENOUGH_TO_KNOW:
            return None
        pauses = timedelta(seconds=GAPS * self.gap), timedelta(seconds=self.longest_pause)
        return max(LEAST_PAUSE, *pauses)

    def then(self, batch: "Arrivals") -> "Arrivals":
        """With those of another batch."""
        if self.first is None or self.last is None or batch.first is None or batch.last is None:
            return batch if self.n == 0 else self
        return Arrivals(
            n=self.n + batch.n,
            first=min(self.first, batch.first),
            last=max(self.last, batch.last),
            longest_pause=max(self.longest_pause, (batch.first - self.last).total_seconds()),
        )


class EventHealth(msgspec.Struct, frozen=True):
    """Outcomes of an event that a run's metrics count, of whichever unit, while the run is live.

    Arguments:
        received: when those were received that name a unit of the experiment's type.
        of_other_types: how many name a unit of another type.
        delays: how long after they happened those were received: how many, by `delay_bucket`.
    """

    received: Arrivals = Arrivals()
    of_other_types: int = 0
    delays: dict[int, int] = {}

    def then(self, batch: "EventHealth") -> "EventHealth":
        """With those of another batch."""
        return EventHealth(
            received=self.received.then(batch.received),
            of_other_types=self.of_other_types + batch.of_other_types,
            delays=added(self.delays, batch.delays),
        )

    def delay_quantile(self, level: float) -> float | None:
        """The delay in seconds that a share `level` of the outcomes does not exceed, rounded up to
        the end of its bucket; None where none came."""
        total = sum(self.delays.values())
        below = 0
        for bucket in sorted(self.delays):
            below += self.delays[bucket]
            if below >= level * total:
                return delay_end(bucket)
        return None

    def share_later_than(self, delay: timedelta) -> float | None:
        """The share of the outcomes that surely had a longer delay; None where none came."""
        total = sum(self.delays.values())
        limit = delay.total_seconds()
        later = sum(n for bucket, n in self.delays.items() if delay_end(bucket - 1) >= limit)
        return later / total if total else None


class Health(msgspec.Struct, frozen=True):
    """The health of a run's data.

    Arguments:
        ratio: the watch over the units of the variants.
        enrolments: when units were enrolled.
        events: what came, by event.
        counted: how many outcomes were of an enrolled unit and within the window of a metric, by
            the metric's version and the event. Metrics of one version make the same of a unit.
    """

    ratio: RatioWatch = RatioWatch()
    enrolments: Arrivals = Arrivals()
    events: dict[str, EventHealth] = {}
    counted: dict[str, dict[str, int]] = {}

    def then(self, batch: "Health") -> "Health":
        """With the counters of another batch; the watch of this one, which goes on by `watch`."""
        events, counted = dict(self.events), dict(self.counted)
        for event, came in batch.events.items():
            events[event] = events.get(event, EventHealth()).then(came)
        for version, counts in batch.counted.items():
            counted[version] = added(counted.get(version, {}), counts)
        return Health(self.ratio, self.enrolments.then(batch.enrolments), events, counted)


def delay_bucket(seconds: float) -> int:
    """The bucket of a delay: the whole number of steps of √2 above a second, rounded down."""
    return math.floor(BUCKETS_PER_DOUBLING * math.log2(max(seconds, SHORTEST_DELAY)))


def delay_end(bucket: int) -> float:
    """Where a bucket ends, in seconds."""
    return math.exp2((bucket + 1) / BUCKETS_PER_DOUBLING)


def added(a: Mapping[_Key, int], b: Mapping[_Key, int]) -> dict[_Key, int]:
    """Counts of both, key by key."""
    return {key: a.get(key, 0) + b.get(key, 0) for key in sorted(a.keys() | b.keys())}
