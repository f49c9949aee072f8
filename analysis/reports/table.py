"""The report as a table: one flat record for each comparison and reading, with stable names."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from analysis.inference.estimate import Comparison
from analysis.inference.planned import PlannedReading
from analysis.inference.tails import to_log10
from analysis.reports.breakdowns import SegmentComparison
from analysis.reports.model import Action, Continuous, MetricComparison, MetricReport
from analysis.reports.report import Report

RowReading = Literal["fixed", "continuous", "planned", "bayesian", "batched_ols"]
"""Where the numbers of a row come from. `planned` are those of the last look that was taken.
`fixed` are the textbook's on all units so far; of a fixed plan those of its look, once taken."""


_SAME: Final = 1e-6
"""Of the width of an interval: two whose ends are as close as this are one, but for rounding."""
_FORMULA: Final = re.compile(r"(^|[;\t\r\n])(?=[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20])")
"""Where a formula begins, for one spreadsheet or another, some of which part cells at a semicolon.

SOURCE: OWASP, "CSV Injection".
"""


class Row(msgspec.Struct, frozen=True):
    """One reading of one comparison. What is not defined, or not a number of this reading, is None.

    Arguments:
        experiment, run: which run.
        metric, role, kind, goal: of the metric.
        attribute, segment: of a breakdown, the units with this value of the attribute, which is
            JSON text or `(others)`; None of all units.
        treatment, control: the variants compared.
        reading: where the numbers come from.
        concludes: whether the plan's conclusion stands on this row.
        method, test: how the difference was estimated; where interval and p-value come from.
        alpha: 1 - the level of the intervals.
        n_control, n_treatment: the units behind it.
        mean_control, mean_treatment, difference, std_error, ci_low, ci_high: in the metric's unit.
        p_value, log10_p_value, p_adjusted: raw, its decimal logarithm, and adjusted.
        lift, lift_ci_low, lift_ci_high: as fractions. The any-time reading has no interval of the
            lift, and a look none where its own is a wider one than a single look's.
        chance_to_win, expected_loss, expected_loss_control: of the posterior.
        detectable_effect: as in `MetricComparison`.
        action: what the comparison advises.
        notes: codes, separated by spaces.
    """

    experiment: str
    run: int
    metric: str
    role: str
    kind: str
    goal: str
    treatment: str
    control: str
    attribute: str | None
    segment: str | None
    reading: RowReading
    concludes: bool
    alpha: float
    method: str | None = None
    test: str | None = None
    n_control: int | None = None
    n_treatment: int | None = None
    mean_control: float | None = None
    mean_treatment: float | None = None
    difference: float | None = None
    std_error: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    log10_p_value: float | None = None
    p_adjusted: float | None = None
    lift: float | None = None
    lift_ci_low: float | None = None
    lift_ci_high: float | None = None
    chance_to_win: float | None = None
    expected_loss: float | None = None
    expected_loss_control: float | None = None
    detectable_effect: float | None = None
    action: Action | None = None
    notes: str = ""


def rows(report: Report) -> Iterator[Row]:
    """The records of a report: by metric, treatment and reading; then those of its breakdowns."""
    for metric in report.metrics:
        for c in metric.comparisons:
            blank = _blank(metric, c.treatment, report)
            yield from _readings(msgspec.structs.replace(blank, action=c.verdict.action), c, report)
    metrics = {metric.key: metric for metric in report.metrics}
    for breakdown in report.breakdowns:
        for row in breakdown.segments:
            blank = _blank(metrics[breakdown.metric], row.treatment, report)
            yield from _of_segment(blank, row, report)


def to_csv(report: Report) -> str:
    """The table as CSV with a header. A cell is empty where its number is not defined.

    A spreadsheet takes text that begins like a formula for one, and may run it. Names and values of
    attributes are the only text here in which that could do harm: keys hold no character that a
    formula needs. So names get an apostrophe in front. Values are JSON, where a cell could begin
    at a semicolon only, which is written as an escape then: it is the same value.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(Row.__struct_fields__)
    for row in rows(report):
        writer.writerow(
            "" if cell is None else cell for cell in msgspec.structs.astuple(_tame(row))
        )
    return text.getvalue()


def _tame(row: Row) -> Row:
    """A row in which nothing is a formula."""
    if row.attribute is None or row.segment is None:
        return row
    return msgspec.structs.replace(
        row,
        attribute=_FORMULA.sub(r"\1'", row.attribute),
        segment=_FORMULA.sub(lambda found: "\\u003b" if found[1] else "", row.segment),
    )


def _blank(metric: MetricReport, treatment: str, report: Report) -> Row:
    return Row(
        experiment=report.experiment,
        run=report.run,
        metric=metric.key,
        role=metric.role,
        kind=metric.kind,
        goal=metric.goal,
        treatment=treatment,
        control=report.control,
        attribute=None,
        segment=None,
        reading="fixed",
        concludes=False,
        alpha=report.alpha,
    )


def _readings(blank: Row, c: MetricComparison, report: Report) -> Iterator[Row]:
    concludes = blank.role == "primary"
    looked, is_fixed = _of_looks(blank, c), report.reading == "fixed"
    if looked is not None:
        looked = msgspec.structs.replace(
            looked, concludes=concludes and report.reading in {"fixed", "planned"}
        )
    fixed = msgspec.structs.replace(_of_comparison(blank, c.fixed), p_adjusted=c.fixed_p_adjusted)
    yield msgspec.structs.replace(
        looked if looked is not None and is_fixed else fixed,
        detectable_effect=c.detectable_effect,
    )
    yield msgspec.structs.replace(
        _of_sequence(blank, c.continuous),
        concludes=concludes and report.reading == "continuous",
        p_adjusted=c.continuous.p_adjusted,
    )
    if looked is not None and not is_fixed:
        yield msgspec.structs.replace(looked, reading="planned")
    if (read := c.bayesian) is not None:
        yield msgspec.structs.replace(
            blank,
            reading="bayesian",
            concludes=concludes,
            n_control=c.continuous.n_control,
            n_treatment=c.continuous.n_treatment,
            difference=read.difference,
            std_error=read.std_dev,
            ci_low=read.ci_low,
            ci_high=read.ci_high,
            lift=read.lift,
            lift_ci_low=read.lift_ci_low,
            lift_ci_high=read.lift_ci_high,
            chance_to_win=read.chance_to_win,
            expected_loss=read.expected_loss,
            expected_loss_control=read.expected_loss_control,
        )
    if (batched := c.batched_ols) is not None:
        yield msgspec.structs.replace(
            blank,
            reading="batched_ols",
            difference=batched.difference,
            std_error=batched.std_error,
            ci_low=batched.ci_low,
            ci_high=batched.ci_high,
            p_value=batched.p_value,
            log10_p_value=batched.log10_p_value,
            notes=" ".join(batched.notes),
        )


def _of_looks(blank: Row, c: MetricComparison) -> Row | None:
    """The last look that was taken, with the interval and p-value that allow for all of them; None
    before the first."""
    if c.planned is None or not c.planned.looks:
        return None
    planned, last = c.planned, c.planned.looks[-1].comparison
    row = blank if last is None else _of_comparison(blank, last)
    row = msgspec.structs.replace(
        row,
        ci_low=planned.ci_low,
        ci_high=planned.ci_high,
        p_value=planned.p_value,
        p_adjusted=c.planned_p_adjusted,
    )
    if last is not None and _is_single(planned, last):
        return row
    return msgspec.structs.replace(row, log10_p_value=None, lift_ci_low=None, lift_ci_high=None)


def _is_single(planned: PlannedReading, look: Comparison) -> bool:
    """Whether the interval over all looks is that of this one alone."""
    ends = planned.ci_low, planned.ci_high, look.ci_low, look.ci_high
    if None in ends or len(planned.looks) > 1:
        return False
    low, high, own_low, own_high = (end or 0.0 for end in ends)
    moved = max(abs(low - own_low), abs(high - own_high))
    return moved <= _SAME * (own_high - own_low)


def _of_segment(blank: Row, row: SegmentComparison, report: Report) -> Iterator[Row]:
    value = row.segment.value
    blank = msgspec.structs.replace(
        blank,
        attribute=row.segment.attribute,
        segment="(others)" if value is None else value,
    )
    for read in (_of_comparison(blank, row.fixed), _of_sequence(blank, row.continuous)):
        is_adjusted = (report.reading == "continuous") == (read.reading == "continuous")
        yield msgspec.structs.replace(read, p_adjusted=row.p_adjusted if is_adjusted else None)


def _of_sequence(blank: Row, continuous: Continuous) -> Row:
    reading = continuous.reading
    return msgspec.structs.replace(
        blank,
        reading="continuous",
        method=continuous.method,
        n_control=continuous.n_control,
        n_treatment=continuous.n_treatment,
        difference=continuous.difference,
        ci_low=reading.ci_low,
        ci_high=reading.ci_high,
        p_value=reading.p_value,
        log10_p_value=None if reading.log_e is None else -to_log10(max(reading.log_e, 0.0)),
        mean_control=continuous.mean_control,
        mean_treatment=continuous.mean_treatment,
        lift=continuous.lift,
    )


def _of_comparison(blank: Row, comparison: Comparison) -> Row:
    return msgspec.structs.replace(
        blank,
        method=comparison.method,
        test=comparison.test,
        n_control=comparison.n_control,
        n_treatment=comparison.n_treatment,
        mean_control=comparison.mean_control,
        mean_treatment=comparison.mean_treatment,
        difference=comparison.difference,
        std_error=comparison.std_error,
        ci_low=comparison.ci_low,
        ci_high=comparison.ci_high,
        p_value=comparison.p_value,
        log10_p_value=comparison.log10_p_value,
        lift=comparison.lift,
        lift_ci_low=comparison.lift_ci_low,
        lift_ci_high=comparison.lift_ci_high,
        notes=" ".join(comparison.notes),
    )
