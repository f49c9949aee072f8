"""Sample ratio mismatch: do the units enrolled fit the propensities they were enrolled with?"""

import sys
from collections.abc import Mapping, Sequence

import msgspec
from scipy import stats

ALARM_P = 0.001
"""Below this p-value the counts are said not to fit."""

MIN_EXPECTED = 5.0
"""Smallest expected count at which chi-square is trusted (Cochran 1954)."""

_PROPENSITY_SUM_TOLERANCE = 1e-6


class EpochCounts(msgspec.Struct, frozen=True):
    """The units enrolled in one epoch.

    Arguments:
        counts: units by variant.
        propensities: the epoch's logged propensities by variant, summing to 1.
    """

    counts: Mapping[str, int]
    propensities: Mapping[str, float]


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


def check_ratio(epochs: Sequence[EpochCounts]) -> RatioCheck:
    """Compare the units of each variant with Σ over epochs of units × logged propensity.

    The latest weights would be the wrong expectation after any reallocation. Variants that expect
    nothing are dropped from the degrees of freedom. The sum over epochs of multinomial counts
    varies less than one multinomial with the mean propensities, so the test is slightly
    conservative when propensities moved.

    Source: Fabijan et al. (2019), "Diagnosing sample ratio mismatch in online controlled
    experiments"; the test is scipy's chisquare.

    Raises:
        ValueError: when an epoch's propensities do not sum to 1, or a number is negative.
    """
    observed: dict[str, int] = {}
    expected: dict[str, float] = {}
    impossible: set[str] = set()
    for epoch in epochs:
        _check(epoch)
        units = sum(epoch.counts.values())
        for variant, propensity in epoch.propensities.items():
            expected[variant] = expected.get(variant, 0.0) + units * propensity
            observed.setdefault(variant, 0)
        for variant, count in epoch.counts.items():
            observed[variant] = observed.get(variant, 0) + count
            expected.setdefault(variant, 0.0)
            if count > 0 and epoch.propensities.get(variant, 0.0) == 0.0:
                impossible.add(variant)

    possible = [variant for variant, count in expected.items() if count > 0.0]
    statistic = p_value = None
    if len(possible) > 1 and min(expected[v] for v in possible) >= MIN_EXPECTED:
        seen = [observed[variant] for variant in possible]
        # Impossible units would break the equality of totals that the test needs.
        scale = sum(seen) / sum(expected[variant] for variant in possible)
        result = stats.chisquare(seen, [expected[variant] * scale for variant in possible])
        statistic = float(result.statistic)
        p_value = max(float(result.pvalue), sys.float_info.min)
    return RatioCheck(
        observed=observed,
        expected=expected,
        impossible=tuple(sorted(impossible)),
        statistic=statistic,
        df=len(possible) - 1 if statistic is not None else None,
        p_value=p_value,
        mismatch=bool(impossible) or (p_value is not None and p_value < ALARM_P),
    )


def _check(epoch: EpochCounts) -> None:
    if any(count < 0 for count in epoch.counts.values()):
        raise ValueError("a count of units is at least 0")
    if any(propensity < 0.0 for propensity in epoch.propensities.values()):
        raise ValueError("a propensity is at least 0")
    total = sum(epoch.propensities.values())
    if abs(total - 1.0) > _PROPENSITY_SUM_TOLERANCE:
        raise ValueError(f"the propensities of an epoch sum to 1, not to {total}")
