"""The guard's evidence of harm: e-processes restarted at every enrolment block.

Under "the variant is within its margin at every time" the evidence M is a non-negative
supermartingale that starts at 1, so P(M ever reaches 1/α) <= α (Ville), over all looks, ramp
steps and reallocations together. Exactly so for proportions; for means, ratios and quantiles
asymptotically, after a burn-in.

How it is made:

* Each unit gives an AIPW harm score X with conditional mean <= 0 under the hypothesis, whatever
  the propensities are, as long as they are those it was enrolled with (`harm_scores.py`). Where a
  unit has several numbers, they are read as one first (`harm_readings.py`).
* A bet g turns a block's scores into a factor F with conditional mean <= 1 (`_log_factor_*`).
* A process that starts at block j multiplies the factors from j on. Their mixture with weights
  w_j = 1/(j(j+1)) sees a change that comes late, where a process started at block 1 has first to
  win back what it lost on the healthy past. All starts share the factors, so per bet only
  S_t = F_t (S_{t-1} + w_t) is kept; the starts still to come hold Σ_{j>t} w_j = 1/(t+1), and
  M_t = S_t + 1/(t+1), averaged over the bets. Nothing is ever dropped or weighted anew.

Sources: Shin, Ramdas, Rinaldo (2023), "E-detectors: a nonparametric framework for sequential
change detection" (sums of e-processes started at consecutive times; starting weights that sum to 1
bound the false-alarm probability instead of the run length); Waudby-Smith, Ramdas (2024),
"Estimating means of bounded random variables by betting"; Delyon (2009), "Exponential inequalities
for sums of weakly dependent variables", with Howard et al. (2020), "Time-uniform Chernoff bounds
via nonnegative supermartingales", for the factor of unbounded scores.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from analysis.inference.blocks import next_block
from analysis.inference.guard_model import (
    BETS,
    MEMORY_UNITS,
    BlockCell,
    Denominator,
    GuardRule,
    GuardState,
)
from analysis.inference.harm_readings import Reading, memory_of_values, read
from analysis.inference.harm_scores import contrast, scores
from analysis.inference.kinds import Bound
from analysis.inference.moments import Moments, conversions, merge, scaled_to
from analysis.inference.value_counts import Buckets, ValueCounts, remember

__all__ = [
    "BETS",
    "BURN_IN_UNITS",
    "BURN_IN_UNITS_PER_ARM",
    "MEMORY_UNITS",
    "BlockCell",
    "GuardRule",
    "GuardState",
    "alarms",
    "bound_of",
    "is_exact",
    "log_evidence",
    "start",
    "step",
]

BURN_IN_UNITS: Final = 1000
"""Units of both arms that only train plug-ins and variance before a bet on what is unbounded."""

BURN_IN_UNITS_PER_ARM: Final = 100
"""Of these, units that each arm needs; it is what binds at the 1 % step of a ramp."""

_PRIOR_RATE = 0.5
_PRIOR_UNITS = 1.0


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
    units = sum(cell.units for cell in ordered)
    log_factors = [] if units == 0 else _log_factors(rule, state, ordered)

    after = msgspec.structs.replace(state, units=state.units + units, last_block=block)
    for cell in ordered:
        after = _learn(rule, after, cell)
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
    """Whether the bound on false alarms holds exactly (proportions) or asymptotically (others)."""
    return rule.kind == "proportion"


def bound_of(rule: GuardRule) -> Bound:
    """How the bound on false alarms holds."""
    if rule.repeats:
        return "approximate"
    return "exact" if is_exact(rule) else "asymptotic"


def _check(rule: GuardRule, state: GuardState, cells: Sequence[BlockCell]) -> int:
    if len(state.log_stakes) != len(rule.bets):
        raise ValueError("the state was not started by this rule: their grids differ")
    return next_block(cells, state.last_block)


def _log_factors(rule: GuardRule, state: GuardState, cells: Sequence[BlockCell]) -> list[float]:
    """ln F of the block per bet, over the cells that allow one; [] where none does."""
    factor = _log_factor_betting if rule.kind == "proportion" else _log_factor_gaussian
    if rule.kind != "proportion" and not _is_burnt_in(state):
        return []
    parts = [
        factors
        for cell in cells
        if cell.has_contrast and cell.units > 0 and (factors := factor(rule, state, cell))
    ]
    return [math.fsum(per_bet) for per_bet in zip(*parts, strict=True)]


def _log_factor_betting(rule: GuardRule, state: GuardState, cell: BlockCell) -> list[float]:
    """ln Π (1 + λ X) of a proportion, from the four counts; λ = c/b, -b the least possible X.

    1 + λX > 0 and E[1 + λX | past] <= 1: an exact test martingale for every c in (0, 1).
    """
    m0, m1 = rate(state.control), rate(state.treatment)
    score = scores(contrast(rule.goal, rule.margin, rule.relative, m0), m0, m1, *cell.shares)
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


def rate(seen: Moments) -> float:
    """A proportion as guessed from earlier blocks; it starts at one half."""
    return (seen.n * seen.mean[0] + _PRIOR_UNITS * _PRIOR_RATE) / (seen.n + _PRIOR_UNITS)


def _log_factor_gaussian(rule: GuardRule, state: GuardState, cell: BlockCell) -> list[float]:
    """ln F of an unbounded metric, from the block's moments; [] while no spread was seen. It is the
    least of all readings, as a variant is harmless if any of them says so; one whose own past has
    no spread gains nothing.

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
    parts = [_log_factor_of(reading, rule, cell) for reading in read(rule, state, cell)]
    if not any(parts):
        return []
    nothing = [0.0] * len(rule.bets)
    return [min(per_bet) for per_bet in zip(*(part or nothing for part in parts), strict=True)]


def _log_factor_of(reading: Reading, rule: GuardRule, cell: BlockCell) -> list[float]:
    past0, past1 = reading.past_control, reading.past_treatment
    score = scores(reading.harm, past0.mean[0], past1.mean[0], *cell.shares)
    larger = max(past0.variance or 0.0, past1.variance or 0.0)
    if larger <= 0.0:
        return []
    sum_x = sum_x2 = deviations = 0.0
    for seen, plugged, at_zero, slope in (
        (reading.control, past0, score.control_at_zero, score.control_slope),
        (reading.treatment, past1, score.treatment_at_zero, score.treatment_slope),
    ):
        mean_x = at_zero + slope * seen.mean[0]
        shift = seen.mean[0] - plugged.mean[0]
        sum_x += seen.n * mean_x
        sum_x2 += seen.n * mean_x * mean_x + slope * slope * seen.m2[0]
        deviations += seen.n * shift * shift + seen.m2[0]
    n = cell.units
    sigma2 = score.second_moment(larger)
    z, q = sum_x / math.sqrt(sigma2), sum_x2 / sigma2
    v = max(n, q, n * score.second_moment(deviations / n) / sigma2)
    return [bet * z - bet * bet * (q / 6.0 + v / 3.0) for bet in rule.bets]


def _is_burnt_in(state: GuardState) -> bool:
    arms = (state.control, state.control_values), (state.treatment, state.treatment_values)
    fewest = min(max(moments.n, values.units) for moments, values in arms)
    return state.units >= BURN_IN_UNITS and fewest >= BURN_IN_UNITS_PER_ARM


def _learn(rule: GuardRule, state: GuardState, cell: BlockCell) -> GuardState:
    """Take a cell into what the plug-ins are made of."""
    if rule.kind in {"ratio", "quantile"} and cell.has_contrast:
        state = _share_a_time(state, cell)
    if rule.kind != "quantile":
        return msgspec.structs.replace(
            state,
            control=_remember(state.control, cell.control),
            treatment=_remember(state.treatment, cell.treatment),
        )
    most = memory_of_values(rule)
    control, treatment = (
        remember(seen, ValueCounts(new.n, buckets), most)
        for seen, new, buckets in (
            (state.control_values, cell.control, cell.control_buckets),
            (state.treatment_values, cell.treatment, cell.treatment_buckets),
        )
    )
    return msgspec.structs.replace(state, control_values=control, treatment_values=treatment)


def _share_a_time(state: GuardState, cell: BlockCell) -> GuardState:
    """Take a cell into the mean denominators. They fade together, so that they remain of the same
    time, and by what the smaller arm has seen, so that they are as well known as that allows."""
    e0, e1 = cell.shares
    control = _averaged(state.control_denominator, cell.control, cell.control_buckets, e0)
    treatment = _averaged(state.treatment_denominator, cell.treatment, cell.treatment_buckets, e1)
    fading = min(1.0, MEMORY_UNITS / max(min(control.units, treatment.units), 1.0))
    return msgspec.structs.replace(
        state,
        control_denominator=_faded(control, fading),
        treatment_denominator=_faded(treatment, fading),
    )


def _averaged(past: Denominator, new: Moments, values: Buckets, share: float) -> Denominator:
    if new.n == 0:
        return past
    mean = new.mean[1] if new.d > 1 else ValueCounts(new.n, values).valued / new.n
    weight = new.n / share
    total = past.weight + weight
    moved = past.mean + (mean - past.mean) * (weight / total)
    return Denominator(past.units + new.n, total, moved)


def _faded(past: Denominator, fading: float) -> Denominator:
    return Denominator(past.units * fading, past.weight * fading, past.mean)


def _remember(seen: Moments, new: Moments) -> Moments:
    # Of no units the number of dimensions is not known.
    if min(seen.n, new.n) == 0:
        merged = new if seen.n == 0 and new.n > 0 else seen
    else:
        merged = merge(seen, new)
    return scaled_to(merged, MEMORY_UNITS) if merged.n > MEMORY_UNITS else merged


def _log_start(j: int) -> float:
    """ln w_j, w_j = 1/(j(j+1))."""
    return -math.log(j) - math.log(j + 1)


def _log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))
