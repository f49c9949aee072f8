"""The metrics of a report in one reading: a table a metric, and an overview of many. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from markupsafe import Markup
from msgspec import structs

from analysis.inference.bayes import BayesianReading
from analysis.inference.estimate import Comparison
from analysis.reports.harm import way, way_words
from analysis.reports.model import GuardView, MetricComparison, MetricReport
from analysis.reports.report import Report
from analysis.reports.words import BOUNDS
from dashboard import numbers
from dashboard.charts.forest import forest_axis, forest_cell, forest_scale
from dashboard.charts.model import ForestRow, Measure
from dashboard.charts.model import Tone as ForestTone
from dashboard.experiment.choice import Choice, link_to
from dashboard.experiment.results_model import (
    Badge,
    Cell,
    Evidence,
    Matrix,
    MatrixCell,
    MatrixRow,
    MetricGroup,
    Metrics,
    MetricView,
    ReadingTab,
    Row,
    VariantName,
)
from dashboard.experiment.results_remarks import metric_remarks, remarks_on, verdict_words
from dashboard.experiment.results_words import (
    GOALS,
    MISSING,
    READINGS,
    ROLES,
    badge_of,
    change_of,
    few_of,
    interval,
    joined,
    kind_of,
    level_of,
    missing,
    range_of,
    reasons_of,
    variants_of,
)
from experiments.model import Experiment, Reading, Role

OPEN_ROWS: Final = 30
"""Comparisons that are unfolded at first: what one still reads through."""
GLANCE: Final = 12
"""Comparisons beyond which an overview stands above the tables."""
_ANY_TIME: Final = "The any-time reading: looks are taken at primary metrics only."
_ROLES: Final[tuple[Role, ...]] = ("primary", "secondary", "guardrail")


class Numbers(NamedTuple):
    """A comparison in one reading, as floats; `why` says what is missing."""

    n_control: int
    n_treatment: int
    mean_control: float | None
    mean_treatment: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: str
    p_adjusted: float | None
    why: str
    lift: float | None = None
    lift_low: float | None = None
    lift_high: float | None = None


def metrics_of(definition: Experiment, report: Report, choice: Choice) -> Metrics:
    """All metrics, in the reading that is chosen, or the plan's."""
    tabs = _tabs(report, choice)
    shown = next(tab for tab in tabs if tab.is_shown)
    names = variants_of(definition)
    guard = {(row.guardrail, row.variant): row for row in report.guard}
    groups, left = [], OPEN_ROWS
    for role in _ROLES:
        views = []
        for metric in (m for m in report.metrics if m.role == role):
            view = _view(metric, report, names, shown.key, guard)
            left -= len(view.rows)
            is_loud = any(badge.tone == "critical" for badge in view.badges)
            is_open = not choice.path or left >= 0 or is_loud
            views.append(structs.replace(view, is_open=is_open))
        if views:
            title, note = ROLES[role]
            if shown.key == "planned" and role != "primary":
                note = f"{note} {_ANY_TIME}"
            groups.append(MetricGroup(role, title, note, tuple(views)))
    count = sum(len(metric.comparisons) for metric in report.metrics)
    return Metrics(
        reading=shown,
        tabs=tabs,
        level=numbers.share(1.0 - report.alpha),
        groups=tuple(groups),
        matrix=_matrix(groups, names) if count > GLANCE else None,
        has_posterior=shown.key == "bayesian",
        has_lift_range=shown.key in {"fixed", "bayesian"},
    )


def _tabs(report: Report, choice: Choice) -> tuple[ReadingTab, ...]:
    """The readings that there are, the plan's first."""
    looks = report.reading in {"fixed", "planned"}
    planned: Reading = "planned" if looks else report.reading
    there: list[Reading] = ["continuous", "fixed"]
    if planned not in there:
        there.append(planned)
    there.sort(key=lambda key: key != planned)
    wanted = choice.reading if choice.reading in there else planned
    tabs = []
    for key in there:
        title, note = READINGS[key]
        tabs.append(
            ReadingTab(
                key=key,
                title="The planned look"
                if key == "planned" and report.reading == "fixed"
                else title,
                note=note,
                is_shown=key == wanted,
                is_planned=key == planned,
                link=link_to(choice, "metrics", reading=key),
            )
        )
    return tuple(tabs)


def _view(
    metric: MetricReport,
    report: Report,
    names: Sequence[VariantName],
    reading: Reading,
    guard: dict[tuple[str, str], GuardView],
) -> MetricView:
    control = next(name for name in names if name.is_control)
    by_key = {name.key: name for name in names}
    if reading == "planned" and metric.role != "primary":
        reading = "continuous"  # no look is taken at the others
    read = [_numbers(c, metric, reading) for c in metric.comparisons]
    badges = [
        badge_of(
            c,
            metric,
            report.alpha,
            guard.get((metric.key, c.treatment)),
            is_rolled_back=c.treatment in report.rolled_back,
        )
        for c in metric.comparisons
    ]
    rows = [
        ForestRow(
            label=c.treatment,
            value=n.difference if n.low is not None or n.high is not None else None,
            low=n.low,
            high=n.high,
            tone=_DRAWN.get(badge.text, "none"),
            place=by_key[c.treatment].place,
            goal=metric.goal,
            harm_from=_harm_from(metric, guard.get((metric.key, c.treatment)), n),
            missing="no interval yet",
        )
        for c, n, badge in zip(metric.comparisons, read, badges, strict=True)
    ]
    measure: Measure = "points" if metric.kind == "proportion" else "number"
    scale = forest_scale(rows, measure)
    values = {level_of(metric, n.mean_control) for n in read}
    is_common = len(values) == 1
    n_control = {n.n_control for n in read}
    is_watched = any((metric.key, c.treatment) in guard for c in metric.comparisons)
    return MetricView(
        key=metric.key,
        anchor=f"metric-{metric.key}",
        role=metric.role,
        what=kind_of(metric),
        goal=GOALS[metric.goal],
        window=metric.window,
        control=control,
        control_units=f"{n_control.pop():,}" if len(n_control) == 1 else "by row",
        control_value=(
            _control_value(metric, control.key, read)
            if is_common
            else Cell("by row", why="The epochs that are compared differ by treatment.")
        ),
        rows=tuple(
            _row(
                c,
                n,
                metric,
                report,
                by_key[c.treatment],
                badge,
                guard.get((metric.key, c.treatment)),
                forest_cell(row, scale),
                own_control=not is_common,
            )
            for c, n, badge, row in zip(metric.comparisons, read, badges, rows, strict=True)
        ),
        axis=forest_axis(scale),
        is_open=True,
        badges=_counted(badges),
        is_rate=metric.kind == "proportion",
        is_quantile=metric.kind == "quantile",
        is_watched=is_watched,
        columns=10 if reading == "bayesian" and is_watched else 9,
        remarks=metric_remarks(metric),
    )


_DRAWN: Final[dict[str, ForestTone]] = {
    "Better": "better",
    "Worse": "worse",
    "Alarm": "worse",
    "Harm": "worse",
    "Open": "open",
}
"""How a finding is drawn, by its badge; any other one without a judgement: a guardrail that does
not alarm is not known to be better, and data that are not to be trusted show nothing."""


def _numbers(c: MetricComparison, metric: MetricReport, reading: Reading) -> Numbers:
    fixed = c.fixed
    match reading:
        case "continuous":
            sequence = c.continuous.reading
            is_read = sequence.ci_low is not None or sequence.ci_high is not None
            return Numbers(
                c.continuous.n_control,
                c.continuous.n_treatment,
                c.continuous.mean_control,
                c.continuous.mean_treatment,
                c.continuous.difference if is_read else None,
                sequence.ci_low,
                sequence.ci_high,
                numbers.p_value(sequence.p_value),
                c.continuous.p_adjusted,
                joined([few_of(c.continuous) or _undefined(fixed)]),
                c.continuous.lift if is_read else None,
            )
        case "fixed":
            return Numbers(
                fixed.n_control,
                fixed.n_treatment,
                fixed.mean_control,
                fixed.mean_treatment,
                fixed.difference,
                fixed.ci_low,
                fixed.ci_high,
                numbers.p_value(fixed.p_value),
                c.fixed_p_adjusted,
                joined(reasons_of(fixed)),
                fixed.lift,
                fixed.lift_ci_low,
                fixed.lift_ci_high,
            )
        case "planned":
            return _looked(c)
        case "bayesian":
            read = c.bayesian or BayesianReading("normal", "", fixed.alpha)
            return Numbers(
                c.continuous.n_control,
                c.continuous.n_treatment,
                c.continuous.mean_control,
                c.continuous.mean_treatment,
                read.difference,
                read.ci_low,
                read.ci_high,
                MISSING,
                None,
                joined([few_of(c.continuous) or _undefined(fixed)]),
                read.lift,
                read.lift_ci_low,
                read.lift_ci_high,
            )


def _looked(c: MetricComparison) -> Numbers:
    """The last look that was taken."""
    fixed, planned = c.fixed, c.planned
    if planned is None or not planned.looks:
        n = fixed.n_control, fixed.n_treatment, fixed.mean_control, fixed.mean_treatment
        return Numbers(*n, None, None, None, MISSING, None, "No look has been taken yet.")
    last = planned.looks[-1]
    then = last.comparison or fixed
    return Numbers(
        then.n_control,
        then.n_treatment,
        then.mean_control,
        then.mean_treatment,
        last.difference,
        planned.ci_low,
        planned.ci_high,
        numbers.p_value(planned.p_value),
        c.planned_p_adjusted,
        joined(reasons_of(then)),
        then.lift,
    )


def _undefined(comparison: Comparison) -> str:
    return "; ".join(reasons_of(comparison))


def _row(
    c: MetricComparison,
    n: Numbers,
    metric: MetricReport,
    report: Report,
    name: VariantName,
    badge: Badge,
    guard: GuardView | None,
    drawn: Markup,
    *,
    own_control: bool,
) -> Row:
    bayesian, kind = c.bayesian, metric.kind
    quantile = metric.arms[c.treatment].quantile
    return Row(
        variant=name,
        units=f"{n.n_treatment:,}",
        value=_level(metric, n.mean_treatment, n.why)
        if quantile is None
        else Cell(
            level_of(metric, quantile.value),
            interval(metric, quantile.ci_low, quantile.ci_high),
        ),
        control_value=_level(metric, n.mean_control, n.why) if own_control else Cell(""),
        difference=missing(n.why)
        if n.difference is None
        else Cell(
            change_of(kind, n.difference, n.low, n.high),
            range_of(kind, n.low, n.high, n.difference),
            n.why,
        ),
        lift=_lift(c, n),
        forest=drawn,
        p=_p(n.p, n.why),
        p_adjusted=_p(numbers.p_value(n.p_adjusted), _not_adjusted(metric, n.why)),
        chance=missing(n.why)
        if bayesian is None or bayesian.chance_to_win is None
        else Cell(numbers.chance(bayesian.chance_to_win)),
        loss=missing(n.why)
        if bayesian is None or bayesian.expected_loss is None
        else Cell(change_of(kind, bayesian.expected_loss).lstrip("+")),
        badge=badge,
        verdict=verdict_words(c.verdict),
        remarks=remarks_on(c, metric, report.control),
        evidence=None if guard is None else _evidence(guard, metric),
    )


def _lift(c: MetricComparison, n: Numbers) -> Cell:
    """The lift of the reading that is shown, in the digits of its interval; where it claims none,
    of that of the difference, which it is a multiple of."""
    if n.lift is None:
        return missing(n.why if n.difference is None and n.why else joined(reasons_of(c.fixed)))
    spread = numbers.spread_of(n.lift_low, n.lift_high, n.lift)
    if spread is None and n.difference:
        own = numbers.spread_of(n.low, n.high, n.difference)
        spread = None if own is None else own * abs(n.lift / n.difference)
    return Cell(
        numbers.lift(n.lift, spread),
        ""
        if n.lift_low is None or n.lift_high is None
        else f"{numbers.interval_of_shares(n.lift_low, n.lift_high)}{numbers.PER_CENT}",
    )


def _level(metric: MetricReport, value: float | None, why: str) -> Cell:
    return missing(why) if value is None else Cell(level_of(metric, value))


def _p(text: str, why: str) -> Cell:
    return Cell(text) if text != MISSING else missing(why)


def _not_adjusted(metric: MetricReport, why: str) -> str:
    if metric.role == "guardrail":
        return "A guardrail is not corrected: the guard's alpha is shared out beforehand."
    return why


def _control_value(metric: MetricReport, control: str, read: Sequence[Numbers]) -> Cell:
    quantile = metric.arms[control].quantile
    if quantile is not None and quantile.value is not None:
        ends = interval(metric, quantile.ci_low, quantile.ci_high)
        return Cell(level_of(metric, quantile.value), ends)
    return _level(metric, read[0].mean_control, read[0].why)


def _evidence(row: GuardView, metric: MetricReport) -> Evidence:
    margin = (
        f"{numbers.share(row.margin)} of the control"
        if row.relative
        else change_of(metric.kind, row.margin).lstrip("+")
    )
    return Evidence(
        percent=round(100 * way(row)),
        words="Alarm" if row.alarm else f"{way_words(row)} of the way to an alarm",
        hint=f"Evidence of harm e^{row.log_peak:.2f}, alarm at e^{row.log_threshold:.2f}.",
        margin=margin,
        bound=f"{BOUNDS[row.bound]}; alpha {row.alpha_share:.3g}",
        alarm=row.alarm,
    )


def _harm_from(metric: MetricReport, row: GuardView | None, n: Numbers) -> float | None:
    """The difference from which on harm is more than is tolerated."""
    if row is None:
        return None
    margin = row.margin
    if row.relative:
        if n.mean_control is None:
            return None
        margin *= abs(n.mean_control)
    return -margin if metric.goal == "increase" else margin


def _counted(badges: Sequence[Badge]) -> tuple[Badge, ...]:
    """The findings of a metric in short: what several treatments have in common once."""
    counts = Counter((badge.text, badge.tone) for badge in badges)
    if len(badges) == 1:
        return tuple(badges)
    return tuple(
        Badge(text if count == len(badges) else f"{text} ({count})", tone)
        for (text, tone), count in counts.items()
    )


def _matrix(groups: Sequence[MetricGroup], names: Sequence[VariantName]) -> Matrix:
    treatments = tuple(name for name in names if not name.is_control)
    return Matrix(
        treatments,
        tuple(
            MatrixRow(view.key, view.anchor, view.role, tuple(_glance(row) for row in view.rows))
            for group in groups
            for view in group.metrics
        ),
    )


def _glance(row: Row) -> MatrixCell:
    """A comparison at a glance: its lift, or its difference where it has none."""
    shown = row.difference if row.lift.text == MISSING else row.lift
    return MatrixCell(shown.text, row.badge.tone, row.badge.text)
