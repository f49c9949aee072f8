"""Numbers in the reader's words."""

import math
from typing import Final

from analysis.inference.estimate import Note
from analysis.inference.kinds import Bound, Kind

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


def change(
    kind: Kind, value: float | None, low: float | None = None, high: float | None = None
) -> str:
    """A difference with its sign: of rates in percentage points, of all else in the metric's unit.

    Arguments:
        low, high: its interval, by whose width the digits go that are worth reading: two of half
            of it, as of a measurement and its error.
    """
    if value is None:
        return number(None)
    text = _rounded(kind, value, low, high)
    sign = "" if text == "0" or text.startswith(_MINUS) else "+"
    return f"{sign}{text}{_unit(kind)}"


def size(kind: Kind, value: float | None) -> str:
    """How large a difference is, without its sign; negative ones keep it."""
    return change(kind, value).removeprefix("+")


def change_range(kind: Kind, low: float | None, high: float | None) -> str:
    """The interval of a difference, as `change` has the difference itself."""
    ends = (number(None) if end is None else _rounded(kind, end, low, high) for end in (low, high))
    return f"{' to '.join(ends)}{_unit(kind)}"


def level(kind: Kind, value: float | None) -> str:
    """A mean, a quantile, or a rate, which is in per cent; in three digits."""
    if value is None:
        return number(None)
    text = _plain(100.0 * value if kind == "proportion" else value, None)
    return f"{text} %" if kind == "proportion" else text


def _rounded(kind: Kind, value: float, low: float | None, high: float | None) -> str:
    scale = 100.0 if kind == "proportion" else 1.0
    spread = None if low is None or high is None else scale * (high - low) / 2.0
    return _plain(scale * value, spread)


def _plain(value: float, spread: float | None) -> str:
    """A number in three digits, or in as many as two digits of its spread ask for."""
    if not value or not math.isfinite(value):
        return "0" if value == 0.0 else str(value)
    shown = math.floor(math.log10(abs(value))) - 2
    if spread and math.isfinite(spread):
        shown = math.floor(math.log10(spread)) - 1
    shown = min(shown, 0)
    if shown < -_MOST_DECIMALS or abs(value) >= _LARGEST:
        return number(value).replace("-", _MINUS, value < 0.0)
    text = f"{abs(value):,.{-shown}f}"
    if spread is None and "." in text:  # what is exact: a margin, an effect
        text = text.rstrip("0").removesuffix(".")
    is_none = not text.strip("0.,")
    return "0" if is_none else f"{_MINUS if value < 0.0 else ''}{text}"


def _unit(kind: Kind) -> str:
    return " pp" if kind == "proportion" else ""


_MINUS: Final = "−"
_MOST_DECIMALS: Final = 6
_LARGEST: Final = 1e12


def p_value(p: float | None, log10: float | None = None) -> str:
    """A p-value; one that a float cannot hold by its decimal exponent, where that is known."""
    if p is None or p > LEAST_SHOWN:
        return number(p)
    return f"below {LEAST_SHOWN:g}" if log10 is None else f"10^{log10:.1f}"


def rounded_p(p: float | None) -> str:
    """A p-value within a sentence: in three digits, and none of one that is small anyway."""
    if p is None:
        return number(None)
    return f"below {LEAST_P:.4f}" if p < LEAST_P else f"{p:.3g}"


LEAST_P: Final = 1e-4
"""A p-value below this is said to be so in a sentence: its digits tell nobody more."""


def percent(share: float, digits: int = 4) -> str:
    """A share in per cent, in so many digits."""
    return f"{100 * share:.{digits}g} %"


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


YEAR: Final = 365 * 86_400.0
"""In seconds. What takes longer is no forecast any more."""


def wait(seconds: float) -> str:
    """A time that is still to go, roughly."""
    return "more than a year" if seconds > YEAR else duration(seconds)


def cell(text: str) -> str:
    """Text from outside, so that it can break neither a table nor what shows it."""
    return text.translate(_ESCAPES)


_ESCAPES: Final[dict[int, str]] = str.maketrans(
    {
        **{chr(code): " " for code in (*range(32), *range(127, 160))},  # some move a cursor
        **{character: f"\\{character}" for character in "\\|`[]"},
        "<": "&lt;",
    }
)
