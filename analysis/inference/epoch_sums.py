"""Sums over epochs: all that a report and the bandit need to know of any number of them.

An estimate is made of differences within epochs (`estimate.py`), its variance of variances within
epochs (`variance.py`). Both are functions of a few sums over the epochs, whose terms come from one
epoch each. So a change of an epoch's cells changes a total by the difference of that epoch's terms,
and what is made of the total costs the same whether one epoch lies behind it or fifty thousand. The
totals are exact (`exact.py`): they are the sums of what stands in the cells, however often that
changed.

In the formulas N_e is an epoch's weight, the units of all its variants, n_e, m_e and M2_e are the
units of one variant in it, their mean and their centred sum of squares. The weight that estimates
give an epoch is its share w_e = N_e / Σ N_e; the sum is not known to a single epoch, so N_e stands
for w_e in the terms, and who reads a total divides by the sum.

A unit may have several numbers, d of them: a ratio has a numerator and a denominator, and either
may have covariates. Which linear form of them is looked at, is known from the totals only
(`linear.py`); so the sums keep every number and every pair of them, and w'x has the mean w'm and
the sum of squares w' M2 w whatever w is. One number is the case d = 1 with w = (1).
"""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from analysis.inference.exact import Additive, exact, product
from analysis.inference.kinds import Kind
from analysis.inference.moments import EMPTY, Moments, conversions

PRIOR_UNITS = 5.0
"""κ, the weight in units of the pooled variance, towards which that of an epoch is shrunk: of 5, 10
and 20 the best coverage in simulations. It is in the terms: another κ needs new totals."""

SMALL_EPOCH: Final = 100
"""Units that an arm needs in an epoch, so that the epoch is no small one."""

_NOTHING = Decimal(0)


class ArmSums(Additive, frozen=True):
    """Sums over the epochs of one variant.

    With f = N²/n, the factor that its epoch's variance has in that of the weighted mean, with
    df = n - 1, and with the two parts of the shrunk variance c + d s², which are c = M2/(df + κ)
    and d = κ/(df + κ), and a = f/(df + κ), the sums over e are:

    n, converted: of units, and of those that converted (0 of anything but a proportion).
    mean: Σ N m, of each number.
    spread: Σ M2, of each pair of numbers, packed as in `Moments`.
    own: Σ f c, of each pair.
    scale, lent: Σ f, Σ f d.
    aacc, aacd, …, dd: Σ df a a c c, Σ df a a c d, …, Σ df d d, for Satterthwaite's degrees; 0 where
        a unit has several numbers, since the square of a form of them is not known to an epoch.
    """

    n: int = 0
    converted: int = 0
    mean: tuple[Decimal, ...] = ()
    spread: tuple[Decimal, ...] = ()
    own: tuple[Decimal, ...] = ()
    scale: Decimal = _NOTHING
    lent: Decimal = _NOTHING
    aacc: Decimal = _NOTHING
    aacd: Decimal = _NOTHING
    aadd: Decimal = _NOTHING
    acc: Decimal = _NOTHING
    acd: Decimal = _NOTHING
    add: Decimal = _NOTHING
    cc: Decimal = _NOTHING
    cd: Decimal = _NOTHING
    dd: Decimal = _NOTHING


class BatchedArm(Additive, frozen=True):
    """Sums over the epochs of one of two variants, as batched OLS (`batched.py`) weighs them.

    With h = n0 n1/(n0 + n1), for n0 and n1 the epoch's units of the two, and with c and d as in
    `ArmSums`, the sums over e are:

    mean: Σ √h m, of each number.
    own: Σ (h/n) c, of each pair of numbers, packed as in `Moments`.
    lent: Σ (h/n) d.
    shared: Σ (h/n) d s², of each pair, with s² the variance in the epoch within the two variants
        together.
    """

    mean: tuple[Decimal, ...] = ()
    own: tuple[Decimal, ...] = ()
    lent: Decimal = _NOTHING
    shared: tuple[Decimal, ...] = ()


class BatchedSums(Additive, frozen=True):
    """Sums over the epochs of two variants, for batched OLS.

    root: Σ √h.
    arms: the sums of either variant, by its key; empty where there is no such epoch.
    """

    root: Decimal = _NOTHING
    arms: dict[str, BatchedArm] = msgspec.field(default_factory=dict)


class EpochSums(Additive, frozen=True):
    """Sums over the epochs in which each of several variants has units, so that they compare.

    weight: Σ N over these epochs.
    epochs: how many they are.
    epochs_left_out, units_left_out: the epochs in which some of these variants have units and
        others have none, and the units of these variants in them.
    units_in_small: of the units of these variants, be they left out or not, those in epochs in
        which one that has units has fewer than `SMALL_EPOCH`.
    arms: the sums of each variant, by its key; empty where there is no such epoch.
    batched: of two variants, the sums for batched OLS.
    null: of two variants whose units convert or do not, Σ N² p(1-p)/n of each, by its key: its
        part of the variance where the two do not differ, p being the rate in the epoch of both
        together. Empty of any other kind.
    """

    weight: int = 0
    epochs: int = 0
    epochs_left_out: int = 0
    units_left_out: int = 0
    units_in_small: int = 0
    arms: dict[str, ArmSums] = msgspec.field(default_factory=dict)
    batched: BatchedSums = BatchedSums()
    null: dict[str, Decimal] = msgspec.field(default_factory=dict)


class Population(Additive, frozen=True):
    """What is known of a metric's units, be it all of them or the finished ones, over all epochs.

    units: how many, by variant.
    contrasts: for the comparison of each treatment with the control, by the treatment's key.
    together: for the comparison of all variants at once.
    """

    units: dict[str, int] = msgspec.field(default_factory=dict)
    contrasts: dict[str, EpochSums] = msgspec.field(default_factory=dict)
    together: EpochSums = msgspec.field(default_factory=EpochSums)


def of_epoch(
    cells: Mapping[str, Moments], variants: Sequence[str], control: str, kind: Kind
) -> Population:
    """What one epoch adds to the totals.

    Arguments:
        cells: the epoch's moments by variant; a variant that is missing has no units.
        variants: the keys of the experiment's variants.
        control: the one that the others are compared with.
        kind: of the metric; the units of a proportion have one number, 0 or 1.

    Raises:
        ValueError: for a proportion's moments that are not of zeros and ones.
        OverflowError: where the square of a variance is beyond floats: of scores above about 1e60.
    """
    present = {key: cells[key] for key in variants if cells.get(key, EMPTY).n > 0}
    weight = sum(cell.n for cell in present.values())
    arms = {key: arm_terms(cell, weight, kind) for key, cell in present.items()}
    return Population(
        units={key: arm.n for key, arm in arms.items()},
        contrasts={
            key: _contrast(present, arms, (control, key), weight, kind)
            for key in variants
            if key != control
        },
        together=_comparable(arms, variants, weight),
    )


def arm_terms(cell: Moments, weight: int, kind: Kind) -> ArmSums:
    """What one epoch adds to the sums of a variant that has units in it.

    Arguments:
        cell: the variant's moments in the epoch, of at least one unit.
        weight: the units of all variants in the epoch.
        kind: of the metric.

    Raises:
        ValueError, OverflowError: as `of_epoch`.
    """
    n, df = cell.n, cell.n - 1
    converted, mean, m2 = 0, cell.mean, cell.m2
    if kind == "proportion":
        # From whole numbers both are free of the rounding that merges have left in the moments.
        converted = conversions(cell)
        mean, m2 = (converted / n,), (converted * (n - converted) / n,)
    f = weight * weight / n
    arm = ArmSums(
        n=n,
        converted=converted,
        mean=tuple(product(m, weight) for m in mean),
        spread=tuple(exact(cross) for cross in m2),
        own=tuple(exact(f * (cross / (df + PRIOR_UNITS))) for cross in m2),
        scale=exact(f),
        lent=exact(f * (PRIOR_UNITS / (df + PRIOR_UNITS))),
    )
    return _with_degrees(arm, f, df, m2[0]) if cell.d == 1 else arm


def _with_degrees(arm: ArmSums, f: float, df: int, m2: float) -> ArmSums:
    """The terms of an arm whose units have one number, with those for Satterthwaite's degrees."""
    a, c, d = f / (df + PRIOR_UNITS), m2 / (df + PRIOR_UNITS), PRIOR_UNITS / (df + PRIOR_UNITS)
    ac, ad = a * c, a * d
    return msgspec.structs.replace(
        arm,
        aacc=exact(df * ac * ac),
        aacd=exact(df * ac * ad),
        aadd=exact(df * ad * ad),
        acc=exact(df * ac * c),
        acd=exact(df * ac * d),
        add=exact(df * ad * d),
        cc=exact(df * c * c),
        cd=exact(df * c * d),
        dd=exact(df * d * d),
    )


def _comparable(arms: Mapping[str, ArmSums], wanted: Sequence[str], weight: int) -> EpochSums:
    """An epoch's terms for a comparison of the wanted variants; `arms` are those with units."""
    present = {key: arms[key] for key in wanted if key in arms}
    units = sum(arm.n for arm in present.values())
    is_small = any(arm.n < SMALL_EPOCH for arm in present.values())
    in_small = units if is_small else 0
    if len(present) == len(wanted):
        return EpochSums(weight=weight, epochs=1, units_in_small=in_small, arms=present)
    return EpochSums(epochs_left_out=min(units, 1), units_left_out=units, units_in_small=in_small)


def _contrast(
    cells: Mapping[str, Moments],
    arms: Mapping[str, ArmSums],
    wanted: tuple[str, str],
    weight: int,
    kind: Kind,
) -> EpochSums:
    """An epoch's terms for the comparison of two variants, with those for batched OLS and, of a
    proportion, for the variance of two that do not differ."""
    sums = _comparable(arms, wanted, weight)
    if sums.epochs == 0:
        return sums
    return msgspec.structs.replace(
        sums,
        batched=_batched({key: cells[key] for key in wanted}),
        null=_null({key: arms[key] for key in wanted}, weight) if kind == "proportion" else {},
    )


def _null(arms: Mapping[str, ArmSums], weight: int) -> dict[str, Decimal]:
    """An epoch's variances of two rates, as they are where the two do not differ."""
    units = sum(arm.n for arm in arms.values())
    converted = sum(arm.converted for arm in arms.values())
    # From the counts of both, so that nothing is lost where nearly all converted.
    variance = converted / units * ((units - converted) / units)
    return {key: exact(weight * weight / arm.n * variance) for key, arm in arms.items()}


def _batched(cells: Mapping[str, Moments]) -> BatchedSums:
    """An epoch's terms for batched OLS, of two variants that both have units."""
    one, other = cells.values()
    h = one.n * (other.n / (one.n + other.n))
    root = math.sqrt(h)
    df_of_both = max(one.n + other.n - 2, 1)
    both = [(x + y) / df_of_both for x, y in zip(one.m2, other.m2, strict=True)]
    arms = {}
    for key, cell in cells.items():
        df = cell.n - 1
        lent = h / cell.n * (PRIOR_UNITS / (df + PRIOR_UNITS))
        arms[key] = BatchedArm(
            mean=tuple(product(m, root) for m in cell.mean),
            own=tuple(exact(h / cell.n * (cross / (df + PRIOR_UNITS))) for cross in cell.m2),
            lent=exact(lent),
            shared=tuple(exact(lent * variance) for variance in both),
        )
    return BatchedSums(root=exact(root), arms=arms)
