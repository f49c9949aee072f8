"""The breakdowns of a report. They explore: no conclusion stands on them. Pure."""

from collections.abc import Sequence

from analysis.reports.breakdowns import Breakdown, Interaction, SegmentComparison
from analysis.reports.report import Report
from dashboard.charts.forest import forest_axis, forest_cell, forest_scale
from dashboard.charts.model import ForestRow, Measure
from dashboard.charts.scales import Scale
from dashboard.experiment.choice import Choice, link_to
from dashboard.experiment.results_model import (
    Badge,
    Breakdowns,
    BreakdownView,
    Cell,
    Option,
    SegmentRow,
    SegmentTable,
    VariantName,
)
from dashboard.experiment.results_words import (
    change_of,
    few_of,
    joined,
    missing,
    range_of,
    reasons_of,
    variants_of,
)
from dashboard.numbers import p_value
from experiments.model import Experiment, Reading


def breakdowns_of(definition: Experiment, report: Report, choice: Choice) -> Breakdowns:
    """The breakdown of the metric by the attribute that are chosen; all of them where there is
    nothing to choose."""
    found = report.breakdowns
    attributes = list(dict.fromkeys(b.attribute for b in found))
    metrics = list(dict.fromkeys(b.metric for b in found))
    if choice.defers:
        return Breakdowns(
            attributes=tuple(
                Option(a, link_to(choice, "breakdowns", attribute=a), is_shown=False)
                for a in attributes
            ),
            metrics=(),
            shown=(),
            warning=f"They are {choice.defers:,} comparisons of segments, which take a moment: "
            "choose the attribute to see them.",
            deferred=True,
        )
    count = sum(len(b.segments) for b in found)
    attribute = choice.attribute if choice.attribute in attributes else next(iter(attributes), "")
    metric = choice.metric if choice.metric in metrics else next(iter(metrics), "")
    shown = [
        b for b in found if not choice.path or (b.attribute == attribute and b.metric == metric)
    ]
    names = variants_of(definition)
    return Breakdowns(
        attributes=tuple(
            Option(a, link_to(choice, "breakdowns", attribute=a), a == attribute)
            for a in attributes
        ),
        metrics=tuple(
            Option(m, link_to(choice, "breakdowns", metric=m), m == metric) for m in metrics
        ),
        shown=tuple(_view(b, report.reading, names) for b in shown),
        warning=(
            f"They explore: no conclusion stands on them. With {count:,} looks at segments some "
            "differ by chance, so read the adjusted p, which controls the share of false findings "
            "over all of them."
        ),
    )


def _view(found: Breakdown, reading: Reading, names: Sequence[VariantName]) -> BreakdownView:
    if found.note == "quantile":
        return BreakdownView(found.attribute, found.metric, "Quantiles are not broken down.", ())
    missing_units = sum(found.missing.values())
    measure: Measure = "points" if found.kind == "proportion" else "number"
    drawn = [_drawn(row, reading) for row in found.segments]
    scale = forest_scale(drawn, measure)
    rows = list(zip(found.segments, drawn, strict=True))
    interactions = {i.treatment: i for i in found.interactions}
    return BreakdownView(
        attribute=found.attribute,
        metric=found.metric,
        note=f"{missing_units:,} units came without {found.attribute}, so are in no segment."
        if missing_units
        else "",
        tables=tuple(
            SegmentTable(
                variant=name,
                rows=tuple(
                    _row(row, drawn_row, found, reading, scale)
                    for row, drawn_row in rows
                    if row.treatment == name.key
                ),
                axis=forest_axis(scale),
                interaction=_words(interactions[name.key]),
                badge=_badge(interactions[name.key]),
            )
            for name in names
            if name.key in interactions
        ),
    )


def _row(
    row: SegmentComparison, drawn: ForestRow, found: Breakdown, reading: Reading, scale: Scale
) -> SegmentRow:
    why = _why(row, reading)
    low, high = _ends(row, reading)
    difference = None if low is None and high is None else _difference(row, reading)
    return SegmentRow(
        segment="all other values" if row.segment.value is None else row.segment.value,
        is_value=row.segment.value is not None,
        units_control=f"{row.units_control:,}",
        units=f"{row.units_treatment:,}",
        difference=missing(why)
        if difference is None
        else Cell(
            change_of(found.kind, difference, low, high),
            range_of(found.kind, low, high, difference),
            why,
        ),
        forest=forest_cell(drawn, scale),
        p=missing(why) if row.p_value is None else Cell(p_value(row.p_value)),
        p_adjusted=missing(why) if row.p_adjusted is None else Cell(p_value(row.p_adjusted)),
    )


def _drawn(row: SegmentComparison, reading: Reading) -> ForestRow:
    low, high = _ends(row, reading)
    is_drawn = low is not None or high is not None
    return ForestRow(
        label=row.treatment,
        value=_difference(row, reading) if is_drawn else None,
        low=low,
        high=high,
        missing="no interval yet",
    )


def _difference(row: SegmentComparison, reading: Reading) -> float | None:
    return row.continuous.difference if reading == "continuous" else row.fixed.difference


def _ends(row: SegmentComparison, reading: Reading) -> tuple[float | None, float | None]:
    if reading == "continuous":
        return row.continuous.reading.ci_low, row.continuous.reading.ci_high
    return row.fixed.ci_low, row.fixed.ci_high


def _why(row: SegmentComparison, reading: Reading) -> str:
    reasons = reasons_of(row.fixed)
    if reading == "continuous" and (few := few_of(row.continuous)):
        return joined([few])
    return joined(reasons)


def _words(found: Interaction) -> str:
    """Whether the segments differ, as the report says it."""
    if found.note is not None:
        return "Too few segments with enough units to compare them."
    holds = "holds for one planned look" if found.test == "cochran_q" else "holds at any time"
    left_out = f"; {len(found.left_out)} segments are too small" if found.left_out else ""
    return (
        f"Do the segments differ? p {p_value(found.p_value)}, adjusted "
        f"{p_value(found.p_adjusted)} ({holds}, {len(found.compared)} segments{left_out})."
    )


def _badge(found: Interaction) -> Badge:
    return Badge("Not compared" if found.note is not None else "Exploratory")
