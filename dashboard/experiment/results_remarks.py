"""What is to be known of a comparison beside its row: the verdict, and what the row does not hold.
Pure."""

from analysis.inference.aipw import WeightFacts
from analysis.inference.bayes import BayesianReading
from analysis.inference.planned import PlannedReading
from analysis.reports.model import ComparisonVerdict, Harm, MetricComparison, MetricReport
from dashboard.experiment.results_words import (
    change_of,
    few_of,
    interval,
    level_of,
    range_of,
    reasons_of,
)
from dashboard.numbers import MISSING, chance, number, p_value, share


def remarks_on(comparison: MetricComparison, metric: MetricReport, control: str) -> tuple[str, ...]:
    """What else is to be known of a comparison, in sentences."""
    found = _of_readings(comparison, metric, control)
    if comparison.detectable_effect is not None:
        effect = change_of(metric.kind, comparison.detectable_effect).lstrip("+")
        found.append(
            f"A true difference of {effect} would be found by the fixed reading with the power of "
            "the plan."
        )
    if reduction := comparison.fixed.variance_reduction:
        size = f"{100 * abs(reduction):.3g} % {'smaller' if reduction > 0 else 'larger'}"
        found.append(f"The covariate made the variance {size}.")
    if comparison.harm is not None:
        found.append(_harm(comparison.harm, metric))
    reasons = [*reasons_of(comparison.fixed), few_of(comparison.continuous)]
    found += [f"{reason[:1].upper()}{reason[1:]}." for reason in reasons if reason]
    return tuple(found)


def verdict_words(verdict: ComparisonVerdict) -> tuple[str, ...]:
    """A verdict in sentences: what is known, how sure, and what would change it."""
    sentences = (verdict.known, verdict.how_sure)
    change = verdict.what_would_change_it
    return tuple(
        text
        for text in (*sentences, f"What would change it: {_lower(change)}" * bool(change))
        if text
    )


def metric_remarks(metric: MetricReport) -> tuple[str, ...]:
    """What is to be known of a metric as a whole."""
    found = []
    if metric.backfill is not None:
        found.append(
            f"It is new to the run, and {share(metric.backfill)} of the enrolled units have a "
            "value so far: those who were there before are still being computed."
        )
    if metric.since is not None:
        found.append(
            f"It counts the units enrolled since {metric.since:%Y-%m-%d %H:%M} UTC: raw events "
            "from before that were dropped when it joined."
        )
    if metric.late_changes:
        found.append(
            f"{metric.late_changes:,} values changed after their enrolment block was closed."
        )
    found += [
        f"{variant}: {level_of(metric, quantile.value)} "
        f"[{interval(metric, quantile.ci_low, quantile.ci_high) or MISSING}], of {quantile.n:,} "
        "units with a value."
        for variant, arm in metric.arms.items()
        if (quantile := arm.quantile) is not None and quantile.value is not None
    ]
    return tuple(found)


def _of_readings(comparison: MetricComparison, metric: MetricReport, control: str) -> list[str]:
    found = []
    if comparison.planned is not None and comparison.planned.looks:
        found.append(_looked(comparison.planned, metric, comparison.planned_p_adjusted))
    if comparison.bayesian is not None:
        found.append(_believed(comparison.bayesian, metric))
    if (batched := comparison.batched_ols) is not None:
        found.append(
            f"By batched OLS over {batched.epochs} epochs "
            f"{change_of(metric.kind, batched.difference, batched.ci_low, batched.ci_high)} "
            f"[{range_of(metric.kind, batched.ci_low, batched.ci_high)}], "
            f"p {p_value(batched.p_value)}."
        )
        if "few_conversions" in batched.notes:
            found.append(
                "A variant has fewer conversions, or fewer units without, than there are epochs: "
                "the interval by batched OLS is too narrow."
            )
    if comparison.weights is not None and comparison.fixed.method == "aipw":
        found.append(_weighted(comparison.weights, control, comparison.treatment))
    return found


def _looked(planned: PlannedReading, metric: MetricReport, p_adjusted: float | None) -> str:
    last, boundary = planned.looks[-1], planned.boundaries[-1]
    return (
        f"Look {last.number} at {last.units:,} finished units, {share(last.information)} of the "
        f"plan: z {number(last.statistic)} of {number(boundary)}, difference "
        f"{change_of(metric.kind, last.difference, planned.ci_low, planned.ci_high)} "
        f"[{range_of(metric.kind, planned.ci_low, planned.ci_high) or MISSING}], p "
        f"{p_value(planned.p_value)}, adjusted p {p_value(p_adjusted)}."
    )


def _believed(read: BayesianReading, metric: MetricReport) -> str:
    return (
        f"Chance to win {chance(read.chance_to_win)}, expected loss of shipping "
        f"{change_of(metric.kind, read.expected_loss).lstrip('+')}, of keeping the control "
        f"{change_of(metric.kind, read.expected_loss_control).lstrip('+')}; prior {read.prior}."
    )


def _weighted(weights: WeightFacts, control: str, treatment: str) -> str:
    worth = (
        f"Weighted by propensities, {control} is worth {weights.effective_units_control:,.0f} "
        f"units and {treatment} {weights.effective_units_treatment:,.0f}; the smallest propensity "
        f"is {number(weights.smallest_propensity)}."
    )
    if not weights.fragile:
        return worth
    return (
        f"{worth} Fragile: a few units of small propensity weigh so much that they make the "
        "estimate, and its interval may be too narrow."
    )


def _harm(harm: Harm, metric: MetricReport) -> str:
    least = change_of(metric.kind, harm.least)
    margin = change_of(metric.kind, harm.margin).lstrip("+")
    return (
        f"No guard watched it. The harm is at least {least}, of {margin} that are tolerated, at a "
        f"share of {harm.alpha_share:.3g} of the guard's alpha."
    )


def _lower(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}"
