"""Scales and ticks: where a value stands, in per cent of the room, and which values are named.

Ticks are 1, 2 or 5 times a power of ten apart (Heckbert 1990, "Nice numbers for graph labels",
Graphics Gems); those of time are whole seconds, minutes, hours, days, months or years in UTC, as
d3's time scales choose them (Bostock, Ogievetsky, Heer 2011).
"""

import bisect
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from dashboard.charts.model import Measure
from dashboard.numbers import MINUS

_LEAST_SPAN: Final = 1e-12
"""Of the size of the numbers: a narrower range has no room for floats between its ends."""
_SECONDS: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
)
_DAYS: Final = (1, 2, 7, 14)
_MONTHS: Final = (1, 2, 3, 6)
_DAY: Final = 86_400.0
_MONTH: Final = 30.44 * _DAY
_YEAR: Final = 365.25 * _DAY


class Tick(msgspec.Struct, frozen=True):
    """A named place: in per cent of the room from its low end, with its label. `minor` ticks may be
    left out where there is little room."""

    place: float
    label: str
    minor: bool = False


class Scale(msgspec.Struct, frozen=True):
    """A linear scale from `low` to `high`."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    measure: Measure = "number"

    def place(self, value: float) -> float:
        """Where a value stands, in per cent; one out of range stands at its end."""
        if value <= self.low:
            return 0.0
        if value >= self.high:
            return 100.0
        # Halves, since the difference of two huge numbers of opposite sign may overflow.
        return 100.0 * ((value / 2 - self.low / 2) / (self.high / 2 - self.low / 2))

    def holds(self, value: float) -> bool:
        """Whether a value is in range."""
        return self.low <= value <= self.high


class TimeScale(msgspec.Struct, frozen=True):
    """A scale of time, in UTC. `note` says which day or year it is where no tick does."""

    start: datetime
    end: datetime
    ticks: tuple[Tick, ...]
    note: str

    def place(self, at: datetime) -> float:
        """Where a time stands, in per cent; one out of range stands at its end."""
        return _time_place(at, self.start, self.end)


def nice_step(span: float, most: int) -> float:
    """The smallest 1, 2 or 5 times a power of ten that divides a span into at most `most` parts."""
    rough = span / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 5.0):
        if factor * magnitude >= rough * (1.0 - 1e-9):
            return factor * magnitude
    return 10.0 * magnitude


def scale_of(
    low: float, high: float, measure: Measure = "number", most: int = 6, *, rounded: bool = True
) -> Scale:
    """A scale with ticks that holds this range.

    Arguments:
        low, high: finite; where they are the same, room is made around them.
        most: about how many ticks there may be.
        rounded: whether the scale ends at ticks.
    """
    low, high = _with_room(low, high, measure)
    # In the unit that is written: a tick of 5 % is nice, one of 0.05 need not be.
    step = nice_step(high - low, most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if rounded:
        low, high = min(low, first * step), max(high, last * step)
    bare = Scale(low, high, (), measure)
    slack = 1e-9 * (high - low)
    values = [k * step for k in range(first, last + 1) if low - slack <= k * step <= high + slack]
    labels = _labels(values, step, measure)
    ticks = tuple(
        Tick(bare.place(value), label, minor=k % 2 == 1)
        for k, (value, label) in enumerate(zip(values, labels, strict=True))
    )
    return Scale(low, high, ticks, measure)


def robust_range(
    points: Iterable[float], bounds: Iterable[tuple[float, float]], reach: float = 4.0
) -> tuple[float, float]:
    """A range that holds all points, and of intervals so much that a few huge ones do not squeeze
    the others: up to `reach` times their median extent.

    Arguments:
        points: that have to be seen.
        bounds: the ends of intervals; an end of ±inf asks for no room.
    """
    seen = list(points)
    low, high = min(seen, default=0.0), max(seen, default=0.0)
    ends = list(bounds)
    extents = sorted(e for pair in ends if (e := _extent(pair)) is not None)
    if not extents:
        return low, high
    middle = extents[(len(extents) - 1) // 2]
    cap = reach * max(middle, abs(low), abs(high))
    lows = [max(a, -cap) for a, _ in ends if math.isfinite(a)]
    highs = [min(b, cap) for _, b in ends if math.isfinite(b)]
    return min([low, *lows]), max([high, *highs])


def time_scale(start: datetime, end: datetime, most: int = 8) -> TimeScale:
    """A scale of time from `start` to `end`, which are aware; with at most `most` ticks."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if end <= start:
        start, end = start - timedelta(seconds=30), start + timedelta(seconds=30)
    seconds = (end - start).total_seconds()
    times, kind = _times(start, end, seconds, most)
    ticks = tuple(
        Tick(_time_place(at, start, end), _time_label(at, kind), minor=k % 2 == 1)
        for k, at in enumerate(times)
    )
    return TimeScale(start, end, ticks, _time_note(start, end, kind))


def _with_room(low: float, high: float, measure: Measure) -> tuple[float, float]:
    size = max(abs(low), abs(high))
    if high - low > _LEAST_SPAN * size and high > low:
        return low, high
    if size == 0.0:
        return (0.0, 1.0) if measure in {"count", "share"} else (-0.01, 0.01)
    return low - 0.1 * size, high + 0.1 * size


def _labels(values: list[float], step: float, measure: Measure) -> list[str]:
    """Labels with as many decimals as the step needs; by powers of ten where that is long."""
    factor = 100.0 if measure in {"percent", "points", "share"} else 1.0
    unit = "\N{NARROW NO-BREAK SPACE}%" if measure in {"percent", "share"} else ""
    shown = step * factor
    decimals = max(0, -math.floor(math.log10(shown) + 1e-9))
    largest = max((abs(v * factor) for v in values), default=0.0)
    if decimals > 6 or largest >= 1e7:
        return [_exponent(v * factor, shown) + unit for v in values]
    signed = measure in {"percent", "points"}
    return [_fixed(v * factor, decimals, signed=signed) + unit for v in values]


def _fixed(value: float, decimals: int, *, signed: bool) -> str:
    text = f"{abs(value):,.{decimals}f}"
    if not text.strip("0."):
        return "0"
    return f"{MINUS if value < 0 else '+' if signed else ''}{text}"


def _exponent(value: float, step: float) -> str:
    if abs(value) < step / 2:
        return "0"
    digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
    mantissa, _, exponent = f"{abs(value):.{min(digits, 12)}e}".partition("e")
    raised = str(int(exponent)).translate(_RAISED)
    return f"{MINUS if value < 0 else ''}{mantissa}·10{raised}"


_RAISED: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _extent(pair: tuple[float, float]) -> float | None:
    finite = [abs(end) for end in pair if math.isfinite(end)]
    return max(finite) if finite else None


def _times(start: datetime, end: datetime, seconds: float, most: int) -> tuple[list[datetime], str]:
    """Times to name, and of which kind they are: second, minute, day, month or year."""
    rough = seconds / most
    if rough <= _SECONDS[-1]:
        step = _SECONDS[bisect.bisect_left(_SECONDS, rough)]
        return list(_even(start, end, float(step))), "second" if step < 60 else "minute"
    if rough <= _DAYS[-1] * _DAY:
        days = _DAYS[bisect.bisect_left(_DAYS, rough / _DAY)]
        return list(_even(start, end, days * _DAY)), "day"
    if rough <= _MONTHS[-1] * _MONTH:
        months = _MONTHS[bisect.bisect_left(_MONTHS, rough / _MONTH)]
        return list(_months(start, end, months)), "month"
    years = max(1, math.ceil(nice_step(seconds / _YEAR, most)))
    return list(_months(start, end, 12 * years)), "year"


_MONDAY: Final = datetime(1970, 1, 5, tzinfo=UTC)


def _even(start: datetime, end: datetime, step: float) -> Iterator[datetime]:
    """Times that are a whole number of steps after midnight, or a Monday."""
    k = math.ceil((start - _MONDAY).total_seconds() / step)
    while (at := _MONDAY + timedelta(seconds=k * step)) <= end:
        yield at
        k += 1


def _months(start: datetime, end: datetime, step: int) -> Iterator[datetime]:
    k = -(-(start.year * 12 + start.month - 1) // step) * step
    while k // 12 <= end.year:
        at = datetime(k // 12, k % 12 + 1, 1, tzinfo=UTC)
        if at > end:
            return
        if at >= start:
            yield at
        k += step


def _time_label(at: datetime, kind: str) -> str:
    if kind == "year" or (kind == "month" and at.month == 1):
        return f"{at.year}"
    if kind == "month":
        return at.strftime("%b")
    if kind == "day" or (at.hour, at.minute, at.second) == (0, 0, 0):
        return f"{at.day} {at.strftime('%b')}"
    return at.strftime("%H:%M:%S" if kind == "second" else "%H:%M")


def _time_note(start: datetime, end: datetime, kind: str) -> str:
    if kind == "year":
        return "UTC"
    if kind == "month":
        return f"{start.year} · UTC"
    years = f"{start.year}" if start.year == end.year else f"{start.year} to {end.year}"
    if kind == "day":
        return f"{years} · UTC"
    return f"from {start.day} {start.strftime('%b')} {start.year} · UTC"


def _time_place(at: datetime, start: datetime, end: datetime) -> float:
    share = (at.astimezone(UTC) - start) / (end - start)
    return 100.0 * min(1.0, max(0.0, share))
