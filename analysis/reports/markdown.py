"""The report as Markdown: for terminals, tickets and chats."""

from typing import Final

from analysis.inference.estimate import Note
from analysis.inference.ratio_check import RatioCheck
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from analysis.reports.report import MetricComparison, MetricReport, Report

_REASONS: Final[dict[Note, str]] = {
    "no_common_epoch": "no epoch has units of both variants",
    "too_few_units": "too few units for an interval",
    "zero_variance": "neither variant's values vary, so there is no interval",
    "small_counts": "fewer than 10 units converted, or fewer than 10 did not; the interval and p "
    "are rough",
    "zero_control_mean": "a lift over a control mean of 0 is not defined",
    "lift_interval_unbounded": "the control mean may be 0, so the lift has no interval",
    "zero_denominator": "a variant's denominators sum to 0, so its ratio is not defined",
    "constant_covariate": "the covariate does not vary, so nothing was adjusted by it",
    "few_units": "fewer than 100 units of a variant, or fewer than 10 behind a ratio's numerator; "
    "the interval and p are rough",
    "reallocated": "quantiles are not available after a reallocation",
}
"""Why a number is missing, or doubtful, in the reader's words."""


def render(report: Report) -> str:
    """The report as Markdown text."""
    lines = [
        f"# {report.experiment}, run {report.run}",
        "",
        f"**{report.conclusion}**",
        "",
        f"State {report.state}, epoch {report.epoch}; {sum(report.units.values()):,} units"
        + (
            f", data until {report.data_until:%Y-%m-%d %H:%M:%S} UTC." if report.data_until else "."
        ),
        "",
        "| variant | units | expected |",
        "| --- | ---: | ---: |",
    ]
    for variant, units in report.units.items():
        expected = report.sample_ratio.expected.get(variant, 0.0)
        role = " (control)" if variant == report.control else ""
        lines.append(f"| {variant}{role} | {units:,} | {expected:,.1f} |")
    lines += ["", f"Sample ratio: {_verdict(report.sample_ratio)}."]
    for metric in report.metrics:
        lines += ["", *_metric(metric, report)]
    if report.guard:
        lines += [
            "",
            "| guardrail | variant | evidence of harm (log) | alarm at | bound |",
            "| --- | --- | ---: | ---: | --- |",
        ]
        lines += [
            f"| {g.guardrail} | {g.variant} | {g.log_peak:.2f} | {g.log_threshold:.2f} "
            f"| {'exact' if g.exact else 'asymptotic'}{', ALARM' if g.alarm else ''} |"
            for g in report.guard
        ]
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _metric(metric: MetricReport, report: Report) -> list[str]:
    level = f"{100 * (1 - report.alpha):g} %"
    lines = [
        f"## {metric.key}",
        "",
        f"{metric.role}, {_kind(metric)}, goal {metric.goal}, window {metric.window}",
        "",
        f"| treatment | control mean | mean | difference [{level}] | lift [{level}] "
        f"| p | adjusted p | any-time difference [{level}] | any-time p | any-time adjusted p |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c in metric.comparisons:
        fixed, reading = c.fixed, c.continuous.reading
        lines.append(
            f"| {c.treatment} | {_number(fixed.mean_control)} | {_number(fixed.mean_treatment)} "
            f"| {_interval(fixed.difference, fixed.ci_low, fixed.ci_high)} "
            f"| {_interval(fixed.lift, fixed.lift_ci_low, fixed.lift_ci_high)} "
            f"| {_number(fixed.p_value)} | {_number(c.fixed_p_adjusted)} "
            f"| {_interval(c.continuous.difference, reading.ci_low, reading.ci_high)} "
            f"| {_number(reading.p_value)} | {_number(c.continuous.p_adjusted)} |"
        )
    remarks = [
        *_quantiles(metric, level),
        *(
            f"- {c.treatment}: the covariate made the variance {_change(reduction)}."
            for c in metric.comparisons
            if (reduction := c.fixed.variance_reduction)
        ),
        *(f"- {c.treatment}: {reason}." for c in metric.comparisons for reason in _reasons(c)),
    ]
    return [*lines, "", *remarks] if remarks else lines


def _kind(metric: MetricReport) -> str:
    if metric.quantile is not None:
        return f"quantile {metric.quantile:g}"
    adjusted = f" adjusted by {metric.covariate} before" if metric.covariate is not None else ""
    return f"{metric.kind}{adjusted}"


def _quantiles(metric: MetricReport, level: str) -> list[str]:
    """Each variant's quantile by itself."""
    return [
        f"- {variant}: {_number(q.value)} [{_number(q.ci_low)}, {_number(q.ci_high)}] at {level}, "
        f"of {q.n:,} units with a value."
        for variant, arm in metric.arms.items()
        if (q := arm.quantile) is not None and q.value is not None
    ]


def _change(reduction: float) -> str:
    return f"{100 * abs(reduction):.3g} % {'smaller' if reduction > 0 else 'larger'}"


def _reasons(comparison: MetricComparison) -> list[str]:
    """Why numbers of a comparison are missing, or doubtful."""
    reasons = [_REASONS[note] for note in comparison.fixed.notes]
    continuous = comparison.continuous
    if min(continuous.n_control, continuous.n_treatment) < MIN_UNITS_PER_ARM:
        reasons.append(f"the any-time reading needs {MIN_UNITS_PER_ARM} finished units of each")
    return reasons


def _verdict(ratio: RatioCheck) -> str:
    if ratio.mismatch:
        return f"MISMATCH (p = {_number(ratio.p_value)})"
    if ratio.p_value is None:
        return "too few units to check"
    return f"fits (p = {_number(ratio.p_value)})"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not defined"
    sign = "+" if value > 0 else ""
    return f"{sign}{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    # Four digits; money and counts as people write them, without an exponent.
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
