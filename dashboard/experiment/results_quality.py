"""The checks of a report's data, the gravest first. Pure."""

from collections.abc import Sequence

from analysis.reports.model import EXPERIMENT, QualityCheck
from dashboard.experiment.results_model import Badge, Check, Quality
from dashboard.experiment.results_words import check_title
from dashboard.numbers import number


def quality_of(checks: Sequence[QualityCheck]) -> Quality:
    """All checks, by what they ask of the reader."""
    shown = [_check(check) for check in checks]
    urgent = tuple(check for check in shown if check.severity in {"critical", "warning"})
    critical = sum(check.severity == "critical" for check in urgent)
    well = tuple(check for check in shown if check.severity == "ok")
    if critical:
        badge, headline = Badge("Not healthy", "critical"), _count(critical, "critical finding")
    elif urgent:
        badge, headline = Badge("With warnings", "warning"), _count(len(urgent), "warning")
    elif shown:
        badge, headline = Badge("Healthy", "ok"), "No check found a fault"
    else:
        badge, headline = Badge("Not checked", "neutral"), "Nothing to check before the first units"
    return Quality(
        badge=badge,
        headline=f"{headline}, of {_count(len(shown), 'check')}." if shown else f"{headline}.",
        urgent=urgent,
        known=tuple(check for check in shown if check.severity == "info"),
        well=well,
    )


def _check(check: QualityCheck) -> Check:
    return Check(
        code=check.code,
        title=check_title(check),
        severity=check.severity,
        subject="" if check.subject == EXPERIMENT else check.subject,
        explanation=check.explanation,
        action=check.action,
        numbers=tuple((name, number(value)) for name, value in check.numbers.items()),
    )


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
