"""The forest plot: estimates with their intervals, one below the other, on one scale."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from markupsafe import Markup

from dashboard.charts.model import Chart, ForestRow, Measure, Table, Tone
from dashboard.charts.scales import Scale, robust_range, scale_of
from dashboard.charts.svg import anchored, key, num, tick_text
from dashboard.charts.text import defined, interval_words, shorten, value_words
from dashboard.numbers import spread_of

HEIGHT: Final = 28.0
_MIDDLE: Final = HEIGHT / 2
_SHAPES: Final[dict[Tone, str]] = {
    "better": "up",
    "worse": "down",
    "open": "circle",
    "none": "circle",
}
_WORDS: Final[dict[Tone, str]] = {
    "better": ", better",
    "worse": ", worse",
    "open": ", not known yet",
    "none": "",
}
_ROOM: Final = 0.04
"""Beside the outermost ends, as a share of the range."""
_MOST_IN_WORDS: Final = 4
_HINT: Final = (
    "The line is the {level} interval, the mark the estimate: \N{BLACK UP-POINTING TRIANGLE} "
    "better, \N{BLACK DOWN-POINTING TRIANGLE} worse, \N{WHITE CIRCLE} not known yet. "
)
_CUT: Final = "A solid arrow at an edge: the interval goes on beyond it. "
_OPEN: Final = "An open arrow: the interval has no bound on that side. "
_ZONE: Final = "The shaded zone is harm beyond the margin. "


def forest(
    rows: Sequence[ForestRow],
    *,
    title: str,
    measure: Measure = "percent",
    level: str = "95 %",
    scale: Scale | None = None,
) -> Chart:
    """Rows of estimates with their names and numbers beside them.

    Arguments:
        title: what is estimated, such as "Lift of clicks".
        level: of the intervals, as it is written.
        scale: one that is shared with others; one of these rows by default.
    """
    rows = [_drawable(row) for row in rows]
    scale = forest_scale(rows, measure) if scale is None else scale
    lines = Markup("").join(
        Markup(
            '<div class="forest-row"><span class="forest-name">{}{}</span>{}'
            '<span class="forest-value">{}</span></div>'
        ).format(key(row.place), row.label, _cell(row, scale, None), _numbers(row, scale.measure))
        for row in rows
    )
    axis = Markup('<div class="forest-row forest-foot"><span></span>{}<span></span></div>').format(
        forest_axis(scale)
    )
    summary = _summary(rows, title, scale.measure)
    svg = Markup('<div class="forest" role="img" aria-label="{}">{}{}</div>').format(
        summary, lines, axis
    )
    return Chart(
        svg, f"{title}. {_hints(rows, scale, level)}".strip(), summary, _table(rows, scale.measure)
    )


def forest_scale(rows: Iterable[ForestRow], measure: Measure = "percent") -> Scale:
    """A scale for all of these rows. It holds every estimate, 0 and every margin; intervals that
    are far wider than the others go beyond it."""
    known = [row for row in map(_drawable, rows) if row.value is not None]
    points = [0.0, *(row.value for row in known if row.value is not None)]
    points += [row.harm_from for row in known if row.harm_from is not None]
    bounds = [
        (-math.inf if row.low is None else row.low, math.inf if row.high is None else row.high)
        for row in known
    ]
    low, high = robust_range(points, bounds)
    room = _ROOM * (high - low)
    return scale_of(low - room, high + room, measure, most=5, rounded=False)


def forest_cell(row: ForestRow, scale: Scale) -> Markup:
    """A row as a drawing for a cell of a table, as wide as the cell; `forest_axis` gives the ticks.
    Its label is in words, without the row's name, which the table has."""
    row = _drawable(row)
    return _cell(row, scale, words_of(row, scale.measure))


def forest_axis(scale: Scale) -> Markup:
    """The ticks of a scale, for the head or the foot of a column of `forest_cell`s."""
    ticks = Markup("").join(
        Markup('<line class="tick" x1="{p}%" x2="{p}%" y1="0" y2="4"/>{}').format(
            tick_text(tick, 16, p=num(tick.place)), p=num(tick.place)
        )
        for tick in scale.ticks
    )
    return Markup(
        '<svg class="fa" height="20" aria-hidden="true"><line class="axis" x2="100%"/>{}</svg>'
    ).format(ticks)


def words_of(row: ForestRow, measure: Measure) -> str:
    """What a row says, such as "+1.5 %, between −0.3 and +3.2 %, better"."""
    if row.value is None:
        return row.missing or "not defined"
    interval = interval_words(row.low, row.high, measure)
    return f"{value_words(row.value, measure, _spread(row))}, {interval}{_WORDS[row.tone]}"


def _spread(row: ForestRow) -> float | None:
    return spread_of(row.low, row.high, row.value)


def _drawable(row: ForestRow) -> ForestRow:
    return msgspec.structs.replace(
        row, value=defined(row.value), low=defined(row.low), high=defined(row.high)
    )


def _cell(row: ForestRow, scale: Scale, label: str | None) -> Markup:
    named = (
        Markup('aria-hidden="true"')
        if label is None
        else Markup('role="img" aria-label="{}"').format(label)
    )
    marks = _zone(row, scale) + _zero(scale)
    if row.value is None:
        marks += Markup('<text class="none" x="50%" y="18">{}</text>').format(
            shorten(row.missing or "not defined", 190, 11)
        )
    else:
        marks += _interval(row, row.value, scale)
    return Markup('<svg class="fc {}" height="28" {}>{}</svg>').format(row.tone, named, marks)


def _zone(row: ForestRow, scale: Scale) -> Markup:
    """Where harm is more than the margin."""
    if row.harm_from is None:
        return Markup("")
    edge = scale.place(row.harm_from)
    x, width = (0.0, edge) if row.goal == "increase" else (edge, 100.0 - edge)
    return Markup(
        '<rect class="zone" x="{}%" width="{}%" height="28"/>'
        '<line class="margin" x1="{e}%" x2="{e}%" y2="28"/>'
    ).format(num(x), num(width), e=num(edge))


def _zero(scale: Scale) -> Markup:
    if not scale.holds(0.0):
        return Markup("")
    return Markup('<line class="zero" x1="{p}%" x2="{p}%" y2="28"/>').format(
        p=num(scale.place(0.0))
    )


def _interval(row: ForestRow, value: float, scale: Scale) -> Markup:
    ends, marks = [], Markup("")
    for bound, edge, side in ((row.low, 0.0, "left"), (row.high, 100.0, "right")):
        inside = bound is not None and scale.holds(bound)
        place = scale.place(bound) if bound is not None and inside else edge
        ends.append(place)
        if inside:
            marks += Markup('<line class="cap" x1="{p}%" x2="{p}%" y1="10" y2="18"/>').format(
                p=num(place)
            )
        elif bound is None:
            marks += anchored(edge, _MIDDLE, f"open-{side}", "arrow")
            marks += Markup('<text class="word{}" x="{}%" y="9">no bound</text>').format(
                "" if side == "left" else " end", num(edge)
            )
        elif (side == "left") == (bound < scale.low):
            marks += anchored(edge, _MIDDLE, f"past-{side}", "past")
        else:  # the whole interval lies beyond the other edge
            ends[-1] = 100.0 - edge
    line = Markup('<line class="ci" x1="{}%" x2="{}%" y1="14" y2="14"/>').format(*map(num, ends))
    if scale.holds(value):
        marks += anchored(scale.place(value), _MIDDLE, _SHAPES[row.tone], "pt")
    return line + marks


def _numbers(row: ForestRow, measure: Measure) -> Markup:
    if row.value is None:
        return Markup("–")
    return Markup("<b>{}</b> <span>{}</span>").format(
        value_words(row.value, measure, _spread(row)), _between(row, measure)
    )


def _between(row: ForestRow, measure: Measure) -> str:
    if row.low is None or row.high is None:
        return interval_words(row.low, row.high, measure)
    spread = _spread(row)
    low, high = (value_words(end, measure, spread, unit=False) for end in (row.low, row.high))
    return f"{low} to {high}"


def _summary(rows: Sequence[ForestRow], title: str, measure: Measure) -> str:
    if not rows:
        return f"{title}: nothing to show yet"
    said = "; ".join(f"{row.label}: {words_of(row, measure)}" for row in rows[:_MOST_IN_WORDS])
    more = len(rows) - _MOST_IN_WORDS
    return f"{title}. {said}{f'; and {more} more' if more > 0 else ''}"


def _hints(rows: Sequence[ForestRow], scale: Scale, level: str) -> str:
    known = [row for row in rows if row.value is not None]
    if not known:
        return "Nothing to show yet."
    ends = [end for row in known for end in (row.low, row.high)]
    text = _HINT.format(level=level)
    if any(end is not None and not scale.holds(end) for end in ends):
        text += _CUT
    if None in ends:
        text += _OPEN
    if any(row.harm_from is not None for row in rows):
        text += _ZONE
    return text


def _table(rows: Sequence[ForestRow], measure: Measure) -> Table:
    return Table(
        ("Name", "Estimate", "From", "To", "Finding"),
        tuple(
            (
                row.label,
                value_words(row.value, measure, _spread(row)),
                *_bounds(row, measure),
                _WORDS[row.tone].removeprefix(", ") if row.value is not None else row.missing,
            )
            for row in rows
        ),
    )


def _bounds(row: ForestRow, measure: Measure) -> tuple[str, str]:
    if row.value is None:
        return "–", "–"
    spread = _spread(row)
    low, high = (
        "no bound" if end is None else value_words(end, measure, spread)
        for end in (row.low, row.high)
    )
    return low, high
