"""The significance report: from cells of moments to an answer in the analyst's terms. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from analysis.estimate import Comparison, Stratum, cautious_std_error, compare
from analysis.kinds import Goal, Kind
from analysis.metrics import run_metric
from analysis.moments import EMPTY, Cells, Moments, merge
from analysis.multiplicity import holm
from analysis.ratio_check import EpochCounts, RatioCheck, check_ratio
from analysis.sequence import DECISION_N, MIN_UNITS_PER_ARM, AlwaysValid, always_valid
from experiments.model import AnalysisPlan, Experiment, Metric, Role, State, ThompsonPolicy

Direction = Literal["better", "worse"]


class EpochUnits(msgspec.Struct, frozen=True):
    """Who enrolled in an epoch, against the propensities that it gave."""

    epoch: int
    units: dict[str, int]
    several: dict[str, int]
    propensities: dict[str, float]


class MetricCells(msgspec.Struct, frozen=True):
    """What is known of a metric: units whose window has passed, and those still in it."""

    finished: Cells
    unfinished: Cells
    late: int


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
    epochs: tuple[EpochUnits, ...]
    metrics: dict[str, MetricCells]
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
    """How many units of a variant a metric counts, and how many of them have finished."""

    units: int
    finished: int


class MetricReport(msgspec.Struct, frozen=True):
    """A metric: its arms and its comparisons."""

    key: str
    role: Role
    kind: Kind
    goal: Goal
    window: str
    arms: dict[str, ArmUnits]
    comparisons: tuple[MetricComparison, ...]
    late_changes: int


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
    ratio = check_ratio([EpochCounts(e.units, e.propensities) for e in facts.epochs])
    metrics = _adjust(
        [_metric_report(m, facts, variants) for m in definition.metrics], definition.analysis
    )
    units = {v: sum(e.units.get(v, 0) for e in facts.epochs) for v in variants}
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
        several_variants=sum(sum(e.several.values()) for e in facts.epochs),
        epochs=len(facts.epochs),
        sample_ratio=ratio,
        metrics=metrics,
        guard=facts.guard,
        notes=_notes(facts, metrics),
    )


def strata(cells: Cells, control: str, treatment: str) -> list[Stratum]:
    """A comparison's strata: one an epoch, weighted by the units of all variants."""
    units: Counter[int] = Counter()
    for (epoch, _), moments in cells.items():
        units[epoch] += moments.n
    return [
        Stratum(
            epoch=epoch,
            control=cells.get((epoch, control), EMPTY),
            treatment=cells.get((epoch, treatment), EMPTY),
            units=units[epoch],
        )
        for epoch in sorted(units)
    ]


def together(finished: Cells, unfinished: Cells) -> dict[tuple[int, str], Moments]:
    """All units, whether their window has passed or not."""
    cells = dict(finished)
    for key, moments in unfinished.items():
        cells[key] = merge(cells.get(key, EMPTY), moments)
    return cells


def _metric_report(metric: Metric, facts: Facts, variants: Sequence[str]) -> MetricReport:
    kind = run_metric(metric).kind
    known = facts.metrics.get(metric.key, MetricCells({}, {}, 0))
    everyone = together(known.finished, known.unfinished)
    plan, control = facts.definition.analysis, facts.definition.control.key
    comparisons = []
    for treatment in variants:
        if treatment == control:
            continue
        fixed = compare(strata(everyone, control, treatment), kind, plan.alpha)
        closed = strata(known.finished, control, treatment)
        finished = compare(closed, kind, plan.alpha)
        reading = always_valid(
            finished.difference,
            cautious_std_error(closed, kind),
            finished.n_control,
            finished.n_treatment,
            plan.alpha,
            plan.units or DECISION_N,
        )
        continuous = Continuous(
            finished.n_control, finished.n_treatment, finished.difference, reading
        )
        comparisons.append(MetricComparison(treatment, fixed, None, continuous))
    return MetricReport(
        key=metric.key,
        role=metric.role,
        kind=kind,
        goal=metric.goal,
        window=metric.window,
        arms={v: ArmUnits(_units(everyone, v), _units(known.finished, v)) for v in variants},
        comparisons=tuple(comparisons),
        late_changes=known.late,
    )


def _units(cells: Cells, variant: str) -> int:
    return sum(moments.n for (_, v), moments in cells.items() if v == variant)


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


def _notes(facts: Facts, metrics: Sequence[MetricReport]) -> tuple[str, ...]:
    notes = []
    first = facts.epochs[0].propensities if facts.epochs else {}
    reallocated = any(epoch.propensities != first for epoch in facts.epochs)
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
    waiting = {m.key: sum(arm.units - arm.finished for arm in m.arms.values()) for m in metrics}
    if any(waiting.values()):
        named = ", ".join(f"{count} of {key}" for key, count in waiting.items() if count)
        notes.append(
            "The fixed reading counts units that are still within their window by what came of "
            f"them so far ({named}); the continuous one waits for them."
        )
    several = sum(sum(e.several.values()) for e in facts.epochs)
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
