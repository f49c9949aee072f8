"""The conclusion of a report, as its page opens with it. Pure."""

import math
from typing import Final

from analysis.reports.harm import way, way_words
from analysis.reports.model import EXPERIMENT
from analysis.reports.report import Report
from analysis.reports.words import about
from dashboard.experiment.results_model import (
    Badge,
    Cell,
    Conclusion,
    Line,
    Measured,
    Progress,
    Tone,
    VariantUnits,
)
from dashboard.experiment.results_words import (
    CORRECTIONS,
    GOALS,
    STANDS_ON,
    check_title,
    missing,
    variants_of,
)
from dashboard.numbers import MISSING, number, p_value, share
from experiments.model import (
    HOLDOUT,
    Experiment,
    MeanMetric,
    Metric,
    ProportionMetric,
    QuantileCap,
    QuantileMetric,
    RatioMetric,
)
from experiments.model import (
    Action as GuardAction,
)

_TONES: Final[dict[str, Tone]] = {
    "ship": "ok",
    "keep_control": "neutral",
    "keep_running": "info",
    "stop_for_futility": "warning",
    "fix_data": "critical",
}
_NO_METRICS: Final = (
    "The holdout says what all experiments do together. It has no metrics yet, so nothing is "
    "compared; metrics make it so, from the units that are enrolled after them."
)
_NAMED: Final = 3
"""Checks that the line on health names."""


def conclusion_of(definition: Experiment, report: Report) -> Conclusion:
    """The verdict, with what stands beside it at a glance."""
    verdict = report.verdict
    begun, total = report.run > 0, sum(report.units.values())
    heading, known = _heading(report)
    return Conclusion(
        tone=_tone(report),
        heading=heading,
        known=known,
        how_sure=verdict.how_sure,
        what_would_change_it=verdict.what_would_change_it if begun and report.metrics else "",
        stands_on=_stands_on(report),
        progress=_progress(report),
        lines=(_health(report), _guard(report, definition)) if begun else (),
        units=_units(definition, report) if begun else (),
        units_total=f"{total:,}",
        ratio=_ratio(report),
        measured=() if begun else tuple(_measured(m, definition) for m in definition.metrics),
    )


def _heading(report: Report) -> tuple[str, str]:
    """What the conclusion opens with, and what is known. The headline of a report is both."""
    if report.run == 0:
        return "Not started yet", "Nothing is measured before the start."
    if report.experiment == HOLDOUT and not report.metrics:
        return "Everybody beside those who are held out", _NO_METRICS
    known = report.verdict.known
    opening = report.conclusion.removesuffix(known).strip()
    if report.ship is not None and report.state == "concluded":
        # What was done comes first, and then what the plan's reading says of it.
        done = f"{report.ship} was shipped"
        advice = opening.removeprefix(f"{done}.").strip()
        return done, f"By the plan: {advice[:1].lower()}{advice[1:]} {known}" if advice else known
    if opening:
        return opening.rstrip("."), known
    first, colon, rest = known.partition(": ")
    return (first, f"{rest[:1].upper()}{rest[1:]}") if colon else (known.rstrip("."), "")


def _tone(report: Report) -> Tone:
    if report.state == "rolled_back":
        return "critical"
    if sum(report.units.values()) == 0 or not report.metrics:
        return "neutral"
    return _TONES[report.verdict.action]


def _stands_on(report: Report) -> str:
    if report.reading == "bayesian":
        return f"Stands on {STANDS_ON['bayesian']}."
    return (
        f"Stands on {STANDS_ON[report.reading]}; alpha {report.alpha:g}, "
        f"{CORRECTIONS[report.correction]}."
    )


def _progress(report: Report) -> Progress | None:
    """How far the comparison has come that the conclusion waits for."""
    more = report.verdict.more_units
    if more is None or more <= 0:
        return None
    done = next(
        (
            sum(arm.finished for arm in metric.arms.values())
            for metric in report.metrics
            if metric.role == "primary"
            and any(c.verdict.more_units == more for c in metric.comparisons)
        ),
        None,
    )
    if done is None:
        return None
    needed = done + more
    percents = math.floor(100 * done / needed)
    return Progress(done, needed, percents, f"{done:,} of about {about(needed)} finished units")


def _health(report: Report) -> Line:
    found = [check for check in report.quality if check.severity in {"critical", "warning"}]
    critical = sum(check.severity == "critical" for check in found)
    if not found:
        return Line(
            "Health",
            Badge("Healthy", "ok") if sum(report.units.values()) else Badge("No units yet"),
            f"None of {len(report.quality)} checks of the data found a fault."
            if report.quality
            else "No check of the data yet.",
            "#quality",
        )
    counts = [f"{critical} critical"] if critical else []
    if warnings := len(found) - critical:
        counts.append(f"{warnings} {'warning' if warnings == 1 else 'warnings'}")
    named = [
        check_title(c).lower() + (f" ({c.subject})" if c.subject != EXPERIMENT else "")
        for c in found[:_NAMED]
    ]
    more = [f"{len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return Line(
        "Health",
        Badge("Not healthy", "critical") if critical else Badge("With warnings", "warning"),
        f"{' and '.join(counts)}: {', '.join([*named, *more])}.",
        "#quality",
    )


def _guard(report: Report, definition: Experiment) -> Line:
    rows = report.guard
    if not rows:
        shown = [
            f"{metric.key} for {c.treatment}"
            for metric in report.metrics
            for c in metric.comparisons
            if c.harm is not None and c.harm.shown
        ]
        badge = Badge("Harm", "critical") if shown else Badge("No guard", "neutral")
        text = f"Harm shown: {', '.join(shown)}." if shown else report.guard_alpha
        return Line("Guard", badge, text, "#guardrails" if shown else "")
    alarms = [row for row in rows if row.alarm]
    spent = (
        f"alpha {definition.guard.alpha:g}, of which "
        f"{math.fsum(row.alpha_share for row in rows):.3g} is given out"
    )
    if alarms:
        named = ", ".join(f"{row.guardrail} for {row.variant}" for row in alarms)
        text = f"Alarm of {named}; {_WHAT_IS_DONE[report.guard_action]}, {spent}."
        return Line("Guard", Badge("Alarm", "critical"), text, "#guardrails")
    if not sum(report.units.values()):
        return Line("Guard", Badge("Watching"), f"No units yet; {spent}.", "#guardrails")
    nearest = max(rows, key=way)
    return Line(
        "Guard",
        Badge("No alarm", "ok"),
        f"Nearest to one is {nearest.guardrail} for {nearest.variant}, {way_words(nearest)} of the "
        f"way; {spent}.",
        "#guardrails",
    )


_WHAT_IS_DONE: Final[dict[GuardAction, str]] = {
    "rollback": "the plan rolls the run back",
    "rollback_variant": "the plan rolls the variant back",
    "pause": "the plan pauses the experiment",
    "alert": "the plan tells people",
}


def _units(definition: Experiment, report: Report) -> tuple[VariantUnits, ...]:
    total = sum(report.units.values())
    found = []
    for variant in variants_of(definition):
        units = report.units.get(variant.key, 0)
        expected = report.sample_ratio.expected.get(variant.key)
        found.append(
            VariantUnits(
                variant=variant,
                units=f"{units:,}",
                share=share(units / total) if total else MISSING,
                expected=missing("Nothing is expected before the first units.")
                if expected is None
                else Cell(f"{expected:,.0f}"),
                note=report.rolled_back.get(variant.key, ""),
            )
        )
    return tuple(found)


def _ratio(report: Report) -> Badge:
    ratio = report.sample_ratio
    if ratio.mismatch:
        return Badge(
            "Sample ratio mismatch",
            "critical",
            f"p {p_value(ratio.p_value)}: the units do not fit the propensities.",
        )
    if ratio.observed and not ratio.expected:
        return Badge("Sample ratio not checked", "neutral", "Nothing was expected.")
    if ratio.p_value is None:
        return Badge("Sample ratio open", "neutral", "Too few units to check.")
    return Badge("Sample ratio fits", "ok", f"p {p_value(ratio.p_value)}")


def _measured(metric: Metric, definition: Experiment) -> Measured:
    return Measured(
        key=metric.key,
        role=metric.role,
        what=what_of(metric, definition.unit.type),
        goal=GOALS[metric.goal],
        window=metric.window,
    )


def what_of(metric: Metric, unit: str) -> str:
    """What a metric measures, by its events."""
    match metric:
        case ProportionMetric():
            return f"share of {unit}s with {metric.event}"
        case MeanMetric():
            words = f"{_AGGREGATES[metric.aggregate]} {metric.event} per {unit}"
            if isinstance(metric.cap, QuantileCap):
                words += f", capped at the quantile {metric.cap.quantile:g}"
            elif metric.cap is not None:
                words += f", capped at {number(metric.cap)}"
            return words
        case RatioMetric():
            return f"{metric.numerator} per {metric.denominator}"
        case QuantileMetric():
            return f"quantile {metric.quantile:g} of {metric.event}"


_AGGREGATES: Final = {
    "sum": "sum of",
    "count": "number of",
    "mean": "mean of",
    "max": "largest",
    "last": "last",
}
