"""The metrics of a report with their comparisons, in all readings, before they are judged. Pure."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from analysis.folding.metrics import run_metric
from analysis.inference.aipw import WeightFacts, weight_facts
from analysis.inference.batched import BatchedOls, batched_ols
from analysis.inference.bayes import BayesianReading, bayesian_reading, counts_of
from analysis.inference.choice import SequenceReading, read_continuous, read_fixed
from analysis.inference.epoch_sums import EpochSums
from analysis.inference.estimate import Comparison
from analysis.inference.forecast import detectable_effect
from analysis.inference.multiplicity import benjamini_hochberg, holm
from analysis.inference.planned import planned_reading
from analysis.inference.quantile import (
    Quantile,
    compare_quantiles,
    quantile,
    quantile_sequence,
)
from analysis.inference.sequence import DECISION_N, AlwaysValid
from analysis.reports.harm import alpha_share, harm_of, unwatched
from analysis.reports.model import (
    ArmUnits,
    Continuous,
    Facts,
    Harm,
    MetricComparison,
    MetricFacts,
    MetricReport,
)
from experiments.model import AnalysisPlan, MeanMetric, Metric, QuantileMetric, RatioMetric


def metric_reports(facts: Facts) -> tuple[MetricReport, ...]:
    """The metrics of the definition, in its order, with raw and adjusted p-values."""
    return _adjust([_metric(m, facts) for m in facts.definition.metrics], facts.definition.analysis)


def _metric(metric: Metric, facts: Facts) -> MetricReport:
    known = facts.metrics.get(metric.key, MetricFacts())
    variants, control = list(facts.definition.weights), facts.definition.control.key
    level = metric.quantile if isinstance(metric, QuantileMetric) else None
    quantiles: dict[str, Quantile] = {}
    if level is not None and not facts.enrolled.reallocated:
        alpha = facts.definition.analysis.alpha
        quantiles = {v: quantile(known.values.get(v, ()), level, alpha) for v in variants}
    return MetricReport(
        key=metric.key,
        role=metric.role,
        kind=run_metric(metric).kind,
        scope=metric.scope,
        goal=metric.goal,
        window=metric.window,
        arms={
            v: ArmUnits(
                known.everyone.units.get(v, 0), known.finished.units.get(v, 0), quantiles.get(v)
            )
            for v in variants
        },
        comparisons=tuple(
            _comparison(metric, facts, known, treatment)
            for treatment in variants
            if treatment != control
        ),
        late_changes=known.late,
        backfill=known.backfill,
        since=known.since,
        covariate=metric.covariate if isinstance(metric, MeanMetric | RatioMetric) else None,
        quantile=level,
        cap=known.cap,
    )


class _Read(NamedTuple):
    """The readings of one comparison."""

    fixed: Comparison
    sequence: SequenceReading
    bayesian: BayesianReading | None = None
    batched: BatchedOls | None = None
    weights: WeightFacts | None = None


def _comparison(
    metric: Metric, facts: Facts, known: MetricFacts, treatment: str
) -> MetricComparison:
    plan = facts.definition.analysis
    read = _read(metric, facts, known, treatment)
    sequence, looks = read.sequence, known.looks.get(treatment, ())
    return MetricComparison(
        treatment=treatment,
        fixed=read.fixed,
        fixed_p_adjusted=None,
        continuous=Continuous(
            n_control=sequence.n_control,
            n_treatment=sequence.n_treatment,
            difference=sequence.difference,
            reading=sequence.reading,
            method=sequence.method,
            mean_control=sequence.mean_control,
            mean_treatment=sequence.mean_treatment,
            lift=sequence.lift,
        ),
        planned=planned_reading(looks, plan.alpha) if looks else None,
        bayesian=read.bayesian,
        batched_ols=read.batched,
        weights=read.weights,
        detectable_effect=detectable_effect(
            read.fixed.std_error, read.fixed.df, plan.alpha, plan.power
        ),
        harm=_harm(metric, facts, known, treatment, read.fixed.mean_control),
    )


def _read(metric: Metric, facts: Facts, known: MetricFacts, treatment: str) -> _Read:
    if not isinstance(metric, QuantileMetric):
        return _read_means(metric, facts, known, treatment)
    if facts.enrolled.reallocated:
        return _count_units(facts, known, treatment)
    return _read_quantiles(metric, facts, known, treatment)


def _harm(
    metric: Metric, facts: Facts, known: MetricFacts, treatment: str, mean_control: float | None
) -> Harm | None:
    """What a guardrail shows that no guard watched, by the any-time reading at its share of alpha;
    None of any other metric."""
    if not unwatched(facts, metric, treatment):
        return None
    share = alpha_share(facts.definition)
    plan = AnalysisPlan(alpha=share, units=facts.definition.analysis.units)
    definition = msgspec.structs.replace(facts.definition, analysis=plan)
    facts = msgspec.structs.replace(facts, definition=definition)
    read = _read(metric, facts, known, treatment)
    return harm_of(metric, read.sequence, mean_control, share)


def _read_means(metric: Metric, facts: Facts, known: MetricFacts, treatment: str) -> _Read:
    """Proportions, means and ratios."""
    plan, control = facts.definition.analysis, facts.definition.control.key
    kind, trail = run_metric(metric).kind, known.trails.get(treatment)
    reallocated = facts.enrolled.reallocated
    arms = trail, control, treatment, kind
    finished = known.finished.contrasts.get(treatment, EpochSums())
    sequence = read_continuous(
        known.finished,
        *arms,
        reallocated=reallocated,
        alpha=plan.alpha,
        decision_n=plan.units or DECISION_N,
    )
    bayesian = batched = weights = None
    if plan.reading == "bayesian":
        comparison = read_fixed(known.finished, *arms, reallocated=reallocated, alpha=plan.alpha)
        counts = counts_of(finished, control, treatment, kind)
        bayesian = bayesian_reading(comparison, metric.goal, kind, plan.prior, counts, plan.alpha)
    if reallocated:
        batched = batched_ols(finished, control, treatment, kind, plan.alpha)
        weights = None if trail is None else weight_facts(trail)
    fixed = read_fixed(known.everyone, *arms, reallocated=reallocated, alpha=plan.alpha)
    return _Read(fixed, sequence, bayesian, batched, weights)


def _read_quantiles(
    metric: QuantileMetric, facts: Facts, known: MetricFacts, treatment: str
) -> _Read:
    plan, control = facts.definition.analysis, facts.definition.control.key
    epochs, level = facts.enrolled.epochs, metric.quantile
    values, done = (
        (found.get(control, ()), found.get(treatment, ()))
        for found in (known.values, known.finished_values)
    )
    finished = compare_quantiles(*done, level, epochs, plan.alpha)
    n_control, n_treatment = finished.n_control, finished.n_treatment
    reading = quantile_sequence(*done, level, plan.alpha, plan.units or DECISION_N)
    bayesian = None
    if plan.reading == "bayesian":
        bayesian = bayesian_reading(finished, metric.goal, "quantile", plan.prior, None, plan.alpha)
    return _Read(
        compare_quantiles(*values, level, epochs, plan.alpha),
        SequenceReading(
            finished.difference,
            n_control,
            n_treatment,
            "within_epochs",
            reading,
            finished.mean_control,
            finished.mean_treatment,
        ),
        bayesian,
    )


def _count_units(facts: Facts, known: MetricFacts, treatment: str) -> _Read:
    """Quantiles after a reallocation: how many units there are, and nothing else, since histograms
    would pool them over epochs of other propensities."""
    control, alpha = facts.definition.control.key, facts.definition.analysis.alpha
    fixed, finished = (
        _not_comparable(population.contrasts.get(treatment, EpochSums()), control, treatment, alpha)
        for population in (known.everyone, known.finished)
    )
    nothing = AlwaysValid(valid=False)
    n_control, n_treatment = finished.n_control, finished.n_treatment
    return _Read(fixed, SequenceReading(None, n_control, n_treatment, "within_epochs", nothing))


def _not_comparable(sums: EpochSums, control: str, treatment: str, alpha: float) -> Comparison:
    """How many units there are, and nothing else."""
    n_control, n_treatment = (sums.arms[v].n if v in sums.arms else 0 for v in (control, treatment))
    return Comparison(
        n_control=n_control,
        n_treatment=n_treatment,
        epochs_used=0,
        epochs_left_out=sums.epochs + sums.epochs_left_out,
        units_left_out=n_control + n_treatment + sums.units_left_out,
        alpha=alpha,
        notes=("reallocated",),
    )


def _adjust(metrics: Sequence[MetricReport], plan: AnalysisPlan) -> tuple[MetricReport, ...]:
    """Put adjusted p-values beside the raw ones: Holm's over variants x primary metrics, for what
    the plan decides by, and Benjamini and Hochberg's over variants x secondary metrics, which are
    explored. The guard has shared out its alpha already."""
    adjusted = list(metrics)
    for role, of_role in (("primary", holm), ("secondary", benjamini_hochberg)):
        correct = tuple if plan.correction == "none" else of_role
        places = [i for i, metric in enumerate(metrics) if metric.role == role]
        family = [c for i in places for c in metrics[i].comparisons]
        corrected = iter(
            msgspec.structs.replace(
                c,
                fixed_p_adjusted=fixed,
                planned_p_adjusted=planned,
                continuous=msgspec.structs.replace(c.continuous, p_adjusted=continuous),
            )
            for c, fixed, planned, continuous in zip(
                family,
                correct([c.fixed.p_value for c in family]),
                correct([None if c.planned is None else c.planned.p_value for c in family]),
                correct([c.continuous.reading.p_value for c in family]),
                strict=True,
            )
        )
        for i in places:
            adjusted[i] = _with_comparisons(metrics[i], corrected)
    return tuple(adjusted)


def _with_comparisons(metric: MetricReport, found: Iterator[MetricComparison]) -> MetricReport:
    return msgspec.structs.replace(
        metric, comparisons=tuple(next(found) for _ in metric.comparisons)
    )
