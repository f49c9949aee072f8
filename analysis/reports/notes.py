"""What is to be known of a report's numbers, in words; what may be wrong with the data, the quality
checks say. Pure."""

import math
from collections.abc import Sequence

from analysis.inference.bins import ACCURACY
from analysis.inference.kinds import Bound
from analysis.inference.segments import MOST_ATTRIBUTES
from analysis.reports.harm import alpha_share
from analysis.reports.model import Facts, MetricReport
from analysis.reports.words import BOUNDS, percent
from experiments.model import ThompsonPolicy


def _notes_on_kinds(facts: Facts, metrics: Sequence[MetricReport]) -> list[str]:
    """What is to be known of metrics of other kinds than a proportion or a plain mean."""
    notes = []
    visits = [m.key for m in metrics if m.scope == "exposure"]
    if visits:
        notes.append(
            "What units do now is counted, however long ago they were enrolled "
            f"({', '.join(visits)}): what is called units there are visits, of a unit in a block "
            "of time. Units repeat, so the bound and the intervals are approximate: they take the "
            "visits of one unit for those of many."
        )
    linear = [
        m.key
        for m in metrics
        if (m.kind == "ratio" or m.covariate is not None) and m.key not in visits
    ]
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


def notes_on(facts: Facts, metrics: Sequence[MetricReport]) -> tuple[str, ...]:
    notes = []
    reallocated = facts.enrolled.reallocated
    if reallocated:
        notes.append(_how_reallocated(metrics))
    policy = facts.definition.policy
    if reallocated and isinstance(policy, ThompsonPolicy):
        notes.append("Weights followed the data: the effect is that of a unit's first assignment.")
    if isinstance(policy, ThompsonPolicy):
        notes += _options_of(policy)
    notes += _notes_on_kinds(facts, metrics)
    unwatched = [m.key for m in metrics if any(c.harm is not None for c in m.comparisons)]
    if unwatched:
        notes.append(
            f"No guard watched {', '.join(unwatched)} as the data came: harm is read from finished "
            "units instead, and harm that is shown keeps a variant from being shipped."
        )
    notes += _not_broken_down(facts)
    waiting = {m.key: sum(arm.units - arm.finished for arm in m.arms.values()) for m in metrics}
    if any(waiting.values()):
        named = ", ".join(f"{count} of {key}" for key, count in waiting.items() if count)
        notes.append(
            "The fixed reading counts units that are still within their window by what came of "
            f"them so far ({named}); the continuous one waits for them."
        )
    notes += [
        f"{m.key} counts the units enrolled since {m.since:%Y-%m-%d %H:%M} UTC: raw events from "
        "before that were dropped when it joined."
        for m in metrics
        if m.since is not None and m.scope == "enrolment"
    ]
    return tuple(notes)


def _options_of(policy: ThompsonPolicy) -> list[str]:
    """How the bandit is not the usual one."""
    options = []
    if policy.sampling != "thompson":
        options.append(f"{policy.sampling} sampling")
    if policy.half_life is not None:
        options.append(f"units count half after {policy.half_life}")
    if policy.pin_control is not None:
        options.append(f"the control's weight is fixed at {percent(policy.pin_control)}")
    options += [f"{key} keeps {percent(least)} at least" for key, least in policy.floors.items()]
    if policy.stop is not None:
        options.append(
            "its stop rule is by expected loss, which bounds no error rate: what it ships is the "
            "best by what is known, and not shown to be"
        )
    return [f"The bandit follows {policy.metric}: {'; '.join(options)}."] if options else []


def _not_broken_down(facts: Facts) -> list[str]:
    """The attributes that have no breakdown, because there are too many."""
    broken_down = {s.attribute for known in facts.metrics.values() for s in known.segments}
    beyond = [name for name in facts.definition.record[MOST_ATTRIBUTES:] if name not in broken_down]
    if not beyond:
        return []
    return [
        f"Breakdowns are by the first {MOST_ATTRIBUTES} attributes that are recorded: not by "
        f"{', '.join(beyond)}."
    ]


def _how_reallocated(metrics: Sequence[MetricReport]) -> str:
    aipw = [m.key for m in metrics if any(c.fixed.method == "aipw" for c in m.comparisons)]
    within = [m.key for m in metrics if m.kind != "quantile" and m.key not in aipw]
    ways = []
    if within:
        ways.append(
            f"differences are taken within epochs and weighted by their units ({', '.join(within)})"
        )
    if aipw:
        ways.append(
            "differences come from scores that weigh each unit by its logged propensity "
            f"({', '.join(aipw)})"
        )
    how = "; ".join(ways) or "nothing can be compared"
    return f"Traffic was reallocated: {how}. Counts are never pooled over epochs."


def guard_alpha(facts: Facts) -> str:
    """How the guard's alpha is shared out, so that its promise is over all of it."""
    alpha = facts.definition.guard.alpha
    watched = [metric for metric in facts.definition.metrics if metric.role == "guardrail"]
    if not watched and facts.definition.guard.health.sample_ratio.action == "rollback":
        return (
            "No guardrail, so the guard watches nothing; its alpha is that of the sample ratio, "
            f"which rolls back falsely with a chance of at most {alpha:g}."
        )
    if not watched:
        return "No guardrail, so the guard watches nothing and spends no alpha."
    treatments = len(facts.definition.variants) - 1
    bound = (
        f"The chance that a harmless variant is ever rolled back in this run is at most {alpha:g}, "
        "over all guardrails, variants, looks and ramp steps together"
    )
    pairs = (
        f"{len(watched)} guardrail{'s' * (len(watched) > 1)} x {treatments} "
        f"treatment{'s' * (treatments > 1)}"
    )
    if not facts.guard and any(found.units for found in facts.enrolled.variants.values()):
        return (
            f"No guard watches these units: {pairs} are read by the any-time reading at "
            f"{alpha_share(facts.definition):.3g} each, so the chance that a harmless variant is "
            f"ever said to do harm is at most {alpha:g}. The bound is asymptotic."
        )
    if not facts.guard:
        return f"{bound}: {pairs} will be given shares of it when the run starts."
    shares = [row.alpha_share for row in facts.guard]
    sizes = " or ".join(f"{share:.3g}" for share in sorted(set(shares), reverse=True))
    sharing = f"a share of {sizes} each, together {math.fsum(shares):.3g}"
    bounds = [row.bound for row in facts.guard]
    return (
        f"{bound}: {pairs}, {sharing}; the rest was spent on margins that have changed since, or "
        "is kept for guardrails that are added. Evidence of 1/share is an alarm. "
        f"{_exactness(bounds)}"
    )


def _exactness(bounds: Sequence[Bound]) -> str:
    counts = {words: bounds.count(bound) for bound, words in BOUNDS.items() if bound in bounds}
    if len(counts) == 1:
        return f"The bound is {next(iter(counts))}."
    parts = [f"{words} for {count}" for words, count in counts.items()]
    return f"Of {len(bounds)} bounds: {'; '.join(parts)}."
