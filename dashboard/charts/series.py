"""Lines over time with their bands: how an estimate and its confidence sequence went."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from markupsafe import Markup

from dashboard.charts.model import Chart, Line, LinePoint, Mark, Measure, Table
from dashboard.charts.scales import Scale, TimeScale, robust_range, scale_of, time_scale
from dashboard.charts.svg import (
    WIDTH,
    colour,
    empty_chart,
    end_labels,
    is_apart,
    legend,
    num,
    path_of,
    room_class,
    stretched,
    time_axis,
    value_axis,
)
from dashboard.charts.text import defined, interval_words, moment, shorten, text_width, value_words
from dashboard.numbers import spread_of

HEIGHT: Final = 220.0
_MOST_POINTS: Final = 200
_MOST_IN_ALL: Final = 900
"""Points of all lines together, so that ten variants do not make a page ten times as heavy."""
_REACH: Final = 2.5
"""How far bands may reach, in medians of the extents of their later half: a confidence sequence is
huge at its start, and what is known at its end would be a thin line."""
_EARLY: Final = 1.3
"""How much room what happened early may add, in shares of the room of the later half."""
_EARLY_LINES: Final = 6.0
"""The same where no line has a band."""
_FEW: Final = 3
"""Lines whose bands can be told apart; those of more are drawn very lightly."""
_FAR: Final = 20 * HEIGHT
_ROOM: Final = 620.0
"""The width that a drawing has on a usual page, in pixels; only texts are laid out by it."""
_LABEL: Final = 104.0


def series(
    lines: Sequence[Line],
    *,
    title: str,
    measure: Measure = "number",
    baseline: float | None = 0.0,
    level: str = "95 %",
    marks: Sequence[Mark] = (),
    start: datetime | None = None,
    end: datetime | None = None,
) -> Chart:
    """Lines over time, each with its band where its points have bounds.

    Arguments:
        title: what is drawn, such as "Difference of clicks".
        baseline: a value that is always in the picture and marked, such as no difference; None
            without.
        level: of the bands, as it is written.
        marks: what happened meanwhile.
        start, end: of the axis; of the data by default.
    """
    lines = [_thin(line, len(lines)) for line in lines]
    times = sorted({point.at for line in lines for point in line.points})
    if not times:
        return empty_chart(title, ("Time (UTC)", *(line.label for line in lines)))
    scale = time_scale(min(times[0], start or times[0]), max(times[-1], end or times[-1]))
    values, is_cut = _values(lines, measure, baseline)
    drawn = Markup("").join(
        [
            _grid(values, baseline),
            time_axis(scale, HEIGHT),
            _marks(marks, scale),
            stretched(HEIGHT, Markup("").join(_areas(lines, scale, values))),
            _dots(lines, scale, values),
            Markup('<line class="cross" y1="0" y2="{}"/>').format(num(HEIGHT)),
        ]
    )
    summary = _summary(lines, title, measure)
    svg = Markup(
        '<div class="chart-body">{}<div class="chart-plot{}{}" tabindex="0" role="img"'
        ' aria-roledescription="chart" aria-label="{}" data-chart="series" data-x="{}" data-y="{}">'
        '<svg class="chart-svg" height="{}">{}</svg></div></div>'
    ).format(
        legend([(line.place, line.label) for line in lines]),
        room_class(shorten(line.label, _LABEL, 12) for line in lines),
        " many" if len(lines) > _FEW else "",
        summary,
        " ".join(num(scale.place(at)) for at in times),
        _readings(lines, times, values),
        num(HEIGHT + 40),
        drawn,
    )
    return Chart(
        svg, _caption(lines, title, level, is_cut=is_cut), summary, _table(lines, times, measure)
    )


def _thin(line: Line, lines: int) -> Line:
    most = max(60, min(_MOST_POINTS, _MOST_IN_ALL // max(1, lines)))
    count = len(line.points)
    kept: Iterable[int] = range(count)
    if count > most:
        kept = sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})
    return Line(line.label, line.place, tuple(_drawable(line.points[k]) for k in kept))


def _drawable(point: LinePoint) -> LinePoint:
    ends = (point.value, point.low, point.high)
    return LinePoint(point.at, *map(defined, ends))


def _values(lines: Sequence[Line], measure: Measure, baseline: float | None) -> tuple[Scale, bool]:
    """The scale of the values, and whether anything goes beyond it. It is made for the later half
    of each line, and lets the earlier one have some room besides."""
    later = [point for line in lines for point in line.points[len(line.points) // 2 :]]
    points = [point.value for point in later if point.value is not None]
    everything = [point for line in lines for point in line.points]
    if not points:
        points = [point.value for point in everything if point.value is not None]
    fixed = [] if baseline is None else [baseline]
    if not points:
        return scale_of(*_ends(fixed or [0.0]), measure, most=5), False
    centre = statistics.median(points)
    low, high = robust_range(
        (value - centre for value in [*points, *fixed]),
        (
            (point.low - centre, point.high - centre)
            for point in later
            if point.low is not None and point.high is not None
        ),
        _REACH,
    )
    low, high = low + centre, high + centre
    has_bands = any(p.low is not None or p.high is not None for p in later)
    room = (_EARLY if has_bands else _EARLY_LINES) * (high - low) / 2
    early = [point.value for point in everything if point.value is not None]
    low = min(low, max(min(early), low - room))
    high = max(high, min(max(early), high + room))
    if measure in {"count", "share"}:
        low = max(0.0, low)
    scale = scale_of(low, high, measure, most=5)
    ends = itertools.chain.from_iterable((p.value, p.low, p.high) for p in everything)
    return scale, any(end is not None and not scale.holds(end) for end in ends)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _grid(values: Scale, baseline: float | None) -> Markup:
    lines = value_axis(values.ticks, HEIGHT)
    if baseline is not None and values.holds(baseline):
        lines += Markup('<line class="zero" x2="100%" y1="{y}" y2="{y}"/>').format(
            y=num(_height(baseline, values))
        )
    return lines


def _height(value: float, values: Scale) -> float:
    """Where a value is drawn; far outside where it is beyond the scale, so that lines to it keep
    their slope."""
    share = (value / 2 - values.low / 2) / (values.high / 2 - values.low / 2)
    return min(_FAR, max(-_FAR, HEIGHT * (1 - share)))


def _areas(lines: Sequence[Line], scale: TimeScale, values: Scale) -> Iterator[Markup]:
    """Bands below, lines above, so that no band hides a line."""
    for line in lines:
        band = "".join(_band_of(run, scale, values) for run in _runs(line.points, bounded=True))
        if band:
            yield Markup('<path class="area {}" d="{}"/>').format(colour(line.place), band)
    for line in lines:
        path = "".join(
            path_of((_x(point, scale), _height(point.value or 0.0, values)) for point in run)
            for run in _runs(line.points, bounded=False)
            if len(run) > 1
        )
        if path:
            yield Markup('<path class="line {}" d="{}"/>').format(colour(line.place), path)


def _band_of(run: Sequence[LinePoint], scale: TimeScale, values: Scale) -> str:
    """Around a run of points; without a bound on a side it goes on to the edge and beyond."""
    tops = [(_x(p, scale), -_FAR if p.high is None else _height(p.high, values)) for p in run]
    bottoms = [(_x(p, scale), _FAR if p.low is None else _height(p.low, values)) for p in run]
    return f"{path_of([*tops, *reversed(bottoms)])}z" if len(run) > 1 else ""


def _runs(points: Sequence[LinePoint], *, bounded: bool) -> Iterator[list[LinePoint]]:
    """Stretches without a gap: of points with a value, or with a bound besides."""
    for is_there, run in itertools.groupby(
        points,
        lambda p: p.value is not None and (not bounded or p.low is not None or p.high is not None),
    ):
        if is_there:
            yield list(run)


def _x(point: LinePoint, scale: TimeScale) -> float:
    return WIDTH * scale.place(point.at) / 100


def _dots(lines: Sequence[Line], scale: TimeScale, values: Scale) -> Markup:
    """Where each line is last, with its label; and points that stand alone between gaps."""
    dots, labels = Markup(""), []
    for line in lines:
        runs = _begun(list(_runs(line.points, bounded=False)))
        alone = [run[0] for run in runs if len(run) == 1]
        last = runs[-1][-1] if runs else None
        for point in dict.fromkeys([*alone, *([] if last is None else [last])]):
            y = _height(point.value or 0.0, values)
            if point in alone:
                dots += _whisker(line, point, scale, values)
            if 0 <= y <= HEIGHT:
                dots += Markup('<circle class="dot {}" cx="{}%" cy="{}" r="3.5"/>').format(
                    colour(line.place), num(scale.place(point.at)), num(y)
                )
        if last is not None:
            y = min(HEIGHT, max(0.0, _height(last.value or 0.0, values)))
            labels.append((y, line.place, shorten(line.label, _LABEL, 12)))
    return dots + end_labels(labels, HEIGHT)


def _begun(runs: list[list[LinePoint]]) -> list[list[LinePoint]]:
    """Stretches without the points that stand alone, and without bounds, before a line begins: they
    are in the table, and say nothing of how it goes. A line of nothing else keeps them."""
    strays = itertools.takewhile(
        lambda run: len(run) == 1 and run[0].low is None and run[0].high is None, runs
    )
    return runs[len(list(strays)) :] or runs


def _whisker(line: Line, point: LinePoint, scale: TimeScale, values: Scale) -> Markup:
    """The interval of a point that stands alone."""
    if point.low is None and point.high is None:
        return Markup("")
    top = 0.0 if point.high is None else max(0.0, _height(point.high, values))
    bottom = HEIGHT if point.low is None else min(HEIGHT, _height(point.low, values))
    return Markup('<line class="whisker {}" x1="{x}%" x2="{x}%" y1="{}" y2="{}"/>').format(
        colour(line.place), num(top), num(bottom), x=num(scale.place(point.at))
    )


def _marks(marks: Sequence[Mark], scale: TimeScale) -> Markup:
    drawn, taken = Markup(""), list[tuple[float, float]]()
    for mark in sorted(marks, key=lambda mark: mark.at):
        place = scale.place(mark.at)
        drawn += Markup('<line class="mark" x1="{p}%" x2="{p}%" y1="0" y2="{}"/>').format(
            num(HEIGHT), p=num(place)
        )
        text = shorten(mark.label, 140, 11)
        width = 100 * (text_width(text, 11) + 8) / _ROOM
        begin = place if place + width <= 100 else place - width
        if is_apart(begin, text, taken, _ROOM):
            taken.append((begin, begin + width))
            drawn += Markup('<text class="mark-name{}" x="{}%" y="10" dx="{}">{}</text>').format(
                "" if begin == place else " end", num(place), 4 if begin == place else -4, text
            )
    return drawn


def _readings(lines: Sequence[Line], times: Sequence[datetime], values: Scale) -> str:
    """Where each line is at each time, for the readout: heights, and `-` in a gap."""
    parts = []
    for line in lines:
        at = {
            p.at: f"{min(HEIGHT, max(0.0, _height(p.value, values))):.0f}"
            for p in line.points
            if p.value is not None
        }
        parts.append(f"{line.place % 10}:{' '.join(at.get(time, '-') for time in times)}")
    return ";".join(parts)


def _summary(lines: Sequence[Line], title: str, measure: Measure) -> str:
    said = "; ".join(_last_words(line, measure) for line in lines)
    return f"{title}. {said}"


def _last_words(line: Line, measure: Measure) -> str:
    last = next((p for p in reversed(line.points) if p.value is not None), None)
    if last is None:
        return f"{line.label}: not defined yet"
    text = f"{line.label} is at {value_words(last.value, measure, _spread(last))}"
    if last.low is None and last.high is None:
        return text
    return f"{text}, {interval_words(last.low, last.high, measure)}"


def _spread(point: LinePoint) -> float | None:
    return spread_of(point.low, point.high, point.value)


def _caption(lines: Sequence[Line], title: str, level: str, *, is_cut: bool) -> str:
    text = f"{title}. "
    if any(p.low is not None or p.high is not None for line in lines for p in line.points):
        text += f"The band is the {level} interval. "
    if is_cut:
        text += "What reaches beyond the axis is cut off; the numbers have all of it. "
    return text.strip()


def _table(lines: Sequence[Line], times: Sequence[datetime], measure: Measure) -> Table:
    points = [{point.at: point for point in line.points} for line in lines]
    return Table(
        ("Time (UTC)", *(line.label for line in lines)),
        tuple(
            (moment(at), *(_cell(of_line.get(at), measure) for of_line in points)) for at in times
        ),
    )


def _cell(point: LinePoint | None, measure: Measure) -> str:
    if point is None or point.value is None:
        return "–"
    spread = _spread(point)
    text = value_words(point.value, measure, spread)
    if point.low is None and point.high is None:
        return text
    if point.low is None or point.high is None:
        return f"{text} ({interval_words(point.low, point.high, measure)})"
    low, high = (value_words(end, measure, spread, unit=False) for end in (point.low, point.high))
    return f"{text} ({low} to {high})"
