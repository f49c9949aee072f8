"""What a report is made from, and what it is made of: Structs, without any logic."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from analysis.inference.aipw import WeightFacts
from analysis.inference.batched import BatchedOls
from analysis.inference.bayes import BayesianReading
from analysis.inference.epoch_sums import Population
from analysis.inference.estimate import Comparison
from analysis.inference.health import Health
from analysis.inference.kinds import Bound, Goal, Kind, Method
from analysis.inference.planned import Look, PlannedReading
from analysis.inference.quantile import Histogram, Quantile
from analysis.inference.ratio_check import UnitSums
from analysis.inference.segments import Segment, SegmentFacts
from analysis.inference.sequence import AlwaysValid
from analysis.inference.trail import Trail
from experiments.model import Experiment, QuantileCap, Role, Scope, State

Action = Literal["ship", "keep_control", "keep_running", "stop_for_futility", "fix_data"]
"""What a conclusion advises. The codes are stable."""

Finding = Literal["better", "worse", "futile", "ended", "open"]
"""What the plan's reading finds of a comparison on a primary metric. The codes are stable.

better, worse: a difference that the plan lets one stand on.
futile: an improvement of the size that the plan finds worth having is ruled out, or out of reach.
ended: the reading came to its end, and found no difference that matters.
open: none of these, yet.
"""


class ComparisonVerdict(msgspec.Struct, frozen=True):
    """The conclusion of one comparison on one metric.

    Arguments:
        action: what it advises by itself; None of a secondary metric, which decides nothing, and of
            a guardrail without an alarm.
        finding: on a primary metric; None on any other.
        known: what is known.
        how_sure: how sure that is, and by what kind of promise.
        what_would_change_it: which data, or whose decision.
        difference: what a finding other than open stands on, in the metric's unit.
        more_units: about how many more finished units, of all variants, the plan's reading needs;
            None where it needs none, or that cannot be said.
        more_seconds: about how long they take at the rate of enrolment so far, and to finish.
    """

    action: Action | None
    finding: Finding | None
    known: str
    how_sure: str
    what_would_change_it: str
    difference: float | None = None
    more_units: int | None = None
    more_seconds: float | None = None


NOT_JUDGED = ComparisonVerdict(None, None, "Not judged.", "", "")
"""Stands in a comparison until it is judged."""


Severity = Literal["ok", "info", "warning", "critical"]
"""critical: no comparison can be trusted until it is mended. warning: numbers may be off, or late.
info: good to know. ok: looked at, and well."""
QualityCode = Literal[
    "sample_ratio",
    "sample_ratio_watch",
    "several_variants",
    "exposures_without_outcomes",
    "outcomes_without_exposures",
    "event_delay",
    "too_few_units",
    "cap_open",
    "covariate_imbalance",
    "enrolment_stopped",
    "outcomes_stopped",
    "report_stale",
    "late_changes",
    "backfill",
    "fragile_weights",
]
"""What was checked. The codes are stable."""
EXPERIMENT: Final = "experiment"
"""The subject of a check that is about no single metric or event."""


class QualityCheck(msgspec.Struct, frozen=True):
    """What one check found.

    Arguments:
        code: what was checked.
        severity: how much it matters.
        subject: the key of the metric, or the event, that it is about; "experiment" otherwise.
        explanation: what was found.
        action: what to do about it; empty where there is nothing to do.
        numbers: what it was judged by, by stable names; shares are fractions, times in seconds.
    """

    code: QualityCode
    severity: Severity
    subject: str
    explanation: str
    action: str = ""
    numbers: dict[str, float] = {}


class Verdict(msgspec.Struct, frozen=True):
    """The conclusion of an experiment, by the rules of `conclusion.py`. `variant` is the one to
    ship, None with any other action; the other fields are as in `ComparisonVerdict`."""

    action: Action
    variant: str | None
    known: str
    how_sure: str
    what_would_change_it: str
    more_units: int | None = None
    more_seconds: float | None = None


LATENESS: Final = timedelta(seconds=5)
"""The usual lateness allowed, as in the settings."""


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
        trails: what adaptive inference needs of the closed blocks, by treatment; none of a quantile
            metric, or before a block was closed.
        segments: the same sums of the units of each segment; none of a quantile metric, or where no
            attribute is recorded.
        looks: the looks of a fixed or planned reading that were taken, by treatment, in order.
        cap: the number that no unit counts more than; the quantile of the data that it will be,
            while it waits for them; None without one, and of data that came from elsewhere.
    """

    everyone: Population = Population()
    finished: Population = Population()
    values: Mapping[str, Histogram] = {}
    finished_values: Mapping[str, Histogram] = {}
    late: int = 0
    backfill: float | None = None
    since: datetime | None = None
    trails: Mapping[str, Trail] = {}
    segments: Mapping[Segment, SegmentFacts] = {}
    looks: Mapping[str, tuple[Look, ...]] = {}
    cap: float | QuantileCap | None = None


class GuardView(msgspec.Struct, frozen=True):
    """How much evidence of harm a guardrail has gathered, and how much makes an alarm."""

    guardrail: str
    variant: str
    goal: Goal
    margin: float
    relative: bool
    alpha_share: float
    bound: Bound
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
    health: Health = Health()
    """How the data came."""
    now: datetime | None = None
    """When the report is read; None where that is not known, as in a library."""
    lateness: timedelta = LATENESS
    """How much later than it happened an outcome may come, and still count before its block is
    closed."""
    generation: int = 1
    """Of the guard."""
    withdrawn: Mapping[str, str] = {}
    """Why each variant was rolled back that is so now, while the run goes on."""
    by_guard: frozenset[str] = frozenset()
    """Which of these, or, where the run was, all its variants, the guard rolled back: its evidence
    says why. Of others the reason is the word of who rolled them back."""


class Continuous(msgspec.Struct, frozen=True):
    """The reading that may be looked at, and acted on, at any time.

    Arguments:
        n_control, n_treatment: the units behind it, finished ones.
        difference: in the metric's unit.
        reading: the confidence sequence and its e-value.
        p_adjusted: its p-value, corrected as `MetricComparison` says.
        method: how it was estimated.
        mean_control, mean_treatment: of the same units, so that one less the other is the
            difference; those of `fixed` are of all units, the unfinished ones included.
        lift: the difference over |mean_control|, as a fraction: so it has the sign of the
            difference, as the lift of all units need not. A point estimate; no interval of it is
            claimed.
    """

    n_control: int
    n_treatment: int
    difference: float | None
    reading: AlwaysValid
    p_adjusted: float | None = None
    method: Method = "within_epochs"
    mean_control: float | None = None
    mean_treatment: float | None = None
    lift: float | None = None


class Harm(msgspec.Struct, frozen=True):
    """What is known of the harm to a guardrail that no guard watched as its data came.

    Arguments:
        alpha_share: of the guard's alpha: the bound on the chance that harm within the margin is
            ever shown as more, asymptotically.
        margin: the harm that is tolerated, in the metric's unit.
        least: the harm is at least this, in the metric's unit; negative while the variant may be
            the better one.
        shown: whether that is more than the margin.
    """

    alpha_share: float
    margin: float
    least: float
    shown: bool


class MetricComparison(msgspec.Struct, frozen=True):
    """A treatment against the control on one metric, in all readings that there are of it.

    `fixed` is the textbook answer on all units so far; as such it holds for one look that was
    planned. `continuous` uses finished units only and holds at every look. `planned` is what the
    looks say that were taken by the plan, be it one (the fixed reading) or several, and `bayesian`
    the posterior of finished units, where the plan asks for it; None elsewhere.

    `batched_ols`, a second estimate of finished units, and `weights`, how evenly an estimate from
    propensities rests on its units, are there once traffic was reallocated.

    Each p-value stands beside the one that is adjusted: Holm's over variants x primary metrics,
    Benjamini and Hochberg's over variants x secondary metrics, None for a guardrail, whose alpha is
    shared out beforehand.

    `detectable_effect`: the smallest true difference, in the metric's unit, that the fixed reading
    would find with the plan's power, at its alpha and the standard error so far.

    `harm` is there for a guardrail that no guard watched, once it can be read.
    """

    treatment: str
    fixed: Comparison
    fixed_p_adjusted: float | None
    continuous: Continuous
    planned: PlannedReading | None = None
    planned_p_adjusted: float | None = None
    bayesian: BayesianReading | None = None
    batched_ols: BatchedOls | None = None
    weights: WeightFacts | None = None
    detectable_effect: float | None = None
    harm: Harm | None = None
    verdict: ComparisonVerdict = NOT_JUDGED


class ArmUnits(msgspec.Struct, frozen=True):
    """How many units of a variant a metric counts, and how many of them have finished; of a
    quantile metric also the quantile of those that have a value."""

    units: int
    finished: int
    quantile: Quantile | None = None


class MetricReport(msgspec.Struct, frozen=True):
    """A metric: its arms and its comparisons. `backfill`, `since` and `cap` as in `MetricFacts`;
    `covariate` is how much time before enrolment it is adjusted by, `quantile` which one is
    compared, each None where there is none. The units of one of the scope `exposure` are visits.
    """

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
    cap: float | QuantileCap | None = None
    scope: Scope = "enrolment"
