"""The conclusion of an experiment: what its plan supports, never more.

The first rule that holds:

1. The run was rolled back: **keep the control**.
2. There are no units: **keep running**.
3. The sample ratio does not fit, or another quality check is critical: **fix the data first**.
4. The plan has no primary metric, or one that cannot be compared after a reallocation: **keep the
   control**.
5. A variant is better on a primary metric, worse on none, and no guardrail alarms for it: **ship
   it**; of several, that with the largest estimated gain, though they were not compared with each
   other.
6. A variant is still open, which is none of worse, alarmed for, futile, at the end of its plan:
   **keep running**; where the run is over: **keep the control**.
7. Of a variant that is left, an improvement worth having is out of reach: **stop for futility**.
8. Every variant is worse, alarmed for, or at the end of its plan: **keep the control**.

What "better", "worse", "futile" and "the end of its plan" are, each reading says for itself
(`judge.py`). Only the plan's reading and its primary metrics count. A guardrail alarms by the
guard; where none watched, as in data from elsewhere, by the harm that it shows (`harm.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from analysis.inference.ratio_check import RatioCheck
from analysis.reports.harm import harm_words
from analysis.reports.model import (
    Action,
    ComparisonVerdict,
    Facts,
    Finding,
    GuardView,
    MetricComparison,
    MetricReport,
    QualityCheck,
    Verdict,
)
from analysis.reports.words import YEAR, wait
from experiments.model import State

_SHOWN: Final = 3
"""Comparisons that a conclusion names, where none of them is decided."""

_OPEN_STATES: Final[frozenset[State]] = frozenset(("draft", "running", "paused"))


def conclude(
    facts: Facts,
    units: Mapping[str, int],
    ratio: RatioCheck,
    quality: Sequence[QualityCheck],
    metrics: Sequence[MetricReport],
) -> Verdict:
    """The verdict, by the rules above.

    Arguments:
        facts: what the report is made from.
        units: enrolled, by variant.
        ratio: the check of the sample ratio.
        quality: all checks of the data.
        metrics: with their comparisons judged.
    """
    primary = [metric for metric in metrics if metric.role == "primary"]
    if facts.rolled_back is not None:
        return _rolled_back(facts, metrics)
    if sum(units.values()) == 0:
        return Verdict(
            "keep_running", None, "No units yet: nothing is known.", "", "The first units."
        )
    if (faults := faults_of(ratio, quality)) is not None:
        return faults
    if (plan_fault := _plan_fault(facts, primary)) is not None:
        return plan_fault
    control = facts.definition.control.key
    weights = facts.definition.weights
    treatments = [v for v in weights if v != control and (weights[v] > 0.0 or units[v] > 0)]
    guardrails = [metric for metric in metrics if metric.role == "guardrail"]
    return _weigh(facts, primary, treatments, _alarms(facts, guardrails))


def headline(verdict: Verdict, facts: Facts) -> str:
    """The verdict in one line, with what was done already."""
    if facts.rolled_back is not None:
        return verdict.known
    shipped = "" if facts.ship is None else f"{facts.ship} was shipped. "
    if not any(found.units for found in facts.enrolled.variants.values()):
        return f"{shipped}{verdict.known}"
    return f"{shipped}{_heading(verdict, facts.state)} {verdict.known}"


def faults_of(ratio: RatioCheck, quality: Sequence[QualityCheck]) -> Verdict | None:
    """The verdict on data that cannot be trusted; None where nothing is known against them."""
    critical = [check for check in quality if check.severity == "critical"]
    known = [check.explanation for check in critical]
    advice = [check.action for check in critical if check.action]
    if ratio.mismatch and not any(check.code == "sample_ratio" for check in critical):
        known.insert(0, _MISMATCH)
        advice.insert(0, _AFTER_MISMATCH)
    if not known:
        return None
    return Verdict(
        action="fix_data",
        variant=None,
        known=" ".join(known),
        how_sure="No comparison can be trusted before, however significant it looks.",
        what_would_change_it=" ".join(advice),
    )


_MISMATCH: Final = (
    "The units of the variants do not fit the propensities they were assigned with, so no "
    "comparison can be trusted."
)
_AFTER_MISMATCH: Final = (
    "Find out where units of one variant get lost, or are counted though they were not assigned; "
    "then start a new run."
)


def _heading(verdict: Verdict, state: State) -> str:
    match verdict.action:
        case "ship":
            return f"Ship {verdict.variant}."
        case "keep_control":
            return "Keep the control."
        case "stop_for_futility":
            return "Stop for futility."
        case "fix_data":
            return "Fix the data first."
        case "keep_running":
            opening = "Paused too early" if state == "paused" else "Keep running"
            return f"{opening}{_for_how_long(verdict.more_seconds)}."


def _for_how_long(seconds: float | None) -> str:
    """How long to keep running, as far as that is known."""
    if seconds is None:
        return ""
    return f", {wait(seconds)}" if seconds > YEAR else f", about {wait(seconds)} more"


def _rolled_back(facts: Facts, metrics: Sequence[MetricReport]) -> Verdict:
    control = facts.definition.control.key
    reason = (facts.rolled_back or "").rstrip(".")
    alarms = [row for row in facts.guard if row.alarm]
    if facts.by_guard and alarms:
        reason = "; ".join(_harm_of(row, metrics) for row in alarms[:_SHOWN])
    return Verdict(
        action="keep_control",
        variant=None,
        known=f"Rolled back to {control}: {reason}.",
        how_sure=(
            f"The chance that harmless variants are ever rolled back is at most "
            f"{facts.definition.guard.alpha:g}."
            if alarms
            else "The reason is the word of who rolled it back."
        ),
        what_would_change_it="A new run, with new variants or other margins.",
    )


def _plan_fault(facts: Facts, primary: Sequence[MetricReport]) -> Verdict | None:
    """The verdict where the plan cannot be followed."""
    if not primary:
        known = "The plan names no primary metric, so it supports no change."
        change = "A primary metric, in a new run: chosen now, it would be chosen by its data."
        return Verdict("keep_control", None, known, "", change)
    lost = [metric.key for metric in primary if metric.kind == "quantile"]
    if lost and facts.enrolled.reallocated:
        known = (
            f"The plan cannot be followed: traffic was reallocated, and {', '.join(lost)} cannot "
            "be compared after that."
        )
        change = "A new run of constant weights, or with another primary metric."
        return Verdict("keep_control", None, known, "", change)
    return None


def _alarms(facts: Facts, guardrails: Sequence[MetricReport]) -> list[tuple[str, str]]:
    """The treatments that do harm, with what is known of it: those that are rolled back for it, and
    else by the guard, or where none watched by the any-time reading."""
    shown = [
        (c.treatment, f"Guardrail {c.verdict.known}")
        for metric in guardrails
        for c in metric.comparisons
        if c.harm is not None and c.harm.shown
    ]
    alarms = [row for row in facts.guard if row.alarm]
    watched = [
        (row.variant, f"An alarm for {row.variant}: {_harm_of(row, guardrails)}.") for row in alarms
    ]
    gone = [
        (variant, f"{variant} is rolled back.")
        if variant in facts.by_guard and any(row.variant == variant for row in alarms)
        else (variant, f"{variant} is rolled back: {reason.rstrip('.')}.")
        for variant, reason in facts.withdrawn.items()
    ]
    return gone + watched + shown


def _weigh(
    facts: Facts,
    primary: Sequence[MetricReport],
    treatments: Sequence[str],
    alarms: Sequence[tuple[str, str]],
) -> Verdict:
    """The verdict on the treatments that get traffic, of data that can be trusted."""
    if not treatments:
        alone = "Only the control gets traffic, so there is nothing to compare."
        return Verdict("keep_control", None, alone, "", "Traffic for another variant.")
    alarmed = {treatment for treatment, _ in alarms}
    standing = {treatment: _standing(primary, treatment) for treatment in treatments}
    winners = [t for t in treatments if standing[t] == "better" and t not in alarmed]
    if winners:
        return _ship(primary, winners)
    left = [t for t in treatments if t not in alarmed and standing[t] != "worse"]
    known = [
        *_known(primary, "worse", treatments),
        *_known(primary, "better", [t for t in treatments if t in alarmed]),
        *(known for _, known in alarms),
        *_known(primary, "futile", left),
        *_known(primary, "ended", left),
    ]
    aside = _aside(facts, primary)
    is_over = facts.state not in _OPEN_STATES
    waiting = [c for c in _comparisons(primary, "open") if c.treatment in left]
    if waiting:
        if is_over:
            return _ended_early(known, waiting)
        return _keep_running(known, waiting, _leading(primary, waiting), aside)
    futile = _first(primary, "futile", left)
    if futile is not None and not is_over:
        action: Action = "stop_for_futility"
        lead: ComparisonVerdict | None = futile
    else:
        action = "keep_control"
        lead = _first(primary, "worse", treatments) or _first(primary, "ended", left) or futile
    return Verdict(
        action=action,
        variant=None,
        known=" ".join([*known, *aside]),
        how_sure=_GUARDED if lead is None else lead.how_sure,
        what_would_change_it="A new run." if lead is None else lead.what_would_change_it,
    )


_GUARDED: Final = "The guard's alpha bounds the chance of such an alarm for harmless variants."


def _standing(primary: Sequence[MetricReport], treatment: str) -> Finding:
    """Where a treatment stands over all primary metrics: worse on one of them is worse, else better
    on one is better; it is open while it is so on any."""
    found = {
        c.verdict.finding
        for metric in primary
        for c in metric.comparisons
        if c.treatment == treatment
    }
    order: tuple[Finding, ...] = ("worse", "better", "open", "futile", "ended")
    return next(finding for finding in order if finding in found)


def _comparisons(primary: Sequence[MetricReport], finding: Finding) -> list[MetricComparison]:
    return [c for m in primary for c in m.comparisons if c.verdict.finding == finding]


def _known(primary: Sequence[MetricReport], finding: Finding, of: Sequence[str]) -> list[str]:
    return [c.verdict.known for c in _comparisons(primary, finding) if c.treatment in of]


def _first(
    primary: Sequence[MetricReport], finding: Finding, of: Sequence[str]
) -> ComparisonVerdict | None:
    found = (c.verdict for c in _comparisons(primary, finding) if c.treatment in of)
    return next(found, None)


def _harm_of(row: GuardView, metrics: Sequence[MetricReport]) -> str:
    """Why a guardrail alarms, in a clause."""
    metric = next((metric for metric in metrics if metric.key == row.guardrail), None)
    return f"guardrail {row.guardrail} of {row.variant}: {harm_words(row, metric)}"


def _ship(primary: Sequence[MetricReport], winners: Sequence[str]) -> Verdict:
    known = _known(primary, "better", winners)
    best = _best(primary, winners)
    lead = _first(primary, "better", [best])
    assert lead is not None, "a winner is better on some metric"  # noqa: S101 - an invariant
    if len(winners) > 1:
        known.append("They were not compared with each other.")
    return Verdict("ship", best, " ".join(known), lead.how_sure, lead.what_would_change_it)


def _best(primary: Sequence[MetricReport], winners: Sequence[str]) -> str:
    """Of the variants that are better, the one with the largest estimated gain on the first primary
    metric on which any of them is."""
    for metric in primary:
        gains = {
            c.treatment: abs(c.verdict.difference or 0.0)
            for c in metric.comparisons
            if c.treatment in winners and c.verdict.finding == "better"
        }
        if gains:
            return max(gains, key=lambda treatment: gains[treatment])
    return winners[0]


def _leading(
    primary: Sequence[MetricReport], waiting: Sequence[MetricComparison]
) -> Sequence[MetricComparison]:
    """Those comparisons of the treatment that looks best by now: what a run waits for. It is best
    on the first primary metric on which any has an interval; all of them where none has."""
    for metric in primary:
        sign = 1.0 if metric.goal == "increase" else -1.0
        gains = {
            c.treatment: sign * c.continuous.difference
            for c in metric.comparisons
            if c in waiting and c.continuous.reading.valid and c.continuous.difference is not None
        }
        if gains:
            best = max(gains, key=lambda treatment: gains[treatment])
            return [c for c in waiting if c.treatment == best]
    return waiting


def _keep_running(
    known: Sequence[str],
    waiting: Sequence[MetricComparison],
    leading: Sequence[MetricComparison],
    aside: Sequence[str],
) -> Verdict:
    nearest = min(leading, key=lambda c: (c.verdict.more_units is None, c.verdict.more_units or 0))
    lead = nearest.verdict
    return Verdict(
        action="keep_running",
        variant=None,
        known=" ".join([*known, *_some(waiting), *aside]),
        how_sure=lead.how_sure,
        what_would_change_it=lead.what_would_change_it,
        more_units=lead.more_units,
        more_seconds=lead.more_seconds,
    )


def _ended_early(known: Sequence[str], waiting: Sequence[MetricComparison]) -> Verdict:
    return Verdict(
        action="keep_control",
        variant=None,
        known=" ".join(["The run ended too early.", *known, *_some(waiting)]),
        how_sure=waiting[0].verdict.how_sure,
        what_would_change_it="Another run, longer than this one.",
    )


def _some(waiting: Sequence[MetricComparison]) -> list[str]:
    known = [c.verdict.known for c in waiting[:_SHOWN]]
    more = len(waiting) - _SHOWN
    if more <= 0:
        return known
    return [*known, f"{more} more {'comparison is' if more == 1 else 'comparisons are'} open."]


def _aside(facts: Facts, primary: Sequence[MetricReport]) -> list[str]:
    """A warning where a glance would tempt; not of a plan of looks, which shows none before."""
    if facts.definition.analysis.reading in {"fixed", "planned"}:
        return []
    alpha = facts.definition.analysis.alpha
    tempting = any(
        c.fixed.p_value is not None
        and c.fixed.p_value <= alpha
        and c.verdict.finding in {"open", "ended"}
        for metric in primary
        for c in metric.comparisons
    )
    return [_TEMPTING] if tempting else []


_TEMPTING: Final = (
    "A single uncorrected look would call a difference significant; the plan does not stand on "
    "that."
)
