"""From a report to what a list shows of it. Pure."""

from collections import Counter
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from analysis.chronicle.model import Glance, Lead, RampGlance
from analysis.control.ramp_api import RampView
from analysis.reports.model import (
    MetricComparison,
    MetricReport,
    QualityCheck,
    QualityCode,
    Severity,
)
from analysis.reports.report import Report
from experiments.model import Reading

OVERDUE: Final = timedelta(minutes=10)
"""How long a step of a ramp may lack evidence after its hold, before that is news for a person: it
always takes as long as the guard's blocks take to close."""
_STOPPED: Final[frozenset[QualityCode]] = frozenset(("enrolment_stopped", "outcomes_stopped"))
_GRAVE: Final[frozenset[Severity]] = frozenset(("warning", "critical"))
_ALL_WELL: Final = QualityCheck("sample_ratio", "ok", "", "")


class _Numbers(msgspec.Struct, frozen=True):
    """What a reading says of a difference."""

    difference: float | None = None
    low: float | None = None
    high: float | None = None


def glance_of(
    report: Report, at: datetime, *, final: bool = False, ramp: RampView | None = None
) -> Glance:
    """A report at a glance.

    Args:
        report: of the current run.
        at: when it was made.
        final: whether all data of a run that is over have come.
        ramp: as it stands then; None where there is none.
    """
    # The gravest check comes first; one that is well has nothing to say in a list.
    worst = next((check for check in report.quality if check.severity != "ok"), _ALL_WELL)
    counted: Counter[Severity] = Counter(check.severity for check in report.quality)
    return Glance(
        at=at,
        run=report.run,
        state=report.state,
        data_until=report.data_until,
        health=worst.severity,
        checks=dict(counted),
        worst=worst.explanation,
        worst_action=worst.action,
        worst_subject=worst.subject,
        action=report.verdict.action,
        variant=report.verdict.variant,
        headline=report.conclusion,
        more_seconds=report.verdict.more_seconds,
        units=sum(report.units.values()),
        lead=_lead(report),
        alarms=sum(row.alarm for row in report.guard if row.variant not in report.rolled_back),
        final=final,
        stopped=any(c.code in _STOPPED and c.severity in _GRAVE for c in report.quality),
        ramp=None if ramp is None else _ramp(ramp, at),
    )


def _ramp(view: RampView, at: datetime) -> RampGlance | None:
    if view.step is None or view.status == "ended":
        return None
    due = view.due_at or view.since
    waits_for: Literal["approval", "evidence"] | None = None
    if view.status == "awaiting_approval":
        waits_for = "approval"
    elif view.status == "inconclusive" and due is not None and at - due > OVERDUE:
        waits_for = "evidence"
    return RampGlance(view.step, len(view.steps), waits_for, view.reason)


def _lead(report: Report) -> Lead | None:
    primary = [metric for metric in report.metrics if metric.role == "primary"]
    found = [(metric, c) for metric in primary for c in metric.comparisons]
    if not found:
        return None
    shipped = [
        (metric, c)
        for metric, c in found
        if c.treatment == report.verdict.variant and c.verdict.finding == "better"
    ]
    if shipped:
        metric, comparison = shipped[0]
    else:
        metric = primary[0]
        comparison = max(metric.comparisons, key=lambda c: _gain(c, metric, report.reading))
    numbers = _numbers(comparison, report.reading)
    return Lead(
        metric=metric.key,
        kind=metric.kind,
        goal=metric.goal,
        treatment=comparison.treatment,
        reading=report.reading,
        difference=numbers.difference,
        low=numbers.low,
        high=numbers.high,
        lift=_lift(numbers.difference, _control(comparison, report.reading)),
        finding=comparison.verdict.finding,
    )


def _control(comparison: MetricComparison, reading: Reading) -> float | None:
    """The control's mean of the units that the reading counts."""
    if reading in {"continuous", "bayesian"}:
        return comparison.continuous.mean_control
    looks = () if comparison.planned is None else comparison.planned.looks
    then = looks[-1].comparison if looks else None
    return (then or comparison.fixed).mean_control


def _lift(difference: float | None, control: float | None) -> float | None:
    """As in a comparison, so that it never has another sign than its difference."""
    return None if difference is None or not control else difference / abs(control)


def _gain(
    comparison: MetricComparison, metric: MetricReport, reading: Reading
) -> tuple[bool, float]:
    """How much better the treatment looks: by the reading, where that says something; those of
    which it says nothing yet come behind, by all units so far."""
    said = _numbers(comparison, reading).difference
    difference = comparison.fixed.difference if said is None else said
    if difference is None:
        return False, float("-inf")
    return said is not None, difference if metric.goal == "increase" else -difference


def _numbers(comparison: MetricComparison, reading: Reading) -> _Numbers:
    """What the plan's reading says; nothing where it has no interval."""
    numbers = _read(comparison, reading)
    return _Numbers() if numbers.low is None and numbers.high is None else numbers


def _read(comparison: MetricComparison, reading: Reading) -> _Numbers:
    if reading == "continuous":
        sequence = comparison.continuous
        return _Numbers(sequence.difference, sequence.reading.ci_low, sequence.reading.ci_high)
    if reading == "bayesian":
        read = comparison.bayesian
        return _Numbers() if read is None else _Numbers(read.difference, read.ci_low, read.ci_high)
    planned = comparison.planned
    if planned is None or not planned.looks:
        return _Numbers()
    return _Numbers(planned.looks[-1].difference, planned.ci_low, planned.ci_high)
