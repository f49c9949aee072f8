"""The report as Markdown: for terminals, tickets and chats."""

from typing import Final

from analysis.inference.aipw import WeightFacts
from analysis.inference.bayes import BayesianReading
from analysis.inference.planned import PlannedReading
from analysis.inference.ratio_check import RatioCheck
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.inference.tails import to_log10
from analysis.reports.breakdowns import Breakdown, Interaction, SegmentComparison
from analysis.reports.model import Continuous, MetricComparison, MetricReport
from analysis.reports.report import Report
from analysis.reports.words import REASONS, cell, chance, number, p_value, percent, signed
from experiments.model import Action, QuantileCap, Reading

_READINGS: Final[dict[Reading, str]] = {
    "continuous": "the any-time reading, which holds however often it is read",
    "fixed": "the fixed-horizon reading, at the one look that was planned",
    "planned": "the planned looks",
    "bayesian": "the posterior, which bounds no error rate",
}
_CORRECTIONS: Final = {
    "holm": "Holm over variants x primary metrics, Benjamini and Hochberg over secondary ones",
    "none": "no correction for several comparisons",
}


def render(report: Report) -> str:
    """The report as Markdown text."""
    verdict = report.verdict
    lines = [
        f"# {report.experiment}, run {report.run}",
        "",
        f"**{report.conclusion}**",
        "",
        *([f"- How sure: {verdict.how_sure}"] if verdict.how_sure else []),
        f"- What would change it: {verdict.what_would_change_it}",
        f"- Stands on: {_stands_on(report)}.",
        "",
        f"State {report.state}, epoch {report.epoch}; {sum(report.units.values()):,} units"
        + (
            f", data until {report.data_until:%Y-%m-%d %H:%M:%S} UTC." if report.data_until else "."
        ),
        "",
        *_quality(report),
        "| variant | units | expected |",
        "| --- | ---: | ---: |",
    ]
    for variant, units in report.units.items():
        expected = report.sample_ratio.expected.get(variant)
        shown = "–" if expected is None else f"{expected:,.1f}"
        role = " (control)" if variant == report.control else ""
        lines.append(f"| {variant}{role} | {units:,} | {shown} |")
    lines += ["", f"Sample ratio: {_ratio(report.sample_ratio)}."]
    for metric in report.metrics:
        lines += ["", *_metric(metric, report)]
    for breakdown in report.breakdowns:
        lines += ["", *_breakdown(breakdown, report)]
    lines += ["", *_guard(report)]
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _stands_on(report: Report) -> str:
    """The plan's reading, and how it is corrected."""
    if report.reading == "bayesian":
        return _READINGS["bayesian"]
    correction = _CORRECTIONS[report.correction]
    return f"{_READINGS[report.reading]}; alpha {report.alpha:g}, {correction}"


def _quality(report: Report) -> list[str]:
    """What the checks of the data found, but for what is well."""
    found = [check for check in report.quality if check.severity != "ok"]
    if not found:
        return []
    return [
        "## Data quality",
        "",
        *(
            f"- **{check.severity}**, {check.code} ({check.subject}): {check.explanation} "
            f"{check.action}".rstrip()
            for check in found
        ),
        "",
    ]


def _metric(metric: MetricReport, report: Report) -> list[str]:
    level = percent(1.0 - report.alpha)
    lines = [
        f"## {metric.key}",
        "",
        f"{metric.role}, {_kind(metric)}, goal {metric.goal}, window {metric.window}",
        "",
        f"| treatment | control mean | mean | difference [{level}] | lift [{level}] "
        f"| p | adjusted p | any-time difference [{level}] | any-time lift | any-time p "
        "| any-time adjusted p |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c in metric.comparisons:
        fixed, reading = c.fixed, c.continuous.reading
        log10 = None if reading.log_e is None else -to_log10(reading.log_e)
        lines.append(
            f"| {c.treatment} | {number(fixed.mean_control)} | {number(fixed.mean_treatment)} "
            f"| {_interval(fixed.difference, fixed.ci_low, fixed.ci_high)} "
            f"| {_interval(fixed.lift, fixed.lift_ci_low, fixed.lift_ci_high)} "
            f"| {p_value(fixed.p_value, fixed.log10_p_value)} | {p_value(c.fixed_p_adjusted)} "
            f"| {_interval(c.continuous.difference, reading.ci_low, reading.ci_high)} "
            f"| {_lift(c.continuous)} "
            f"| {p_value(reading.p_value, log10)} | {p_value(c.continuous.p_adjusted)} |"
        )
    return [
        *lines,
        "",
        *_quantiles(metric, level),
        *(f"- {line}" for c in metric.comparisons for line in _remarks(c, report)),
    ]


def _remarks(c: MetricComparison, report: Report) -> list[str]:
    """What a row of the table does not hold: the verdict, other readings, and what is missing."""
    lines: list[str] = []
    if c.planned is not None and c.planned.looks:
        lines.append(_looked(c.planned, c.planned_p_adjusted))
    if c.bayesian is not None:
        lines.append(_believed(c.bayesian))
    if (batched := c.batched_ols) is not None:
        lines.append(
            f"by batched OLS over {batched.epochs} epochs "
            f"{_interval(batched.difference, batched.ci_low, batched.ci_high)}, "
            f"p {p_value(batched.p_value, batched.log10_p_value)}."
        )
        if "few_conversions" in batched.notes:
            lines.append(
                "a variant has fewer conversions, or fewer units without, than there are epochs: "
                "the interval by batched OLS is too narrow."
            )
    if c.weights is not None and c.fixed.method == "aipw":
        lines.append(_weighted(c.weights, report.control, c.treatment))
    if c.detectable_effect is not None:
        lines.append(
            f"a difference of {number(c.detectable_effect)} would be found by the fixed reading "
            "with the power of the plan."
        )
    if reduction := c.fixed.variance_reduction:
        lines.append(f"the covariate made the variance {_change(reduction)}.")
    lines += [f"{reason}." for reason in _reasons(c)]
    return [_judged(c), *(f"{c.treatment}: {line}" for line in lines)]


def _judged(c: MetricComparison) -> str:
    verdict = c.verdict
    change = f" {verdict.what_would_change_it}" if verdict.action == "keep_running" else ""
    return f"{verdict.known} {verdict.how_sure}{change}".rstrip()


def _looked(planned: PlannedReading, p_adjusted: float | None) -> str:
    last, boundary = planned.looks[-1], planned.boundaries[-1]
    return (
        f"look {last.number} at {last.units:,} finished units, {percent(last.information)} of the "
        f"plan: z {number(last.statistic)} of {number(boundary)}, difference "
        f"{_interval(last.difference, planned.ci_low, planned.ci_high)}, p "
        f"{p_value(planned.p_value)}, adjusted p {p_value(p_adjusted)}."
    )


def _believed(read: BayesianReading) -> str:
    return (
        f"chance to win {chance(read.chance_to_win)}, expected loss of shipping "
        f"{number(read.expected_loss)}, of keeping the control "
        f"{number(read.expected_loss_control)}, credible interval "
        f"{_interval(read.difference, read.ci_low, read.ci_high)}, prior {read.prior}."
    )


def _weighted(weights: WeightFacts, control: str, treatment: str) -> str:
    worth = (
        f"weighted by propensities, {control} is worth {weights.effective_units_control:,.0f} "
        f"units and {treatment} {weights.effective_units_treatment:,.0f}; the smallest propensity "
        f"is {number(weights.smallest_propensity)}."
    )
    if not weights.fragile:
        return worth
    return (
        f"{worth} FRAGILE: a few units of small propensity weigh so much that they make the "
        "estimate, and its interval may be too narrow."
    )


def _kind(metric: MetricReport) -> str:
    if metric.quantile is not None:
        return f"quantile {metric.quantile:g}"
    adjusted = "" if metric.covariate is None else f" adjusted by {metric.covariate}"
    if metric.covariate is not None and metric.covariate[0].isdigit():  # a time, not a column
        adjusted += " before"
    return f"{metric.kind}{adjusted}{_cap(metric)}"


def _cap(metric: MetricReport) -> str:
    if metric.cap is None:
        return ""
    if isinstance(metric.cap, QuantileCap):
        return f", not capped yet at the quantile {metric.cap.quantile:g}"
    return f", capped at {number(metric.cap)}"


def _quantiles(metric: MetricReport, level: str) -> list[str]:
    """Each variant's quantile by itself."""
    return [
        f"- {variant}: {number(q.value)} [{number(q.ci_low)}, {number(q.ci_high)}] at {level}, "
        f"of {q.n:,} units with a value."
        for variant, arm in metric.arms.items()
        if (q := arm.quantile) is not None and q.value is not None
    ]


def _change(reduction: float) -> str:
    return f"{100 * abs(reduction):.3g} % {'smaller' if reduction > 0 else 'larger'}"


def _reasons(comparison: MetricComparison) -> list[str]:
    """Why numbers of a comparison are missing, or doubtful."""
    reasons = [REASONS[note] for note in comparison.fixed.notes]
    continuous = comparison.continuous
    if min(continuous.n_control, continuous.n_treatment) < MIN_UNITS_PER_ARM:
        reasons.append(f"the any-time reading needs {MIN_UNITS_PER_ARM} finished units of each")
    return reasons


def _breakdown(breakdown: Breakdown, report: Report) -> list[str]:
    """A metric by an attribute: the comparisons of its segments, and whether they differ."""
    attribute = cell(breakdown.attribute)
    title = f"## {breakdown.metric} by {attribute}"
    if breakdown.note == "quantile":
        return [title, "", "Quantiles are not broken down."]
    level = percent(1.0 - report.alpha)
    missing = sum(breakdown.missing.values())
    return [
        title,
        "",
        f"exploratory, {breakdown.role}, {breakdown.kind}"
        + (f"; {missing:,} units came without {attribute}" if missing else ""),
        "",
        f"| segment | treatment | control units | units | difference [{level}] "
        f"| any-time difference [{level}] | p | adjusted p |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_segment(row) for row in breakdown.segments),
        "",
        *(f"- {_interaction(found)}" for found in breakdown.interactions),
    ]


def _segment(row: SegmentComparison) -> str:
    fixed, reading = row.fixed, row.continuous.reading
    segment = "(others)" if row.segment.value is None else cell(row.segment.value)
    return (
        f"| {segment} | {row.treatment} | {row.units_control:,} | {row.units_treatment:,} "
        f"| {_interval(fixed.difference, fixed.ci_low, fixed.ci_high)} "
        f"| {_interval(row.continuous.difference, reading.ci_low, reading.ci_high)} "
        f"| {p_value(row.p_value)} | {p_value(row.p_adjusted)} |"
    )


def _interaction(found: Interaction) -> str:
    if found.note is not None:
        return f"{found.treatment}: too few segments with enough units to compare them."
    words = "holds for one planned look" if found.test == "cochran_q" else "holds at any time"
    left_out = f"; {len(found.left_out)} segments are too small" if found.left_out else ""
    return (
        f"{found.treatment}: do the segments differ? p {p_value(found.p_value)}, adjusted "
        f"{p_value(found.p_adjusted)} ({words}, {len(found.compared)} segments{left_out})."
    )


def _guard(report: Report) -> list[str]:
    lines = ["## Guard", "", report.guard_alpha]
    if report.guard:
        lines += [
            "",
            "| guardrail | variant | evidence of harm (log) | alarm at | bound |",
            "| --- | --- | ---: | ---: | --- |",
        ]
        lines += [
            f"| {g.guardrail} | {g.variant} | {g.log_peak:.2f} | {g.log_threshold:.2f} "
            f"| {g.bound}{', ALARM' if g.alarm else ''} |"
            for g in report.guard
        ]
    if report.guard:
        lines += ["", f"On an alarm {_ON_ALARM[report.guard_action]}."]
    if report.guard_generation > 1:
        lines += [
            "",
            f"This is generation {report.guard_generation} of the guard: a hand has resumed what "
            "was stopped, or overruled an alarm, so alpha and evidence began afresh, and the bound "
            "holds for each generation by itself.",
        ]
    for variant, reason in report.rolled_back.items():
        lines += [
            "",
            f"**{variant} is rolled back and gets no traffic until it is resumed: "
            f"{reason.rstrip('.')}.**",
        ]
    return lines


_ON_ALARM: Final[dict[Action, str]] = {
    "rollback": "the run is rolled back",
    "rollback_variant": "the variant is rolled back, and the run goes on with the others",
    "pause": "the experiment is paused",
    "alert": "people are told, and the traffic stays",
}


def _ratio(ratio: RatioCheck) -> str:
    if ratio.mismatch:
        return f"MISMATCH (p = {number(ratio.p_value)})"
    if ratio.observed and not ratio.expected:
        return "not checked, since nothing was expected"
    if ratio.p_value is None:
        return "too few units to check"
    return f"fits (p = {number(ratio.p_value)})"


def _lift(continuous: Continuous) -> str:
    return "not defined" if continuous.lift is None else signed(continuous.lift)


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not defined"
    return f"{signed(value)} [{number(low)}, {number(high)}]"
