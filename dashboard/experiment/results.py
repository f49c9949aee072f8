"""A report as a page shows it: conclusion, metrics, course, quality, breakdowns. Pure."""

from analysis.chronicle.model import Course
from analysis.reports.report import Report
from dashboard.experiment.choice import EVERYTHING, Choice
from dashboard.experiment.results_breakdowns import breakdowns_of
from dashboard.experiment.results_conclusion import conclusion_of
from dashboard.experiment.results_course import courses_of
from dashboard.experiment.results_metrics import metrics_of
from dashboard.experiment.results_model import Results
from dashboard.experiment.results_quality import quality_of
from dashboard.experiment.results_words import ON_ALARM, variants_of
from experiments.model import Experiment


def results_view(
    definition: Experiment,
    report: Report,
    course: Course | None = None,
    choice: Choice = EVERYTHING,
) -> Results:
    """The upper half of an experiment's page, and all of a report that stands alone.

    Args:
        definition: of the experiment, by which the report was made.
        report: of the current run, or as it once stood.
        course: how the run went; None where that is not known.
        choice: what is shown; everything, without links, by default.
    """
    has_begun = report.run > 0
    return Results(
        key=report.experiment,
        name=definition.name or report.experiment,
        project=report.project,
        state=report.state,
        run=report.run,
        epoch=report.epoch,
        started_at=report.started_at,
        data_until=report.data_until,
        ship=report.ship,
        has_begun=has_begun,
        has_units=sum(report.units.values()) > 0,
        variants=variants_of(definition),
        conclusion=conclusion_of(definition, report),
        metrics=metrics_of(definition, report, choice),
        course=courses_of(definition, report, course, choice),
        quality=quality_of(report.quality),
        breakdowns=breakdowns_of(definition, report, choice),
        guard_alpha=report.guard_alpha,
        on_alarm=ON_ALARM[report.guard_action] if report.guard else "",
        guard_notes=_guard_notes(report),
        notes=report.notes,
    )


def _guard_notes(report: Report) -> tuple[str, ...]:
    """What is to be known of the guard besides its alpha."""
    notes = [
        f"{variant} is rolled back and gets no traffic until it is resumed: {reason.rstrip('.')}."
        for variant, reason in report.rolled_back.items()
    ]
    if report.guard_generation > 1:
        notes.append(
            f"This is generation {report.guard_generation} of the guard: a hand has resumed what "
            "was stopped, or overruled an alarm, so alpha and evidence began afresh, and the bound "
            "holds for each generation by itself."
        )
    return tuple(notes)
