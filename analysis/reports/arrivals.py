"""Whether data still arrive, and in time: the checks of how a run's data came. Pure."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

import msgspec

from analysis.folding.metrics import run_metric
from analysis.inference.health import LEAST_PAUSE, Arrivals, EventHealth
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.reports.model import EXPERIMENT, Facts, QualityCheck, QualityCode, Severity
from analysis.reports.words import duration, percent
from experiments.model import parse_duration

LATE: Final = 0.01
"""The share of outcomes, or of values, that may come late."""
_A_DAY: Final = timedelta(days=1)
_USUAL: Final = (
    "Nothing, if all who can be enrolled are, or nobody comes at this hour; else look whether the "
    "service still asks for assignments, and whom the targeting lets in."
)
STALE: Final = timedelta(minutes=5)
"""How old the watermark of a running experiment may be: routers ship every second or so."""


def arrivals(facts: Facts) -> Iterator[QualityCheck]:
    """Whether the report is up to date, units and outcomes keep coming, and outcomes come soon."""
    if facts.state == "running":
        yield from _stale(facts)
        yield from _enrolment_stopped(facts)
    windows = _windows(facts)
    for event in windows:
        found = facts.health.events.get(event)
        if found is None or found.received.n == 0:
            continue
        yield _delay(facts, event, found, windows[event])
        if facts.state == "running":
            yield from _silence(
                facts,
                found.received,
                "outcomes_stopped",
                event,
                f"Outcomes of {event}",
                "Look whether the service that reports them still does, and reaches a router.",
            )


def _stale(facts: Facts) -> Iterator[QualityCheck]:
    if facts.now is None or facts.started_at is None:
        return
    until = facts.watermark or facts.started_at
    age = (facts.now - until).total_seconds()
    numbers = {"age": age, "limit": STALE.total_seconds()}
    if age <= STALE.total_seconds():
        yield QualityCheck(
            "report_stale", "ok", EXPERIMENT, "The report is up to date.", "", numbers
        )
        return
    yield QualityCheck(
        "report_stale",
        "warning",
        EXPERIMENT,
        "No router has shipped anything since the experiment began."
        if facts.watermark is None
        else f"The numbers end {duration(age)} ago: a router does not ship its records, or the "
        "worker does not fold them. What is shown holds for the time until then.",
        "Look at the health of routers and worker (/readyz), and at turnout_fold_lag_seconds.",
        numbers,
    )


def _enrolment_stopped(facts: Facts) -> Iterator[QualityCheck]:
    advice = "Look whether the service still asks for assignments, and whom the targeting lets in."
    enrolments = facts.health.enrolments
    if enrolments.n > 0:
        for check in _silence(
            facts, enrolments, "enrolment_stopped", EXPERIMENT, "New units", advice
        ):
            if check.severity == "warning" and _may_be_usual(facts):
                yield msgspec.structs.replace(check, severity="info", action=_USUAL)
            else:
                yield check
    elif (
        facts.watermark is not None and facts.started_at is not None and facts.enrolled.epochs == 0
    ):
        waited = (facts.watermark - facts.started_at).total_seconds()
        if waited > LEAST_PAUSE.total_seconds():
            yield QualityCheck(
                "enrolment_stopped",
                "warning",
                EXPERIMENT,
                f"No unit has been enrolled in the {duration(waited)} since the start.",
                advice,
                {"silence": waited},
            )


def _may_be_usual(facts: Facts) -> bool:
    """Whether no new units may be no fault: outcomes keep coming, so that all who can be enrolled
    may be; or the run has not seen a night yet."""
    enrolments, until = facts.health.enrolments, facts.watermark
    if enrolments.first is None or until is None or until - enrolments.first < _A_DAY:
        return True
    received = [
        facts.health.events[e].received for e in _windows(facts) if e in facts.health.events
    ]
    return any(
        came.last is not None
        and (usual := came.longest_usual_pause) is not None
        and until - came.last <= usual
        for came in received
    )


def _silence(
    facts: Facts, arrivals: Arrivals, code: QualityCode, subject: str, what: str, advice: str
) -> Iterator[QualityCheck]:
    usual = arrivals.longest_usual_pause
    if usual is None or arrivals.last is None or facts.watermark is None:
        return
    silence = (facts.watermark - arrivals.last).total_seconds()
    numbers = {"silence": max(silence, 0.0), "limit": usual.total_seconds()}
    if silence <= usual.total_seconds():
        yield QualityCheck(code, "ok", subject, f"{what} keep arriving.", "", numbers)
        return
    yield QualityCheck(
        code,
        "warning",
        subject,
        f"{what} stopped arriving: the last came at {arrivals.last:%Y-%m-%d %H:%M} UTC, "
        f"{duration(silence)} before the data end; from their usual rate, and the longest pause "
        f"so far, {duration(usual.total_seconds())} would not surprise.",
        advice,
        numbers,
    )


def _delay(facts: Facts, event: str, found: EventHealth, window: timedelta) -> QualityCheck:
    lateness = facts.lateness
    late = found.share_later_than(lateness) or 0.0
    # An outcome misses the closing of its block only if it happens so near the end of the window
    # as it comes late; so in a long window a little lateness is none.
    missing = found.share_later_than(lateness + LATE * window) or 0.0
    p50, p95, p99 = (found.delay_quantile(level) or 0.0 for level in (0.5, 0.95, 0.99))
    severity: Severity = "ok"
    if found.received.n >= MIN_UNITS_PER_ARM and late > LATE:
        severity = "warning" if missing > LATE else "info"
    return QualityCheck(
        "event_delay",
        severity,
        event,
        f"Half of the outcomes of {event} are received within {_time(p50)} of happening, 95 % "
        f"within {_time(p95)}, 99 % within {_time(p99)}; {percent(late)} come later than the "
        f"{_time(lateness.total_seconds())} allowed"
        + (
            ", and may miss the closing of their block, on which decisions stand."
            if severity == "warning"
            else "."
        ),
        "Report outcomes sooner, or allow for more lateness (TURNOUT_LATENESS)."
        if severity == "warning"
        else "Nothing: beside the window the delays are short."
        if severity == "info"
        else "",
        {
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "late_share": late,
            "lateness": lateness.total_seconds(),
            "outcomes": found.received.n,
        },
    )


def _windows(facts: Facts) -> Mapping[str, timedelta]:
    """The shortest window of a metric that counts an event, by event."""
    windows: dict[str, timedelta] = {}
    for metric in facts.definition.metrics:
        window = parse_duration(metric.window)
        for part in run_metric(metric).parts:
            windows[part.event] = min(window, windows.get(part.event, window))
    return windows


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 120 else duration(seconds)
