"""An interval for a difference, from those of its two parts by themselves: MOVER.

Where the distribution of an estimate is skewed, one standard error stands for neither side. Each
part then has an interval of its own, whose ends lie at different distances from the estimate, and
the difference takes from each part the side that it would be wrong on: below it lie a treatment
that was estimated too high and a control that was estimated too low.

Sources: Newcombe (1998), "Interval estimation for the difference between independent proportions:
comparison of eleven methods", method 10; Zou and Donner (2008), "Construction of confidence limits
about effect measures: a general approach" (the method of variance estimates recovery).
"""

import math

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """An estimate, and how far below and above it the ends of its interval are, at least 0."""

    value: float
    below: float
    above: float


def half_widths(control: Limits, treatment: Limits) -> tuple[float, float]:
    """How far the interval of treatment - control reaches below the difference, and above it."""
    return (
        math.hypot(treatment.below, control.above),
        math.hypot(treatment.above, control.below),
    )
