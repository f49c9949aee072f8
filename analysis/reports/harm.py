"""Guardrails that no guard watched: where data came from elsewhere, there is no ledger. Pure.

They are read by the confidence sequence, which holds however often it is read. The guard's alpha is
shared out equally over guardrails x treatments, so that the chance that any variant within its
margins is ever said to do harm is at most that alpha, asymptotically (Bonferroni).
"""

from analysis.inference.choice import SequenceReading
from analysis.reports.model import Facts, Harm
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
