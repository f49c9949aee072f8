"""The marks that charts are made of, as text. Colours are classes: `c0` to `c9` for variants, in
the order of the definition.

Drawings are as wide as the room they get. What is stretched with it stands in a picture of its own,
of 1000 units' width (`stretched`); what is not, such as texts and points, stands at a place in per
cent (`anchored`).
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from markupsafe import Markup

from dashboard.charts.model import Chart, Table
from dashboard.charts.scales import Tick, TimeScale
from dashboard.charts.text import text_width

WIDTH: Final = 1000.0
"""Of a stretched picture, in its own units."""
COLOURS: Final = 10
SHAPES: Final[dict[str, str]] = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "up": "M0-5 5 4-5 4z",
    "down": "M0 5 5-4-5-4z",
    "diamond": "M0-5.5 5.5 0 0 5.5-5.5 0z",
    "square": "M-4-4H4V4H-4z",
    "past-left": "M1 0 8-5V5z",
    "past-right": "M-1 0-8-5V5z",
    "open-left": "M7-5 1 0 7 5",
    "open-right": "M-7-5-1 0-7 5",
}
"""Marks around a point: paths in pixels."""


def num(value: float) -> str:
    """A coordinate: at most two decimals, no more characters than it takes."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def colour(place: int) -> str:
    """The class of a variant's colour."""
    return f"c{place % COLOURS}"


def anchored(place: float, y: float, shape: str, classes: str) -> Markup:
    """A mark of this shape at a place in per cent; `overflow` is set by the style sheet."""
    return Markup('<svg x="{}%" y="{}"><path class="{}" d="{}"/></svg>').format(
        num(place), num(y), classes, SHAPES[shape]
    )


def stretched(height: float, content: Markup) -> Markup:
    """A picture that is stretched to the width of the one around it."""
    return Markup(
        '<svg class="stretch" width="100%" height="{0}" viewBox="0 0 1000 {0}"'
        ' preserveAspectRatio="none">{1}</svg>'
    ).format(num(height), content)


def path_of(points: Iterable[tuple[float, float]]) -> str:
    """A path along points; points that hardly differ are one."""
    parts: list[str] = []
    for x, y in points:
        part = f"{num(x)} {num(y)}"
        if not parts or parts[-1] != part:
            parts.append(part)
    return f"M{'L'.join(parts)}" if parts else ""


def key(place: int | None) -> Markup:
    """The small square of a variant's colour, beside its name."""
    if place is None:
        return Markup("")
    return Markup('<i class="chart-key {}"></i>').format(colour(place))


def legend(entries: Sequence[tuple[int, str]]) -> Markup:
    """Names with their colours, for where labels have no room in the drawing."""
    items = Markup("").join(
        Markup("<li>{}{}</li>").format(key(place), label) for place, label in entries
    )
    return Markup('<ul class="chart-legend" aria-hidden="true">{}</ul>').format(items)


def time_axis(scale: TimeScale, height: float) -> Markup:
    """Ticks of time below a drawing of this height, and which day or year they are of."""
    ticks = Markup("").join(
        Markup('<g{}><line class="tick" x1="{p}%" x2="{p}%" y1="{}" y2="{}"/>{}</g>').format(
            Markup(' class="minor"') if tick.minor else "",
            num(height),
            num(height + 4),
            tick_text(tick, height + 17, p=num(tick.place)),
            p=num(tick.place),
        )
        for tick in scale.ticks
    )
    note = Markup('<text class="note" x="0" y="{}">{}</text>').format(num(height + 33), scale.note)
    return ticks + note


def value_axis(ticks: Iterable[Tick], height: float, top: float = 0.0) -> Markup:
    """Lines across a drawing of this height at the ticks of its values, named at the left."""
    return Markup("").join(
        Markup(
            '<line class="grid" x2="100%" y1="{y}" y2="{y}"/>'
            '<text class="ty" x="-8" y="{below}">{label}</text>'
        ).format(y=num(y), below=num(y + 4), label=tick.label)
        for tick in ticks
        for y in [top + height * (1 - tick.place / 100)]
    )


def empty_chart(title: str, columns: tuple[str, ...]) -> Chart:
    """What stands where there is nothing to draw yet."""
    summary = f"{title}: nothing to show yet"
    svg = Markup('<div class="chart-empty" role="img" aria-label="{}">Nothing to show yet</div>')
    return Chart(svg.format(summary), f"{title}.", summary, Table(columns, ()))


def tick_text(tick: Tick, y: float, p: str) -> Markup:
    """The label of a tick below an axis, kept from reaching out at the ends."""
    end = " start" if tick.place < 2 else " end" if tick.place > 98 else ""
    return Markup('<text class="t{}" x="{}%" y="{}">{}</text>').format(end, p, num(y), tick.label)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: as near as can be to where each is wanted, in the same order, `gap` apart,
    within a room; where that is too small for all, evenly over it.

    Labels that touch are moved as one block around the mean of where they are wanted: the least
    squares answer (pool adjacent violators; Barlow et al. 1972).
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    if not order:
        return []
    if (len(order) - 1) * gap > high - low:
        gap = (high - low) / (len(order) - 1)
    blocks: list[tuple[float, int]] = []  # the sum of wanted - offset, and how many
    for rank, i in enumerate(order):
        total, count = wanted[i] - rank * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / count:
            earlier, members = blocks.pop()
            total, count = total + earlier, count + members
        blocks.append((total, count))
    first = list(itertools.chain.from_iterable([t / n] * n for t, n in blocks))
    last = (len(order) - 1) * gap
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        placed[i] = min(max(first[rank], low), high - last) + rank * gap
    return placed


def end_labels(
    entries: Sequence[tuple[float, int, str]], height: float, size: float = 12.0
) -> Markup:
    """Labels at the right end of lines or bands that do not overlap, with a thin leader where one
    had to move.

    Arguments:
        entries: where each is wanted, its colour, and its text.
    """
    placed = spread([y for y, _, _ in entries], size + 2.0, size / 2, height - size / 2)
    marks = Markup("").join(
        Markup('<path class="lead {}" d="M2 {}L9 {}"/>').format(colour(place), num(y), num(at))
        for (y, place, _), at in zip(entries, placed, strict=True)
    )
    texts = Markup("").join(
        Markup('<text class="end-label {}" x="12" y="{}">{}</text>').format(
            colour(place), num(at + 0.35 * size), text
        )
        for (_, place, text), at in zip(entries, placed, strict=True)
    )
    return Markup('<svg class="ends" x="100%" y="0">{}{}</svg>').format(marks, texts)


def room_class(labels: Iterable[str], size: float = 12.0) -> str:
    """How much room a drawing leaves at its right for the longest of these labels."""
    widest = max((text_width(label, size) for label in labels), default=0.0)
    return "" if widest > 80 else " room-m" if widest > 40 else " room-s"


def is_apart(place: float, text: str, others: Iterable[tuple[float, float]], room: float) -> bool:
    """Whether a text that begins at a place in per cent of a room of so many pixels keeps clear of
    others: from where to where they go, in per cent."""
    end = place + 100.0 * text_width(text, 11.0) / room
    return all(end < low or place > high for low, high in others)
