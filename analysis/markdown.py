"""The report as Markdown: for terminals, tickets and chats."""

from analysis.report import MetricReport, Report


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
    ratio = report.sample_ratio
    verdict = "MISMATCH" if ratio.mismatch else "fits"
    lines += ["", f"Sample ratio: {verdict} (p = {_number(ratio.p_value)})."]
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
        f"{metric.role}, {metric.kind}, goal {metric.goal}, window {metric.window}",
        "",
        f"| treatment | control mean | mean | difference [{level}] | lift [{level}] "
        f"| p | adjusted p | any-time [{level}] | any-time p |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for c in metric.comparisons:
        fixed, reading = c.fixed, c.continuous.reading
        lines.append(
            f"| {c.treatment} | {_number(fixed.mean_control)} | {_number(fixed.mean_treatment)} "
            f"| {_interval(fixed.difference, fixed.ci_low, fixed.ci_high)} "
            f"| {_interval(fixed.lift, fixed.lift_ci_low, fixed.lift_ci_high)} "
            f"| {_number(fixed.p_value)} | {_number(c.fixed_p_adjusted)} "
            f"| [{_number(reading.ci_low)}, {_number(reading.ci_high)}] "
            f"| {_number(reading.p_value)} |"
        )
    return lines


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:+.4g} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
