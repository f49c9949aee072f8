"""Small drawings that stand in a line of text or a row of a table."""

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from dashboard.charts.model import ProgressStep, Share, StepState
from dashboard.charts.svg import colour, num, path_of
from dashboard.charts.text import shorten, value_words

_LEAST_PART: Final = 1e-6
_STATES: Final[dict[StepState, str]] = {
    "done": "done",
    "now": "now",
    "ahead": "to come",
    "failed": "stopped here",
}
_SPARK_WIDTH: Final = 96.0
_SPARK_HEIGHT: Final = 24.0
_MOST_POINTS: Final = 60


def share_bar(shares: Sequence[Share], *, label: str = "Traffic") -> Markup:
    """How traffic is split: a stacked bar as wide as its room; what is missing to 1 is left light.

    Raises:
        ValueError: if shares add up to more than 1, or one is negative.
    """
    total = sum(share.share for share in shares)
    if total > 1 + _LEAST_PART or any(share.share < 0 for share in shares):
        raise ValueError(f"shares of a bar are parts of 1, not {[s.share for s in shares]}")
    parts, x = Markup(""), 0.0
    for share in shares:
        if share.share > 0:
            width = 100 * share.share
            parts += Markup('<rect class="{}" x="{}%" width="{}%" height="10"/>').format(
                colour(share.place), num(x), num(width)
            )
            x += width
    return Markup(
        '<svg class="share-bar" height="10" role="img" aria-label="{l}"><title>{l}</title>'
        '<rect class="rest" width="100%" height="10"/>{}</svg>'
    ).format(parts, l=f"{label}: {_shares_words(shares, total)}")


def sparkline(values: Sequence[float | None], *, label: str, place: int = 0) -> Markup:
    """A line as small as a word, with its last point; None makes a gap.

    Arguments:
        label: what it is, in words, with what matters of it: a sparkline names no numbers.
        place: of the variant, for its colour.
    """
    values = _thinned(values)
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def y(value: float) -> float:
        if high <= low:
            return _SPARK_HEIGHT / 2
        share = (value / 2 - low / 2) / (high / 2 - low / 2)
        return _SPARK_HEIGHT - 3 - share * (_SPARK_HEIGHT - 6)

    step = (_SPARK_WIDTH - 8) / max(1, len(values) - 1)
    paths, run, last = "", list[tuple[float, float]](), Markup("")
    for i, value in enumerate([*values, None]):
        if value is not None:
            run.append((4 + i * step, y(value)))
            continue
        if run:
            x, at = run[-1]
            last = Markup('<circle cx="{}" cy="{}" r="2.5"/>').format(num(x), num(at))
        paths += path_of(run) if len(run) > 1 else ""
        run = []
    return Markup(
        '<svg class="spark {}" viewBox="0 0 96 24" width="96" height="24" role="img"'
        ' aria-label="{}"><path d="{}"/>{}</svg>'
    ).format(colour(place), label, paths or "M0 0", last)


def progress(steps: Sequence[ProgressStep], *, label: str = "Ramp") -> Markup:
    """The steps of a ramp, in order, with how each stands."""
    items = Markup("").join(
        Markup(
            '<li class="step step-{}"{}><span class="step-name">{}</span> '
            '<span class="step-note">{}</span></li>'
        ).format(
            step.state,
            Markup(' aria-current="step"') if step.state == "now" else "",
            step.label,
            step.note or _STATES[step.state],
        )
        for step in steps
    )
    return Markup('<ol class="steps" aria-label="{}">{}</ol>').format(label, items)


def _shares_words(shares: Sequence[Share], total: float) -> str:
    said = [f"{share.label} {value_words(share.share, 'share')}" for share in shares]
    if total < 1 - _LEAST_PART:
        said.append(f"{value_words(1 - total, 'share')} not enrolled")
    return ", ".join(shorten(text, 400, 12) for text in said)


def _thinned(values: Sequence[float | None]) -> list[float | None]:
    count = len(values)
    if count <= _MOST_POINTS:
        return list(values)
    return [values[round(k * (count - 1) / (_MOST_POINTS - 1))] for k in range(_MOST_POINTS)]
