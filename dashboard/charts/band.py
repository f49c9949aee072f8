"""How traffic was split over time: a band of stacked areas, a step for each epoch."""

import itertools
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from markupsafe import Markup

from dashboard.charts.model import CAUSES, BandStep, Cause, Chart, Table
from dashboard.charts.scales import TimeScale, scale_of, time_scale
from dashboard.charts.svg import (
    SHAPES,
    WIDTH,
    colour,
    empty_chart,
    end_labels,
    legend,
    num,
    room_class,
    stretched,
    time_axis,
    value_axis,
)
from dashboard.charts.text import moment, short_share, shorten, text_width, value_words

HEIGHT: Final = 200.0
TOP: Final = 24.0
"""The room for the marks of epochs, above the areas."""
_COLUMNS: Final = 800
"""Epochs that lie closer than this part of the width are drawn as the last of them."""
_MOST_ROWS: Final = 200
_MOST_LINKS: Final = 60
_ROOM: Final = 620.0
"""The width that a drawing has on a usual page, in pixels; only texts are laid out by it."""
_SAMPLES: Final = 120
_LINE: Final = 15.0
_LABEL: Final = 112.0
_SHAPES: Final[dict[Cause, str]] = {
    "start": "circle",
    "hand": "circle",
    "guard": "diamond",
    "ramp": "up",
    "stop": "square",
    "bandit": "circle",
}
_SIGNS: Final[dict[Cause, str]] = {
    "hand": "\N{BLACK CIRCLE} by hand",
    "guard": "\N{BLACK DIAMOND} by the guard",
    "ramp": "\N{BLACK UP-POINTING TRIANGLE} by the ramp",
    "stop": "\N{BLACK SQUARE} by the stop rule",
    "bandit": "\N{VERTICAL LINE} by the bandit",
}
_STATES: Final = {"paused": "paused", "concluded": "concluded", "rolled_back": "rolled back"}


def band(steps: Sequence[BandStep], variants: Sequence[str], *, title: str, end: datetime) -> Chart:
    """The split of the traffic from the first epoch until `end`.

    Arguments:
        steps: epochs in order of time, each with as many shares as there are `variants`.
        variants: their names, in the definition's order.
        end: until when the last epoch is drawn, usually now.

    Raises:
        ValueError: if an epoch has another number of shares, or they add up to more than 1.
    """
    for step in steps:
        if len(step.shares) != len(variants) or not -1e-9 <= sum(step.shares) <= 1 + 1e-6:
            raise ValueError(f"the shares of epoch {step.epoch} are no split: {step.shares}")
    if not steps:
        return empty_chart(title, ("From (UTC)", "Epoch", *variants))
    scale = time_scale(steps[0].at, max(end, steps[-1].at))
    shown = _thin(steps, scale)
    summary = _summary(steps, variants, title)
    drawn = Markup("").join(
        [
            _grid(),
            time_axis(scale, TOP + HEIGHT),
            Markup('<svg y="{}" class="areas">{}{}</svg>').format(
                num(TOP),
                stretched(HEIGHT, Markup("").join(_areas(shown, len(variants), scale))),
                Markup("").join(_names(shown, variants, scale)) + _ends(steps[-1], variants),
            ),
            _quiet_marks(shown, scale),
            Markup('<line class="cross" y1="{}" y2="{}"/>').format(num(TOP), num(TOP + HEIGHT)),
        ]
    )
    height = num(TOP + HEIGHT + 40)
    rows = _rows(steps)
    svg = Markup(
        '<div class="chart-body">{}<div class="chart-plot{}" tabindex="0" role="group"'
        ' aria-label="{}" data-chart="band" data-x="{}">'
        '<svg class="chart-svg" height="{h}" role="img" aria-label="{}">{}</svg>'
        '<svg class="chart-svg chart-over" height="{h}">{}</svg></div></div>'
    ).format(
        legend(list(enumerate(variants))),
        room_class(_end_text(n, x) for n, x in zip(variants, steps[-1].shares, strict=True) if x),
        title,
        " ".join(num(scale.place(step.at)) for step in rows),
        summary,
        drawn,
        _loud_marks(shown, scale),
        h=height,
    )
    return Chart(svg, _caption(steps, title, len(rows)), summary, _table(rows, variants))


def _thin(steps: Sequence[BandStep], scale: TimeScale) -> list[BandStep]:
    """Of epochs that fall into one column of the drawing, the last, the latest that are
    no bandit's, since they have marks of their own, and the first of all."""
    columns = itertools.groupby(steps, lambda step: int(scale.place(step.at) * _COLUMNS / 100))
    kept: list[BandStep] = []
    for _, members in columns:
        *earlier, last = members
        kept += [step for step in earlier if step.cause != "bandit" or step is steps[0]][-4:]
        kept.append(last)
    return kept


def _spans(steps: Sequence[BandStep], scale: TimeScale) -> Iterator[tuple[float, float, BandStep]]:
    """Each epoch with where it begins and ends, in per cent."""
    for step, following in itertools.zip_longest(steps, steps[1:]):
        yield (
            scale.place(step.at),
            100.0 if following is None else scale.place(following.at),
            step,
        )


def _areas(steps: Sequence[BandStep], variants: int, scale: TimeScale) -> Iterator[Markup]:
    """From the top band down to the first: each area goes to the floor, and the next ones are drawn
    over it, so that a boundary is one path."""
    spans = list(_spans(steps, scale))
    for variant in reversed(range(variants)):
        parts, at = [f"M0 {num(HEIGHT)}"], HEIGHT
        for x, _, step in spans:
            y = HEIGHT * (1 - min(1.0, sum(step.shares[: variant + 1])))
            if abs(y - at) >= 0.005:
                parts.append(f"H{num(WIDTH * x / 100)}V{num(y)}")
                at = y
        area = f"{''.join(parts)}H{num(WIDTH)}V{num(HEIGHT)}z"
        if any(step.shares[variant] > 0 for step in steps):
            yield Markup('<path class="part {}" d="{}"/>').format(colour(variant), area)
    for begin, end, step in spans:
        if step.state in _STATES and end > begin:
            yield Markup('<rect class="halt" x="{}" width="{}" height="{}"/>').format(
                num(10 * begin), num(10 * (end - begin)), num(HEIGHT)
            )


def _grid() -> Markup:
    """Shares are named at the left, from 0 to 100 %."""
    texts = value_axis(scale_of(0.0, 1.0, "share", most=5).ticks, HEIGHT, TOP)
    rest = Markup('<rect class="rest" y="{}" width="100%" height="{}"/>')
    return rest.format(num(TOP), num(HEIGHT)) + texts


def _names(
    steps: Sequence[BandStep], variants: Sequence[str], scale: TimeScale
) -> Iterator[Markup]:
    """Names within bands that do not reach the end, where there is room: in the widest place that
    is high enough; and what state it is where nobody is enrolled."""
    spans = list(_spans(steps, scale))
    columns = list(_sampled(spans))
    for variant, name in enumerate(variants):
        if steps[-1].shares[variant] > 0:
            continue  # named at its end
        text = shorten(name, 120, 12)
        width = max(1, round(_SAMPLES * (text_width(text, 12) + 10) / _ROOM))
        best, where = 0.0, (0, 0.0)
        for first in range(_SAMPLES - width + 1):
            window = columns[first : first + width]
            top = HEIGHT * (1 - min(sum(c.shares[: variant + 1]) for c in window))
            bottom = HEIGHT * (1 - max(sum(c.shares[:variant]) for c in window))
            if bottom - top > best:
                best, where = bottom - top, (first, (top + bottom) / 2)
        if best >= _LINE:
            yield Markup('<text class="name" x="{}%" y="{}">{}</text>').format(
                num(100 * (where[0] + width / 2) / _SAMPLES), num(where[1] + 4), text
            )
    for begin, end, step in spans:
        word = _STATES.get(step.state)
        if word is not None and _ROOM * (end - begin) / 100 > text_width(word, 12) + 10:
            yield Markup('<text class="name" x="{}%" y="{}">{}</text>').format(
                num((begin + end) / 2), num(HEIGHT / 2 + 4), word
            )


def _sampled(spans: Sequence[tuple[float, float, BandStep]]) -> Iterator[BandStep]:
    """The epoch at each of so many places, evenly over the drawing."""
    k = 0
    for sample in range(_SAMPLES):
        while spans[k][1] < 100 * (sample + 0.5) / _SAMPLES and k + 1 < len(spans):
            k += 1
        yield spans[k][2]


def _ends(last: BandStep, variants: Sequence[str]) -> Markup:
    """Names with their shares, at the end of each band that has any traffic."""
    entries, below = [], 0.0
    for variant, (name, share) in enumerate(zip(variants, last.shares, strict=True)):
        if share > 0:
            text = _end_text(name, share)
            entries.append((HEIGHT * (1 - below - share / 2), variant, text))
        below += share
    return end_labels(entries, HEIGHT)


def _end_text(name: str, share: float) -> str:
    words = short_share(share)
    return f"{shorten(name, _LABEL - text_width(words, 12), 12)} {words}"


def _quiet_marks(steps: Sequence[BandStep], scale: TimeScale) -> Markup:
    """A bandit moves traffic every minute: a thin line for each of its epochs, in one path."""
    places = [scale.place(step.at) for step in steps if step.cause == "bandit"]
    path = "".join(f"M{num(10 * place)} 0V6" for place in places)
    if not path:
        return Markup("")
    return Markup(
        '<svg class="stretch" y="{}" width="100%" height="6" viewBox="0 0 1000 6"'
        ' preserveAspectRatio="none"><path class="moves" d="{}"/></svg>'
    ).format(num(TOP - 7), path)


def _loud_marks(steps: Sequence[BandStep], scale: TimeScale) -> Markup:
    """Epochs that a person looks for: a mark of the shape of their cause, with their number where
    there is room, and a way to where the page says more."""
    drawn = Markup("")
    loud = [step for step in steps if step.cause != "bandit"]
    places = [scale.place(step.at) for step in loud]
    linked = {id(step) for step in loud[-_MOST_LINKS:]}
    for step, place, following in zip(loud, places, [*places, 103.0][1:], strict=True):
        words = _epoch_words(step)
        mark = Markup(
            '<title>{}</title><line class="epoch" y1="{}" y2="{}"/>'
            '<rect class="hit" x="-12" y="-6" width="24" height="28"/>'
            '<svg y="9"><path class="sign {}" d="{}"/></svg>'
        ).format(words, num(TOP - 4), num(TOP + HEIGHT), step.cause, SHAPES[_SHAPES[step.cause]])
        number = f"{step.epoch}"
        if place + 100 * (text_width(number, 11) + 20) / _ROOM < following:
            mark += Markup('<text class="t start" x="8" y="13">{}</text>').format(number)
        if step.link is not None and id(step) in linked:
            mark = Markup('<a href="{}" aria-label="{}">{}</a>').format(step.link, words, mark)
        drawn += Markup('<svg class="at" x="{}%">{}</svg>').format(num(place), mark)
    return drawn


def _epoch_words(step: BandStep) -> str:
    text = f"Epoch {step.epoch}, {moment(step.at)} UTC, {CAUSES[step.cause]}"
    return f"{text}: {step.reason}" if step.reason else text


def _rows(steps: Sequence[BandStep]) -> Sequence[BandStep]:
    """The epochs of the table: all, or where they are many a part of them, evenly, and all that are
    no bandit's."""
    if len(steps) <= _MOST_ROWS:
        return steps
    last = len(steps) - 1
    kept = {round(k * last / (_MOST_ROWS - 1)) for k in range(_MOST_ROWS)}
    loud = [k for k, step in enumerate(steps) if step.cause != "bandit"]
    return [steps[k] for k in sorted(kept | set(loud[-_MOST_ROWS:]))]


def _summary(steps: Sequence[BandStep], variants: Sequence[str], title: str) -> str:
    last = steps[-1]
    split = [
        f"{name} {value_words(share, 'share')}"
        for name, share in zip(variants, last.shares, strict=True)
        if share > 0
    ]
    rest = 1 - sum(last.shares)
    if rest > 1e-6:
        split.append(f"{value_words(rest, 'share')} not enrolled")
    epochs = "1 epoch" if len(steps) == 1 else f"{len(steps):,} epochs"
    state = f" ({_STATES[last.state]})" if last.state in _STATES else ""
    return f"{title}. {epochs}; now{state} {', '.join(split)}"


def _caption(steps: Sequence[BandStep], title: str, rows: int) -> str:
    causes = {step.cause for step in steps}
    signs = ", ".join(sign for cause, sign in _SIGNS.items() if cause in causes)
    text = f"{title}. "
    if signs:
        text += f"New epochs: {signs}. "
    if rows < len(steps):
        text += f"The numbers are of {rows:,} of {len(steps):,} epochs."
    return text.strip()


def _table(rows: Sequence[BandStep], variants: Sequence[str]) -> Table:
    return Table(
        ("From (UTC)", "Epoch", *variants, "Not enrolled", "By", "Reason"),
        tuple(
            (
                moment(step.at),
                f"{step.epoch}",
                *(value_words(share, "share") for share in step.shares),
                value_words(max(0.0, 1 - sum(step.shares)), "share"),
                CAUSES[step.cause],
                step.reason or _STATES.get(step.state, ""),
            )
            for step in rows
        ),
    )
