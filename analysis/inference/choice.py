"""Which estimate is read: differences within epochs, or AIPW scores block by block.

The rule. Differences within epochs, unless all of these hold:

1. Traffic was reallocated: some propensities are not those that the run began with.
2. More than `SMALL_SHARE` of the units of the two arms lie in small epochs: epochs in which an arm
   has fewer than `epoch_sums.SMALL_EPOCH` units, those with units of one arm only included.
3. There is a trail with scores.
4. The trail has seen all blocks, or, where it began later (`Trail.since_block`), at least half of
   the units of the two arms.

Why. In large epochs the two agree, and differences within epochs need no burn-in, so they give the
textbook's answer with one epoch and are as narrow as can be with several. In small ones they do not
hold: a bandit makes the sample sizes of an epoch out of its past, an arm of a few units has no
variance to go by, and epochs in which chance left one arm out would have to be left out themselves.

If there is no such trail, small epochs are compared all the same, and the answer says so. A trail
that has just begun, in a run that stood before trails were kept, would forget nearly all of it.

A run that is moved more and more often goes from one estimate to the other, as a rule once. Either
sequence excludes the truth in at most α of all runs; read one after the other by this rule, the two
together still did so in 2 % of simulated runs of a bandit, at a nominal 5 %.
"""

from typing import Final

import msgspec

from analysis.inference.aipw import aipw_comparison, aipw_sequence
from analysis.inference.epoch_sums import EpochSums, Population
from analysis.inference.estimate import Comparison, cautious_std_error, compare, relative
from analysis.inference.kinds import Kind, Method
from analysis.inference.sequence import DECISION_N, AlwaysValid, always_valid
from analysis.inference.trail import Trail

SMALL_SHARE: Final = 0.01
"""The share of the units in small epochs up to which these do not matter."""


class SequenceReading(msgspec.Struct, frozen=True):
    """What may be read at any time.

    Arguments:
        difference: in the metric's unit; None where it is not defined.
        n_control, n_treatment: the units behind it.
        method: how it was estimated.
        reading: the confidence sequence and its e-value.
        mean_control, mean_treatment: what the same units estimate for the arms, so that one less
            the other is the difference; None where that is not defined.
        lift: the difference over |mean_control|, as a fraction. A point estimate: the sequence
            covers the difference, and claims no interval of the lift.
    """

    difference: float | None
    n_control: int
    n_treatment: int
    method: Method
    reading: AlwaysValid
    mean_control: float | None = None
    mean_treatment: float | None = None

    @property
    def lift(self) -> float | None:
        """See the class."""
        if self.difference is None or self.mean_control is None:
            return None
        return relative(self.difference, self.mean_control)


def read_fixed(
    population: Population,
    trail: Trail | None,
    control: str,
    treatment: str,
    kind: Kind,
    *,
    reallocated: bool,
    alpha: float = 0.05,
) -> Comparison:
    """The comparison at a fixed horizon, by the rule.

    Arguments:
        population: of all units, or of the finished ones. A trail has finished units only.
        trail: of this treatment; None where there is none.
        control, treatment: the keys of the arms.
        kind: proportion, mean or ratio.
        reallocated: whether propensities have changed in the run.
        alpha: 1 - confidence level.

    Raises:
        ValueError: for an alpha outside (0, 1).
    """
    sums = population.contrasts.get(treatment, EpochSums())
    small = reallocated and has_small_epochs(sums)
    if small and trail is not None and _speaks_for(trail, population, control, treatment):
        return aipw_comparison(trail, kind, alpha)
    result = compare(sums, control, treatment, kind, alpha)
    if small:
        result = msgspec.structs.replace(result, notes=(*result.notes, "approximate_small_epochs"))
    return result


def read_continuous(
    finished: Population,
    trail: Trail | None,
    control: str,
    treatment: str,
    kind: Kind,
    *,
    reallocated: bool,
    alpha: float = 0.05,
    decision_n: int = DECISION_N,
) -> SequenceReading:
    """The reading that holds at any time, by the rule.

    Arguments:
        finished: the population of the finished units.
        trail, control, treatment, kind, reallocated, alpha: as for `read_fixed`.
        decision_n: units of both arms at which a decision is expected.

    Raises:
        ValueError: for an alpha outside (0, 1) or a decision_n below 1.
    """
    sums = finished.contrasts.get(treatment, EpochSums())
    small = reallocated and has_small_epochs(sums)
    if small and trail is not None and _speaks_for(trail, finished, control, treatment):
        difference, reading, mean_control = aipw_sequence(trail, kind, alpha, decision_n)
        scored = trail.sequence
        return SequenceReading(
            difference,
            scored.control.units,
            scored.treatment.units,
            "aipw",
            reading,
            mean_control,
            None if difference is None or mean_control is None else mean_control + difference,
        )
    result = compare(sums, control, treatment, kind, alpha)
    reading = always_valid(
        result.difference,
        cautious_std_error(sums, control, treatment, kind),
        result.n_control,
        result.n_treatment,
        alpha,
        decision_n,
    )
    return SequenceReading(
        result.difference,
        result.n_control,
        result.n_treatment,
        "within_epochs",
        reading,
        result.mean_control,
        result.mean_treatment,
    )


def _speaks_for(trail: Trail, population: Population, control: str, treatment: str) -> bool:
    """Whether a trail has scores, and is of enough of the units of the two arms."""
    if trail.since_block is None or not trail.is_scored:
        return trail.is_scored
    seen = sum(cell.control.n + cell.treatment.n for cell in trail.opening)
    for scores in (trail.training, trail.sequence):
        seen += scores.control.units + scores.treatment.units
    units = population.units.get(control, 0) + population.units.get(treatment, 0)
    return 2 * seen >= units


def has_small_epochs(sums: EpochSums) -> bool:
    """Whether more than `SMALL_SHARE` of the units of the two arms lie in small epochs."""
    units = sum(arm.n for arm in sums.arms.values()) + sums.units_left_out
    return sums.units_in_small > SMALL_SHARE * units
