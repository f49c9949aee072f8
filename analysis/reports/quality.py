"""Checks of the data behind a report: whether its numbers deserve to be believed. Pure.

Each check has a stable code, a severity, what was found and what to do. Checks that say p look once
say so; those that may be read at any time say that. No threshold here is fitted to an outcome.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from analysis.control.looks import shares_of
from analysis.inference.balance import Balance, balance
from analysis.inference.estimate import Note
from analysis.inference.ratio_check import ALARM_P, check_ratio
from analysis.inference.ratio_watch import LOG_THRESHOLD
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.reports.arrivals import LATE, arrivals
from analysis.reports.matching import matching
from analysis.reports.model import (
    EXPERIMENT,
    Facts,
    MetricComparison,
    MetricFacts,
    MetricReport,
    QualityCheck,
    Severity,
)
from analysis.reports.words import number, percent
from experiments.caps import MIN_UNITS, MOST_UNITS, values_needed
from experiments.model import QuantileCap, State

SEVERAL_WARNING: Final = 0.01
SEVERAL_CRITICAL: Final = 0.05
"""Shares of units that met several variants. Such a unit counts by its first one only, so a share s
of them hides about s of the effect: 1 % is lost in any interval, 5 % is not, and so many are a
fault of the assignment, not the few who changed their device."""
_OVER: Final[frozenset[State]] = frozenset(("concluded", "rolled_back", "archived"))


def quality_checks(facts: Facts, metrics: Sequence[MetricReport]) -> tuple[QualityCheck, ...]:
    """All checks of a run's data, the gravest first.

    Arguments:
        facts: what the report is made from.
        metrics: the report's metrics, with their comparisons, in the order of the definition.
    """
    found = [*_units(facts), *arrivals(facts)]
    for metric, report in zip(facts.definition.metrics, metrics, strict=True):
        known = facts.metrics.get(metric.key, MetricFacts())
        found += matching(facts, metric, known)
        found += _readings(facts, known, report)
        if isinstance(report.cap, QuantileCap):
            found.append(_open_cap(facts, report, report.cap.quantile))
    found += _covariates(facts, metrics)
    gravity: list[Severity] = ["critical", "warning", "info", "ok"]
    return tuple(sorted(found, key=lambda check: gravity.index(check.severity)))


def _units(facts: Facts) -> Iterator[QualityCheck]:
    """Whether units are split as they should be, and meet one variant each."""
    total = sum(found.units for found in facts.enrolled.variants.values())
    if total == 0:
        return
    yield _sample_ratio(facts)
    yield _sample_ratio_watch(facts, total)
    several = sum(found.several for found in facts.enrolled.variants.values())
    share = several / total
    severity: Severity = "ok"
    if share > SEVERAL_WARNING and total >= MIN_UNITS_PER_ARM:
        # Where slots moved, units that return have to meet another variant: that is no fault.
        fault = share > SEVERAL_CRITICAL and not facts.enrolled.reallocated
        severity = "critical" if fault else "warning"
    elif several:
        severity = "info"
    yield QualityCheck(
        "several_variants",
        severity,
        EXPERIMENT,
        f"{several:,} of {total:,} units ({percent(share)}) met more than one variant; each counts "
        "by its first exposure, so the effect of staying in a variant is larger than it seems by "
        "about that share.",
        {
            "critical": "Look for ids that change, or for exposures recorded with another variant "
            "than the one assigned; then start a new run.",
            "warning": "Make the assignment sticky, or randomise a unit that lives as long as the "
            "effect.",
            "info": f"Nothing, while they are no more than {percent(SEVERAL_WARNING)}.",
        }.get(severity, ""),
        {"units": total, "several": several, "share": share},
    )


def _sample_ratio(facts: Facts) -> QualityCheck:
    ratio = check_ratio(facts.enrolled)
    once = "It is a test for one look: read again and again, its false alarms add up."
    numbers = {f"expected_{variant}": count for variant, count in ratio.expected.items()}
    numbers |= {f"units_{variant}": count for variant, count in ratio.observed.items()}
    if ratio.impossible:
        return QualityCheck(
            "sample_ratio",
            "critical",
            EXPERIMENT,
            f"Units of {', '.join(ratio.impossible)} were exposed in an epoch that gave them no "
            "traffic.",
            _MEND_RATIO,
            numbers,
        )
    if ratio.p_value is None:
        return QualityCheck(
            "sample_ratio",
            "info",
            EXPERIMENT,
            "Too few units, or too few variants with traffic, for a chi-square test of their "
            "numbers.",
            "Wait for more units.",
            numbers,
        )
    numbers["p_value"] = ratio.p_value
    if ratio.mismatch:
        return QualityCheck(
            "sample_ratio",
            "critical",
            EXPERIMENT,
            "The units of the variants do not fit the propensities they were assigned with "
            f"(chi-square against the sum of logged propensities, p = {number(ratio.p_value)}, "
            f"alarm below {ALARM_P:g}). {once}",
            _MEND_RATIO,
            numbers,
        )
    return QualityCheck(
        "sample_ratio",
        "ok",
        EXPERIMENT,
        "The units of the variants fit the propensities they were assigned with (chi-square, "
        f"p = {number(ratio.p_value)}). {once}",
        "",
        numbers,
    )


_MEND_RATIO: Final = (
    "Find out where units of one variant get lost, or are counted though they were not assigned "
    "(redirects, crashes, bots, filters behind the assignment); then start a new run."
)


def _sample_ratio_watch(facts: Facts, total: int) -> QualityCheck:
    watch = facts.health.ratio
    watched = sum(watch.units.values()) + sum(watch.impossible.values())
    numbers: dict[str, float] = {
        "units": watched,
        "log_e": watch.log_e,
        "log_peak": watch.log_peak,
        "log_threshold": LOG_THRESHOLD,
        "p_value": watch.p_value,
    }
    if watched == 0:
        return QualityCheck(
            "sample_ratio_watch",
            "info",
            EXPERIMENT,
            "The units were not watched as they came, so only the chi-square test stands, which "
            "looks once.",
            "Read that test once, when the run is over.",
            numbers,
        )
    seen = f"of the {watched:,} units that were watched as they came"
    if watched < total:
        seen += f" (out of {total:,})"
    if watch.impossible:
        found = f"Units of {', '.join(watch.impossible)} came while it had no traffic, {seen}."
    elif watch.alarm:
        found = (
            f"The split {seen} has at some time been so far from the propensities that chance "
            f"does it in one run of 1,000 at most (p = {number(watch.p_value)})."
        )
    else:
        return QualityCheck(
            "sample_ratio_watch",
            "ok",
            EXPERIMENT,
            f"The split {seen} has fitted the propensities at every look (p = "
            f"{number(watch.p_value)}). This may be read at any time.",
            "",
            numbers,
        )
    return QualityCheck(
        "sample_ratio_watch",
        "critical",
        EXPERIMENT,
        f"{found} This may be read at any time: it holds over all looks together.",
        "Begin a new run once the cause is mended: one that has alarmed stays alarmed.",
        numbers,
    )


def _readings(facts: Facts, known: MetricFacts, report: MetricReport) -> Iterator[QualityCheck]:
    """Whether what is read has units enough, stands still, and hangs on no few of them."""
    few = [c.treatment for c in report.comparisons if _has_few(c)]
    over = facts.state in _OVER
    yield QualityCheck(
        "too_few_units",
        "ok" if not few else "warning" if over else "info",
        report.key,
        f"{report.key} has too few units for all that could be said of {', '.join(few)}: the "
        f"continuous reading needs {MIN_UNITS_PER_ARM} finished units of each variant, and normal "
        "approximations ten units with and ten without the event."
        if few
        else f"{report.key} has units enough.",
        "" if not few else "Run it again, for longer." if over else "Wait for more units.",
        {f"finished_{variant}": arm.finished for variant, arm in report.arms.items()},
    )
    finished = sum(arm.finished for arm in report.arms.values())
    if finished:
        share = known.late / finished
        severity: Severity = "info" if known.late else "ok"
        yield QualityCheck(
            "late_changes",
            "warning" if share > LATE and finished >= MIN_UNITS_PER_ARM else severity,
            report.key,
            _late(report, known.late, finished),
            "Allow for more lateness (TURNOUT_LATENESS), or report outcomes sooner."
            if share > LATE
            else "Nothing, while they are so few."
            if known.late
            else "",
            {"late": known.late, "share": share},
        )
    fragile = [c for c in report.comparisons if c.weights is not None and c.weights.fragile]
    if fragile:
        yield _fragile(report.key, fragile)


def _late(report: MetricReport, late: int, finished: int) -> str:
    if report.scope == "exposure":
        return (
            f"{late:,} outcomes came after their block was closed, beside {finished:,} visits. "
            "Neither reports nor decisions have them."
        )
    return (
        f"{late:,} values changed after their enrolment block was closed, "
        f"{percent(late / finished)} of the {finished:,} finished ones. Reports have them; "
        "decisions taken before did not."
    )


def _open_cap(facts: Facts, report: MetricReport, quantile: float) -> QualityCheck:
    finished, needed = sum(arm.finished for arm in report.arms.values()), values_needed(quantile)
    looks = report.role == "primary" and shares_of(facts.definition.analysis)
    severity: Severity = "info"
    action = "Wait for more units."
    if finished >= MOST_UNITS:
        severity, action = "warning", "Name a number as the cap; this one will not be found."
    elif facts.state in _OVER:
        action = "Name a number as the cap, or let the next run go on for longer."
    return QualityCheck(
        "cap_open",
        severity,
        report.key,
        f"{report.key} is without its cap at the quantile {quantile:g}, which is found once "
        f"{MIN_UNITS:,} units have finished and {needed:,} of the first {MOST_UNITS:,} have a "
        f"value. Until then its numbers are uncapped{', and looks wait' if looks else ''}.",
        action,
        {"finished": finished, "values_needed": needed, "quantile": quantile},
    )


def _fragile(metric: str, comparisons: Sequence[MetricComparison]) -> QualityCheck:
    numbers: dict[str, float] = {}
    for comparison in comparisons:
        if comparison.weights is None:
            continue
        weights, treatment = comparison.weights, comparison.treatment
        numbers[f"effective_units_control_{treatment}"] = weights.effective_units_control
        numbers[f"effective_units_{treatment}"] = weights.effective_units_treatment
        if weights.smallest_propensity is not None:
            numbers[f"smallest_propensity_{treatment}"] = weights.smallest_propensity
    named = ", ".join(comparison.treatment for comparison in comparisons)
    return QualityCheck(
        "fragile_weights",
        "warning",
        metric,
        f"After the reallocations a few units of small propensity make the estimate of {metric} "
        f"for {named}: its interval may be too narrow.",
        "Give every variant a larger floor of traffic, and wait for units that come under it.",
        numbers,
    )


def _has_few(comparison: MetricComparison) -> bool:
    few: set[Note] = {"no_common_epoch", "too_few_units", "small_counts", "few_units"}
    continuous = comparison.continuous
    smaller = min(continuous.n_control, continuous.n_treatment)
    return smaller < MIN_UNITS_PER_ARM or not few.isdisjoint(comparison.fixed.notes)


def _covariates(facts: Facts, metrics: Sequence[MetricReport]) -> Iterator[QualityCheck]:
    """Whether covariates, which are of the time before enrolment, are alike in all variants."""
    tests: dict[str, list[tuple[str, Balance]]] = {}
    for metric in metrics:
        if metric.covariate is None:
            continue
        known = facts.metrics.get(metric.key, MetricFacts())
        places = (2, 3) if metric.kind == "ratio" else (1,)
        tests[metric.key] = [
            (treatment, found)
            for treatment, sums in known.everyone.contrasts.items()
            for place in places
            if (found := balance(sums, facts.definition.control.key, treatment, place, ALARM_P))
        ]
    family = sum(map(len, tests.values()))
    for key, pairs in tests.items():
        if pairs:
            yield _imbalance(facts, key, pairs, family)


def _imbalance(
    facts: Facts, metric: str, tests: Sequence[tuple[str, Balance]], family: int
) -> QualityCheck:
    """By Bonferroni's correction over all covariates and variants of the report."""
    once = min(1.0, family * min(test.p_value for _, test in tests))
    anytime = min(1.0, family * min(test.p_anytime for _, test in tests))
    treatment, worst = min(tests, key=lambda test: test[1].p_value)
    numbers = {
        "difference": worst.difference,
        "std_error": worst.std_error,
        "p_value": once,
        "p_anytime": anytime,
    }
    if once >= ALARM_P:
        return QualityCheck(
            "covariate_imbalance",
            "ok",
            metric,
            f"Before enrolment {metric} was alike in all variants (p = {number(once)}).",
            "",
            numbers,
        )
    critical = anytime < ALARM_P
    return QualityCheck(
        "covariate_imbalance",
        "critical" if critical else "warning",
        metric,
        f"Before enrolment {metric} already differed between {treatment} and the control, by "
        f"{number(worst.difference)} (p = {number(once)} at one look, {number(anytime)} over all "
        "looks, over all covariates of the report together)"
        + (
            ": randomisation or logging differs before the experiment began."
            if critical
            else ". At a single look of normal data that would be an alarm; over many looks, or "
            "where a few units have most of the covariate, it may be chance."
        ),
        "Look whether units are assigned by something that goes with the metric, and whether "
        "outcomes before enrolment are reported alike for all variants; then start a new run."
        if critical
        else "Look at who has the largest values."
        if facts.state in _OVER
        else "Look again later.",
        numbers,
    )
