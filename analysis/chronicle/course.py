"""Which points of a run's course are kept, and what stands in them. Pure.

A run has at most `MOST_POINTS` points, however old it is. They come at least a spacing apart; when
there are as many as there may be, every other one goes, and the spacing is doubled. So a run of a
month has been written to some hundreds of times more often than one of an hour has points, and no
more: 2,000 times in a month. The first point and the last one are always among those that stay.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, TypeAlias

import msgspec

from analysis.reports.report import Report

MOST_POINTS: Final = 241
"""Odd, so that a thinning keeps both ends: those at odd places stay."""
FIRST_SPACING: Final = timedelta(seconds=2)


class Figures(msgspec.Struct, frozen=True, array_like=True):
    """What a report said of a treatment on a metric; as `CoursePoint`. An array in the database, to
    which a later release may add, and never change what is there."""

    treatment: str
    n_control: int
    n_treatment: int
    mean_control: float | None
    mean_treatment: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None


Said: TypeAlias = Mapping[str, tuple[Figures, ...]]
"""What a report said of the comparisons on each metric, by its key."""


class Following(msgspec.Struct, frozen=True):
    """How a run is followed: how far apart points are, at least, how many there are, and when the
    last one was taken."""

    spacing: timedelta
    points: int
    last_at: datetime

    @property
    def full(self) -> bool:
        """Whether every other point has to go before another one comes."""
        return self.points >= MOST_POINTS

    def due(self, at: datetime) -> bool:
        """Whether it is time for a point. One that lies ahead was dated by a clock that was put
        back since; a course goes forward only."""
        return at >= self.last_at + self.spacing


def beginning(at: datetime) -> Following:
    """How a run is followed from its first point on."""
    return Following(FIRST_SPACING, 1, at)


def following(before: Following, at: datetime) -> Following:
    """How a run is followed after another point, before which every other one went if it was
    full."""
    if before.full:
        return Following(2 * before.spacing, (before.points + 1) // 2 + 1, at)
    return Following(before.spacing, before.points + 1, at)


def figures_of(report: Report) -> Said:
    """What stands in a point: the comparisons of a report, by metric."""
    return {
        metric.key: tuple(
            Figures(
                treatment=c.treatment,
                n_control=c.continuous.n_control,
                n_treatment=c.continuous.n_treatment,
                mean_control=c.fixed.mean_control,
                mean_treatment=c.fixed.mean_treatment,
                difference=c.continuous.difference,
                low=c.continuous.reading.ci_low,
                high=c.continuous.reading.ci_high,
                p_value=c.continuous.reading.p_value,
            )
            for c in metric.comparisons
        )
        for metric in report.metrics
    }
