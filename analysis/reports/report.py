"""The significance report: from sums over epochs to an answer in the analyst's terms. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from analysis.folding.metrics import run_metric
from analysis.inference.bins import ACCURACY
from analysis.inference.epoch_sums import EpochSums, Population
from analysis.inference.estimate import Comparison, cautious_std_error, compare
from analysis.inference.kinds import Goal, Kind
from analysis.inference.multiplicity import holm
from analysis.inference.quantile import (
    Histogram,
    Quantile,
    cautious_quantile_error,
    compare_quantiles,
    quantile,
)
from analysis.inference.ratio_check import RatioCheck, UnitSums, check_ratio
from analysis.inference.sequence import DECISION_N, MIN_UNITS_PER_ARM, AlwaysValid, always_valid
from experiments.model import (
    AnalysisPlan,
    Experiment,
    MeanMetric,
    Metric,
    QuantileMetric,
    RatioMetric,
    Role,
    State,
    ThompsonPolicy,
)

Direction = Literal["better", "worse"]


class MetricFacts(msgspec.Struct, frozen=True):
    """What is known of a metric.

    Arguments:
        everyone: the sums of all enrolled units that have a value.
        finished: of those whose enrolment block is closed.
        late: values that changed after that.
        values, finished_values: the values of the same units of a quantile metric, by variant, in
            bins; empty of other metrics, and once traffic was reallocated.
        backfill: the share of the enrolled units that have a value, where the metric is new to the
            run and is still being computed for those who were there before; None otherwise.
        since: the enrolment from which on units count, where raw events of earlier ones had been
            dropped when the metric joined; None otherwise.
    """

    everyone: Population = Population()
    finished: Population = Population()
    values: Mapping[str, Histogram] = {}
    finished_values: Mapping[str, Histogram] = {}
    late: int = 0
    backfill: float | None = None
    since: datetime | None = None


class GuardView(msgspec.Struct, frozen=True):
    """How much evidence of harm a guardrail has gathered, and how much makes an alarm."""

    guardrail: str
    variant: str
    goal: Goal
    margin: float
    relative: bool
    alpha_share: float
    exact: bool
    log_peak: float
    log_threshold: float
    units: int
    alarm: bool


class Facts(msgspec.Struct, frozen=True):
    """All that a report is made from."""

    project: str
    key: str
    state: State
    run: int
    epoch: int
    definition: Experiment
    ship: str | None
    started_at: datetime | None
    watermark: datetime | None
    rolled_back: str | None
    """Why the run was rolled back, if it was."""
    enrolled: UnitSums
    metrics: dict[str, MetricFacts]
    """By key; a metric of the definition that is not there has no units yet."""
    guard: tuple[GuardView, ...]


class Continuous(msgspec.Struct, frozen=True):
    """The reading that may be looked at, and acted on, at any time."""

    n_control: int
    n_treatment: int
    difference: float | None
    reading: AlwaysValid
    p_adjusted: float | None = None


class MetricComparison(msgspec.Struct, frozen=True):
    """A treatment against the control on one metric, in both readings.

    `fixed` is the textbook answer on all units so far; it holds for a look that was planned.
    `continuous` uses finished units only and holds at every look. `p_adjusted` of each is Holm's
    over variants x primary metrics, None outside that family.
    """

    treatment: str
    fixed: Comparison
    fixed_p_adjusted: float | None
    continuous: Continuous


class ArmUnits(msgspec.Struct, frozen=True):
    """How many units of a variant a metric counts, and how many of them have finished; of a
    quantile metric also the quantile of those that have a value."""

    units: int
    finished: int
    quantile: Quantile | None = None


class MetricReport(msgspec.Struct, frozen=True):
    """A metric: its arms and its comparisons. `backfill` and `since` as in `MetricFacts`;
    `covariate` is how much time before enrolment it is adjusted by, `quantile` which one is
    compared, each None where there is none."""

    key: str
    role: Role
    kind: Kind
    goal: Goal
    window: str
    arms: dict[str, ArmUnits]
    comparisons: tuple[MetricComparison, ...]
    late_changes: int
    backfill: float | None
    since: datetime | None = None
    covariate: str | None = None
    quantile: float | None = None


class Report(msgspec.Struct, frozen=True):
    """The answer to "what do we know?". Every number that is not defined is null."""

    project: str
    experiment: str
    state: State
    run: int
    epoch: int
    control: str
    ship: str | None
    conclusion: str
    reading: str
    alpha: float
    correction: str
    started_at: datetime | None
    data_until: datetime | None
    units: dict[str, int]
    several_variants: int
    epochs: int
    sample_ratio: RatioCheck
    metrics: tuple[MetricReport, ...]
    guard: tuple[GuardView, ...]
    notes: tuple[str, ...]


def make_report(facts: Facts) -> Report:
    """The report of a run."""
    definition = facts.definition
    variants = list(definition.weights)
    ratio = check_ratio(facts.enrolled)
    metrics = _adjust(
        [_metric_report(m, facts, variants) for m in definition.metrics], definition.analysis
    )
    units = {variant: ratio.observed.get(variant, 0) for variant in variants}
    return Report(
        project=facts.project,
        experiment=facts.key,
        state=facts.state,
        run=facts.run,
        epoch=facts.epoch,
        control=definition.control.key,
        ship=facts.ship,
        conclusion=conclude(facts, units, ratio, metrics),
        reading=definition.analysis.reading,
        alpha=definition.analysis.alpha,
        correction=definition.analysis.correction,
        started_at=facts.started_at,
        data_until=facts.watermark,
        units=units,
        several_variants=_several(facts),
        epochs=facts.enrolled.epochs,
        sample_ratio=ratio,
        metrics=metrics,
        guard=facts.guard,
        notes=_notes(facts, metrics),
    )


def _metric_report(metric: Metric, facts: Facts, variants: Sequence[str]) -> MetricReport:
    known = facts.metrics.get(metric.key, MetricFacts())
    control = facts.definition.control.key
    level = metric.quantile if isinstance(metric, QuantileMetric) else None
    quantiles: dict[str, Quantile] = {}
    if level is not None and not facts.enrolled.reallocated:
        alpha = facts.definition.analysis.alpha
        quantiles = {v: quantile(known.values.get(v, ()), level, alpha) for v in variants}
    return MetricReport(
        key=metric.key,
        role=metric.role,
        kind=run_metric(metric).kind,
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
    )


def _comparison(
    metric: Metric, facts: Facts, known: MetricFacts, treatment: str
) -> MetricComparison:
    plan, control = facts.definition.analysis, facts.definition.control.key
    everyone = known.everyone.contrasts.get(treatment, EpochSums())
    closed = known.finished.contrasts.get(treatment, EpochSums())
    if isinstance(metric, QuantileMetric):
        if facts.enrolled.reallocated:
            return _not_comparable(everyone, closed, control, treatment, plan)
        epochs, level = facts.enrolled.epochs, metric.quantile
        values, done = (
            (found.get(control, ()), found.get(treatment, ()))
            for found in (known.values, known.finished_values)
        )
        fixed = compare_quantiles(*values, level, epochs, plan.alpha)
        finished = compare_quantiles(*done, level, epochs, plan.alpha)
        std_error = cautious_quantile_error(*done, level, plan.alpha)
    else:
        kind = run_metric(metric).kind
        fixed = compare(everyone, control, treatment, kind, plan.alpha)
        finished = compare(closed, control, treatment, kind, plan.alpha)
        std_error = cautious_std_error(closed, control, treatment, kind)
    reading = always_valid(
        finished.difference,
        std_error,
        finished.n_control,
        finished.n_treatment,
        plan.alpha,
        plan.units or DECISION_N,
    )
    continuous = Continuous(finished.n_control, finished.n_treatment, finished.difference, reading)
    return MetricComparison(treatment, fixed, None, continuous)


def _not_comparable(
    everyone: EpochSums, finished: EpochSums, control: str, treatment: str, plan: AnalysisPlan
) -> MetricComparison:
    """Quantiles after a reallocation: how many units there are, and nothing else."""
    n, done = (
        [sums.arms[v].n if v in sums.arms else 0 for v in (control, treatment)]
        for sums in (everyone, finished)
    )
    fixed = Comparison(
        n_control=n[0],
        n_treatment=n[1],
        epochs_used=0,
        epochs_left_out=everyone.epochs + everyone.epochs_left_out,
        units_left_out=sum(n) + everyone.units_left_out,
        alpha=plan.alpha,
        notes=("reallocated",),
    )
    return MetricComparison(
        treatment, fixed, None, Continuous(done[0], done[1], None, AlwaysValid(valid=False))
    )


def _several(facts: Facts) -> int:
    return sum(variant.several for variant in facts.enrolled.variants.values())


def _adjust(metrics: Sequence[MetricReport], plan: AnalysisPlan) -> tuple[MetricReport, ...]:
    """Put Holm's p-values beside the raw ones, over the family of variants x primary metrics."""
    family = [c for m in metrics if m.role == "primary" for c in m.comparisons]
    fixed = _adjusted([c.fixed.p_value for c in family], plan)
    continuous = _adjusted([c.continuous.reading.p_value for c in family], plan)
    adjusted = iter(
        msgspec.structs.replace(
            c,
            fixed_p_adjusted=p_fixed,
            continuous=msgspec.structs.replace(c.continuous, p_adjusted=p_continuous),
        )
        for c, p_fixed, p_continuous in zip(family, fixed, continuous, strict=True)
    )
    return tuple(
        msgspec.structs.replace(m, comparisons=tuple(next(adjusted) for _ in m.comparisons))
        if m.role == "primary"
        else m
        for m in metrics
    )


def _adjusted(p_values: Sequence[float | None], plan: AnalysisPlan) -> Sequence[float | None]:
    if plan.correction == "none":
        return p_values
    return holm(p_values)


class Finding(msgspec.Struct, frozen=True):
    """A comparison that the plan lets one stand on."""

    metric: str
    treatment: str
    direction: Direction
    difference: float
    p_adjusted: float


def findings(metrics: Sequence[MetricReport], plan: AnalysisPlan) -> list[Finding]:
    """What is significant by the plan's own reading, over the family of primary metrics."""
    found = []
    for metric in metrics:
        if metric.role != "primary":
            continue
        for c in metric.comparisons:
            if plan.reading == "fixed":
                difference, p_adjusted = c.fixed.difference, c.fixed_p_adjusted
            else:
                difference, p_adjusted = c.continuous.difference, c.continuous.p_adjusted
            if difference is None or p_adjusted is None or p_adjusted > plan.alpha:
                continue
            better = (difference > 0) == (metric.goal == "increase")
            found.append(
                Finding(
                    metric.key, c.treatment, "better" if better else "worse", difference, p_adjusted
                )
            )
    return found


def conclude(
    facts: Facts, units: Mapping[str, int], ratio: RatioCheck, metrics: Sequence[MetricReport]
) -> str:
    """One line: what the plan supports, never more.

    In this order: a rollback is said with its reason, and what was shipped is named; data that
    cannot be trusted or are not there conclude nothing; a fixed reading says nothing before its
    planned units, a continuous one nothing before enough units have finished; then what is
    significant by the plan's reading after correction, and only over primary metrics.
    """
    if facts.rolled_back is not None:
        return f"Rolled back to {facts.definition.control.key}: {facts.rolled_back.rstrip('.')}."
    supported = _supported(facts, units, ratio, metrics)
    return supported if facts.ship is None else f"{facts.ship} was shipped. {supported}"


def _supported(
    facts: Facts, units: Mapping[str, int], ratio: RatioCheck, metrics: Sequence[MetricReport]
) -> str:
    plan = facts.definition.analysis
    if sum(units.values()) == 0:
        return "No units yet: nothing is known."
    if ratio.mismatch:
        return (
            "Fix the data first: the units of the variants do not fit the propensities they were "
            "assigned with, so no comparison can be trusted."
        )
    if not any(metric.role == "primary" for metric in metrics):
        return "The plan names no primary metric, so it supports no conclusion."
    lost = [m.key for m in metrics if m.role == "primary" and m.kind == "quantile"]
    if lost and facts.enrolled.reallocated:
        return (
            f"The plan cannot be followed: traffic was reallocated, and {', '.join(lost)} cannot "
            "be compared after that."
        )
    return _too_early(facts, metrics) or _verdict(findings(metrics, plan), metrics, plan)


def _too_early(facts: Facts, metrics: Sequence[MetricReport]) -> str | None:
    """Why the plan's reading says nothing yet, if it does not."""
    plan = facts.definition.analysis
    primary = [metric for metric in metrics if metric.role == "primary"]
    openings = {"running": "Keep running", "paused": "Paused too early"}
    waiting = openings.get(facts.state, "The run ended too early")
    if plan.reading == "fixed":
        total = min(sum(arm.finished for arm in metric.arms.values()) for metric in primary)
        if plan.units is None or total >= plan.units:
            return None
        return (
            f"{waiting}: {total} of {plan.units} planned units have finished; the fixed-horizon "
            "reading supports no conclusion before they have."
        )
    finished = max(
        min(c.continuous.n_control, c.continuous.n_treatment)
        for metric in primary
        for c in metric.comparisons
    )
    if finished >= MIN_UNITS_PER_ARM:
        return None
    return (
        f"{waiting}: too few finished units, {finished} of the {MIN_UNITS_PER_ARM} that each arm "
        "needs; the continuous reading supports no conclusion before they are there."
    )


def _verdict(found: Sequence[Finding], metrics: Sequence[MetricReport], plan: AnalysisPlan) -> str:
    worse = {f.treatment for f in found if f.direction == "worse"}
    winners = [f for f in found if f.direction == "better" and f.treatment not in worse]
    if winners:
        names = ", ".join(
            f"{f.treatment} is better on {f.metric} (difference {f.difference:+.4g}, "
            f"adjusted p {f.p_adjusted:.2g})"
            for f in winners
        )
        among = (
            " They were not compared with each other."
            if len({f.treatment for f in winners}) > 1
            else ""
        )
        return f"The plan supports a winner over the control: {names}.{among}"
    if found:
        names = ", ".join(
            f"{f.treatment} is {f.direction} on {f.metric} (difference {f.difference:+.4g}, "
            f"adjusted p {f.p_adjusted:.2g})"
            for f in found
        )
        return f"Keep the control: {names}."
    tempting = any(
        c.fixed.p_value is not None and c.fixed.p_value <= plan.alpha
        for m in metrics
        if m.role == "primary"
        for c in m.comparisons
    )
    aside = (
        " A single uncorrected look would call a difference significant; the plan does not stand "
        "on that."
        if tempting
        else ""
    )
    return f"No winner: no difference on a primary metric is significant by the plan.{aside}"


def _notes_on_kinds(facts: Facts, metrics: Sequence[MetricReport]) -> list[str]:
    """What is to be known of metrics of other kinds than a proportion or a plain mean."""
    notes = []
    linear = [m.key for m in metrics if m.kind == "ratio" or m.covariate is not None]
    if linear:
        notes.append(
            "Intervals of ratios and of means with a covariate are for large samples: the any-time "
            f"reading of them holds asymptotically ({', '.join(linear)})."
        )
    quantiles = [m.key for m in metrics if m.kind == "quantile"]
    if quantiles and facts.enrolled.reallocated:
        notes.append(
            f"Quantiles are not available after a reallocation ({', '.join(quantiles)}): they "
            "would pool units over epochs of other propensities."
        )
    elif quantiles:
        notes.append(
            f"Quantiles are of the units that have a value, known to {100 * ACCURACY:g} % of "
            f"itself; their intervals are for large samples ({', '.join(quantiles)})."
        )
    return notes


def _notes(facts: Facts, metrics: Sequence[MetricReport]) -> tuple[str, ...]:
    notes = []
    reallocated = facts.enrolled.reallocated
    if reallocated:
        notes.append(
            "Traffic was reallocated: differences are taken within epochs and weighted by their "
            "units, never pooled over epochs."
        )
    if reallocated and isinstance(facts.definition.policy, ThompsonPolicy):
        notes.append(
            "Weights followed the data: the effect is that of a unit's first assignment, and "
            "intervals are approximate where an epoch has few units of a variant."
        )
    notes += _notes_on_kinds(facts, metrics)
    waiting = {m.key: sum(arm.units - arm.finished for arm in m.arms.values()) for m in metrics}
    if any(waiting.values()):
        named = ", ".join(f"{count} of {key}" for key, count in waiting.items() if count)
        notes.append(
            "The fixed reading counts units that are still within their window by what came of "
            f"them so far ({named}); the continuous one waits for them."
        )
    notes += [
        f"{m.key} is still being computed for units that were there before it: "
        f"{100 * m.backfill:.0f} % of the units are in its numbers."
        for m in metrics
        if m.backfill is not None
    ]
    notes += [
        f"{m.key} counts the units enrolled since {m.since:%Y-%m-%d %H:%M} UTC: raw events from "
        "before that were dropped when it joined."
        for m in metrics
        if m.since is not None
    ]
    several = _several(facts)
    if several:
        notes.append(
            f"{several} units met more than one variant; each counts by its first exposure."
        )
    late = sum(m.late_changes for m in metrics)
    if late:
        notes.append(
            f"{late} values changed after their enrolment block was closed; the continuous reading "
            "has them, decisions taken before did not."
        )
    return tuple(notes)
