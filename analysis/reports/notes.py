"""What is to be known of a report's numbers, in words; what may be wrong with the data, the quality
checks say. Pure."""

import math
from collections.abc import Sequence

from analysis.inference.bins import ACCURACY
from analysis.inference.segments import MOST_ATTRIBUTES
from analysis.reports.harm import alpha_share
from analysis.reports.model import Facts, MetricReport
from experiments.model import ThompsonPolicy


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


def notes_on(facts: Facts, metrics: Sequence[MetricReport]) -> tuple[str, ...]:
    notes = []
    reallocated = facts.enrolled.reallocated
    if reallocated:
        notes.append(_how_reallocated(metrics))
    if reallocated and isinstance(facts.definition.policy, ThompsonPolicy):
        notes.append("Weights followed the data: the effect is that of a unit's first assignment.")
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
        if m.since is not None
    ]
    return tuple(notes)


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
    exact = sum(row.exact for row in facts.guard)
    return (
        f"{bound}: {pairs}, {sharing}; the rest was spent on margins that have changed since, or "
        "is kept for guardrails that are added. Evidence of 1/share is an alarm. "
        f"{_exactness(exact, len(shares))}"
    )


def _exactness(exact: int, shares: int) -> str:
    if exact == shares:
        return "The bound is exact."
    if exact == 0:
        return "The bound is asymptotic, after a burn-in."
    return (
        f"The bound is exact for {exact} of {shares} and asymptotic, after a burn-in, for others."
    )
