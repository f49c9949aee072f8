"""What is known of harm, in words; and of harm that no guard watched. Pure.

Where data came from elsewhere, there is no ledger: then guardrails are read by the confidence
sequence, which holds however often it is read. The guard's alpha is shared out equally over
guardrails x treatments, so that the chance that any variant within its margins is ever said to do
harm is at most that alpha, asymptotically (Bonferroni).
"""

from analysis.inference.choice import SequenceReading
from analysis.reports.model import Facts, GuardView, Harm, MetricReport
from analysis.reports.words import level, percent, size
from experiments.model import Experiment, Metric


def alpha_share(definition: Experiment) -> float:
    """The share of the guard's alpha that each guardrail and treatment has."""
    guardrails = sum(metric.role == "guardrail" for metric in definition.metrics)
    pairs = guardrails * (len(definition.variants) - 1)
    return definition.guard.alpha / max(1, pairs)


def unwatched(facts: Facts, metric: Metric, treatment: str) -> bool:
    """Whether this is a guardrail without a row in the ledger of the guard."""
    watched = {(row.guardrail, row.variant) for row in facts.guard}
    return metric.role == "guardrail" and (metric.key, treatment) not in watched


def harm_of(
    metric: Metric, sequence: SequenceReading, mean_control: float | None, alpha: float
) -> Harm | None:
    """The harm that a guardrail shows; None before the sequence is defined.

    A margin r relative to the control's mean m0 makes the harm -s (m1 - m0) - r |m0|, whose
    standard error is at most 1 + r times that of the difference: the interval is widened by that.

    Arguments:
        metric: the guardrail.
        sequence: read with this alpha.
        mean_control: the control's mean, or quantile.
        alpha: of `alpha_share`.
    """
    reading, difference = sequence.reading, sequence.difference
    if difference is None or reading.ci_low is None or reading.ci_high is None:
        return None
    margin, wider = 0.0, 1.0
    if metric.margin is not None and metric.margin.relative is not None:
        if mean_control is None:
            return None
        margin, wider = metric.margin.relative * abs(mean_control), 1.0 + metric.margin.relative
    elif metric.margin is not None:
        margin = metric.margin.absolute or 0.0
    harm = -difference if metric.goal == "increase" else difference
    least = harm - wider * 0.5 * (reading.ci_high - reading.ci_low)
    return Harm(alpha_share=alpha, margin=margin, least=least, shown=least > margin)


def harm_words(row: GuardView, metric: MetricReport | None) -> str:
    """Why the guard alarms: what is measured, what is tolerated, and how rare such evidence is.

    An e-process of a variant within its margin reaches 1/α with a chance of at most α, over all
    time (Ville's inequality), so of 1/α such variants at most one is expected to.
    """
    evidence = (
        f"the evidence of harm reached what at most 1 in {1.0 / row.alpha_share:,.0f} harmless "
        "variants would ever show"
    )
    at = "" if metric is None else _levels(row, metric)
    return f"{at}, where {_tolerated(row, metric)} is tolerated; {evidence}" if at else evidence


def way_words(row: GuardView) -> str:
    """How far the evidence of harm has come on its way to an alarm, by its logarithm."""
    return percent(way(row), digits=2)


def way(row: GuardView) -> float:
    """The same as a share, 0 to 1; it never comes back, as evidence counts by its peak."""
    return max(0.0, min(1.0, row.log_peak / row.log_threshold))


def _levels(row: GuardView, metric: MetricReport) -> str:
    """What the variant and the control are at; nothing where that is not defined."""
    found = (c.fixed for c in metric.comparisons if c.treatment == row.variant)
    fixed = next(found, None)
    if fixed is None or fixed.mean_treatment is None or fixed.mean_control is None:
        return ""
    return (
        f"{level(metric.kind, fixed.mean_treatment)} against "
        f"{level(metric.kind, fixed.mean_control)} of the control"
    )


def _tolerated(row: GuardView, metric: MetricReport | None) -> str:
    if row.relative:
        return f"{percent(row.margin)} of that"
    return size("mean" if metric is None else metric.kind, row.margin)
