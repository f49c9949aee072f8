"""Numbers in the reader's words."""

import math
from typing import Final

from analysis.inference.estimate import Note
from analysis.inference.kinds import Bound

REASONS: Final[dict[Note, str]] = {
    "no_common_epoch": "no epoch has units of both variants",
    "too_few_units": "too few units for an interval",
    "zero_variance": "neither variant's values vary, so there is no interval",
    "small_counts": "fewer than 10 units converted, or fewer than 10 did not; the interval and p "
    "are rough",
    "zero_control_mean": "a lift over a control mean of 0 is not defined",
    "lift_interval_unbounded": "the control mean may be 0, so the lift has no interval",
    "zero_denominator": "a variant's denominators sum to 0, so its ratio is not defined",
    "constant_covariate": "the covariate does not vary, so nothing was adjusted by it",
    "few_units": "fewer than 100 units of a variant, or fewer than 10 behind a ratio's numerator; "
    "the interval and p are rough",
    "reallocated": "quantiles are not available after a reallocation",
    "approximate_small_epochs": "traffic moved in epochs of few units; the interval and p are "
    "rough",
    "fragile_weights": "a few units of small propensity make the estimate; the interval may be too "
    "narrow",
    "partial_trail": "units of before the release that weighs by propensities are left out",
}
"""Why a number is missing, or doubtful."""

BOUNDS: Final[dict[Bound, str]] = {
    "exact": "exact",
    "asymptotic": "asymptotic, after a burn-in",
    "approximate": "approximate, since visits are of units that come again",
}
"""How a bound on false alarms holds."""

LEAST_SHOWN: Final = 1e-300
"""A p-value below this is shown by its exponent, or as being below it."""

_LENGTHS: Final = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def number(value: float | None) -> str:
    """A number in four digits; money and counts as people write them, without an exponent."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def signed(value: float) -> str:
    """A number with its sign, so that a change is seen to be one."""
    return f"{'+' if value > 0 else ''}{number(value)}"


def p_value(p: float | None, log10: float | None = None) -> str:
    """A p-value; one that a float cannot hold by its decimal exponent, where that is known."""
    if p is None or p > LEAST_SHOWN:
        return number(p)
    return f"below {LEAST_SHOWN:g}" if log10 is None else f"10^{log10:.1f}"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.4g} %"


def chance(share: float | None) -> str:
    """A probability that is never said to be 0 or 1."""
    if share is None:
        return number(None)
    if share > 1.0 - _LEAST_CHANCE:
        return f"above {percent(1.0 - _LEAST_CHANCE)}"
    return f"below {percent(_LEAST_CHANCE)}" if share < _LEAST_CHANCE else percent(share)


_LEAST_CHANCE: Final = 1e-4


def about(units: int) -> str:
    """A forecast of units in two digits: it is known no better."""
    digits = len(str(units))
    return (
        f"{math.ceil(units / 10 ** (digits - 2)) * 10 ** (digits - 2):,}"
        if digits > 2
        else (str(units))
    )


def duration(seconds: float) -> str:
    """A length of time, roughly."""
    for length, name in _LENGTHS:
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {name}"
    return "2 seconds"


def cell(text: str) -> str:
    """Text from outside, so that it can break neither a table nor what shows it."""
    return text.translate(_ESCAPES)


_ESCAPES: Final = str.maketrans(
    {"\\": "\\\\", "|": "\\|", "<": "&lt;", "`": "\\`", "\n": " ", "\r": " "}
)
