"""Breakdowns of a report: each metric by the attributes that the experiment records. Pure.

They explore: no conclusion stands on them. So their p-values are adjusted for the false discovery
rate, over all segments of the report and, apart from that, over all interaction tests.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from analysis.folding.metrics import run_metric
from analysis.inference.choice import read_fixed
from analysis.inference.epoch_sums import EpochSums
from analysis.inference.estimate import Comparison, Note, cautious_std_error
from analysis.inference.interaction import Effect, cochran_q, sequence_of_differences
from analysis.inference.kinds import Kind
from analysis.inference.multiplicity import benjamini_hochberg
from analysis.inference.segments import Segment, SegmentFacts
from analysis.inference.sequence import DECISION_N, always_valid
from analysis.reports.model import Continuous, Facts, MetricFacts
from experiments.model import Metric, Role

LEAST_UNITS: Final = 100
"""Units of each arm that a segment needs to be tested against others: below that a difference and
its error are neither normal nor independent."""

_ROUGH: Final[frozenset[Note]] = frozenset({"small_counts", "few_units"})


class SegmentComparison(msgspec.Struct, frozen=True):
    """A treatment against the control among the units of one segment.

    Arguments:
        segment: which units.
        treatment: against the control.
        units_control, units_treatment: how many they are, in all epochs.
        fixed, continuous: the two readings, as in `MetricComparison`. The `p_adjusted` of the
            continuous one is always None.
        p_value: raw, of the reading that the plan names: the continuous one, or else the fixed one.
        p_adjusted: Benjamini and Hochberg's, over all such comparisons of the report.
    """

    segment: Segment
    treatment: str
    units_control: int
    units_treatment: int
    fixed: Comparison
    continuous: Continuous
    p_value: float | None = None
    p_adjusted: float | None = None


class Interaction(msgspec.Struct, frozen=True):
    """Whether the effect of a treatment differs between the segments of an attribute.

    Arguments:
        treatment: against the control.
        test: `cochran_q` holds for one look that was planned, `sequence` for any number of looks;
            it is the latter where the plan reads continuously.
        statistic: Cochran's Q; of a sequence the natural logarithm of its e-value.
        df: degrees of freedom of Q; None of a sequence.
        p_value: raw.
        p_adjusted: Benjamini and Hochberg's, over all interaction tests of the report.
        compared: the segments that were tested against each other.
        left_out: those with too few units, or conversions, for that.
        note: why there is no test; None where there is one.
    """

    treatment: str
    test: Literal["cochran_q", "sequence"]
    statistic: float | None
    df: int | None
    p_value: float | None
    p_adjusted: float | None
    compared: tuple[Segment, ...]
    left_out: tuple[Segment, ...]
    note: Literal["too_few_segments"] | None = None


class Breakdown(msgspec.Struct, frozen=True):
    """A metric by an attribute.

    Arguments:
        attribute, metric: their names.
        role, kind: of the metric.
        missing: units of each variant that came without the attribute, so are in no segment.
        segments: the comparisons; those of one treatment are together, in the order in which the
            values appeared.
        interactions: one for each treatment.
        note: `quantile` of a quantile metric, which is not broken down; None of any other.
    """

    attribute: str
    metric: str
    role: Role
    kind: Kind
    missing: dict[str, int] = {}
    segments: tuple[SegmentComparison, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    note: Literal["quantile"] | None = None


def breakdowns(facts: Facts) -> tuple[Breakdown, ...]:
    """The primary and secondary metrics of a report by each attribute that its units have."""
    attributes = dict.fromkeys(s.attribute for m in facts.metrics.values() for s in m.segments)
    return _adjusted(
        [
            _breakdown(facts, metric, attribute)
            for attribute in attributes
            for metric in facts.definition.metrics
            if metric.role != "guardrail"
        ]
    )


def _breakdown(facts: Facts, metric: Metric, attribute: str) -> Breakdown:
    kind = run_metric(metric).kind
    if kind == "quantile":
        return Breakdown(attribute, metric.key, metric.role, kind, note="quantile")
    known = facts.metrics.get(metric.key, MetricFacts())
    segments = {
        segment: found
        for segment, found in known.segments.items()
        if segment.attribute == attribute and any(found.everyone.units.values())
    }
    variants = list(facts.definition.weights)
    comparisons: list[SegmentComparison] = []
    interactions: list[Interaction] = []
    for treatment in variants:
        if treatment == facts.definition.control.key:
            continue
        read = [_read(facts, kind, treatment, *found) for found in segments.items()]
        comparisons += [of_segment.comparison for of_segment in read]
        interactions.append(_interaction(facts, treatment, read))
    return Breakdown(
        attribute=attribute,
        metric=metric.key,
        role=metric.role,
        kind=kind,
        missing={
            v: known.everyone.units.get(v, 0)
            - sum(found.everyone.units.get(v, 0) for found in segments.values())
            for v in variants
        },
        segments=tuple(comparisons),
        interactions=tuple(interactions),
    )


class _Read(NamedTuple):
    """A segment's comparison, and its effect where that can be tested against others."""

    comparison: SegmentComparison
    effect: Effect | None


def _read(facts: Facts, kind: Kind, treatment: str, segment: Segment, known: SegmentFacts) -> _Read:
    """Read one segment as the report reads all units, but for adaptive scores: those are kept of
    all units only."""
    plan, control = facts.definition.analysis, facts.definition.control.key
    reallocated = facts.enrolled.reallocated
    arms = control, treatment, kind
    fixed, finished = (
        read_fixed(population, None, *arms, reallocated=reallocated, alpha=plan.alpha)
        for population in (known.everyone, known.finished)
    )
    std_error = cautious_std_error(known.finished.contrasts.get(treatment, EpochSums()), *arms)
    n = finished.n_control, finished.n_treatment
    reading = always_valid(finished.difference, std_error, *n, plan.alpha, plan.units or DECISION_N)
    continuous = Continuous(
        *n,
        finished.difference,
        reading,
        method=finished.method,
        mean_control=finished.mean_control,
        mean_treatment=finished.mean_treatment,
        lift=finished.lift,
    )
    if plan.reading == "continuous":
        p_value, effect = reading.p_value, _effect(finished, std_error)
    else:
        p_value, effect = fixed.p_value, _effect(fixed, fixed.std_error)
    units = known.everyone.units
    comparison = SegmentComparison(
        segment=segment,
        treatment=treatment,
        units_control=units.get(control, 0),
        units_treatment=units.get(treatment, 0),
        fixed=fixed,
        continuous=continuous,
        p_value=p_value,
    )
    return _Read(comparison, effect)


def _effect(comparison: Comparison, std_error: float | None) -> Effect | None:
    n_control, n_treatment = comparison.n_control, comparison.n_treatment
    if comparison.difference is None or not std_error or min(n_control, n_treatment) < LEAST_UNITS:
        return None
    if _ROUGH.intersection(comparison.notes):
        return None
    return Effect(comparison.difference, std_error, n_control, n_treatment)


def _interaction(facts: Facts, treatment: str, read: Sequence[_Read]) -> Interaction:
    plan = facts.definition.analysis
    effects = [of_segment.effect for of_segment in read if of_segment.effect is not None]
    found = (
        sequence_of_differences(effects, plan.alpha, plan.units or DECISION_N)
        if plan.reading == "continuous"
        else cochran_q(effects)
    )
    return Interaction(
        treatment=treatment,
        test="sequence" if plan.reading == "continuous" else "cochran_q",
        statistic=None if found is None else found.statistic,
        df=None if found is None else found.df,
        p_value=None if found is None else found.p_value,
        p_adjusted=None,
        compared=tuple(r.comparison.segment for r in read if r.effect is not None),
        left_out=tuple(r.comparison.segment for r in read if r.effect is None),
        note="too_few_segments" if found is None else None,
    )


def _adjusted(found: Sequence[Breakdown]) -> tuple[Breakdown, ...]:
    """Put the adjusted p-values beside the raw ones."""
    of_segments = _family([c.p_value for b in found for c in b.segments])
    of_tests = _family([i.p_value for b in found for i in b.interactions])
    return tuple(
        msgspec.structs.replace(
            b,
            segments=tuple(
                msgspec.structs.replace(c, p_adjusted=next(of_segments)) for c in b.segments
            ),
            interactions=tuple(
                msgspec.structs.replace(i, p_adjusted=next(of_tests)) for i in b.interactions
            ),
        )
        for b in found
    )


def _family(p_values: Sequence[float | None]) -> Iterator[float | None]:
    return iter(benjamini_hochberg(p_values))
