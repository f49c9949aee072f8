"""How metrics went over time, as charts. Pure."""

from collections.abc import Callable, Sequence

from analysis.chronicle.model import Course, CourseLine, CoursePoint
from analysis.reports.model import MetricReport
from analysis.reports.report import Report
from dashboard.charts.model import Line, LinePoint, Measure
from dashboard.charts.series import series
from dashboard.experiment.choice import Choice, link_to
from dashboard.experiment.results_model import Courses, CourseView, Option, VariantName
from dashboard.experiment.results_words import variants_of
from dashboard.numbers import share
from experiments.model import Experiment, Metric

MOST_DRAWN = 4
"""Primary metrics that are drawn where none is chosen."""


def drawn_of(metrics: Sequence[Metric], choice: Choice) -> tuple[str, ...]:
    """The metrics that are drawn: the one that is chosen, or the first primary ones."""
    if any(metric.key == choice.metric for metric in metrics):
        return (choice.metric or "",)
    primary = [metric.key for metric in metrics if metric.role == "primary"]
    return tuple(primary[:MOST_DRAWN]) or tuple(metric.key for metric in metrics[:1])


def courses_of(
    definition: Experiment, report: Report, course: Course | None, choice: Choice
) -> Courses:
    """How the metrics of `drawn_of` went; nothing before the first point."""
    drawn = drawn_of(definition.metrics, choice)
    known = {line.metric for line in course.lines if line.points} if course is not None else set()
    shown = [metric for metric in report.metrics if metric.key in drawn and metric.key in known]
    if course is None or not shown:
        return Courses((), ())
    names = variants_of(definition)
    return Courses(
        metrics=tuple(
            Option(m.key, link_to(choice, "course", metric=m.key), m.key in drawn)
            for m in report.metrics
            if choice.path
        ),
        shown=tuple(_view(metric, course, names, report) for metric in shown),
    )


def _view(
    metric: MetricReport, course: Course, names: Sequence[VariantName], report: Report
) -> CourseView:
    lines = [
        (name, line)
        for name in names
        if not name.is_control and (line := course.line(metric.key, name.key)).points
    ]
    of_rates = metric.kind == "proportion"
    level = share(1.0 - report.alpha)
    difference: Measure = "points" if of_rates else "number"
    value: Measure = "share" if of_rates else "number"
    return CourseView(
        metric=metric.key,
        anchor=f"course-{metric.key}",
        difference=series(
            [Line(name.key, name.place, _points(line, _difference)) for name, line in lines],
            title=f"Difference of {metric.key} to the control, any time",
            measure=difference,
            level=level,
        ),
        values=series(
            _of_all(names, lines, lambda p: p.mean_control, lambda p: p.mean_treatment),
            title=f"{metric.key} of each variant",
            measure=value,
            baseline=None,
        ),
        units=series(
            _of_all(names, lines, lambda p: p.n_control, lambda p: p.n_treatment),
            title=f"Finished units of {metric.key}",
            measure="count",
        ),
    )


def _points(
    line: CourseLine, of_point: Callable[[CoursePoint], LinePoint]
) -> tuple[LinePoint, ...]:
    return tuple(of_point(point) for point in line.points)


def _difference(point: CoursePoint) -> LinePoint:
    """A point of the reading: none before it has an interval, for it says nothing by then."""
    is_read = point.low is not None or point.high is not None
    return LinePoint(point.at, point.difference if is_read else None, point.low, point.high)


def _of_all(
    names: Sequence[VariantName],
    lines: Sequence[tuple[VariantName, CourseLine]],
    of_control: Callable[[CoursePoint], float | None],
    of_treatment: Callable[[CoursePoint], float | None],
) -> list[Line]:
    """A line of each variant; the control's is as the first comparison has it."""
    control = next(name for name in names if name.is_control)
    found = [
        Line(
            control.key,
            control.place,
            _points(line, lambda p: LinePoint(p.at, of_control(p))),
        )
        for _, line in lines[:1]
    ]
    return found + [
        Line(name.key, name.place, _points(line, lambda p: LinePoint(p.at, of_treatment(p))))
        for name, line in lines
    ]
