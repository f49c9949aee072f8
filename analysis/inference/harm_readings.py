"""How a unit's several numbers become one, so that its mean can be bet on. The forms are made of
earlier blocks only.

**Ratio.** The null hypothesis ties the two ratios: R1 = c1 wherever R0 = c0, with c1 a margin away
from c0. With the control's past ratio for c0, the unit's number is

    z1 = c1 + (x - c1 y)/ȳ1,    z0 = c0 + (x - c0 y)/ȳ0,    ȳ of each arm's past,

and a contrast of their means is the harm but for (R0 - c0)(E1[y]/ȳ1 - E0[y]/ȳ0): a product of two
errors, which vanishes as the past grows, and is 0 where the arms' denominators rise and fall
together, the two ȳ being of the same time. (With the arm's own past ratio in both places, as one
linearises at the end of an experiment, a treatment that was better before and is at its margin now
would be taken for harmful whenever denominators grow.) It is not small once the ratio jumps in both
arms and the denominators in one. So there is a second reading, in which c0 is the control's ratio
in the block itself, and nothing is left of the first error.
Source: the delta method, Deng, Knoblich, Lu (2018), "Applying the delta method in metric
analytics".

**Covariates** have the same mean in both arms, whatever it is. So the outcome less θ times the
covariate, with a slope for each arm such that the covariate leaves the contrast, has the same
contrast, for any θ, however the covariate drifts. θ is the least-squares slope within arms of the
past. Source: CUPED, Deng, Xu, Kohavi, Walker (2013), "Improving the sensitivity of online
controlled experiments by utilizing pre-experiment data".

**Quantile.** A unit with a value counts 1 where it lies beyond a threshold, on the harmful side;
harm is a larger share of these, with a value, in the treatment. It is a ratio of two counts, with
no margin. The control's threshold is its past quantile, within a bucket such that the share beyond
is exactly 1 - p of the past. The treatment's is the margin away from the far edge of that bucket,
and only buckets wholly beyond it count. So no spread within buckets is taken for granted: a
treatment whose quantile is within the margin is not harmful, and one that is beyond by two widths
of a bucket, 4 %, surely is. An error of the control's threshold, by chance or by a drift of both
arms, moves the two shares by the densities there. Where the arms have the same shape, they move
alike, however large the error is. Where they have not, the control's share counts by the ratio of
the past densities, and what is left of the error is again a product of two. That is not small after
a jump of both arms. So there is a third reading, at the quantile of the control's values in the
block itself, beyond which lies the same share of them whatever became of all values. Source:
Bahadur (1966), "A note on quantiles in large samples".

**Several readings.** Which of them holds is not known, and what is read off the block itself is
made of the very units that are scored. So the evidence takes the least gain of all: as long as one
of them is right at a block, that gain is fair, as a minimum is at most each of its parts. A reading
can only take evidence away. What it costs is delay, where the treatment alone gets worse by a
little: a block of few units has a noisy quantile. With fewer values than it takes for one of them
to lie beyond, the threshold of the third is their largest, beyond which lies somewhat more than
that share: jumps of both arms are then seen as harm less often than without it, but not never.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from analysis.inference.bins import bucket, edges
from analysis.inference.guard_model import (
    MEMORY_UNITS,
    BlockCell,
    Denominator,
    GuardRule,
    GuardState,
)
from analysis.inference.harm_scores import Contrast, contrast
from analysis.inference.moments import EMPTY, ROUNDING, Moments, pairs
from analysis.inference.value_counts import (
    Place,
    Side,
    ValueCounts,
    density_ratio,
    place_of,
    tally,
)

LEAST_DENOMINATORS: Final = 10.0
"""Denominators of equal size that an arm's past has to be worth before it is divided by."""

LEAST_BEYOND: Final = 10
"""Values of the control's past beyond its quantile, on the rarer side of it."""

LEAST_VALUES: Final = 500
"""Units whose values are remembered, and ten times as many as `LEAST_BEYOND` takes: a threshold has
to follow a drift, and its own noise does no harm."""


class Reading(msgspec.Struct, frozen=True):
    """A cell and its past as one number a unit.

    Arguments:
        harm: the contrast of the arms' means that is tested.
        past_control, past_treatment, control, treatment: moments of the number.
    """

    harm: Contrast
    past_control: Moments
    past_treatment: Moments
    control: Moments
    treatment: Moments


def read(rule: GuardRule, state: GuardState, cell: BlockCell) -> tuple[Reading, ...]:
    """The numbers that are bet on, in each of the ways in which a variant may be harmless; none
    where the past does not say yet what they are.

    Raises:
        ValueError: when moments have not as many dimensions as the rule's kind.
    """
    if rule.kind == "quantile":
        return _of_quantile(rule, state, cell)
    return _of_moments(rule, state, cell)


def memory_of_values(rule: GuardRule) -> int:
    """Units whose values are remembered."""
    level = _level(rule)
    return max(LEAST_VALUES, math.ceil(10 * LEAST_BEYOND / min(level, 1.0 - level)))


def _of_moments(rule: GuardRule, state: GuardState, cell: BlockCell) -> tuple[Reading, ...]:
    """Of a mean or a ratio."""
    outcome = 2 if rule.kind == "ratio" else 1
    past0, past1 = state.control, state.treatment
    for seen in (past0, past1, cell.control, cell.treatment):
        if seen.n > 0 and seen.d not in {outcome, 2 * outcome}:
            raise ValueError(f"a unit of a {rule.kind} has no {seen.d} numbers")
    if min(past0.n, past1.n) == 0:
        return ()
    if outcome == 1:
        harm = contrast(rule.goal, rule.margin, rule.relative, past0.mean[0])
        form = _Form(0.0, (1.0, *(0.0,) * (past0.d - 1)))
        return (_in_forms(harm, (form, form), state, cell, 1),)
    if not _divide(state):
        return ()
    ratios = [past0.mean[0] / past0.mean[1]]
    if cell.control.n > 0 and cell.control.mean[1] * past0.mean[1] > 0.0:
        ratios.append(cell.control.mean[0] / cell.control.mean[1])
    return tuple(_at_ratio(rule, ratio, state, cell) for ratio in ratios)


def _at_ratio(rule: GuardRule, ratio: float, state: GuardState, cell: BlockCell) -> Reading:
    """Of a ratio, linearised where the control's is this."""
    harm = contrast(rule.goal, rule.margin, rule.relative, ratio)
    at_margin = -(harm.of_control * ratio + harm.constant) / harm.of_treatment
    forms = (
        _of_ratio(ratio, state.control_denominator, state.control.d),
        _of_ratio(at_margin, state.treatment_denominator, state.treatment.d),
    )
    return _in_forms(harm, forms, state, cell, 2)


def _in_forms(
    harm: Contrast, forms: tuple["_Form", "_Form"], state: GuardState, cell: BlockCell, outcome: int
) -> Reading:
    """Of the outcomes' forms, control first, less what a covariate tells of them."""
    past0, past1 = state.control, state.treatment
    form0, form1 = _adjusted(*forms, past0, past1, outcome, harm)
    return Reading(
        harm=harm,
        past_control=form0.of(past0),
        past_treatment=form1.of(past1),
        control=form0.of(cell.control),
        treatment=form1.of(cell.treatment),
    )


class _Form(msgspec.Struct, frozen=True):
    """level + weights · (a unit's numbers)."""

    level: float
    weights: tuple[float, ...]

    def of(self, seen: Moments) -> Moments:
        """The moments of the form."""
        if seen.n == 0:
            return EMPTY
        if self.weights == (1.0,):
            return seen
        mean = self.level + _sum(self.weights, seen.mean)
        return Moments(seen.n, (mean,), (_product(self.weights, self.weights, seen),))

    def less(self, slope: float, other: "_Form") -> "_Form":
        """This form less a multiple of another one."""
        weights = zip(self.weights, other.weights, strict=True)
        return _Form(self.level - slope * other.level, tuple(a - slope * b for a, b in weights))


def _of_ratio(ratio: float, denominator: Denominator, d: int) -> _Form:
    mean = denominator.mean
    return _Form(ratio, (1.0 / mean, -ratio / mean, *(0.0,) * (d - 2)))


def _divide(state: GuardState) -> bool:
    """Whether the mean denominators are known well enough, or memories are full and know no more.

    Source: Kish (1965), "Survey sampling", for the number of denominators of equal size.
    """
    if state.control_denominator.mean * state.treatment_denominator.mean <= 0.0:
        return False
    for past in (state.control, state.treatment):
        if past.mean[1] == 0.0:
            return False
        square = past.mean[1] ** 2
        if past.n < MEMORY_UNITS and (
            past.n * square < LEAST_DENOMINATORS * (past.m2[past.d] / past.n + square)
        ):
            return False
    return True


def _adjusted(
    form0: _Form, form1: _Form, past0: Moments, past1: Moments, outcome: int, harm: Contrast
) -> tuple[_Form, _Form]:
    """The forms of control and treatment, less what a covariate tells of them."""
    covariate = _covariate(past0, past1, outcome)
    if covariate is None:
        return form0, form1
    spread = sum(_product(covariate.weights, covariate.weights, past) for past in (past0, past1))
    if spread <= 0.0:
        return form0, form1
    common = _product(form0.weights, covariate.weights, past0)
    slope = (common + _product(form1.weights, covariate.weights, past1)) / spread
    # With these two slopes the covariate's mean, the same in both arms, leaves the contrast.
    slope_of_treatment = -slope * harm.of_control / harm.of_treatment
    return form0.less(slope, covariate), form1.less(slope_of_treatment, covariate)


def _covariate(past0: Moments, past1: Moments, outcome: int) -> _Form | None:
    """The covariate as one number, with a mean of about 0; None where there is none."""
    if past0.d == outcome:
        return None
    n = past0.n + past1.n
    mean = [
        (past0.n / n) * a + (past1.n / n) * b for a, b in zip(past0.mean, past1.mean, strict=True)
    ]
    if outcome == 1:
        return _Form(-mean[1], (0.0, 1.0))
    if mean[3] == 0.0:
        return None
    return _Form(0.0, (0.0, 0.0, 1.0 / mean[3], -mean[2] / mean[3] / mean[3]))


def _sum(weights: Sequence[float], numbers: Sequence[float]) -> float:
    return math.fsum(w * x for w, x in zip(weights, numbers, strict=True))


def _product(u: Sequence[float], w: Sequence[float], seen: Moments) -> float:
    """The centred cross-product of two forms over units; 0 where it is but rounding."""
    terms = [
        u[i] * w[i] * cross if i == j else (u[i] * w[j] + u[j] * w[i]) * cross
        for cross, (i, j) in zip(seen.m2, pairs(seen.d), strict=True)
    ]
    total = math.fsum(terms)
    return total if abs(total) > ROUNDING * math.fsum(map(abs, terms)) else 0.0


def _of_quantile(rule: GuardRule, state: GuardState, cell: BlockCell) -> tuple[Reading, ...]:
    past0, past1 = state.control_values, state.treatment_values
    level = _level(rule)
    rarer = min(level, 1.0 - level)
    valued0, valued1 = state.control_denominator.mean, state.treatment_denominator.mean
    if past0.valued * rarer < LEAST_BEYOND or past1.valued < LEAST_DENOMINATORS:
        return ()
    if min(valued0, valued1) <= 0.0:
        return ()
    side: Side = "above" if rule.goal == "decrease" else "below"
    place0 = place_of(past0, level, side)
    place1, stretched = at_margin(rule, place0)
    share = 1.0 - level if side == "above" else level
    now0 = ValueCounts(cell.control.n, cell.control_buckets)
    now1 = ValueCounts(cell.treatment.n, cell.treatment_buckets)
    densities = stretched * density_ratio(past1, past0, level)

    def alike_at(control: Place, treatment: Place) -> Reading:
        return Reading(
            harm=Contrast(1.0, -1.0, 0.0),
            past_control=_shares(past0, control, share, valued0),
            past_treatment=_shares(past1, treatment, share, valued1),
            control=_shares(now0, control, share, valued0),
            treatment=_shares(now1, treatment, share, valued1),
        )

    alike = alike_at(place0, place1)
    unlike = Contrast(1.0, -densities, (densities - 1.0) * share)
    readings = (alike, msgspec.structs.replace(alike, harm=unlike))
    if now0.valued == 0:
        return readings
    here = place_of(now0, level, side)
    return (*readings, alike_at(here, at_margin(rule, here)[0]))


def at_margin(rule: GuardRule, control: Place) -> tuple[Place, float]:
    """Beyond which bucket a value of the treatment is beyond the margin, however far out in its
    bucket the control's quantile is; and how much farther from 0 that is."""
    if rule.margin == 0.0:
        return control._replace(within=0.0), 1.0
    low, high = edges(control.bucket)
    away = rule.margin * max(abs(low), abs(high)) if rule.relative else rule.margin
    edge, sign = (high, 1) if control.side == "above" else (low, -1)
    threshold = edge + sign * away
    [reached] = bucket(np.array([threshold])).tolist()
    farthest = max(sign * control.bucket, sign * reached)
    stretched = abs(threshold / edge) if rule.relative and edge != 0.0 else 1.0
    return Place(sign * farthest, 0.0, control.side), stretched


def _shares(values: ValueCounts, place: Place, share: float, valued: float) -> Moments:
    """Moments of share + (x - share y)/valued, where x says how far a unit counts at a place, and y
    whether it has a value."""
    if values.units == 0:
        return EMPTY
    found = tally(values, place)
    groups = (
        (found.without, share),
        (found.on_this_side, share - share / valued),
        (found.at, share + (place.within - share) / valued),
        (found.beyond, share + (1.0 - share) / valued),
    )
    n = sum(count for count, _ in groups)
    mean = math.fsum(count * x for count, x in groups) / n
    m2 = math.fsum(count * (x - mean) ** 2 for count, x in groups)
    return Moments(n, (mean,), (m2,))


def _level(rule: GuardRule) -> float:
    assert rule.quantile is not None, "a rule of this kind has one"  # noqa: S101 - an invariant
    return rule.quantile
