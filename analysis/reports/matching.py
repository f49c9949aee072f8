"""Whether exposures and outcomes find each other: checks of the join behind a metric. Pure."""

from collections.abc import Iterator
from typing import Final

from analysis.folding.metrics import run_metric
from analysis.inference.epoch_sums import Population
from analysis.inference.exact import quotient
from analysis.inference.health import EventHealth
from analysis.inference.moments import pairs
from analysis.reports.model import Facts, MetricFacts, QualityCheck, QualityCode, Severity
from analysis.reports.words import percent
from experiments.model import Metric, ProportionMetric, QuantileMetric, RatioMetric

ENOUGH: Final = 1_000
"""Units, or outcomes, of which "none at all" is no accident."""
NEVER_CAME: Final = 10.0
"""Units with an outcome that an arm would have at the other's share, when it has none: by chance
once in e^10."""


def matching(facts: Facts, metric: Metric, known: MetricFacts) -> Iterator[QualityCheck]:
    """Whether units of every variant have outcomes, and outcomes have units. Visits are made of
    outcomes of units, so there is nothing to see of them."""
    if metric.scope == "exposure":
        return
    if known.backfill is not None:
        yield QualityCheck(
            "backfill",
            "info",
            metric.key,
            f"{metric.key} is still being computed for units that were there before it: "
            f"{percent(known.backfill)} of the units are in its numbers.",
            "Wait until all are in.",
            {"share": known.backfill},
        )
        return
    finished = known.finished.units
    if sum(finished.values()) > 0:
        yield _exposures_without(facts, metric, known)
    for event in dict.fromkeys(_events(metric)):
        found = facts.health.events.get(event)
        if found is not None:
            yield _outcomes_without(facts, metric, known, event, found)


def _exposures_without(facts: Facts, metric: Metric, known: MetricFacts) -> QualityCheck:
    finished = known.finished.units
    share = _active_shares(facts, metric, known)
    silent = [v for v, active in share.items() if active == 0.0 and finished.get(v, 0) >= ENOUGH]
    lost = [variant for variant in silent if max(share.values()) * finished[variant] >= NEVER_CAME]
    numbers: dict[str, float] = {f"finished_{v}": n for v, n in finished.items()}
    numbers |= {f"active_share_{variant}": active for variant, active in share.items()}
    if lost:
        best = max(share, key=lambda variant: share[variant])
        return QualityCheck(
            "exposures_without_outcomes",
            "critical" if any(_is_mute(facts, variant) for variant in lost) else "warning",
            metric.key,
            f"None of the {sum(finished[v] for v in lost):,} finished units of {', '.join(lost)} "
            f"has an outcome of {metric.key}, while at least {percent(share[best])} of {best} do.",
            "Look whether outcomes of this variant are reported, and with the ids it was assigned "
            "by.",
            numbers,
        )
    if silent and not any(share.values()):
        return QualityCheck(
            "exposures_without_outcomes",
            "warning",
            metric.key,
            f"Not one of {sum(finished.values()):,} finished units has an outcome of {metric.key}.",
            "Look whether the event is reported under this name, with the ids that units are "
            "assigned by, and within the window.",
            numbers,
        )
    exact = isinstance(metric, ProportionMetric | QuantileMetric)
    shares = ", ".join(f"{percent(active)} of {variant}" for variant, active in share.items())
    return QualityCheck(
        "exposures_without_outcomes",
        "ok",
        metric.key,
        f"Finished units with an outcome of {metric.key}: {'' if exact else 'at least '}"
        f"{shares or 'none yet'}.",
        "",
        numbers,
    )


def _is_mute(facts: Facts, variant: str) -> bool:
    """Whether nothing is heard of a variant's units at all. No outcomes of one event may be what
    the variant does: it mends every error, or never shows the button. So one that is wished for has
    to be missing, and all others with it."""
    wished_for = False
    for metric in facts.definition.metrics:
        known = facts.metrics.get(metric.key)
        if known is None or known.backfill is not None:
            continue
        if _active_shares(facts, metric, known).get(variant, 0.0) > 0.0:
            return False
        wished_for = wished_for or metric.goal == "increase"
    return wished_for


def _outcomes_without(
    facts: Facts, metric: Metric, known: MetricFacts, event: str, found: EventHealth
) -> QualityCheck:
    definition = facts.definition
    received, counted = found.received.n, _counted(facts, metric, event)
    numbers: dict[str, float] = {
        "received": received,
        "counted": counted,
        "of_other_types": found.of_other_types,
    }
    code: QualityCode = "outcomes_without_exposures"
    if counted == 0 and _has_any(metric, known, event):
        # They came before this metric, or its cap, or what counts them.
        return QualityCheck(
            code,
            "ok",
            metric.key,
            f"Enrolled units have outcomes of {event}, though none of the about {received:,} that "
            f"came since those of {metric.key} are counted is one of theirs.",
            "",
            numbers,
        )
    silent = _is_silent(facts)
    if received == 0 and found.of_other_types >= ENOUGH:
        return QualityCheck(
            code,
            "critical" if silent else "warning",
            metric.key,
            f"All {found.of_other_types:,} outcomes of {event} name units of other types than "
            f"{definition.unit.type}, which is what the experiment assigns: none can be counted.",
            f"Name the {definition.unit.type} in the outcomes, too (units: "
            f"{{{definition.unit.type}: ...}}), or randomise what they name.",
            numbers,
        )
    if received >= ENOUGH and counted == 0:
        explanation = (
            f"About {received:,} outcomes of {event} came, and none of them is of an enrolled unit "
            "within the window."
        )
        # Where only some of the units are let in, or few of them yet, those may all be others'.
        everyone = definition.targeting is None and definition.layer is None
        certain = everyone and received * definition.first_traffic >= ENOUGH
        if sum(known.finished.units.values()) < ENOUGH:
            severity: Severity = "info"
            action = (
                "Wait until more units have finished; if it stays so, compare ids and unit types."
            )
        elif silent:
            severity = "critical" if certain else "warning"
            action = (
                "Compare the ids and unit types of exposures and outcomes: most likely they "
                "differ. Or the window is shorter than outcomes take."
            )
        else:
            severity = "info"
            action = (
                "Nothing, if they may all be of units that never were assigned: other outcomes do "
                "find theirs. Else compare the ids and unit types of these."
            )
        return QualityCheck(code, severity, metric.key, explanation, action, numbers)
    alone = received > 0 and counted == 0
    return QualityCheck(
        code,
        "info" if alone else "ok",
        metric.key,
        f"About {received:,} outcomes of {event} came since counting began, and {counted:,} are of "
        "an enrolled unit within the window.",
        "Wait for more outcomes." if alone else "",
        numbers,
    )


def _events(metric: Metric) -> tuple[str, ...]:
    """The events of a unit's outcome numbers, in their order."""
    parts = run_metric(metric).parts
    return tuple(part.event for part in parts[: 2 if isinstance(metric, RatioMetric) else 1])


def _counted(facts: Facts, metric: Metric, event: str) -> int:
    """How many outcomes of an event counted for a metric as they came, none of them earlier."""
    return facts.health.counted.get(run_metric(metric).version, {}).get(event, 0)


def _is_silent(facts: Facts) -> bool:
    """Whether no metric of the experiment has an outcome, be it in its sums or as they came, though
    one is wished for. A single event that only others have may well be none of enrolled units'."""
    wished_for = False
    for metric in facts.definition.metrics:
        known = facts.metrics.get(metric.key, MetricFacts())
        if known.backfill is not None or metric.scope == "exposure":
            continue
        for event in _events(metric):
            if _counted(facts, metric, event) > 0 or _has_any(metric, known, event):
                return False
        wished_for = wished_for or metric.goal == "increase"
    return wished_for


def _has_any(metric: Metric, known: MetricFacts, event: str) -> bool:
    """Whether the metric's own sums show outcomes of an event."""
    if any(bin_.n for bins in known.values.values() for bin_ in bins):
        return True
    arms = [
        arm
        for population in (known.everyone, known.finished)
        for sums in population.contrasts.values()
        for arm in sums.arms.values()
    ]
    return any(
        arm.mean[place] != 0 or arm.spread[_diagonal(len(arm.mean))[place]] != 0
        for arm in arms
        for place, of_part in enumerate(_events(metric))
        if of_part == event
    )


def _diagonal(d: int) -> list[int]:
    """Where the squares stand among the packed pairs of d numbers."""
    return [place for place, (i, j) in enumerate(pairs(d)) if i == j]


def _active_shares(facts: Facts, metric: Metric, known: MetricFacts) -> dict[str, float]:
    """The share of finished units that have an outcome, by variant; for sums and counts a share
    that they surely reach.

    Of n numbers with mean m and variance s² at least n m²/(m² + s²) are not 0 (Cauchy, Schwarz);
    of zeros and ones that is how many are 1.
    """
    if isinstance(metric, QuantileMetric):
        return {
            variant: sum(bin_.n for bin_ in known.finished_values.get(variant, ())) / n
            for variant, n in known.finished.units.items()
            if n > 0 and known.finished_values
        }
    outcome = 2 if isinstance(metric, RatioMetric) else 1
    shares: dict[str, float] = {}
    for variant, n in known.finished.units.items():
        if n > 0:
            found = _active_share(known.finished, variant, facts.definition.control.key, outcome)
            if found is not None:
                shares[variant] = found
    return shares


def _active_share(population: Population, variant: str, control: str, outcome: int) -> float | None:
    """The largest share over a unit's outcome numbers; None where the variant is in no contrast
    with units of both variants."""
    sums = next(
        (
            found
            for treatment, found in population.contrasts.items()
            if variant in (control, treatment) and found.epochs > 0
        ),
        None,
    )
    if sums is None:
        return None
    arm = sums.arms[variant]
    diagonal = _diagonal(len(arm.mean))
    shares = []
    for i in range(outcome):
        square = quotient(arm.mean[i], sums.weight) ** 2
        variance = quotient(arm.spread[diagonal[i]], arm.n)
        # Where a sum is 0 by chance, its terms are not.
        least = 1.0 / arm.n if variance > 0.0 else 0.0
        shares.append(max(least, square / (square + variance)) if square > 0.0 else least)
    return max(shares)
