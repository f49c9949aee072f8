"""Sample ratio mismatch: do the units enrolled fit the propensities they were enrolled with?"""

import math
import sys
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

import msgspec
from scipy import special

from analysis.inference.exact import Additive, exact, product, quotient

ALARM_P = 0.001
"""Below this p-value the counts are said not to fit."""

MIN_EXPECTED = 5.0
"""Smallest expected count at which chi-square is trusted (Cochran 1954)."""

_PROPENSITY_SUM_TOLERANCE = 1e-6


class VariantUnits(Additive, frozen=True):
    """A variant's units over the epochs of a run in which any variant has units.

    Arguments:
        units: enrolled.
        several: those of them that met another variant, too.
        impossible: those of them in an epoch that gave the variant no propensity.
        expected: Σ units of all variants × propensity of this one, by epoch.
        propensity, propensity_squared: Σ propensity, Σ propensity².
    """

    units: int = 0
    several: int = 0
    impossible: int = 0
    expected: Decimal = Decimal(0)
    propensity: Decimal = Decimal(0)
    propensity_squared: Decimal = Decimal(0)


class UnitSums(Additive, frozen=True):
    """Who enrolled in a run, against the propensities of the epochs.

    Arguments:
        epochs: how many have units.
        variants: their sums, by variant.
    """

    epochs: int = 0
    variants: dict[str, VariantUnits] = msgspec.field(default_factory=dict)

    @property
    def reallocated(self) -> bool:
        """Whether two epochs with units had different propensities.

        E numbers are the same exactly when E Σ p² = (Σ p)² (Cauchy, Schwarz), and the sums are
        exact.
        """
        return any(
            self.epochs * Fraction(sums.propensity_squared) != Fraction(sums.propensity) ** 2
            for sums in self.variants.values()
        )


class RatioCheck(msgspec.Struct, frozen=True):
    """What the check found.

    Arguments:
        observed, expected: units by variant, over all epochs.
        impossible: variants with a unit in an epoch that gave them no propensity.
        statistic, df, p_value: of the chi-square test, p held above 2.2e-308; None where an
            expected count is below `MIN_EXPECTED`, or fewer than two variants can get units. It
            looks once: read at every tick its false alarms add up.
        mismatch: p < `ALARM_P`, or an impossible unit.
    """

    observed: dict[str, int]
    expected: dict[str, float]
    impossible: tuple[str, ...]
    statistic: float | None
    df: int | None
    p_value: float | None
    mismatch: bool


def of_units(
    units: Mapping[str, int], several: Mapping[str, int], propensities: Mapping[str, float]
) -> UnitSums:
    """What one epoch adds to the sums.

    Arguments:
        units: enrolled in the epoch, by variant.
        several: those of them that met another variant, too.
        propensities: the epoch's logged propensities by variant, summing to 1.

    Raises:
        ValueError: when the propensities do not sum to 1, or a number is negative.
    """
    if any(count < 0 for counts in (units, several) for count in counts.values()):
        raise ValueError("a count of units is at least 0")
    check_propensities(propensities)
    total = sum(units.values())
    if total == 0:
        return UnitSums()
    variants = {}
    for variant in sorted(units.keys() | propensities.keys()):
        count, propensity = units.get(variant, 0), propensities.get(variant, 0.0)
        variants[variant] = VariantUnits(
            units=count,
            several=several.get(variant, 0),
            impossible=count if propensity == 0.0 else 0,
            expected=product(propensity, total),
            propensity=exact(propensity),
            propensity_squared=product(propensity, propensity),
        )
    return UnitSums(epochs=1, variants=variants)


def check_ratio(sums: UnitSums) -> RatioCheck:
    """Compare the units of each variant with Σ over epochs of units × logged propensity.

    The latest weights would be the wrong expectation after any reallocation. Variants that expect
    nothing are dropped from the degrees of freedom. The sum over epochs of multinomial counts
    varies less than one multinomial with the mean propensities, so the test is slightly
    conservative when propensities moved.

    Source: Fabijan et al. (2019), "Diagnosing sample ratio mismatch in online controlled
    experiments"; the test is Pearson's chi-square.
    """
    observed = {variant: found.units for variant, found in sums.variants.items()}
    expected = {variant: quotient(found.expected) for variant, found in sums.variants.items()}
    impossible = sorted(v for v, found in sums.variants.items() if found.impossible > 0)
    possible = [variant for variant, count in expected.items() if count > 0.0]
    statistic = p_value = None
    if len(possible) > 1 and min(expected[v] for v in possible) >= MIN_EXPECTED:
        seen = [observed[variant] for variant in possible]
        # Impossible units would break the equality of totals that the test needs.
        scale = sum(seen) / sum(expected[variant] for variant in possible)
        due = [expected[variant] * scale for variant in possible]
        statistic = math.fsum((o - e) ** 2 / e for o, e in zip(seen, due, strict=True))
        tail = float(special.chdtrc(len(possible) - 1, statistic))
        p_value = max(tail, sys.float_info.min)
    return RatioCheck(
        observed=observed,
        expected=expected,
        impossible=tuple(impossible),
        statistic=statistic,
        df=len(possible) - 1 if statistic is not None else None,
        p_value=p_value,
        mismatch=bool(impossible) or (p_value is not None and p_value < ALARM_P),
    )


def check_propensities(propensities: Mapping[str, float]) -> None:
    """Refuse what are no propensities of an epoch.

    Raises:
        ValueError: when they do not sum to 1, or one is negative.
    """
    if any(propensity < 0.0 for propensity in propensities.values()):
        raise ValueError("a propensity is at least 0")
    total = sum(propensities.values())
    if abs(total - 1.0) > _PROPENSITY_SUM_TOLERANCE:
        raise ValueError(f"the propensities of an epoch sum to 1, not to {total}")
