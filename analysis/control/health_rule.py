"""Health checks as a rule: a finding about a run's data is acted on once, and again only after it
has cleared. `analysis.inference.health_findings` says what is found."""

from collections.abc import Sequence
from typing import Final

import msgspec

from analysis.control import alpha
from analysis.control.ruling import Act, Alert, Pause, RollBack, Ruling, Situation
from analysis.folding.health import read_health
from analysis.inference.health import Arrivals
from analysis.inference.health_findings import (
    Check,
    HealthEvidence,
    HealthRule,
    HealthSeen,
    Measure,
    RatioRule,
    RatioStart,
    act_on,
    findings,
    in_words,
)
from analysis.inference.ratio_check import UnitSums
from analysis.inference.ratio_watch import RatioWatch
from experiments.model import HealthChecks, parse_duration
from experiments.records import ExperimentRecord
from experiments.store import Connection

SAMPLE_RATIO: Final = "$sample_ratio"
"""The key of the check's row in the guard's ledger: no metric has it."""

_ACTS: Final[dict[Measure, Act]] = {"alert": Alert(), "pause": Pause(), "rollback": RollBack()}
_SEEN: Final = """
    select r.unit_sums, coalesce(r.resumed_at, r.started_at) as running_since, h.health,
           (select json_object_agg(f.name, f.action) from health_finding f
            where f.experiment = r.experiment and f.run = r.number) as standing
    from run r left join run_health h on h.experiment = r.experiment and h.run = r.number
    where r.experiment = $1 and r.number = $2
"""
_STANDS: Final = """
    insert into health_finding (experiment, run, name, action, since) values ($1, $2, $3, $4, $5)
    on conflict (experiment, run, name) do update
    set action = excluded.action, since = excluded.since
"""
_CLEARED: Final = "delete from health_finding where experiment = $1 and run = $2 and name = $3"


class _Arrived(msgspec.Struct, frozen=True):
    """What the checks read of a run's health."""

    ratio: RatioWatch = RatioWatch()
    enrolments: Arrivals = Arrivals()


async def consult(connection: Connection, situation: Situation) -> Sequence[Ruling]:
    """What the health checks say: nothing of a run that does not enrol."""
    record, now = situation.record, situation.now
    if record.state != "running":
        return ()
    rule = await _rule(connection, record, record.definition.guard.health)
    seen, standing = await _seen(connection, situation)
    rulings: list[Ruling] = []
    found = findings(rule, seen, standing)
    left = dict(standing)
    for finding in found:
        evidence = HealthEvidence(rule, seen, finding.check in standing, finding)
        words = in_words(finding, seen)
        key = (record.id, record.run, finding.check)
        if act_on(finding, standing):
            await connection.execute(_STANDS, *key, finding.measure, now)
            left[finding.check] = finding.measure
            act = _ACTS[finding.measure]
            rulings.append(Ruling("health", finding.check, words, act, evidence))
            if isinstance(act, RollBack):
                break
        elif not finding.found and finding.check in standing:
            await connection.execute(_CLEARED, *key)
            del left[finding.check]
            # The code says which one, while others stand: a rule that holds for the same code as
            # before is not written down again.
            code = f"{finding.check}_clear" if left else "clear"
            rulings.append(Ruling("health", code, words, None, evidence))
    return rulings


async def _rule(
    connection: Connection, record: ExperimentRecord, checks: HealthChecks
) -> HealthRule:
    rule = HealthRule(
        sample_ratio=checks.sample_ratio.action,
        no_data=checks.no_data.action,
        several_variants=checks.several_variants.action,
        silence=parse_duration(checks.no_data.after).total_seconds(),
        share=checks.several_variants.share,
    )
    if checks.sample_ratio.action != "rollback":
        return rule
    for row in await alpha.open_rows(connection, record.id, record.run):
        if row.metric == SAMPLE_RATIO:
            return msgspec.structs.replace(
                rule,
                ledger=msgspec.json.decode(row.rule, type=RatioRule),
                since=msgspec.json.decode(row.state, type=RatioStart),
            )
    return rule


async def _seen(
    connection: Connection, situation: Situation
) -> tuple[HealthSeen, dict[Check, Measure]]:
    """What the checks look at, and the findings that stand."""
    record = situation.record
    row = await connection.fetchrow(_SEEN, record.id, record.run)
    assert row is not None, "an experiment that runs has a run"  # noqa: S101 - an invariant
    health = msgspec.json.decode(row["health"] or "{}", type=_Arrived)
    enrolled = msgspec.json.decode(row["unit_sums"] or "{}", type=UnitSums)
    seen = HealthSeen(
        ratio=health.ratio,
        units=sum(found.units for found in enrolled.variants.values()),
        several=sum(found.several for found in enrolled.variants.values()),
        last_unit=health.enrolments.last,
        reallocated=enrolled.reallocated,
        running_since=row["running_since"],
        watermark=situation.watermark,
        gap=health.enrolments.gap,
    )
    return seen, msgspec.json.decode(row["standing"] or "{}", type=dict[Check, Measure])


async def opening(connection: Connection, record: ExperimentRecord) -> alpha.Opening:
    """How the sample ratio comes to the guard's ledger, where it may roll back."""
    ratio = (await read_health(connection, record.id, record.run)).ratio
    since = RatioStart(ratio.log_e, sum(ratio.impossible.values()))
    return alpha.Opening(
        metric=SAMPLE_RATIO,
        version="",
        variant="",
        opened_block=0,
        begin=lambda share: (RatioRule(share), since),
    )
