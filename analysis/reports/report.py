"""The significance report: from sums over epochs to an answer in the analyst's terms. Pure."""

from datetime import datetime

import msgspec

from analysis.inference.ratio_check import RatioCheck, check_ratio
from analysis.reports.breakdowns import Breakdown, breakdowns
from analysis.reports.comparisons import metric_reports
from analysis.reports.conclusion import conclude, faults_of, headline
from analysis.reports.judge import judge
from analysis.reports.model import (
    ComparisonVerdict,
    Facts,
    GuardView,
    MetricComparison,
    MetricReport,
    QualityCheck,
    Verdict,
)
from analysis.reports.notes import guard_alpha, notes_on
from analysis.reports.quality import quality_checks
from analysis.reports.setting import Setting
from experiments.model import Action, QuantileCap, Reading, State


class Report(msgspec.Struct, frozen=True):
    """The answer to "what do we know?". Every number that is not defined is null.

    `reading` is the plan's: the one that conclusions stand on. `conclusion` is the verdict in one
    line, `guard_alpha` says how the guard's alpha is shared out, `guard_action` what is done on an
    alarm. `rolled_back` says why each variant was rolled back that gets no traffic until it is
    resumed, while the run goes on.
    """

    project: str
    experiment: str
    state: State
    run: int
    epoch: int
    control: str
    ship: str | None
    conclusion: str
    verdict: Verdict
    reading: Reading
    alpha: float
    correction: str
    started_at: datetime | None
    data_until: datetime | None
    units: dict[str, int]
    several_variants: int
    epochs: int
    sample_ratio: RatioCheck
    quality: tuple[QualityCheck, ...]
    metrics: tuple[MetricReport, ...]
    breakdowns: tuple[Breakdown, ...]
    guard: tuple[GuardView, ...]
    guard_alpha: str
    guard_action: Action
    guard_generation: int
    rolled_back: dict[str, str]
    notes: tuple[str, ...]


def make_report(facts: Facts) -> Report:
    """The report of a run."""
    definition = facts.definition
    ratio = check_ratio(facts.enrolled)
    units = {variant: ratio.observed.get(variant, 0) for variant in definition.weights}
    compared = metric_reports(facts)
    quality = quality_checks(facts, compared)
    setting = _setting(facts, units, compared)
    sound = faults_of(ratio, quality) is None
    metrics = tuple(_judged(metric, setting, sound=sound) for metric in compared)
    verdict = conclude(facts, units, ratio, quality, metrics)
    return Report(
        project=facts.project,
        experiment=facts.key,
        state=facts.state,
        run=facts.run,
        epoch=facts.epoch,
        control=definition.control.key,
        ship=facts.ship,
        conclusion=headline(verdict, facts),
        verdict=verdict,
        reading=definition.analysis.reading,
        alpha=definition.analysis.alpha,
        correction=definition.analysis.correction,
        started_at=facts.started_at,
        data_until=facts.watermark,
        units=units,
        several_variants=sum(found.several for found in facts.enrolled.variants.values()),
        epochs=facts.enrolled.epochs,
        sample_ratio=ratio,
        quality=quality,
        metrics=metrics,
        breakdowns=breakdowns(facts),
        guard=facts.guard,
        guard_alpha=guard_alpha(facts),
        guard_action=definition.guard.action,
        guard_generation=facts.generation,
        rolled_back=dict(facts.withdrawn),
        notes=notes_on(facts, metrics),
    )


def _setting(facts: Facts, units: dict[str, int], metrics: tuple[MetricReport, ...]) -> Setting:
    primary = [metric for metric in metrics if metric.role == "primary"]
    rate = None
    if facts.started_at is not None and facts.watermark is not None:
        seconds = (facts.watermark - facts.started_at).total_seconds()
        rate = sum(units.values()) / seconds if seconds > 0 else None
    return Setting(
        plan=facts.definition.analysis,
        comparisons=max(1, sum(len(metric.comparisons) for metric in primary)),
        units_per_second=rate,
        guard=facts.guard,
        uncapped=[metric.key for metric in primary if isinstance(metric.cap, QuantileCap)],
    )


def _judged(metric: MetricReport, setting: Setting, *, sound: bool) -> MetricReport:
    return msgspec.structs.replace(
        metric,
        comparisons=tuple(
            msgspec.structs.replace(c, verdict=_verdict(c, metric, setting, sound=sound))
            for c in metric.comparisons
        ),
    )


def _verdict(
    comparison: MetricComparison, metric: MetricReport, setting: Setting, *, sound: bool
) -> ComparisonVerdict:
    verdict = judge(comparison, metric, setting)
    if sound or metric.role != "primary":
        return verdict
    return msgspec.structs.replace(
        verdict,
        action="fix_data",
        how_sure="The data cannot be trusted, however significant this looks.",
        what_would_change_it="Mending what the quality checks call critical.",
    )
