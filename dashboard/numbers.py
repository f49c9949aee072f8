"""How numbers read on a page: one way for all of them. Pure.

What is known of a value says how many of its digits are worth reading: with an interval, as many as
show half of its width in two digits, as with a measurement and its error; without one, three
significant digits. Thousands are set apart by commas, as in the report's sentences; a minus is as
wide as a digit; what is not defined is a dash.
"""

import math
from typing import Final

MISSING: Final = "–"
MINUS: Final = "−"
PER_CENT: Final = "\N{NARROW NO-BREAK SPACE}%"
POINTS: Final = "\N{NO-BREAK SPACE}pp"
"""Percentage points: a difference of shares."""
LEAST_P: Final = 1e-4
"""A p-value or a chance below this is said to be below it: its digits tell nobody more."""

_DIGITS: Final = 3
_ALL_OF_IT: Final = 0.9995
_MOST_DECIMALS: Final = 6
_LARGEST: Final = 1e12
_SMALLEST: Final = 1e-3
_RAISED: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(n: int) -> str:
    """How many."""
    return _minus(f"{n:,}")


def number(value: float | None, spread: float | None = None) -> str:
    """A value in its own unit.

    Args:
        value: None, or not finite, reads as a dash.
        spread: about half the width of its interval, in the same unit; see `spread_of`.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return _minus(_text(value, spread))


def signed(value: float | None, spread: float | None = None) -> str:
    """A change in its own unit: with its sign, unless it rounds to none."""
    return _signed(number(value, spread))


def share(x: float | None, spread: float | None = None) -> str:
    """A share or a rate, given as a fraction, in per cent. Only all of it reads as 100 %, and only
    nothing as 0 %, however many digits that takes."""
    if x is None or not math.isfinite(x):
        return MISSING
    text = _percent(x, spread)
    if text in {"0", "100", "100.0"} and 0.0 < x < 1.0:
        text = _fixed(100.0 * x, _decimals(100.0 * min(x, 1.0 - x), 2), exact=False)
    return f"{_minus(text)}{PER_CENT}"


def lift(x: float | None, spread: float | None = None) -> str:
    """A relative change, given as a fraction, in per cent and with its sign."""
    if x is None or not math.isfinite(x):
        return MISSING
    return f"{_signed(_minus(_percent(x, spread)))}{PER_CENT}"


def points(x: float | None, spread: float | None = None) -> str:
    """A difference of shares, given as a fraction, in percentage points and with its sign."""
    if x is None or not math.isfinite(x):
        return MISSING
    return f"{_signed(_minus(_percent(x, spread)))}{POINTS}"


def p_value(p: float | None) -> str:
    """A p-value: three digits, at most four decimals."""
    if p is None or math.isnan(p):
        return MISSING
    if p < LEAST_P:
        return f"below {LEAST_P:.4f}"
    return _fixed(p, min(4, _decimals(p, _DIGITS)), exact=p < _ALL_OF_IT)


def chance(x: float | None) -> str:
    """A probability, which is never said to be 0 or 1."""
    if x is None or math.isnan(x):
        return MISSING
    if x > 1.0 - LEAST_P:
        return f"above {share(1.0 - LEAST_P)}"
    return f"below {share(LEAST_P)}" if x < LEAST_P else share(x)


def interval(low: float | None, high: float | None, at: float | None = None) -> str:
    """An interval in a value's own unit: `−1.2 to 3.4`.

    Args:
        low, high: its ends; one that is None is open, and nothing is said where both are.
        at: the value that it is of, by which the digits go where an end is open.
    """
    return _interval(low, high, at, 1.0)


def interval_of_shares(low: float | None, high: float | None, at: float | None = None) -> str:
    """An interval of a share, a lift or a difference of shares, given as fractions: `−1.2 to 3.4`,
    in per cent or points, which are not said again."""
    return _interval(low, high, at, 100.0)


def spread_of(low: float | None, high: float | None, at: float | None = None) -> float | None:
    """How far a value may be off: half the width of its interval, or, where an end is open, the
    distance of the other one from the value `at`; None where that is not known."""
    if low is not None and high is not None:
        spread = high / 2 - low / 2
    else:
        end = low if high is None else high
        if end is None or at is None:
            return None
        spread = abs(end - at)
    return spread if math.isfinite(spread) and spread > 0.0 else None


def _interval(low: float | None, high: float | None, at: float | None, scale: float) -> str:
    if low is None and high is None:
        return ""
    spread = spread_of(low, high, at)
    wide = None if spread is None else scale * spread
    ends = [None if end is None else number(scale * end, wide) for end in (low, high)]
    return f"{ends[0] or f'{MINUS}∞'} to {ends[1] or '∞'}"


def _percent(x: float, spread: float | None) -> str:
    return _text(100.0 * x, None if spread is None else 100.0 * spread)


def _text(value: float, spread: float | None) -> str:
    """A number with as many decimals as its spread, or its own size, asks for."""
    if value == 0.0:
        return "0"
    if not math.isfinite(value):  # in per cent it is larger than a float can be
        return "∞" if value > 0 else "-∞"
    known = spread is not None and math.isfinite(spread) and spread > 0.0
    decimals = _decimals(spread, 2) if known and spread else _decimals(abs(value), _DIGITS)
    if abs(value) >= _LARGEST or (decimals > _MOST_DECIMALS and abs(value) < _SMALLEST):
        return _exponent(value)
    return _fixed(value, min(decimals, _MOST_DECIMALS), exact=known)


def _fixed(value: float, decimals: int, *, exact: bool) -> str:
    """With so many decimals; zeros at the end say how exact it is, or nothing."""
    text = f"{value:,.{decimals}f}"
    if decimals and not exact:
        text = text.rstrip("0").rstrip(".")
    return text if text.strip("-0.,") else "0"


def _decimals(size: float, digits: int) -> int:
    """How many decimals show a size in so many significant digits."""
    return max(0, digits - 1 - math.floor(math.log10(size)))


def _exponent(value: float) -> str:
    mantissa, _, power = f"{value:.{_DIGITS - 1}e}".partition("e")
    return f"{mantissa}·10{str(int(power)).translate(_RAISED)}"


def _signed(text: str) -> str:
    return text if text in {"0", MISSING} or text.startswith(MINUS) else f"+{text}"


def _minus(text: str) -> str:
    return f"{MINUS}{text[1:]}" if text.startswith("-") else text
