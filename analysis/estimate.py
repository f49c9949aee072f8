"""Fixed-horizon comparison of a treatment with the control, from differences within epochs.

Counts are never pooled over epochs: when the allocation and the base rate both move, the pooled
difference is a difference of days (Crook et al. 2009, "Seven pitfalls", Simpson's paradox).
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from analysis.kinds import Kind
from analysis.moments import Moments, conversions
from analysis.tails import critical_value, log_p_two_sided, p_from_log, to_log10
from analysis.variance import cautious_variance, weighted_mean_variance

Note = Literal[
    "no_common_epoch",
    "too_few_units",
    "zero_variance",
    "small_counts",
    "zero_control_mean",
    "lift_interval_unbounded",
]
"""Why a number is missing, or doubtful. The codes are stable.

no_common_epoch: no epoch has units in both arms, so there is nothing to compare.
too_few_units: an arm has too few units for a variance.
zero_variance: no spread in either arm, so there is neither interval nor p-value.
small_counts: an arm of a proportion has fewer than 10 conversions or fewer than 10 others, where
    Wald's interval covers less than it says.
zero_control_mean: a lift over 0 is not defined.
lift_interval_unbounded: the control mean cannot be told from 0, so the lift has no interval.
"""

_SMALL_COUNT = 10


class Stratum(msgspec.Struct, frozen=True):
    """One epoch of a comparison.

    Arguments:
        epoch: its number.
        control, treatment: moments of the two arms' scores, d = 1.
        units: units enrolled in the epoch over all variants, which is its weight. None takes
            those of the two arms. With three variants or more give it: the weights are then the
            same for every comparison, and do not depend on how well one arm did so far.
    """

    epoch: int
    control: Moments
    treatment: Moments
    units: int | None = None

    def __post_init__(self) -> None:
        if self.units is not None and self.units < self.control.n + self.treatment.n:
            raise ValueError(f"epoch {self.epoch} has fewer units than its two arms")


class Comparison(msgspec.Struct, frozen=True):
    """Treatment against control. A number that is not defined is None, and `notes` says why.

    Units, epochs: `n_control` and `n_treatment` are the units behind the estimate, in
    `epochs_used` epochs; `units_left_out` those of the `epochs_left_out` with one arm only.
    Means and difference: in the metric's unit, standardised over epochs, so that `difference` is
    `mean_treatment - mean_control`. `ci_low`, `ci_high`: at level 1 - alpha.
    `df`: degrees of freedom of the t distribution, None for the normal.
    `p_value`: two-sided, held above 2.2e-308; `log10_p_value` has no such floor.
    `lift`: difference / |mean_control|, as a fraction.
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
    notes: tuple[Note, ...] = ()


class Lift(msgspec.Struct, frozen=True):
    """A lift with its interval; None where it is not defined or has no bound."""

    lift: float | None
    ci_low: float | None
    ci_high: float | None
    note: Note | None


def compare(strata: Sequence[Stratum], kind: Kind, alpha: float = 0.05) -> Comparison:
    """Estimate the effect of the treatment from the differences within epochs.

    d = Σ w_e (m1e - m0e), w_e the epoch's share of the units over the epochs in which both arms
    have units; its variance is V0 + V1 of `variance.weighted_mean_variance`. One epoch gives the
    textbook answer: Wald's z for proportions (unpooled), Welch's t with Satterthwaite's degrees
    of freedom for means. Several give the post-stratified estimate with sample-size weights
    (Miratrix, Sekhon, Yu 2013); inverse-variance weights would be biased after a bandit.

    Arguments:
        strata: one entry an epoch; epochs with one arm only are left out and counted.
        kind: proportion (scores 0 and 1) or mean.
        alpha: 1 - confidence level.

    Raises:
        ValueError: for an alpha outside (0, 1), an epoch named twice, or a proportion's moments
            that are not of zeros and ones.
    """
    if len({stratum.epoch for stratum in strata}) != len(strata):
        raise ValueError("an epoch is named twice")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha lies strictly between 0 and 1, not at {alpha}")
    used = _comparable(strata)
    left_out = [s for s in strata if 0 in (s.control.n, s.treatment.n) and _units(s) > 0]
    controls = [s.control for s in used]
    treatments = [s.treatment for s in used]
    n_control = sum(cell.n for cell in controls)
    n_treatment = sum(cell.n for cell in treatments)
    result = Comparison(
        n_control=n_control,
        n_treatment=n_treatment,
        epochs_used=len(used),
        epochs_left_out=len(left_out),
        units_left_out=sum(_units(s) for s in left_out),
        alpha=alpha,
    )
    if not used:
        return msgspec.structs.replace(result, notes=("no_common_epoch",))

    weights = epoch_weights([_weight(s) for s in used])
    mean_control = _weighted_mean(controls, weights)
    mean_treatment = _weighted_mean(treatments, weights)
    difference = mean_treatment - mean_control
    notes: list[Note] = []
    if kind == "proportion" and any(_has_small_count(arm) for arm in (controls, treatments)):
        notes.append("small_counts")
    result = msgspec.structs.replace(
        result,
        mean_control=mean_control,
        mean_treatment=mean_treatment,
        difference=difference,
        lift=relative(difference, mean_control),
    )

    control = weighted_mean_variance(controls, weights, kind)
    treatment = weighted_mean_variance(treatments, weights, kind)
    if control is None or treatment is None or min(n_control, n_treatment) < 2:
        notes.append("too_few_units")
        return msgspec.structs.replace(result, notes=_with_lift_note(notes, result))
    variance = control.variance + treatment.variance
    if variance <= 0.0:
        notes.append("zero_variance")
        return msgspec.structs.replace(result, notes=_with_lift_note(notes, result))

    df = (
        None
        if kind == "proportion"
        else _satterthwaite(
            (control.variance / variance, control.df), (treatment.variance / variance, treatment.df)
        )
    )
    std_error = math.sqrt(variance)
    statistic = difference / std_error
    critical = critical_value(alpha, df)
    log_p = log_p_two_sided(statistic, df)
    lift = fieller(mean_control, difference, control.variance, treatment.variance, critical)
    if lift.note is not None:
        notes.append(lift.note)
    return msgspec.structs.replace(
        result,
        std_error=std_error,
        statistic=statistic,
        df=df,
        ci_low=difference - critical * std_error,
        ci_high=difference + critical * std_error,
        p_value=p_from_log(log_p),
        log10_p_value=to_log10(log_p),
        lift=lift.lift,
        lift_ci_low=lift.ci_low,
        lift_ci_high=lift.ci_high,
        notes=tuple(notes),
    )


def cautious_std_error(strata: Sequence[Stratum], kind: Kind) -> float | None:
    """The standard error of `compare`'s difference for a reading that may be acted on at any time:
    from `variance.cautious_variance`. None where it is not defined."""
    used = _comparable(strata)
    if not used:
        return None
    weights = epoch_weights([_weight(s) for s in used])
    variance = cautious_variance(
        [s.control for s in used], [s.treatment for s in used], weights, kind
    )
    return None if variance is None else math.sqrt(variance)


def epoch_weights(units: Sequence[int]) -> tuple[float, ...]:
    """Each epoch's share of the units; one epoch has exactly 1."""
    total = sum(units)
    return tuple(n / total for n in units)


def relative(difference: float, mean_control: float) -> float | None:
    """difference / |mean_control|, None where that is no finite number."""
    if mean_control == 0.0:
        return None
    lift = difference / abs(mean_control)
    return lift if math.isfinite(lift) else None


def fieller(
    mean_control: float,
    difference: float,
    variance_control: float,
    variance_treatment: float,
    critical: float,
) -> Lift:
    """The lift difference/|mean_control| with Fieller's interval.

    With δ = m1/m0 - 1 the set {δ: (d - δ m0)² <= c² (V1 + (1+δ)² V0)} is solved for its two
    roots; its constant term is d² - c² (V0 + V1), so the interval excludes 0 exactly when
    d ± c SE does. Where m0² <= c² V0 the set is unbounded. For a negative control mean the lift
    is -δ. Source: Fieller (1954), "Some problems in interval estimation".

    Arguments:
        mean_control, difference: m0 and d = m1 - m0, in the metric's unit.
        variance_control, variance_treatment: V0, V1, the variances of the two means.
        critical: c, the critical value that the difference's interval uses.
    """
    m0, d, c = mean_control, difference, critical
    lift = relative(d, m0)
    if lift is None:
        return Lift(lift=None, ci_low=None, ci_high=None, note="zero_control_mean")
    # Everything relative to |m0|, so that neither tiny nor huge units over- or underflow.
    v0, v1 = variance_control / m0 / m0, variance_treatment / m0 / m0
    delta = d / m0
    leading = 1.0 - c * c * v0
    if leading <= 0.0:
        return Lift(lift=lift, ci_low=None, ci_high=None, note="lift_interval_unbounded")
    half_width = c * math.sqrt(variance_control + variance_treatment)
    constant = ((abs(d) - half_width) / abs(m0)) * ((abs(d) + half_width) / abs(m0))
    centre = delta + c * c * v0
    root = c * math.sqrt(v1 * leading + v0 * (1.0 + delta) * (1.0 + delta))
    # The stable pair of roots: the second from the product, so its sign is the constant's.
    far = centre + math.copysign(root, centre)
    ends = sorted((far / leading, constant / far if far != 0.0 else 0.0))
    if not all(math.isfinite(end) for end in ends):
        return Lift(lift=lift, ci_low=None, ci_high=None, note="lift_interval_unbounded")
    if m0 < 0.0:
        ends = [-ends[1], -ends[0]]
    return Lift(lift=lift, ci_low=ends[0], ci_high=ends[1], note=None)


def _comparable(strata: Sequence[Stratum]) -> list[Stratum]:
    """The epochs with units in both arms."""
    return [s for s in strata if s.control.n > 0 and s.treatment.n > 0]


def _units(stratum: Stratum) -> int:
    return stratum.control.n + stratum.treatment.n


def _weight(stratum: Stratum) -> int:
    return _units(stratum) if stratum.units is None else stratum.units


def _weighted_mean(cells: Sequence[Moments], weights: Sequence[float]) -> float:
    return math.fsum(w * cell.mean[0] for w, cell in zip(weights, cells, strict=True))


def _has_small_count(cells: Sequence[Moments]) -> bool:
    converted = sum(conversions(cell) for cell in cells)
    return min(converted, sum(cell.n for cell in cells) - converted) < _SMALL_COUNT


def _satterthwaite(*shares: tuple[float, float]) -> float:
    """Degrees of freedom of a sum of variances, given (share of the sum, df) of each."""
    return 1.0 / sum(share * share / df for share, df in shares)


def _with_lift_note(notes: list[Note], result: Comparison) -> tuple[Note, ...]:
    return (*notes, "zero_control_mean") if result.lift is None else tuple(notes)
