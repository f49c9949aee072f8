"""Numbers and times as charts write them, and how wide a text is, about."""

import math
import unicodedata
from datetime import UTC, datetime
from typing import Final

from dashboard import numbers
from dashboard.charts.model import Measure
from dashboard.numbers import PER_CENT, POINTS, spread_of

_LARGEST_COUNT: Final = 1e15
_WIDE: Final = frozenset({"W", "F"})
_SLIM: Final = frozenset("iljtf.,:;|!'()[] I·−-1")
_BROAD: Final = frozenset("mwMW%@—")


def value_words(
    value: float | None, measure: Measure, spread: float | None = None, *, unit: bool = True
) -> str:
    """A value with its unit; the sign of a change is always there.

    Args:
        spread: about half the width of its interval, by which its digits go.
    """
    match measure:
        case "percent":
            text = numbers.lift(value, spread)
        case "points":
            text = numbers.points(value, spread)
        case "share":
            text = numbers.share(value, spread)
        case "count":
            return _count(value)
        case "number":
            return numbers.number(value, spread)
    return text if unit else text.removesuffix(PER_CENT).removesuffix(POINTS)


def interval_words(low: float | None, high: float | None, measure: Measure) -> str:
    """An interval in words: between its ends, or on one side of its only one."""
    if low is None and high is None:
        return "without bounds"
    if low is None:
        return f"below {value_words(high, measure)}"
    if high is None:
        return f"above {value_words(low, measure)}"
    spread = spread_of(low, high)
    first = value_words(low, measure, spread, unit=False)
    return f"between {first} and {value_words(high, measure, spread)}"


def short_share(share: float) -> str:
    """A share as a label in a drawing has it: 72 %, 4.2 %, < 0.1 %."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return f"< 0.1{PER_CENT}"
    text = f"{percent:.1f}".removesuffix(".0") if percent < 10 else f"{percent:.0f}"
    return f"{text}{PER_CENT}"


def moment(at: datetime) -> str:
    """A time to the minute, or to the second where it has any, in UTC."""
    utc = at.astimezone(UTC)
    return utc.strftime("%Y-%m-%d %H:%M:%S" if utc.second else "%Y-%m-%d %H:%M")


def defined(value: float | None) -> float | None:
    """A number that can be drawn: what is infinite, or no number, is not defined."""
    return value if value is not None and math.isfinite(value) else None


def text_width(text: str, size: float) -> float:
    """About how wide a text is at a font size in pixels, rather too wide than too narrow."""
    return size * sum(_em(character) for character in text)


def shorten(text: str, most: float, size: float) -> str:
    """The text, cut so that it is at most about `most` pixels wide."""
    if text_width(text, size) <= most:
        return text
    kept = ""
    for character in text:
        if text_width(f"{kept}{character}…", size) > most:
            break
        kept += character
    return f"{kept.rstrip()}…"


def _em(character: str) -> float:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0.0
    if unicodedata.east_asian_width(character) in _WIDE:
        return 1.0
    if character in _SLIM:
        return 0.38 if character not in "−-1" else 0.6
    return 0.95 if character in _BROAD else 0.72 if character.isupper() else 0.6


def _count(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return numbers.MISSING
    return numbers.count(round(value)) if abs(value) < _LARGEST_COUNT else numbers.number(value)
