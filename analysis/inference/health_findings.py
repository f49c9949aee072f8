"""Findings about a run's data on which the controller acts: units that are not split as they should
be, none that come any more, and too many that met several variants. Pure.

Each is told once and stands until it clears; `act_on` says what is done about one that is new.
"""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec

from analysis.inference.health import GAPS
from analysis.inference.ratio_watch import LOG_THRESHOLD, RatioWatch

Check: TypeAlias = Literal["sample_ratio", "no_data", "several_variants"]
Measure: TypeAlias = Literal["ignore", "alert", "pause", "rollback"]
"""What is done about a finding, the mildest first."""

LEAST_UNITS: Final = 100
"""From so many units on a share of them says something."""
CLEAR_BELOW: Final = 0.8
"""A share that was too large has cleared once it is below this part of its limit: one that wavers
around the limit is told once."""

_SEVERITY: Final[Mapping[Measure, int]] = {"ignore": 0, "alert": 1, "pause": 2, "rollback": 3}


class RatioRule(msgspec.Struct, frozen=True):
    """The rule of a row of the guard's ledger by which the sample ratio may roll back."""

    alpha_share: float


class RatioStart(msgspec.Struct, frozen=True):
    """Where the watch over the sample ratio stood when that row was opened.

    Arguments:
        log_e: the logarithm of the e-process.
        impossible: units that came while their variant had no propensity.
    """

    log_e: float = 0.0
    impossible: int = 0


class HealthRule(msgspec.Struct, frozen=True):
    """What counts as a finding, and what is done about it.

    Arguments:
        sample_ratio, no_data, several_variants: the measures.
        silence: seconds without a new unit that are too many, where units usually come faster.
        share: of the units, that met several variants: more is too many.
        ledger: for a roll-back by the sample ratio, its row of the guard's ledger; None without.
        since: where the watch stood when that row was opened.
    """

    sample_ratio: Measure
    no_data: Measure
    several_variants: Measure
    silence: float
    share: float
    ledger: RatioRule | None = None
    since: RatioStart = RatioStart()


class HealthSeen(msgspec.Struct, frozen=True):
    """What the checks look at.

    Arguments:
        ratio: the watch over the units of the variants.
        units: how many are enrolled, and `several` how many of them met several variants.
        last_unit: when the last one was enrolled; None before the first.
        gap: the mean time in seconds between one new unit of the run and the next so far; 0 before
            there are two.
        reallocated: whether slots have moved in the run.
        running_since: the start of the run, or when it was last resumed.
        watermark: all that live routers received before it is known.
    """

    ratio: RatioWatch
    units: int
    several: int
    last_unit: datetime | None
    reallocated: bool
    running_since: datetime
    watermark: datetime
    gap: float = 0.0


class Finding(msgspec.Struct, frozen=True):
    """What a check says.

    Arguments:
        check: which one.
        found: whether something is wrong.
        measure: what is done about it where it is.
        value, limit: what was found, and what it was judged by: log evidence, seconds, or a share.
            Units that cannot be are found whatever the evidence.
    """

    check: Check
    found: bool
    measure: Measure
    value: float
    limit: float


class HealthEvidence(msgspec.Struct, frozen=True, tag_field="type", tag="health"):
    """What a ruling on a run's data was computed from, and what it gave: `recompute` gives it
    again. `stood` is whether the finding stood before.
    """

    rule: HealthRule
    seen: HealthSeen
    stood: bool
    finding: Finding


def findings(
    rule: HealthRule, seen: HealthSeen, standing: Mapping[Check, Measure]
) -> tuple[Finding, ...]:
    """What all checks say that can say something. Those that are ignored say only that what they
    had found before stands no more.

    Arguments:
        standing: the findings that were acted on and have not cleared since, and how.
    """
    checks: tuple[Check, ...] = ("sample_ratio", "no_data", "several_variants")
    found = (_judge(check, rule, seen, stood=check in standing) for check in checks)
    return tuple(
        finding
        for finding in found
        if finding and (finding.measure != "ignore" or finding.check in standing)
    )


def act_on(finding: Finding, standing: Mapping[Check, Measure]) -> bool:
    """Whether a finding is new, or calls for more than what was done about it."""
    done = standing.get(finding.check, "ignore")
    return finding.found and _SEVERITY[finding.measure] > _SEVERITY[done]


def recompute(evidence: HealthEvidence) -> Finding | None:
    """The finding, computed again from what was stored with it."""
    return _judge(evidence.finding.check, evidence.rule, evidence.seen, stood=evidence.stood)


def in_words(finding: Finding, seen: HealthSeen) -> str:
    """A finding as a reason, with its numbers."""
    if finding.measure == "ignore":
        return f"the check {finding.check} is ignored now"
    match finding.check:
        case "sample_ratio":
            return _ratio_in_words(finding, seen)
        case "no_data":
            since = (
                "" if seen.last_unit is None else f"; the last one came at {_when(seen.last_unit)}"
            )
            if not finding.found:
                return f"new units come again{since}"
            rare = f" ({GAPS} usual gaps)" if finding.limit == GAPS * seen.gap else ""
            return (
                f"no new unit for {_duration(finding.value)}, more than "
                f"{_duration(finding.limit)}{rare}, though routers report up to "
                f"{_when(seen.watermark)}{since}"
            )
        case "several_variants":
            more = "more" if finding.found else "no more"
            moved = (
                "; slots have moved, so that units that return have to meet another variant"
                if finding.found and seen.reallocated
                else ""
            )
            return (
                f"{seen.several:,} of {seen.units:,} units ({finding.value:.1%}) met several "
                f"variants, {more} than {finding.limit:.1%}{moved}"
            )


def _judge(check: Check, rule: HealthRule, seen: HealthSeen, *, stood: bool) -> Finding | None:
    finding = _looked(check, rule, seen, stood=stood)
    if finding is not None and finding.measure == "ignore":
        return msgspec.structs.replace(finding, found=False)
    return finding


def _looked(check: Check, rule: HealthRule, seen: HealthSeen, *, stood: bool) -> Finding | None:
    match check:
        case "sample_ratio":
            return _sample_ratio(rule, seen.ratio)
        case "no_data":
            return _no_data(rule, seen)
        case "several_variants":
            return _several(rule, seen, stood=stood)


def _sample_ratio(rule: HealthRule, ratio: RatioWatch) -> Finding | None:
    """By the e-process of `ratio_watch.py`. A roll-back is paid from the guard's alpha: if E was an
    e-process from the start, E_t / E_s is one from any stopping time s on, so that it reaches
    1/share with a chance of at most the share. Other measures go by its own bound, once in a run.
    """
    if rule.sample_ratio != "rollback":
        limit = LOG_THRESHOLD
        return Finding("sample_ratio", ratio.alarm, rule.sample_ratio, ratio.log_peak, limit)
    if rule.ledger is None:
        return None
    value, limit = ratio.log_e - rule.since.log_e, -math.log(rule.ledger.alpha_share)
    proof = sum(ratio.impossible.values()) > rule.since.impossible
    return Finding("sample_ratio", proof or value >= limit, "rollback", value, limit)


def _no_data(rule: HealthRule, seen: HealthSeen) -> Finding | None:
    """Silence is counted up to the watermark, so that a router that says nothing is not taken for
    units that do not come; and from when the run went on, if it was paused. Where units are rare
    a silence has to be longer than `GAPS` of their usual gaps, too: 30 minutes pass by chance in
    every third gap where two units come in an hour."""
    if seen.last_unit is None:
        return None
    silence = (seen.watermark - max(seen.last_unit, seen.running_since)).total_seconds()
    limit = max(rule.silence, GAPS * seen.gap)
    return Finding("no_data", silence > limit, rule.no_data, silence, limit)


def _several(rule: HealthRule, seen: HealthSeen, *, stood: bool) -> Finding | None:
    """Where slots have moved, units that return have to meet another variant: that is told, but
    nothing is paused for it."""
    if seen.units < LEAST_UNITS:
        return None
    measure = rule.several_variants
    if seen.reallocated and _SEVERITY[measure] > _SEVERITY["alert"]:
        measure = "alert"
    limit = rule.share * CLEAR_BELOW if stood else rule.share
    share = seen.several / seen.units
    return Finding("several_variants", share > limit, measure, share, limit)


def _ratio_in_words(finding: Finding, seen: HealthSeen) -> str:
    ratio = seen.ratio
    if ratio.impossible:
        named = ", ".join(f"{count:,} of {key}" for key, count in sorted(ratio.impossible.items()))
        return f"units came while their variant had no traffic: {named}"
    counted = "; ".join(_counted(ratio))
    reached = "reached" if finding.found else "is below"
    return (
        f"units are {'not ' if finding.found else ''}split as their propensities say ({counted}): "
        f"evidence e^{finding.value:.2f} {reached} its threshold e^{finding.limit:.2f}"
    )


def _counted(ratio: RatioWatch) -> Iterator[str]:
    for variant, units in sorted(ratio.units.items()):
        yield f"{variant} {units:,}, expected {ratio.expected.get(variant, 0.0):,.0f}"


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    for length, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m")):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
