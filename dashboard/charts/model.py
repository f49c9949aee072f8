"""What charts are made from, and what they are made into: Structs, without any logic."""

from datetime import datetime
from typing import Final, Literal

import msgspec
from markupsafe import Markup

from analysis.inference.kinds import Goal

Measure = Literal["number", "percent", "points", "count", "share"]
"""How numbers read.

number: in the metric's unit: 12.3. percent: a fraction that is a lift, with its sign: +1.5 %.
points: a difference of shares, with its sign: +1.5 points. share: a fraction that is a share or a
rate: 12.3 %. count: whole units: 12 345.
"""
Tone = Literal["better", "worse", "open", "none"]
"""What is found: better or worse than the control, not known yet, or nothing that is judged. Each
has a colour and a shape of its own."""
Cause = Literal["start", "hand", "guard", "ramp", "bandit", "stop"]
"""Who made an epoch."""
CAUSES: Final[dict[Cause, str]] = {
    "start": "start",
    "hand": "by hand",
    "guard": "guard",
    "ramp": "ramp",
    "bandit": "bandit",
    "stop": "stop rule",
}
StepState = Literal["done", "now", "ahead", "failed"]


class Table(msgspec.Struct, frozen=True):
    """The numbers behind a chart: the same number of texts in each row as there are columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Chart(msgspec.Struct, frozen=True):
    """A chart as a page shows it: `{{ figure(chart) }}` of `charts.html`.

    Arguments:
        svg: the drawing, with all it takes but the classes of `charts.css`.
        caption: what is drawn, and how it is to be read: shown below.
        summary: what it says, in words; the drawing is labelled by it.
        table: the numbers.
    """

    svg: Markup
    caption: str
    summary: str
    table: Table


class ForestRow(msgspec.Struct, frozen=True):
    """An estimate with its interval. What is not defined is None; `missing` says why.

    Arguments:
        label: whose it is, such as the metric, or the variant.
        value, low, high: the estimate and the ends of its interval, fractions where the measure is
            one of shares. With a value, a bound that is None has no end: it is drawn as an arrow.
        tone: what is found.
        place: of the variant in the definition, 0 being the control: its colour, at the label. None
            without.
        harm_from: of a guardrail, the difference from which on harm is more than its margin; the
            zone beyond it is marked, on the side that `goal` says is the worse one.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    tone: Tone = "open"
    place: int | None = None
    goal: Goal = "increase"
    harm_from: float | None = None
    missing: str = ""


class LinePoint(msgspec.Struct, frozen=True):
    """Where a line is at a time. A value of None makes a gap; a bound of None has no end, or is
    not known."""

    at: datetime
    value: float | None
    low: float | None = None
    high: float | None = None


class Line(msgspec.Struct, frozen=True):
    """A line over time, with its band where its points have bounds. `place` as in `ForestRow`;
    points in order of time."""

    label: str
    place: int
    points: tuple[LinePoint, ...]


class Mark(msgspec.Struct, frozen=True):
    """Something that happened at a time: drawn as a thin line with its label at the top."""

    at: datetime
    label: str


class BandStep(msgspec.Struct, frozen=True):
    """An epoch: how it splits traffic, from `at` until the next one.

    Arguments:
        shares: of all traffic, by variant in the definition's order; their sum is the traffic, and
            what is missing to 1 is not enrolled.
        epoch: its number.
        cause, reason: who made it, and why (in words; may be empty).
        link: where the page says more of it, such as `#decision-12`; None without.
        state: of the experiment in this epoch; units are enrolled in running ones only.
    """

    at: datetime
    shares: tuple[float, ...]
    epoch: int
    cause: Cause
    reason: str = ""
    link: str | None = None
    state: str = "running"


class PosteriorArm(msgspec.Struct, frozen=True):
    """What is believed of an arm: normal, with this mean and standard deviation, in the metric's
    unit; None of an arm of which nothing is known yet. `chance_best` is a fraction; `share` its
    share of the traffic now."""

    label: str
    place: int
    mean: float | None
    deviation: float | None
    chance_best: float | None = None
    share: float | None = None
    units: int | None = None


class Share(msgspec.Struct, frozen=True):
    """A part of a bar: a fraction of all traffic."""

    label: str
    place: int
    share: float


class ProgressStep(msgspec.Struct, frozen=True):
    """A step of a ramp: its traffic as a fraction, how it stands, and a word on it, such as what it
    waits for."""

    label: str
    state: StepState
    note: str = ""
