"""Fixed-horizon comparison of a treatment with the control, from differences within epochs.

Counts are never pooled over epochs: when the allocation and the base rate both move, the pooled
difference is a difference of days (Crook et al. 2009, "Seven pitfalls", Simpson's paradox).
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Final, Literal

import msgspec

from analysis.inference.epoch_sums import ArmSums, EpochSums
from analysis.inference.exact import quotient
from analysis.inference.kinds import Kind, Method, Test
from analysis.inference.linear import Scores, Weights, scores
from analysis.inference.mover import Limits
from analysis.inference.small_counts import (
    SmallCounts,
    SmallCountsOverEpochs,
    Standardised,
    agreeing,
    are_few_in_effect,
    are_small,
    over_epochs,
    small_counts,
)
from analysis.inference.tails import critical_value, log_p_two_sided, p_from_log, to_log10
from analysis.inference.variance import ArmVariance, cautious_variance, weighted_mean_variance

Note = Literal[
    "no_common_epoch",
    "too_few_units",
    "zero_variance",
    "small_counts",
    "zero_control_mean",
    "lift_interval_unbounded",
    "zero_denominator",
    "constant_covariate",
    "few_units",
    "reallocated",
    "approximate_small_epochs",
    "fragile_weights",
    "partial_trail",
]
"""Why a number is missing, or doubtful. The codes are stable.

no_common_epoch: no epoch has units in both arms, so there is nothing to compare.
too_few_units: an arm has too few units for a variance.
zero_variance: no spread in either arm, so there is neither interval nor p-value.
small_counts: an arm of a proportion has fewer than 10 conversions or fewer than 10 others, in
    several epochs also as they weigh there, so that Wald's interval covers less than it says, and
    `small_counts.py` reads it.
zero_control_mean: a lift over 0 is not defined.
lift_interval_unbounded: the control mean cannot be told from 0, so the lift has no interval.
zero_denominator: the denominators of an arm sum to 0, so its ratio is not defined.
constant_covariate: the covariate does not vary, so nothing could be adjusted by it.
few_units: an arm has fewer than 100 units, or a ratio whose numerator is made up of fewer than 10
    of them in effect, and the interval is one for large samples.
reallocated: quantiles are compared over all units together, which is not honest once the
    propensities have changed.
approximate_small_epochs: traffic followed the outcomes in epochs of few units, which can only be
    compared within epochs here: such a comparison holds for large epochs.
fragile_weights: units of small propensity weigh so much that a few of them make the estimate.
partial_trail: blocks that were closed before blocks were followed are not in the estimate.
"""

_FEW_BEHIND: Final = 10
"""Units behind the numerator of a ratio, in effect, from which on the same holds."""
_LARGE_SAMPLE: Final = 100
"""Units of an arm from which on the normal approximation of a ratio, or of an adjusted mean, is
relied on."""


class Comparison(msgspec.Struct, frozen=True):
    """Treatment against control. A number that is not defined is None, and `notes` says why.

    The mean of a ratio metric is the ratio of its totals; with a covariate, means and ratios are
    the adjusted ones.

    Units, epochs: `n_control` and `n_treatment` are the units behind the estimate, in
    `epochs_used` epochs; `units_left_out` those of the `epochs_left_out` with one arm only.
    Means and difference: in the metric's unit, standardised over epochs, so that `difference` is
    `mean_treatment - mean_control`, taken before these are rounded. `ci_low`, `ci_high`: at level
    1 - alpha.
    `df`: degrees of freedom of the t distribution, None for the normal.
    `p_value`: two-sided, held above 2.2e-308; `log10_p_value` has no such floor.
    `lift`: difference / |mean_control|, as a fraction.
    `theta`: the slope of the outcome on its covariate; `variance_reduction`: the share by which
    that has made the variance of the difference smaller (below 0 if larger). None without a
    covariate.
    `method`: how the difference was estimated; `test`: where interval and p-value come from, None
    while there are none. Fisher's has no `statistic`.
    """

    n_control: int
    n_treatment: int
    epochs_used: int
    epochs_left_out: int
    units_left_out: int
    alpha: float
    mean_control: float | None = None
    mean_treatment: float | None = None
    difference: float | None = None
    std_error: float | None = None
    statistic: float | None = None
    df: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    log10_p_value: float | None = None
    lift: float | None = None
    lift_ci_low: float | None = None
    lift_ci_high: float | None = None
    theta: float | None = None
    variance_reduction: float | None = None
    method: Method = "within_epochs"
    test: Test | None = None
    notes: tuple[Note, ...] = ()


class Lift(msgspec.Struct, frozen=True):
    """A lift with its interval; None where it is not defined or has no bound."""

    lift: float | None
    ci_low: float | None
    ci_high: float | None
    note: Note | None


def compare(
    sums: EpochSums, control: str, treatment: str, kind: Kind, alpha: float = 0.05
) -> Comparison:
    """Estimate the effect of the treatment from the differences within epochs.

    d = Σ w_e (m1e - m0e), w_e the epoch's share of the units over the epochs in which both arms
    have units; its variance is V0 + V1 of `variance.weighted_mean_variance`. One epoch gives the
    textbook answer: Wald's z for proportions (unpooled; `small_counts.py` where counts are small,
    in one epoch or in several),
    Welch's t with Satterthwaite's degrees of freedom for means. Several give the post-stratified
    estimate with sample-size weights (Miratrix, Sekhon, Yu 2013); inverse-variance weights would be
    biased after a bandit. The units of an epoch are those of all its variants: the weights are then
    the same for every comparison, and do not depend on how well one arm did so far.

    A ratio is that of its standardised means, R = Σ w_e x_e / Σ w_e y_e. Its variance, and that of
    what is adjusted by a covariate, is the one of a linear form of the units' numbers
    (`linear.py`); in one epoch with Welch's t, too, in several with the normal quantile.

    Arguments:
        sums: over the epochs; those with one arm only are left out and counted.
        control, treatment: the keys of the arms.
        kind: proportion (scores 0 and 1), mean or ratio.
        alpha: 1 - confidence level.

    Raises:
        ValueError: for an alpha outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies strictly between 0 and 1, not at {alpha}")
    arm_0, arm_1 = sums.arms.get(control, ArmSums()), sums.arms.get(treatment, ArmSums())
    result = Comparison(
        n_control=arm_0.n,
        n_treatment=arm_1.n,
        epochs_used=sums.epochs,
        epochs_left_out=sums.epochs_left_out,
        units_left_out=sums.units_left_out,
        alpha=alpha,
    )
    if sums.epochs == 0:
        return msgspec.structs.replace(result, notes=("no_common_epoch",))
    read = scores(sums, (control, treatment), kind)
    if read is None:
        return msgspec.structs.replace(result, notes=("zero_denominator",))

    score_0, score_1 = read.arms[control], read.arms[treatment]
    mean_control = float(score_0.level)
    # Rounded last, so that nothing is lost where both means are large and near each other.
    difference = float(score_1.level - score_0.level)
    notes: list[Note] = []
    if kind == "proportion" and any(_has_small_counts(arm, sums) for arm in (arm_0, arm_1)):
        notes.append("small_counts")
    if any(_is_small_sample(arm, sums.weight, kind) for arm in (arm_0, arm_1)):
        notes.append("few_units")
    if read.theta == 0:
        notes.append("constant_covariate")
    result = msgspec.structs.replace(
        result,
        mean_control=mean_control,
        mean_treatment=float(score_1.level),
        difference=difference,
        lift=relative(difference, mean_control),
        theta=None if read.theta is None else float(read.theta),
    )

    if "small_counts" in notes and sums.epochs == 1:
        counts = small_counts(arm_0.n, arm_0.converted, arm_1.n, arm_1.converted, alpha)
        return _with_small_counts(msgspec.structs.replace(result, notes=tuple(notes)), counts)
    variances = _variances(sums, {key: score.weights for key, score in read.arms.items()}, kind)
    if variances is None or min(arm_0.n, arm_1.n) < 2:
        notes.append("too_few_units")
        return msgspec.structs.replace(result, notes=_with_lift_note(notes, result))
    of_control, of_treatment = variances[control], variances[treatment]
    variance = of_control.variance + of_treatment.variance
    if "small_counts" in notes and sums.null:
        rates = [
            _standardised(sums, key, read.arms[key].level, variances[key].variance)
            for key in (control, treatment)
        ]
        found = over_epochs(rates[0], rates[1], difference, alpha)
        return _with_rates(msgspec.structs.replace(result, notes=tuple(notes)), found)
    df = None if kind == "proportion" else _satterthwaite(variance, of_control, of_treatment)
    return with_interval(
        msgspec.structs.replace(
            result,
            df=df,
            test=_test(kind, df),
            variance_reduction=_variance_reduction(sums, read, kind, variance),
            notes=tuple(notes),
        ),
        of_control.variance,
        of_treatment.variance,
        _shift_variance(sums, read, kind),
        kind=kind,
    )


def with_interval(
    result: Comparison,
    variance_control: float,
    variance_treatment: float,
    variance_common: float = 0.0,
    *,
    kind: Kind,
) -> Comparison:
    """A comparison with all that follows from the variances of its two means.

    Arguments:
        kind: of the metric: no lift of a proportion is believed to be below -1.
        result: with its means, their difference and lift, and the degrees of freedom.
        variance_control, variance_treatment, variance_common: as for `fieller`.
    """
    assert result.difference is not None, "it is given"  # noqa: S101 - an invariant
    assert result.mean_control is not None, "it is given"  # noqa: S101 - an invariant
    variance = variance_control + variance_treatment
    if variance <= 0.0:
        return msgspec.structs.replace(
            result,
            df=None,
            test=None,
            notes=_with_lift_note([*result.notes, "zero_variance"], result),
        )
    std_error = math.sqrt(variance)
    statistic = result.difference / std_error
    critical = critical_value(result.alpha, result.df)
    log_p = log_p_two_sided(statistic, result.df)
    lift = fieller(
        result.mean_control,
        result.difference,
        variance_control,
        variance_treatment,
        critical,
        variance_common,
    )
    return msgspec.structs.replace(
        result,
        std_error=std_error,
        statistic=statistic,
        ci_low=result.difference - critical * std_error,
        ci_high=result.difference + critical * std_error,
        p_value=p_from_log(log_p),
        log10_p_value=to_log10(log_p),
        lift=lift.lift,
        lift_ci_low=possible_lift(lift.ci_low, lift.lift, kind),
        lift_ci_high=lift.ci_high,
        notes=result.notes if lift.note is None else (*result.notes, lift.note),
    )


def _with_small_counts(result: Comparison, counts: SmallCounts) -> Comparison:
    """A comparison with the interval and the p-value for small counts; a lift's interval is
    Fieller's about the same rates, made to agree with them about 0."""
    lift = fieller(
        counts.rate_control,
        counts.rate_treatment - counts.rate_control,
        counts.variance_control,
        counts.variance_treatment,
        critical_value(result.alpha, None),
    )
    return _tested(result, counts, lift, counts.test)


def _with_rates(result: Comparison, counts: SmallCountsOverEpochs) -> Comparison:
    """The same of small counts in several epochs; a lift's interval is that of their limits."""
    return _tested(result, counts, lift_of_limits(counts.control, counts.treatment), "score")


def _tested(
    result: Comparison, counts: SmallCounts | SmallCountsOverEpochs, lift: Lift, test: Test
) -> Comparison:
    ends: tuple[float | None, float | None] = (None, None)
    note: Note | None = "zero_control_mean" if result.lift is None else lift.note
    if result.lift is not None and lift.ci_low is not None and lift.ci_high is not None:
        low, high = agreeing(lift.ci_low, lift.ci_high, result.lift, rejected=counts.rejected)
        ends = max(low, -1.0), high
    return msgspec.structs.replace(
        result,
        std_error=counts.std_error,
        statistic=counts.statistic,
        ci_low=counts.ci_low,
        ci_high=counts.ci_high,
        p_value=p_from_log(counts.log_p),
        log10_p_value=to_log10(counts.log_p),
        lift_ci_low=ends[0],
        lift_ci_high=ends[1],
        test=test,
        notes=result.notes if note is None else (*result.notes, note),
    )


def _has_small_counts(arm: ArmSums, sums: EpochSums) -> bool:
    """Whether an arm of a proportion has. In several epochs a unit counts as it weighs."""
    if are_small(arm.n, arm.converted):
        return True
    if sums.epochs == 1:
        return False
    rate = float(Fraction(arm.mean[0]) / sums.weight)
    return are_few_in_effect(rate, _effective(arm, sums.weight))


def _effective(arm: ArmSums, weight: int) -> float:
    """The units of an arm in effect, (Σ w_e²/n_e)^-1."""
    return 1.0 / quotient(arm.scale, weight**2)


def _standardised(sums: EpochSums, key: str, rate: Fraction, variance: float) -> Standardised:
    return Standardised(
        rate=float(rate),
        effective=_effective(sums.arms[key], sums.weight),
        variance=variance,
        null=quotient(sums.null[key], sums.weight**2),
    )


def cautious_std_error(sums: EpochSums, control: str, treatment: str, kind: Kind) -> float | None:
    """The standard error of `compare`'s difference for a reading that may be acted on at any time:
    from `variance.cautious_variance`. None where it is not defined."""
    read = scores(sums, (control, treatment), kind) if sums.epochs else None
    if read is None:
        return None
    forms = {key: score.weights for key, score in read.arms.items()}
    variance = cautious_variance(sums, forms, kind)
    return None if variance is None else math.sqrt(variance)


def relative(difference: float, mean_control: float) -> float | None:
    """difference / |mean_control|, None where that is no finite number."""
    if mean_control == 0.0:
        return None
    lift = difference / abs(mean_control)
    return lift if math.isfinite(lift) else None


def possible_lift(low: float | None, lift: float | None, kind: Kind) -> float | None:
    """The lower bound of a lift, cut at -1 for a proportion: no rate falls by more than all of it.

    The interval covers no less for it. It never ends above the estimate, which may itself be below
    -1 where it is weighted by propensities. Values of other kinds may be negative.
    """
    if low is None or lift is None or kind != "proportion":
        return low
    return max(low, min(-1.0, lift))


def fieller(
    mean_control: float,
    difference: float,
    variance_control: float,
    variance_treatment: float,
    critical: float,
    variance_common: float = 0.0,
) -> Lift:
    """The lift difference/|mean_control| with Fieller's interval.

    With δ = m1/m0 - 1 the set {δ: (d - δ m0)² <= c² (V1 + (1+δ)² V0 + δ² V)} is solved for its two
    roots; its constant term is d² - c² (V0 + V1), so the interval excludes 0 exactly when
    d ± c SE does. Where m0² <= c² (V0 + V) the set is unbounded. For a negative control mean the
    lift is -δ. Source: Fieller (1954), "Some problems in interval estimation".

    Arguments:
        mean_control, difference: m0 and d = m1 - m0, in the metric's unit.
        variance_control, variance_treatment: V0, V1, the variances of the two means, but for what
            they share.
        critical: c, the critical value that the difference's interval uses.
        variance_common: V, the variance of what both means are shifted by alike; it is not in d.
    """
    m0, d, c = mean_control, difference, critical
    lift = relative(d, m0)
    if lift is None:
        return Lift(lift=None, ci_low=None, ci_high=None, note="zero_control_mean")
    # Everything relative to |m0|, so that neither tiny nor huge units over- or underflow.
    v0, v1 = variance_control / m0 / m0, variance_treatment / m0 / m0
    delta = d / m0
    v = variance_common / m0 / m0
    leading = 1.0 - c * c * (v0 + v)
    if leading <= 0.0:
        return Lift(lift=lift, ci_low=None, ci_high=None, note="lift_interval_unbounded")
    half_width = c * math.sqrt(variance_control + variance_treatment)
    constant = ((abs(d) - half_width) / abs(m0)) * ((abs(d) + half_width) / abs(m0))
    centre = delta + c * c * v0
    square = v1 * leading + v0 * (1.0 + delta) * (1.0 + delta) + v * (delta * delta - c * c * v0)
    root = c * math.sqrt(max(0.0, square))
    # The stable pair of roots: the second from the product, so its sign is the constant's.
    far = centre + math.copysign(root, centre)
    ends = sorted((far / leading, constant / far if far != 0.0 else 0.0))
    if not all(math.isfinite(end) for end in ends):
        return Lift(lift=lift, ci_low=None, ci_high=None, note="lift_interval_unbounded")
    if m0 < 0.0:
        ends = [-ends[1], -ends[0]]
    return Lift(lift=lift, ci_low=ends[0], ci_high=ends[1], note=None)


def lift_of_limits(control: Limits, treatment: Limits) -> Lift:
    """The lift of a treatment with the interval that belongs to `mover.half_widths`: 0 is left out
    by both or by neither.

    Either end is Fieller's about the sides that the difference's end is made of; where that end is
    a ratio of means of different signs, about the control's other side.
    Source: Donner and Zou (2012), "Closed-form confidence intervals for functions of the normal
    mean and standard deviation", on the ratio (MOVER-R).
    """
    difference = treatment.value - control.value
    lift, scale = relative(difference, control.value), abs(control.value)
    if lift is None:
        return Lift(lift=None, ci_low=None, ci_high=None, note="zero_control_mean")
    sign = math.copysign(1.0, control.value)
    low_0, high_0 = control.below / scale, control.above / scale

    def about(side: float, of_treatment: float) -> Lift:
        of_treatment /= scale
        return fieller(sign, lift, side * side, of_treatment * of_treatment, 1.0)

    low, high = about(high_0, treatment.below), about(low_0, treatment.above)
    if low.ci_low is not None and 1.0 + sign * low.ci_low < 0.0:
        low = about(low_0, treatment.below)
    if high.ci_high is not None and 1.0 + sign * high.ci_high < 0.0:
        high = about(high_0, treatment.above)
    if low.ci_low is None or high.ci_high is None:
        return Lift(lift, None, None, "lift_interval_unbounded")
    return Lift(lift, low.ci_low, high.ci_high, None)


def _test(kind: Kind, df: float | None) -> Test:
    """Where the interval of differences within epochs comes from."""
    if kind == "proportion":
        return "wald"
    return "large_sample" if df is None else "welch"


def _is_small_sample(arm: ArmSums, weight: int, kind: Kind) -> bool:
    """Whether the normal approximation of a form of several numbers is doubtful for an arm.

    Behind a numerator are (Σ x)²/Σ x² = n m²/(m² + s²) units in effect: those that had the event,
    where it is rare and each had it once. Source: Kish (1965), "Survey sampling", on the effective
    sample size.
    """
    if len(arm.mean) == 1:
        return False
    if arm.n < _LARGE_SAMPLE:
        return True
    mean, variance = Fraction(arm.mean[0]) / weight, Fraction(arm.spread[0]) / arm.n
    square = mean * mean
    behind = arm.n * square / (square + variance) if square else 0
    return kind == "ratio" and behind < _FEW_BEHIND


def _variances(
    sums: EpochSums, forms: Mapping[str, Weights], kind: Kind
) -> dict[str, ArmVariance] | None:
    """The variance of the mean of each arm's form; None where an arm has none."""
    found = {}
    for key, form in forms.items():
        variance = weighted_mean_variance(sums, key, kind, form=form)
        if variance is None:
            return None
        found[key] = variance
    return found


def _shift_variance(sums: EpochSums, read: Scores, kind: Kind) -> float:
    """The variance of what a covariate shifts all levels by: θ times its mean over the arms."""
    if not read.theta:
        return 0.0
    units = sum(sums.arms[key].n for key in read.arms)
    variances = _variances(sums, dict.fromkeys(read.arms, read.shift), kind) or {}
    return math.fsum(
        (sums.arms[key].n / units) ** 2 * found.variance for key, found in variances.items()
    )


def _variance_reduction(sums: EpochSums, read: Scores, kind: Kind, variance: float) -> float | None:
    """The share of the difference's variance that the covariate has taken away."""
    if read.theta is None:
        return None
    unadjusted = {key: score.unadjusted for key, score in read.arms.items()}
    variances = _variances(sums, unadjusted, kind) or {}
    before = math.fsum(found.variance for found in variances.values())
    return 1.0 - variance / before if before > 0.0 else None


def _satterthwaite(variance: float, *arms: ArmVariance) -> float | None:
    """Degrees of freedom of a sum of variances; None where it is 0, or one of them claims none."""
    inverse = 0.0
    for arm in arms:
        if arm.df is None or variance <= 0.0:
            return None
        inverse += (arm.variance / variance) ** 2 / arm.df
    return 1.0 / inverse


def _with_lift_note(notes: list[Note], result: Comparison) -> tuple[Note, ...]:
    return (*notes, "zero_control_mean") if result.lift is None else tuple(notes)
