"""How the several numbers of a unit are read as one: linear forms, chosen from sums over epochs.

A unit of a ratio has a numerator x and a denominator y; the metric is the ratio of their totals.
Around the ratio R of an arm, with ȳ its mean denominator, the ratio varies as the mean of
(x - R y)/ȳ does, which has one independent value for each unit. Source: the delta method, Deng,
Knoblich, Lu (2018), "Applying the delta method in metric analytics". R and ȳ are those of the arm
itself: with the R of both arms together the variance is right only while they do not differ, and an
interval has to be right where they do.

A covariate z, the same aggregate of the time before enrolment, is known before the treatment and
has the same mean in every arm. So the outcome less θ z has the same difference for any θ that all
arms share, and the least variance at θ = cov(outcome, z)/var(z), within epochs and over the arms
together. Source: CUPED, Deng, Xu, Kohavi, Walker (2013), "Improving the sensitivity of online
controlled experiments by utilizing pre-experiment data". The covariate of a ratio is itself the
linear form (z_x - R_z z_y)/z̄_y, with R_z and z̄_y of all arms together (their appendix B).

The numbers of a unit come in this order: outcome (numerator and denominator of a ratio), then the
covariates in the same order.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from analysis.inference.epoch_sums import ArmSums, EpochSums
from analysis.inference.kinds import Kind
from analysis.inference.moments import ROUNDING, pairs

LEAST_DENOMINATOR: Final = Fraction(1, 10**30)
"""A mean denominator nearer to 0 than this is none: the largest value over it is still a float."""

Weights = tuple[Fraction, ...]
"""w of a form w'x."""

Packed = Sequence[Decimal | float]
"""Cross-products, packed as in `Moments`."""

ITSELF: Final[Weights] = (Fraction(1),)
"""The form of one number: itself."""


class ArmNumbers(msgspec.Struct, frozen=True):
    """What is known of the numbers of an arm's units.

    Arguments:
        units: how many there are.
        means: of each number, standardised over the epochs.
        spread: cross-products of the numbers within the arm; covariates' slopes come from it.
    """

    units: int
    means: Sequence[Fraction]
    spread: Packed


class Score(msgspec.Struct, frozen=True):
    """How an arm is read.

    Arguments:
        level: its mean or ratio, standardised over the epochs, adjusted by a covariate.
        weights: of the form of a unit's numbers whose mean varies as the level does.
        unadjusted: of the form whose mean varies as the level without the covariate.
    """

    level: Fraction
    weights: Weights
    unadjusted: Weights


class Scores(msgspec.Struct, frozen=True):
    """How arms that are compared are read.

    Arguments:
        arms: by variant.
        theta: the slope that they share; None without a covariate.
        shift: of the form θ z, whose mean over all arms is what all levels are shifted by; zeros
            without a covariate.
    """

    arms: dict[str, Score]
    theta: Fraction | None
    shift: Weights


def scores(sums: EpochSums, variants: Sequence[str], kind: Kind) -> Scores | None:
    """How these arms are read, from sums over epochs.

    Arguments:
        sums: over the epochs, at least one, in all of which these arms have units.
        variants: the keys of the arms.
        kind, returns: as `read`.
    """
    arms = {variant: sums.arms[variant] for variant in variants}
    return read(
        {
            variant: ArmNumbers(arm.n, _means(arm, sums.weight), arm.spread)
            for variant, arm in arms.items()
        },
        kind,
    )


def read(arms: Mapping[str, ArmNumbers], kind: Kind) -> Scores | None:
    """How arms are read.

    Arguments:
        arms: at least one, by variant, of as many numbers each.
        kind: of the metric; with it the number of numbers says whether there is a covariate.

    Returns:
        None where the mean denominator of an arm is 0, so that its ratio is not defined. θ is 0
        where the covariate does not vary, or is a ratio with a mean denominator of 0.
    """
    outcomes = {}
    for variant, arm in arms.items():
        outcome = _outcome(arm.means, kind)
        if outcome is None:
            return None
        outcomes[variant] = outcome
    d = len(next(iter(arms.values())).means)
    if d == _width(kind):
        plain = {key: Score(level, form, form) for key, (level, form) in outcomes.items()}
        return Scores(plain, None, (Fraction(0),) * d)
    covariate = _covariate([arm.means for arm in arms.values()], kind)
    theta = _slope([(form, arms[key].spread) for key, (_, form) in outcomes.items()], covariate)
    shift = tuple(theta * v for v in covariate)
    units = sum(arm.units for arm in arms.values())
    centre = sum((arm.units * _dot(shift, arm.means) for arm in arms.values()), Fraction(0))
    adjusted = {
        key: Score(
            level=level - _dot(shift, arms[key].means) + centre / units,
            weights=tuple(w - s for w, s in zip(form, shift, strict=True)),
            unadjusted=form,
        )
        for key, (level, form) in outcomes.items()
    }
    return Scores(adjusted, theta, shift)


def quadratic(weights: Weights, cross: Packed) -> Fraction:
    """w'Sw of a packed symmetric matrix S, exactly.

    Where w'x hardly varies the terms cancel, and what is left of the rounding that the entries of
    S came with counts as 0.
    """
    terms = [
        (1 if i == j else 2) * weights[i] * weights[j] * Fraction(entry)
        for (i, j), entry in zip(pairs(len(weights)), cross, strict=True)
    ]
    total = sum(terms, Fraction(0))
    return total if total > Fraction(ROUNDING) * sum(map(abs, terms)) else Fraction(0)


def _width(kind: Kind) -> int:
    """How many numbers the outcome of a unit has."""
    return 2 if kind == "ratio" else 1


def _means(arm: ArmSums, weight: int) -> list[Fraction]:
    """The means of an arm's numbers, standardised over the epochs."""
    return [Fraction(total) / weight for total in arm.mean]


def _outcome(means: Sequence[Fraction], kind: Kind) -> tuple[Fraction, Weights] | None:
    """The level of an arm without covariates, and the form that varies as it does."""
    zeros = (Fraction(0),) * (len(means) - _width(kind))
    if kind != "ratio":
        return means[0], ITSELF + zeros
    form = _ratio_form(means[0], means[1])
    return None if form is None else (means[0] / means[1], form + zeros)


def _covariate(means: Sequence[Sequence[Fraction]], kind: Kind) -> Weights:
    """The form that is the covariate, of the means of several arms."""
    width = _width(kind)
    zeros = (Fraction(0),) * width
    if kind != "ratio":
        return zeros + ITSELF
    numerator, denominator = (sum((m[width + i] for m in means), Fraction(0)) for i in (0, 1))
    form = _ratio_form(numerator / len(means), denominator / len(means))
    return zeros + (zeros if form is None else form)


def _ratio_form(numerator: Fraction, denominator: Fraction) -> Weights | None:
    """(x - R y)/ȳ at these means; None where ȳ is 0."""
    if abs(denominator) < LEAST_DENOMINATOR:
        return None
    return 1 / denominator, -numerator / denominator**2


def _slope(arms: Iterable[tuple[Weights, Packed]], covariate: Weights) -> Fraction:
    """θ = Σ cov(outcome, z) / Σ var(z) over the arms, given the form of the outcome and the summed
    cross-products of each; 0 where z does not vary."""
    with_outcome, own = Fraction(0), Fraction(0)
    for outcome, cross in arms:
        own += quadratic(covariate, cross)
        with_outcome += _bilinear(outcome, covariate, cross)
    return with_outcome / own if own > 0 else Fraction(0)


def _bilinear(u: Weights, v: Weights, cross: Packed) -> Fraction:
    """u'Sv of a packed symmetric matrix S, exactly."""
    return sum(
        (
            (u[i] * v[j] + u[j] * v[i] if i != j else u[i] * v[i]) * Fraction(entry)
            for (i, j), entry in zip(pairs(len(u)), cross, strict=True)
        ),
        Fraction(0),
    )


def _dot(weights: Weights, means: Sequence[Fraction]) -> Fraction:
    return sum((w * m for w, m in zip(weights, means, strict=True)), Fraction(0))
