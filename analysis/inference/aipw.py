"""Reads a trail: augmented inverse-probability weighted (AIPW) estimates under reallocation.

The mean of an arm's scores over a trail estimates what the arm would have shown, had all units met
it. Its error is a martingale divided by its length, whose variance is estimated by the squared
deviations of the scores from their plug-ins, Σ r²/N²: r has the variance of the score given the
past as its expectation, plus the square of what the plug-in was off, so the estimate is never too
small but by chance. The deviations of the two arms never meet in one unit, so that of a difference
is the sum of both. All units weigh the same: weights by the square root of the propensity, which
are narrower where nothing changes, fail under a drifting base rate.

Studentised by its realised variance, such a martingale is asymptotically normal at a fixed horizon,
also under an adaptive allocation, as long as propensities stay away from 0. Sources: Hadad,
Hirshberg, Zhan, Wager, Athey (2021), "Confidence intervals for policy evaluation in adaptive
experiments", with uniform weights; Bibaut, Dimakopoulou, Kallus, Chambaz, van der Laan (2021),
"Post-contextual-bandit inference".
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

import msgspec

from analysis.inference.epoch_sums import EpochSums, arm_terms
from analysis.inference.estimate import Comparison, Note, compare, relative, with_interval
from analysis.inference.exact import combined, quotient
from analysis.inference.kinds import Kind
from analysis.inference.linear import ArmNumbers, Scores, Weights, quadratic, read
from analysis.inference.sequence import DECISION_N, AlwaysValid, always_valid
from analysis.inference.trail import ArmScores, PairScores, Trail, merge_scores
from analysis.inference.variance import CAUTIOUS_UNITS, degrees, weighted_mean_variance

_CONTROL: Final = "control"
_TREATMENT: Final = "treatment"

_SMALL_COUNT: Final = 10
_LARGE_SAMPLE: Final = 100

FEW_UNITS: Final = 400
"""Weight, in units, of what the arms remember in the variance of one that has few effective units:
at 1 % of the traffic it has seen a handful of conversions, and where these were fewer than usual,
so would be its variance, and the truth lie outside of the interval too often. Of 100, 200, 400 and
1,000 the least that holds 93 % of the intervals at a floor of 1 % and a drifting base rate."""

FRAGILE_PROPENSITY: Final = 0.01
"""Below this a unit stands for more than a hundred others."""
FRAGILE_UNITS: Final = 100
"""Effective units of an arm below which the normal approximation of a weighted mean is doubtful, as
that of an ordinary one is below as many units."""
FRAGILE_SHARE: Final = 0.1
"""Effective units, as a share of the arm's own, below which a tenth of the units outweighs the
others."""


class WeightFacts(msgspec.Struct, frozen=True):
    """How evenly an AIPW estimate rests on its units.

    Arguments:
        effective_units_control, effective_units_treatment: how many units of equal weight the arm's
            estimate is worth (Kish 1965).
        smallest_propensity: of an arm, in the epochs compared; None before any unit.
        fragile: whether a propensity is below `FRAGILE_PROPENSITY`, or an arm has fewer than
            `FRAGILE_UNITS` effective units, or than `FRAGILE_SHARE` of its own: then the estimate
            hangs on a few units, and its interval may be too narrow.
    """

    effective_units_control: float
    effective_units_treatment: float
    smallest_propensity: float | None
    fragile: bool


def weight_facts(trail: Trail) -> WeightFacts:
    """How evenly the estimate of a trail rests on its units, those of the opening included."""
    both = merge_scores(trail.training, trail.sequence)
    reached = {}
    for key, arm in ((_CONTROL, both.control), (_TREATMENT, both.treatment)):
        units, weight, scale = arm.units, arm.weight, arm.scale
        for cell in trail.opening:
            own = cell.control if key == _CONTROL else cell.treatment
            e = cell.propensity_control if key == _CONTROL else cell.propensity_treatment
            units += own.n
            weight += own.n / e
            scale += own.n / (e * e)
        reached[key] = units, weight * weight / scale if scale else 0.0
    smallest = trail.smallest_propensity
    return WeightFacts(
        effective_units_control=reached[_CONTROL][1],
        effective_units_treatment=reached[_TREATMENT][1],
        smallest_propensity=smallest,
        fragile=(smallest is not None and smallest < FRAGILE_PROPENSITY)
        or any(
            effective < max(FRAGILE_UNITS, FRAGILE_SHARE * units)
            for units, effective in reached.values()
        ),
    )


def aipw_comparison(trail: Trail, kind: Kind, alpha: float = 0.05) -> Comparison:
    """Estimate the effect of the treatment over a trail, at a fixed horizon.

    The mean of an arm is (N_b mean_b + N_s mean_s)/N: over the opening standardised within epochs
    (`compare`), over the rest that of the scores. Its variance is that of the two parts together,
    with the normal quantile; that of an arm with few effective units is shrunk towards the larger
    one of the two that are remembered (`FEW_UNITS`). Ratios and adjusted means are linear forms of
    these means (`linear.py`); slopes of covariates come from the units that are remembered.

    Arguments:
        trail: with its opening only, the answer is that of `compare`: the textbook's in one epoch.
        kind: proportion, mean or ratio.
        alpha: 1 - confidence level.

    Raises:
        ValueError: for an alpha outside (0, 1).
    """
    opening = _opening(trail, kind)
    if not trail.is_scored:
        alone = compare(opening, _CONTROL, _TREATMENT, kind, alpha)
        return msgspec.structs.replace(
            alone,
            epochs_left_out=alone.epochs_left_out + trail.epochs_left_out,
            units_left_out=alone.units_left_out + trail.units_left_out,
        )
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies strictly between 0 and 1, not at {alpha}")
    scored = merge_scores(trail.training, trail.sequence)
    estimate = _Estimate(opening, scored, trail)
    units = estimate.units
    result = Comparison(
        n_control=units[_CONTROL],
        n_treatment=units[_TREATMENT],
        epochs_used=trail.epochs - opening.epochs_left_out,
        epochs_left_out=trail.epochs_left_out + opening.epochs_left_out,
        units_left_out=trail.units_left_out + opening.units_left_out,
        alpha=alpha,
        method="aipw",
    )
    forms = estimate.read(kind)
    if forms is None:
        return msgspec.structs.replace(result, notes=("zero_denominator",))
    level = {key: score.level for key, score in forms.arms.items()}
    mean_control = float(level[_CONTROL])
    difference = float(level[_TREATMENT] - level[_CONTROL])
    result = msgspec.structs.replace(
        result,
        mean_control=mean_control,
        mean_treatment=float(level[_TREATMENT]),
        difference=difference,
        lift=relative(difference, mean_control),
        theta=None if forms.theta is None else float(forms.theta),
        notes=_notes(trail, units, forms, kind),
    )
    if min(units.values()) < 2:
        lost: tuple[Note, ...] = () if result.lift is not None else ("zero_control_mean",)
        return msgspec.structs.replace(result, notes=(*result.notes, "too_few_units", *lost))
    variances = estimate.variances({key: score.weights for key, score in forms.arms.items()}, kind)
    return with_interval(
        msgspec.structs.replace(
            result,
            test="large_sample",
            variance_reduction=_reduction(estimate, forms, kind, sum(variances.values())),
        ),
        variances[_CONTROL],
        variances[_TREATMENT],
        _shift_variance(estimate, forms, kind),
        kind=kind,
    )


def aipw_sequence(
    trail: Trail, kind: Kind, alpha: float = 0.05, decision_n: int = DECISION_N
) -> tuple[float | None, AlwaysValid, float | None]:
    """The difference over the sequence of a trail, its anytime-valid reading, and the mean
    that it estimates for the control; None of what is not defined.

    The time of the sequence is its variance, in units of what one unit would have at the
    propensities that it began with: so the boundary's tuning does not follow the allocation.

    The variance is as cautious as `variance.cautious_variance`, and for the same reason: the larger
    one of the arms has a weight of `CAUTIOUS_UNITS` in both.

    Arguments:
        trail, kind: as for `aipw_comparison`.
        alpha, decision_n: as for `always_valid`.
    """
    scored = trail.sequence
    if scored.units == 0 or trail.reference is None:
        return None, AlwaysValid(valid=False), None
    estimate = _Estimate(EpochSums(), scored, trail)
    forms = estimate.read(kind)
    if forms is None:
        return None, AlwaysValid(valid=False), None
    difference = float(forms.arms[_TREATMENT].level - forms.arms[_CONTROL].level)
    mean_control = float(forms.arms[_CONTROL].level)
    if min(scored.control.units, scored.treatment.units) == 0:
        return difference, AlwaysValid(valid=False), mean_control
    arms = {_CONTROL: scored.control, _TREATMENT: scored.treatment}
    weights = {key: score.weights for key, score in forms.arms.items()}
    of_a_unit = estimate.of_a_unit(weights, CAUTIOUS_UNITS)
    total = sum(of_a_unit[key] * arm.scale for key, arm in arms.items())
    at_first = sum(
        variance / e for variance, e in zip(of_a_unit.values(), trail.reference, strict=True)
    )
    if total <= 0.0:
        return difference, AlwaysValid(valid=False), mean_control
    reading = always_valid(
        difference,
        math.sqrt(total) / scored.units,
        scored.control.units,
        scored.treatment.units,
        alpha,
        decision_n,
        time=sum(trail.reference) * total / at_first,
    )
    return difference, reading, mean_control


class _Estimate:
    """The means of two arms over a trail, and the variances of linear forms of them."""

    def __init__(self, opening: EpochSums, scored: PairScores, trail: Trail) -> None:
        self._opening = opening
        self._scored: Mapping[str, ArmScores] = {
            _CONTROL: scored.control,
            _TREATMENT: scored.treatment,
        }
        self._remembered = {_CONTROL: trail.control, _TREATMENT: trail.treatment}
        self._scored_units = scored.units
        self._total = opening.weight + scored.units

    @property
    def units(self) -> dict[str, int]:
        """The arms' own units."""
        arms = self._opening.arms
        return {
            key: arm.units + (arms[key].n if key in arms else 0)
            for key, arm in self._scored.items()
        }

    def read(self, kind: Kind) -> Scores | None:
        """How the arms are read; None where a ratio is not defined."""
        units = self.units
        return read(
            {
                key: ArmNumbers(max(units[key], 1), self._means(key), self._remembered[key].m2)
                for key in self._scored
            },
            kind,
        )

    def variances(self, forms: Mapping[str, Weights], kind: Kind) -> dict[str, float]:
        """The variance of the mean of each arm's form."""
        larger = self._larger(forms)
        of_a_unit = self.of_a_unit(forms, FEW_UNITS)
        variances = {}
        for key, form in forms.items():
            total = of_a_unit[key] * self._scored[key].scale
            if self._opening.epochs:
                of_opening = weighted_mean_variance(self._opening, key, kind, larger, form)
                total += self._opening.weight**2 * (of_opening.variance if of_opening else 0.0)
            variances[key] = total / self._total**2
        return variances

    def of_a_unit(self, forms: Mapping[str, Weights], caution: float) -> dict[str, float]:
        """The variance s² of one scored unit of each arm, as (n s² + κ L)/(n + κ): n are the arm's
        effective units, L is the larger one of the variances that the two arms remember.

        Arguments:
            caution: κ, the weight of L in units.
        """
        larger = self._larger(forms)
        variances = {}
        for key, form in forms.items():
            arm = self._scored[key]
            own = quotient(quadratic(form, arm.square)) / arm.scale if arm.scale else 0.0
            n = arm.effective_units
            variances[key] = (n * own + caution * larger) / (n + caution)
        return variances

    def _larger(self, forms: Mapping[str, Weights]) -> float:
        return max(
            quotient(quadratic(form, self._remembered[key].m2), max(self._remembered[key].n - 1, 1))
            for key, form in forms.items()
        )

    def _means(self, key: str) -> list[Fraction]:
        means = [Fraction(mean) * self._scored_units for mean in self._scored[key].mean]
        if key in self._opening.arms:
            before = self._opening.arms[key].mean
            means = [mean + Fraction(total) for mean, total in zip(means, before, strict=True)]
        return [mean / self._total for mean in means]


def _opening(trail: Trail, kind: Kind) -> EpochSums:
    """The sums over the epochs of the opening. Where it has too few units for a variance it is left
    out, as soon as there are scores that do without."""
    sums = EpochSums()
    left_out, units_left_out = 0, 0
    for cell in trail.opening:
        units = cell.control.n + cell.treatment.n
        if min(cell.control.n, cell.treatment.n) == 0:
            left_out, units_left_out = left_out + min(units, 1), units_left_out + units
            continue
        terms = {
            _CONTROL: arm_terms(cell.control, cell.units, kind),
            _TREATMENT: arm_terms(cell.treatment, cell.units, kind),
        }
        sums = combined([sums, EpochSums(weight=cell.units, epochs=1, arms=terms)])
    if trail.is_scored and any(degrees(arm, sums.epochs, kind) < 1 for arm in sums.arms.values()):
        left_out += sums.epochs
        units_left_out += sum(arm.n for arm in sums.arms.values())
        sums = EpochSums()
    return msgspec.structs.replace(sums, epochs_left_out=left_out, units_left_out=units_left_out)


def _notes(trail: Trail, units: Mapping[str, int], forms: Scores, kind: Kind) -> tuple[Note, ...]:
    notes: list[Note] = []
    facts = weight_facts(trail)
    effective = {
        _CONTROL: facts.effective_units_control,
        _TREATMENT: facts.effective_units_treatment,
    }
    if kind == "proportion" and any(
        effective[key] * min(score.level, 1 - score.level) < _SMALL_COUNT
        for key, score in forms.arms.items()
    ):
        notes.append("small_counts")
    if min(units.values()) < _LARGE_SAMPLE:
        notes.append("few_units")
    if forms.theta == 0:
        notes.append("constant_covariate")
    if facts.fragile:
        notes.append("fragile_weights")
    if trail.since_block is not None:
        notes.append("partial_trail")
    return tuple(notes)


def _reduction(estimate: _Estimate, forms: Scores, kind: Kind, variance: float) -> float | None:
    """The share of the difference's variance that the covariate has taken away."""
    if forms.theta is None:
        return None
    unadjusted = {key: score.unadjusted for key, score in forms.arms.items()}
    before = sum(estimate.variances(unadjusted, kind).values())
    return 1.0 - variance / before if before > 0.0 else None


def _shift_variance(estimate: _Estimate, forms: Scores, kind: Kind) -> float:
    """The variance of what a covariate shifts both levels by: θ times its mean over the arms."""
    if not forms.theta:
        return 0.0
    units = estimate.units
    both = sum(units.values())
    variances = estimate.variances(dict.fromkeys(units, forms.shift), kind)
    return sum((n / both) ** 2 * variances[key] for key, n in units.items())
