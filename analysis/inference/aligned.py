"""Posteriors of several arms from their comparisons with the control, one by one.

Two arms compare only where both have traffic. Once a variant was rolled back, or came back, the
arms have seen different times, and the base rate of one time is not that of another. What each
comparison with the control gives is a difference within its own times. So every treatment is put at
the control's level plus its difference:

    μ_k = m_0 + (m_k - m_0k),

with m_0 the control's mean over the comparison that knows it best, and m_k and m_0k the two means
over the times of treatment k. Where all comparisons are of the same times these are the arms' own
means. The variance is that of m_k, and what m_0k has above m_0: arms are then as independent as
`probability_best` takes them.
"""

import math
from collections.abc import Mapping

import msgspec

from analysis.inference.thompson import ArmPosterior


class Level(msgspec.Struct, frozen=True):
    """The mean of an arm over some time, its variance, and the units behind it."""

    n: int
    mean: float
    variance: float


class Compared(msgspec.Struct, frozen=True):
    """The levels of the control and of a treatment over the times that both have."""

    control: Level
    treatment: Level


def aligned(compared: Mapping[str, Compared], control: str) -> dict[str, ArmPosterior] | None:
    """The posteriors of all arms, by variant in the order of their keys.

    Arguments:
        compared: by treatment, at least one.
        control: its key.

    Returns:
        None where an arm has no spread.
    """
    ordered = sorted(compared.items())
    base = min((pair.control for _, pair in ordered), key=lambda level: level.variance)
    found = {control: base}
    for treatment, pair in ordered:
        found[treatment] = Level(
            n=pair.treatment.n,
            mean=base.mean + (pair.treatment.mean - pair.control.mean),
            variance=pair.treatment.variance + (pair.control.variance - base.variance),
        )
    if any(not 0.0 < level.variance < math.inf for level in found.values()):
        return None
    return {
        variant: ArmPosterior(n=level.n, mean=level.mean, sd=math.sqrt(level.variance))
        for variant, level in sorted(found.items())
    }
