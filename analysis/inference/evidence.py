"""The guard's evidence of harm: e-processes restarted at every enrolment block.

Under "the variant is within its margin at every time" the evidence M is a non-negative
supermartingale that starts at 1, so P(M ever reaches 1/α) <= α (Ville), over all looks, ramp
steps and reallocations together. Exactly so for proportions; for means asymptotically, after a
burn-in.

How it is made:

* Each unit gives an AIPW harm score X with conditional mean <= 0 under the hypothesis, whatever
  the propensities are, as long as they are those it was enrolled with (`scores`).
* A bet g turns a block's scores into a factor F with conditional mean <= 1 (`_log_factor_*`).
* A process that starts at block j multiplies the factors from j on. Their mixture with weights
  w_j = 1/(j(j+1)) sees a change that comes late, where a process started at block 1 has first to
  win back what it lost on the healthy past. All starts share the factors, so per bet only
  S_t = F_t (S_{t-1} + w_t) is kept; the starts still to come hold Σ_{j>t} w_j = 1/(t+1), and
  M_t = S_t + 1/(t+1), averaged over the bets. Nothing is ever dropped or weighted anew.

Sources: Shin, Ramdas, Rinaldo (2023), "E-detectors: a nonparametric framework for sequential
change detection" (sums of e-processes started at consecutive times; starting weights that sum to 1
bound the false-alarm probability instead of the run length); Waudby-Smith, Ramdas (2024),
"Estimating means of bounded random variables by betting"; Robins, Rotnitzky, Zhao (1994) for the
score and Hadad et al. (2021) for its plug-ins from the past; Delyon (2009), "Exponential
inequalities for sums of weakly dependent variables", with Howard et al. (2020), "Time-uniform
Chernoff bounds via nonnegative supermartingales", for the factor of unbounded scores.
"""

import math
from collections.abc import Sequence

import msgspec

from analysis.inference.blocks import next_block
from analysis.inference.kinds import Goal, Kind
from analysis.inference.moments import EMPTY, Moments, conversions, merge, scaled_to

BETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.9)
"""Sizes of bets, as shares of the largest one that cannot ruin (proportions) or in units of one
over the score's standard deviation (means). Small ones find small harm slowly, large ones find
large harm at once; mixing over eight costs ln 8 = 2.1 of log evidence at most."""

BURN_IN_UNITS = 1000
"""Units of both arms that only train plug-ins and variance before a bet on a mean."""

BURN_IN_UNITS_PER_ARM = 100
"""Of these, units that each arm needs; it is what binds at the 1 % step of a ramp."""

MEMORY_UNITS = 5_000
"""Units of an arm that the plug-ins remember; beyond that older ones fade, so that a drifting base
rate or variance is followed."""

_PRIOR_RATE = 0.5
_PRIOR_UNITS = 1.0


class GuardRule(msgspec.Struct, frozen=True):
    """What counts as harm, and what an alarm costs. Stored beside the evidence.

    Arguments:
        kind: proportion (scores 0 and 1) or mean (any finite number).
        goal: which way of the metric is better.
        margin: the harm that is tolerated, at least 0: in the metric's unit, or as a fraction of
            the control's absolute mean where `relative` is true.
        alpha_share: the bound on the chance of a false alarm, in (0, 1): this rule's part of the
            guard's alpha, given by its ledger.
        relative: how the margin is meant.
        bets: the grid of bets, each in (0, 1).

    Raises:
        ValueError: when a number is outside its bounds.
    """

    kind: Kind
    goal: Goal
    margin: float
    alpha_share: float
    relative: bool = False
    bets: tuple[float, ...] = BETS

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin >= 0.0):
            raise ValueError(f"a margin is a finite number of at least 0, not {self.margin}")
        if not 0.0 < self.alpha_share < 1.0:
            raise ValueError(f"a share of alpha lies in (0, 1), not at {self.alpha_share}")
        if not self.bets or any(not 0.0 < bet < 1.0 for bet in self.bets):
            raise ValueError("bets lie strictly between 0 and 1, and there is at least one")


class BlockCell(msgspec.Struct, frozen=True):
    """What one enrolment block saw of one epoch, for a treatment and the control.

    Arguments:
        block: the block's number, increasing in time.
        epoch: the epoch in which the units were enrolled.
        propensity_control, propensity_treatment: the epoch's logged propensities of the two arms
            (of all variants, not only of these two).
        control, treatment: moments of the two arms' finished scores, d = 1.
    """

    block: int
    epoch: int
    propensity_control: float
    propensity_treatment: float
    control: Moments
    treatment: Moments


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
    """

    blocks: int
    log_stakes: tuple[float, ...]
    log_peak: float
    units: int = 0
    burn_in_units: int = 0
    control: Moments = EMPTY
    treatment: Moments = EMPTY
    last_block: int | None = None


class Scores(msgspec.Struct, frozen=True):
    """The harm score of a unit as a function of its outcome y: X = at_zero + slope · y.

    Arguments:
        control_at_zero, control_slope: for a unit of the control.
        treatment_at_zero, treatment_slope: for a unit of the treatment.
        expected: mean of X if the arms' means are the plug-ins.
        variance_factor: variance of X around `expected`, for outcomes of variance 1 in both arms.
    """

    control_at_zero: float
    control_slope: float
    treatment_at_zero: float
    treatment_slope: float
    expected: float
    variance_factor: float

    def second_moment(self, variance: float) -> float:
        """E[X²] if the arms' means are the plug-ins and their outcomes have this variance."""
        return self.expected * self.expected + self.variance_factor * variance


def start(rule: GuardRule) -> GuardState:
    """The evidence before any block: M_0 = 1."""
    return GuardState(blocks=0, log_stakes=(_log_start(1),) * len(rule.bets), log_peak=0.0)


def step(rule: GuardRule, state: GuardState, cells: Sequence[BlockCell]) -> GuardState:
    """The evidence after one more block; pure, so that a stored decision can be recomputed.

    Plug-ins and the size of each bet come from `state`, that is from earlier blocks only. Cells in
    which one of the two arms has no propensity allow no contrast: they only train plug-ins.

    Arguments:
        rule: as it was at `start`.
        state: after the block before.
        cells: the block's cells, at most one an epoch, in any order.

    Raises:
        ValueError: when the cells are of several blocks, of one not after the last, of one epoch
            twice, or have propensities outside [0, 1]; when `state` has another grid than `rule`.
    """
    if not cells:
        return state
    block = _check(rule, state, cells)
    ordered = sorted(cells, key=lambda cell: cell.epoch)
    units = sum(cell.control.n + cell.treatment.n for cell in ordered)
    log_factors = [] if units == 0 else _log_factors(rule, state, ordered)

    control, treatment = state.control, state.treatment
    for cell in ordered:
        control = _remember(control, cell.control)
        treatment = _remember(treatment, cell.treatment)
    after = msgspec.structs.replace(
        state,
        units=state.units + units,
        control=control,
        treatment=treatment,
        last_block=block,
    )
    if not log_factors:
        if state.blocks == 0:
            after = msgspec.structs.replace(after, burn_in_units=after.units)
        return after
    t = state.blocks + 1
    log_start = _log_start(t + 1)
    after = msgspec.structs.replace(
        after,
        blocks=t,
        log_stakes=tuple(
            _log_add(stake + factor, log_start)
            for stake, factor in zip(state.log_stakes, log_factors, strict=True)
        ),
    )
    return msgspec.structs.replace(after, log_peak=max(state.log_peak, log_evidence(after)))


def log_evidence(state: GuardState) -> float:
    """ln M_t, the mixture over bets and starts, those still to come included.

    With the stakes S_t + w_{t+1}, M_t = S_t + 1/(t+1) is stake + 1/(t+2).
    """
    largest = max(state.log_stakes)
    total = math.fsum(math.exp(stake - largest) for stake in state.log_stakes)
    log_mean = largest + math.log(total / len(state.log_stakes))
    return _log_add(log_mean, -math.log(state.blocks + 2))


def alarms(rule: GuardRule, state: GuardState) -> bool:
    """Whether the evidence ever reached 1/alpha_share: then the variant is to be rolled back."""
    return state.log_peak >= -math.log(rule.alpha_share)


def is_exact(rule: GuardRule) -> bool:
    """Whether the bound on false alarms holds exactly (proportions) or asymptotically (means)."""
    return rule.kind == "proportion"


def scores(rule: GuardRule, state: GuardState, cell: BlockCell) -> Scores:
    """The harm score of a unit enrolled in this cell, given what earlier blocks taught.

    G1 = m1 + 1{A=1}(Y - m1)/e1 and G0 = m0 + 1{A=0}(Y - m0)/e0 are unbiased for the two arms'
    means for any plug-ins m1, m0 of the past, with e1 = e_k/(e_0 + e_k) and e0 = 1 - e1. With
    s = +1 for goal increase and -1 for decrease, and margin m or r,

        absolute: X = -s (G1 - G0) - m          relative: X = -s G1 + (s - r sign(μ0)) G0,

    so that E[X | past] <= 0 exactly when the harm -s(μ1 - μ0) is at most m, or r |μ0|. The sign
    of a control mean μ0 is 1 for a proportion, and that of its plug-in otherwise.
    """
    e1 = cell.propensity_treatment / (cell.propensity_control + cell.propensity_treatment)
    e0 = cell.propensity_control / (cell.propensity_control + cell.propensity_treatment)
    m0, m1 = plug_in(rule, state.control), plug_in(rule, state.treatment)
    s = 1.0 if rule.goal == "increase" else -1.0
    of_control = s - rule.margin * math.copysign(1.0, m0) if rule.relative else s
    constant = 0.0 if rule.relative else -rule.margin
    expected = -s * m1 + of_control * m0 + constant
    return Scores(
        control_at_zero=expected - of_control * m0 / e0,
        control_slope=of_control / e0,
        treatment_at_zero=expected + s * m1 / e1,
        treatment_slope=-s / e1,
        expected=expected,
        variance_factor=of_control * of_control / e0 + 1.0 / e1,
    )


def plug_in(rule: GuardRule, seen: Moments) -> float:
    """An arm's mean as guessed from earlier blocks; a proportion's starts at one half."""
    if rule.kind == "proportion":
        return (seen.n * seen.mean[0] + _PRIOR_UNITS * _PRIOR_RATE) / (seen.n + _PRIOR_UNITS)
    return seen.mean[0]


def _check(rule: GuardRule, state: GuardState, cells: Sequence[BlockCell]) -> int:
    if len(state.log_stakes) != len(rule.bets):
        raise ValueError("the state was not started by this rule: their grids differ")
    return next_block(cells, state.last_block)


def _log_factors(rule: GuardRule, state: GuardState, cells: Sequence[BlockCell]) -> list[float]:
    """ln F of the block per bet, over the cells that allow one; [] where none does."""
    factor = _log_factor_betting if rule.kind == "proportion" else _log_factor_gaussian
    if rule.kind == "mean" and not _is_burnt_in(state):
        return []
    parts = [
        factors
        for cell in cells
        if min(cell.propensity_control, cell.propensity_treatment) > 0.0
        and cell.control.n + cell.treatment.n > 0
        and (factors := factor(rule, state, cell)) is not None
    ]
    return [math.fsum(per_bet) for per_bet in zip(*parts, strict=True)]


def _log_factor_betting(rule: GuardRule, state: GuardState, cell: BlockCell) -> list[float] | None:
    """ln Π (1 + λ X) of a proportion, from the four counts; λ = c/b, -b the least possible X.

    1 + λX > 0 and E[1 + λX | past] <= 1: an exact test martingale for every c in (0, 1).
    """
    score = scores(rule, state, cell)
    converted0, converted1 = conversions(cell.control), conversions(cell.treatment)
    outcomes = (
        (cell.control.n - converted0, score.control_at_zero),
        (converted0, score.control_at_zero + score.control_slope),
        (cell.treatment.n - converted1, score.treatment_at_zero),
        (converted1, score.treatment_at_zero + score.treatment_slope),
    )
    worst = -min(x for _, x in outcomes)
    return [
        math.fsum(count * math.log1p(bet / worst * x) for count, x in outcomes) for bet in rule.bets
    ]


def _log_factor_gaussian(rule: GuardRule, state: GuardState, cell: BlockCell) -> list[float] | None:
    """ln F of an unbounded metric, from the block's moments; None while no spread was seen.

    By Delyon's exp(x - x²/6) <= 1 + x + x²/3, exp(λX - λ²X²/6 - λ²σ²/3) has a conditional mean of
    at most 1 for any X with E[X | past] <= 0 and E[X² | past] <= σ²: no tail assumption, and an
    outlier gains at most e^1.5. λ = bet/σ, with σ² from earlier blocks. That σ² is the one thing
    that is only asymptotically right, so the penalty takes the largest of three, which can only
    lower the factor:

    * σ² from the past, each arm given the larger of the two arms' variances: a treatment at 2 % of
      the traffic has seen too few of its rare large values;
    * the block's own mean X²: the treatment's variance may have risen;
    * σ² from the block's deviations from the plug-ins: the base rate may have jumped in both arms.
      At 5 % of the traffic most blocks then show the control's share of the jump only, and without
      this such a jump is taken for harm in most runs.
    """
    score = scores(rule, state, cell)
    larger = max(state.control.variance or 0.0, state.treatment.variance or 0.0)
    if larger <= 0.0:
        return None
    sum_x = sum_x2 = deviations = 0.0
    for seen, plugged, at_zero, slope in (
        (cell.control, state.control, score.control_at_zero, score.control_slope),
        (cell.treatment, state.treatment, score.treatment_at_zero, score.treatment_slope),
    ):
        mean_x = at_zero + slope * seen.mean[0]
        shift = seen.mean[0] - plug_in(rule, plugged)
        sum_x += seen.n * mean_x
        sum_x2 += seen.n * mean_x * mean_x + slope * slope * seen.m2[0]
        deviations += seen.n * shift * shift + seen.m2[0]
    n = cell.control.n + cell.treatment.n
    sigma2 = score.second_moment(larger)
    z, q = sum_x / math.sqrt(sigma2), sum_x2 / sigma2
    v = max(n, q, n * score.second_moment(deviations / n) / sigma2)
    return [bet * z - bet * bet * (q / 6.0 + v / 3.0) for bet in rule.bets]


def _is_burnt_in(state: GuardState) -> bool:
    fewest = min(state.control.n, state.treatment.n)
    return state.units >= BURN_IN_UNITS and fewest >= BURN_IN_UNITS_PER_ARM


def _remember(seen: Moments, new: Moments) -> Moments:
    merged = merge(seen, new)
    return scaled_to(merged, MEMORY_UNITS) if merged.n > MEMORY_UNITS else merged


def _log_start(j: int) -> float:
    """ln w_j, w_j = 1/(j(j+1))."""
    return -math.log(j) - math.log(j + 1)


def _log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))
