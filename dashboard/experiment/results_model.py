"""What the upper half of an experiment's page is made of: Structs, without any logic.

All numbers are texts already, in the report's words; what is not defined is a `Cell` that reads
"–" and says why.
"""

from datetime import datetime
from typing import Literal

import msgspec
from markupsafe import Markup

from analysis.reports.model import QualityCode, Severity
from dashboard.charts.model import Chart
from experiments.model import Reading, Role, State

Tone = Literal["ok", "info", "warning", "critical", "neutral"]
"""How something reads at a glance: each is a class of badges and callouts, but for neutral."""


class Badge(msgspec.Struct, frozen=True):
    """A finding in a few words. `hint` says more."""

    text: str
    tone: Tone = "neutral"
    hint: str = ""


class Cell(msgspec.Struct, frozen=True):
    """A number as it is read; or "–", and `why` it is missing. `range` is its interval."""

    text: str
    range: str = ""
    why: str = ""


class VariantName(msgspec.Struct, frozen=True):
    """A variant, and its place in the definition, which is its colour. The control's is 0."""

    key: str
    place: int
    is_control: bool = False


class Progress(msgspec.Struct, frozen=True):
    """How far the plan's reading has come: `done` of `needed` finished units, `percent` of them;
    `words` say what is still missing."""

    done: int
    needed: int
    percent: int
    words: str


class VariantUnits(msgspec.Struct, frozen=True):
    """The units of a variant, and how many its propensities led one to expect."""

    variant: VariantName
    units: str
    share: str
    expected: Cell
    note: str = ""
    """Why it gets no traffic, where it was rolled back."""


class Line(msgspec.Struct, frozen=True):
    """One line of the summary, such as that on health; `link` leads to where more of it stands."""

    title: str
    badge: Badge
    text: str
    link: str = ""


class Measured(msgspec.Struct, frozen=True):
    """A metric as the plan has it, before there are data."""

    key: str
    role: Role
    what: str
    goal: str
    window: str


class Conclusion(msgspec.Struct, frozen=True):
    """The answer.

    Arguments:
        tone, heading: at a glance: "Keep running, about 3 days more."
        known, how_sure, what_would_change_it: as in the report's verdict; empty where there is
            nothing to say.
        stands_on: the plan's reading, and how it is corrected.
        progress: None where it is not known how much the plan needs, or it needs no more.
        lines: health, guard, data.
        units: by variant; none before the first unit.
        ratio: the sample ratio.
        measured: what will be measured, of an experiment that never ran.
    """

    tone: Tone
    heading: str
    known: str
    how_sure: str
    what_would_change_it: str
    stands_on: str
    progress: Progress | None
    lines: tuple[Line, ...]
    units: tuple[VariantUnits, ...]
    units_total: str
    ratio: Badge
    measured: tuple[Measured, ...] = ()


class Evidence(msgspec.Struct, frozen=True):
    """How much evidence of harm a guardrail has gathered, of what makes an alarm.

    Arguments:
        percent: of the way to the alarm, by logarithms: 0 to 100.
        words: the same in words; `hint` gives the evidence itself, as e-values.
        margin: how much harm is tolerated.
        bound: how the promise holds.
    """

    percent: int
    words: str
    hint: str
    margin: str
    bound: str
    alarm: bool


class Row(msgspec.Struct, frozen=True):
    """A treatment against the control on a metric, in the reading that is shown.

    Arguments:
        units: those that the reading counts.
        value, control_value: mean, rate or quantile of both, where they are of this comparison.
        forest: the interval, drawn on the metric's scale; empty where there is none.
        p, p_adjusted: of this reading.
        chance, loss: to win, and what shipping is expected to lose; of the posterior only.
        badge: what the plan finds, whichever reading is shown.
        verdict: what is known, how sure, and what would change it, in sentences.
        remarks: what else is to be known, in sentences.
        evidence: of a guardrail that a guard watches.
    """

    variant: VariantName
    units: str
    value: Cell
    control_value: Cell
    difference: Cell
    lift: Cell
    forest: Markup
    p: Cell
    p_adjusted: Cell
    chance: Cell
    loss: Cell
    badge: Badge
    verdict: tuple[str, ...]
    remarks: tuple[str, ...]
    evidence: Evidence | None = None


class MetricView(msgspec.Struct, frozen=True):
    """A metric and its comparisons.

    Arguments:
        anchor: its id on the page.
        what: its kind, cap and covariate in words; `goal` which way is better; `window` the time.
        control: the control, its units, and its value where all comparisons have the same.
        axis: the scale of the forest column.
        is_open: whether it is unfolded at first.
        badges: what is found, in short, for when it is folded.
        is_rate, is_quantile: what its values are, if not means or ratios.
        is_watched: whether a guard gathers evidence of harm to it.
        columns: of its table.
        remarks: on the metric as a whole.
    """

    key: str
    anchor: str
    role: Role
    what: str
    goal: str
    window: str
    control: VariantName
    control_units: str
    control_value: Cell
    rows: tuple[Row, ...]
    axis: Markup
    is_open: bool
    badges: tuple[Badge, ...]
    is_rate: bool = False
    is_quantile: bool = False
    is_watched: bool = False
    columns: int = 9
    remarks: tuple[str, ...] = ()


class MetricGroup(msgspec.Struct, frozen=True):
    """The metrics of one role."""

    role: Role
    title: str
    note: str
    metrics: tuple[MetricView, ...]


class ReadingTab(msgspec.Struct, frozen=True):
    """A reading that can be shown. `link` is empty where there is nothing to switch."""

    key: Reading
    title: str
    note: str
    is_shown: bool
    is_planned: bool
    link: str


class MatrixCell(msgspec.Struct, frozen=True):
    """A metric and a treatment at a glance."""

    text: str
    tone: Tone
    words: str


class MatrixRow(msgspec.Struct, frozen=True):
    """A metric of the overview."""

    key: str
    anchor: str
    role: Role
    cells: tuple[MatrixCell, ...]


class Matrix(msgspec.Struct, frozen=True):
    """All metrics by all treatments."""

    treatments: tuple[VariantName, ...]
    rows: tuple[MatrixRow, ...]


class Metrics(msgspec.Struct, frozen=True):
    """All metrics, in one reading. `matrix` is there where there are too many for one look;
    `has_posterior` and `has_lift_range` say what the reading has."""

    reading: ReadingTab
    tabs: tuple[ReadingTab, ...]
    level: str
    groups: tuple[MetricGroup, ...]
    matrix: Matrix | None
    has_posterior: bool = False
    has_lift_range: bool = True


class Check(msgspec.Struct, frozen=True):
    """A quality check. `numbers` are what it was judged by."""

    code: QualityCode
    title: str
    severity: Severity
    subject: str
    explanation: str
    action: str
    numbers: tuple[tuple[str, str], ...]


class Quality(msgspec.Struct, frozen=True):
    """All checks of the data: what needs a look, what is good to know, and what is well."""

    badge: Badge
    headline: str
    urgent: tuple[Check, ...]
    known: tuple[Check, ...]
    well: tuple[Check, ...]


class Option(msgspec.Struct, frozen=True):
    """One of several things that can be shown. `link` is empty where there is nothing to switch."""

    text: str
    link: str
    is_shown: bool


class SegmentRow(msgspec.Struct, frozen=True):
    """A treatment against the control in one segment; `is_value` unless it is all other values."""

    segment: str
    is_value: bool
    units_control: str
    units: str
    difference: Cell
    forest: Markup
    p: Cell
    p_adjusted: Cell


class SegmentTable(msgspec.Struct, frozen=True):
    """The segments of a metric and a treatment, and whether the effect differs between them."""

    variant: VariantName
    rows: tuple[SegmentRow, ...]
    axis: Markup
    interaction: str
    badge: Badge


class BreakdownView(msgspec.Struct, frozen=True):
    """A metric by an attribute. `note` says what is left out, or why there is no table."""

    attribute: str
    metric: str
    note: str
    tables: tuple[SegmentTable, ...]


class Breakdowns(msgspec.Struct, frozen=True):
    """The breakdowns that are shown, and what else can be; `warning` is on their number. Where
    they are `deferred`, none is shown before its attribute is chosen."""

    attributes: tuple[Option, ...]
    metrics: tuple[Option, ...]
    shown: tuple[BreakdownView, ...]
    warning: str
    deferred: bool = False


class CourseView(msgspec.Struct, frozen=True):
    """How a metric went over time.

    Arguments:
        difference: with its confidence sequence, of each treatment.
        values: means, rates or quantiles of each variant.
        units: finished units of each variant.
    """

    metric: str
    anchor: str
    difference: Chart
    values: Chart
    units: Chart


class Courses(msgspec.Struct, frozen=True):
    """The metrics that are drawn over time, and which others can be."""

    metrics: tuple[Option, ...]
    shown: tuple[CourseView, ...]


class Results(msgspec.Struct, frozen=True):
    """The upper half of an experiment's page, and all of a report that stands alone.

    Arguments:
        has_begun: whether there is a run to speak of.
        has_units: whether anybody has enrolled.
        notes: what is to be known of the report's numbers.
        guard_alpha: how the guard's alpha is shared out; `on_alarm` what is done on an alarm.
    """

    key: str
    name: str
    project: str
    state: State
    run: int
    epoch: int
    started_at: datetime | None
    data_until: datetime | None
    ship: str | None
    has_begun: bool
    has_units: bool
    variants: tuple[VariantName, ...]
    conclusion: Conclusion
    metrics: Metrics
    course: Courses
    quality: Quality
    breakdowns: Breakdowns
    guard_alpha: str
    on_alarm: str
    guard_notes: tuple[str, ...]
    notes: tuple[str, ...]
