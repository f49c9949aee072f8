"""What the guard's evidence is made of: rules, blocks, and the state between two blocks."""

import math
from typing import Final

import msgspec

from analysis.inference.kinds import Goal, Kind
from analysis.inference.moments import EMPTY, Moments
from analysis.inference.value_counts import Buckets, ValueCounts

BETS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.9)
"""Sizes of bets, as shares of the largest one that cannot ruin (proportions) or in units of one
over the score's standard deviation (all others). Small ones find small harm slowly, large ones find
large harm at once; mixing over eight costs ln 8 = 2.1 of log evidence at most."""

MEMORY_UNITS: Final = 5_000
"""Units of an arm that the plug-ins remember; beyond that older ones fade, so that a drifting base
rate or variance is followed."""


class GuardRule(msgspec.Struct, frozen=True):
    """What counts as harm, and what an alarm costs. Stored beside the evidence.

    Arguments:
        kind: proportion (scores 0 and 1), mean (any finite number), ratio (two of them), each of
            the last two with or without covariates; or quantile.
        goal: which way of the metric is better.
        margin: the harm that is tolerated, at least 0: in the metric's unit, or as a fraction of
            the control's absolute level where `relative` is true.
        alpha_share: the bound on the chance of a false alarm, in (0, 1): this rule's part of the
            guard's alpha, given by its ledger.
        relative: how the margin is meant.
        bets: the grid of bets, each in (0, 1).
        quantile: the level of a quantile, in (0, 1); None for any other kind.
        repeats: whether a unit comes again in later blocks, as visits do (scope `exposure`). Its
            scores are taken for those of other units, so the bound is approximate.

    Raises:
        ValueError: when a number is outside its bounds.
    """

    kind: Kind
    goal: Goal
    margin: float
    alpha_share: float
    relative: bool = False
    bets: tuple[float, ...] = BETS
    quantile: float | None = None
    repeats: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin >= 0.0):
            raise ValueError(f"a margin is a finite number of at least 0, not {self.margin}")
        if not 0.0 < self.alpha_share < 1.0:
            raise ValueError(f"a share of alpha lies in (0, 1), not at {self.alpha_share}")
        if not self.bets or any(not 0.0 < bet < 1.0 for bet in self.bets):
            raise ValueError("bets lie strictly between 0 and 1, and there is at least one")
        if (self.kind == "quantile") != (self.quantile is not None):
            raise ValueError(f"a quantile has a level, and no {self.kind} has: {self.quantile}")
        if self.quantile is not None and not 0.0 < self.quantile < 1.0:
            raise ValueError(f"a quantile's level lies in (0, 1), not at {self.quantile}")


class BlockCell(msgspec.Struct, frozen=True):
    """What one enrolment block saw of one epoch, for a treatment and the control.

    Arguments:
        block: the block's number, increasing in time.
        epoch: the epoch in which the units were enrolled.
        propensity_control, propensity_treatment: the epoch's logged propensities of the two arms
            (of all variants, not only of these two).
        control, treatment: moments of the two arms' finished scores, in the order of `linear.py`:
            the outcome (numerator and denominator of a ratio), then its covariates. An arm without
            units may have any number of dimensions. Of a quantile they only count the units.
        control_buckets, treatment_buckets: of a quantile, where the units' values lie; units
            without a value are in no bucket.
    """

    block: int
    epoch: int
    propensity_control: float
    propensity_treatment: float
    control: Moments
    treatment: Moments
    control_buckets: Buckets = ()
    treatment_buckets: Buckets = ()

    @property
    def units(self) -> int:
        """Units of the two arms."""
        return self.control.n + self.treatment.n

    @property
    def has_contrast(self) -> bool:
        """Whether both arms could be met."""
        return min(self.propensity_control, self.propensity_treatment) > 0.0

    @property
    def shares(self) -> tuple[float, float]:
        """e0 and e1, the propensities of control and treatment among the two of them; for a cell
        that allows a contrast."""
        both = self.propensity_control + self.propensity_treatment
        return self.propensity_control / both, self.propensity_treatment / both


class Denominator(msgspec.Struct, frozen=True):
    """An arm's mean denominator over a stretch of time that both arms share.

    The arms' plug-ins remember equally many units, so at unequal shares of the traffic they
    remember different times; what is divided by must not, or any wave in the traffic would be taken
    for a difference of the arms.

    Arguments:
        units: how many it is made of, fading.
        weight: Σ 1/e over them, by which all times weigh as much as they had units.
        mean: of the denominators, so weighted.
    """

    units: float = 0.0
    weight: float = 0.0
    mean: float = 0.0


class GuardState(msgspec.Struct, frozen=True):
    """The evidence so far: all that the next block needs. Finite numbers only, so it is JSON.

    Arguments:
        blocks: t, the number of blocks that were bet on. Quiet blocks and burn-in do not count,
            so a quiet night costs nothing.
        log_stakes: per bet, ln(S_t + w_{t+1}): what goes into the next block, the process that
            starts there included.
        log_peak: the largest ln M so far; a crossing is kept, also when several blocks are
            folded between two looks.
        units: units seen in both arms, burn-in included.
        burn_in_units: of these, the units that came before the first bet.
        control, treatment: moments that the plug-ins are made of.
        last_block: number of the last block seen.
        control_values, treatment_values: of a quantile, in place of the moments.
        control_denominator, treatment_denominator: of a ratio; of a quantile the share of units
            that have a value.
    """

    blocks: int
    log_stakes: tuple[float, ...]
    log_peak: float
    units: int = 0
    burn_in_units: int = 0
    control: Moments = EMPTY
    treatment: Moments = EMPTY
    last_block: int | None = None
    control_values: ValueCounts = ValueCounts()
    treatment_values: ValueCounts = ValueCounts()
    control_denominator: Denominator = Denominator()
    treatment_denominator: Denominator = Denominator()
